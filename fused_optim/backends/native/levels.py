"""The detection of the levels of machine code that this machine runs, without triton."""

import os
import platform
import sys
from functools import cache
from pathlib import Path

# the levels of the x86-64 psABI as flags of /proc/cpuinfo, where Linux lists a flag only if it also
# saves the registers of the feature
V2 = frozenset({"cx16", "lahf_lm", "popcnt", "pni", "sse4_1", "sse4_2", "ssse3"})
V3 = V2 | {"abm", "avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "movbe", "xsave"}
V4 = V3 | {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}
FLAGS = {"x86-64-v4": V4, "x86-64-v3": V3, "x86-64-v2": V2}
VARIABLE = "FUSED_OPTIM_CPU_LEVEL"
CPUINFO = Path("/proc/cpuinfo")


class NoNativeCode(RuntimeError):
    """An error: this machine runs no code of the native backend."""


def level() -> str:
    """Return the level to compile for: FUSED_OPTIM_CPU_LEVEL, or the best of this machine.

    Raises:
        NoNativeCode: the machine runs no level.
        ValueError: FUSED_OPTIM_CPU_LEVEL names a level that this machine does not run.
    """
    available = levels()
    asked = os.environ.get(VARIABLE)
    if asked is None:
        return available[0]
    if asked not in available:
        raise ValueError(f"{VARIABLE} must be one of {', '.join(available)} here, got {asked!r}")
    return asked


@cache
def levels() -> tuple[str, ...]:
    """Return the levels that this machine runs, the best first.

    Raises:
        NoNativeCode: the machine runs no level.
    """
    machine = platform.machine()
    if sys.platform != "linux":
        raise NoNativeCode(f"backend='native' runs on Linux, not on {sys.platform}")
    if sys.maxsize < 1 << 62:
        raise NoNativeCode("backend='native' needs a Python of 64 bits")
    if machine == "aarch64" and sys.byteorder == "little":
        return ("aarch64",)
    if machine != "x86_64":
        raise NoNativeCode(f"backend='native' has no code for {machine}")
    flags = cpu_flags(CPUINFO.read_text())
    runnable = tuple(name for name, needed in FLAGS.items() if needed <= flags)
    if not runnable:
        missing = ", ".join(sorted(V2 - flags))
        raise NoNativeCode(f"backend='native' needs a CPU of x86-64-v2; this one lacks {missing}")
    return runnable


def cpu_flags(cpuinfo: str) -> set[str]:
    """Return the flags that every processor has, from the text of /proc/cpuinfo."""
    lines = [line for line in cpuinfo.splitlines() if line.startswith("flags")]
    flags = [set(line.partition(":")[2].split()) for line in lines]
    return set.intersection(*flags) if flags else set()
