"""Columns that end at protected memory, so that an access outside a kernel's rows is fatal.

In a process of their own, since such an access is the end of it: see guarded.py. Faults tried by
hand: a mask with one element more; a tail that is loaded whole; a tail that is stored whole.
"""

import os
import signal
import subprocess
import sys
from pathlib import Path

from native.kernels import HERE

from ci.codegen.builds import FORMATS

TESTS = Path(__file__).parents[1]


def guarded(formats, lie=0):
    """Run guarded.py in its own process, with every level of this machine."""
    path = os.pathsep.join([str(TESTS), str(TESTS.parent)])
    program, levels = TESTS / "native" / "guarded.py", ",".join(HERE)
    return subprocess.run(
        [sys.executable, program, levels, ",".join(formats), str(lie)],
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
    )


def test_every_length_at_both_ends_of_memory():
    done = guarded([*FORMATS, "rows"])
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout == "nothing was touched\n"


def test_one_element_too_many_is_seen():
    """Guard against protection without effect: one element too many must crash."""
    names = ["fp32", "split24-int8", "rows"]
    done = guarded(names, lie=1)
    expected = [f"{level} {name} {signal.SIGSEGV.value}" for level in HERE for name in names]
    assert done.stdout.splitlines() == expected, done.stderr[-2000:]
