"""Static facts of the compiled kernels: ``python -m benchmarks.kernels [--all]``; needs no GPU.

Registers, spills, widths, instructions, bytes and occupancy are read from the code that the
compiler makes for each target, and the time that the memory of a GPU needs for the bytes follows.
"""

import argparse
import os
import shlex
import sys
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track

ROOT = Path(__file__).parents[1]
# the formats, targets and ways to compile are those of the tests
sys.path.append(str(ROOT / "tests"))

from compiled import build as builds  # type: ignore[import-not-found]  # noqa: E402
from helpers.models import RULES  # type: ignore[import-not-found]  # noqa: E402

from benchmarks import static_table  # noqa: E402
from benchmarks.static_devices import DEVICES  # noqa: E402
from benchmarks.static_facts import Facts  # noqa: E402

# what the table has without options: rules of every shape, and the targets of named devices
RULES_SHOWN = ("adam", "adan", "lion", "sgd_momentum", "lamb")
TARGETS_SHOWN = tuple(dict.fromkeys(device.target for device in DEVICES.values()))
TABLED = ("update", "reduce", "norm")  # the kernels that go through all elements


def parser() -> argparse.ArgumentParser:
    """The options of the command."""
    made = argparse.ArgumentParser(prog="python -m benchmarks.kernels", description=__doc__)
    made.add_argument("--all", action="store_true", help="every rule, format, target and alignment")
    made.add_argument("--rules", nargs="+", choices=list(RULES), metavar="RULE")
    made.add_argument("--formats", nargs="+", choices=list(builds.FORMATS), metavar="FORMAT")
    made.add_argument("--targets", nargs="+", choices=list(builds.TARGETS), metavar="TARGET")
    made.add_argument("--unaligned", action="store_true", help="also rows that are not aligned")
    made.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes that compile")
    made.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results")
    made.add_argument("--dry", action="store_true", help="print the table, write no file")
    return made


def chosen(options: argparse.Namespace) -> list[Any]:
    """The builds to look at, in the order of the table."""
    rules = options.rules or (list(RULES) if options.all else RULES_SHOWN)
    formats = options.formats or list(builds.FORMATS)
    targets = options.targets or (list(builds.TARGETS) if options.all else TARGETS_SHOWN)
    alignments = (True, False) if options.all or options.unaligned else (True,)
    # the norm depends on nothing but the gradient
    kinds = {name: builds.FORMATS[name](RULES[rules[0]]) for name in reversed(formats)}
    norms = {kind.dtypes[kind.first[1]]: name for name, kind in kinds.items()}
    return [
        builds.Build(rule, name, target, aligned, kernel)
        for kernel in TABLED
        for rule in rules
        if kernel != "norm" or rule == rules[0]
        if kernel != "reduce" or RULES[rule].reduction is not None
        for name in (norms.values() if kernel == "norm" else formats)
        for target in targets
        for aligned in alignments
    ]


def look(build: Any) -> static_table.Line:
    """Compile one kernel and read its facts."""
    kernel = builds.compiled(build.kind, build.kernel, build.target)
    facts = Facts(kernel, build.kernel, build.target, build.kind)
    return static_table.line(facts, "" if build.kernel == "norm" else build.rule, build.format)


def looked(wanted: Sequence[Any], jobs: int) -> Iterable[static_table.Line]:
    """The facts of every build, in order."""
    if jobs <= 1:
        yield from map(look, wanted)
        return
    # forking a process that has started the compiler's threads is not safe
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        yield from pool.map(look, wanted, chunksize=4)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; 1 if something that must hold does not."""
    options = parser().parse_args(arguments)
    wanted = chosen(options)
    progress = Console(stderr=True)
    found = looked(wanted, options.jobs)
    lines = list(track(found, "compiling", len(wanted), console=progress))
    static_table.show(lines, Console(width=None if sys.stdout.isatty() else 240))
    if not options.dry:
        given = sys.argv[1:] if arguments is None else list(arguments)
        command = shlex.join(["python", "-m", "benchmarks.kernels", *given])
        for path in static_table.write(lines, command, options.output):
            progress.print(f"written: {path}")
    wrong = [one for one in lines if one.complaints]
    for one in wrong:
        where = f"{one.kernel} {one.rule} {one.format} {one.target}"
        progress.print(f"{where}: {'; '.join(one.complaints)}", style="red", markup=False)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
