"""Command line of ``python -m ci.codegen [--all]``: a table of the compiled kernels, without a GPU.

Registers, spills, widths, instructions, bytes and occupancy are read from the code that the
compiler makes for each target; a bound of the time is computed from the bytes.
"""

import argparse
import os
import shlex
import sys
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from rich.console import Console
from rich.progress import track

from ci.codegen import builds, table
from ci.codegen.devices import DEVICES
from ci.codegen.facts import Facts
from ci.codegen.rules import RULES

ROOT = Path(__file__).parents[2]
# the table without options: rules of every shape, and the targets of named devices
RULES_SHOWN = ("adam", "adan", "lion", "sgd_momentum", "lamb")
TARGETS_SHOWN = tuple(dict.fromkeys(device.target for device in DEVICES.values()))
KERNELS_SHOWN = ("update", "reduce", "norm")  # the kernels that go through all elements


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command's options."""
    made = argparse.ArgumentParser(prog="python -m ci.codegen", description=__doc__)
    made.add_argument("--all", action="store_true", help="every rule, format, target and alignment")
    made.add_argument("--rules", nargs="+", choices=list(RULES), metavar="RULE")
    made.add_argument("--formats", nargs="+", choices=list(builds.FORMATS), metavar="FORMAT")
    made.add_argument("--targets", nargs="+", choices=list(builds.TARGETS), metavar="TARGET")
    made.add_argument("--unaligned", action="store_true", help="also rows that are not aligned")
    made.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes that compile")
    made.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results")
    made.add_argument("--dry", action="store_true", help="print the table, write no file")
    return made


def chosen(options: argparse.Namespace) -> list[builds.Build]:
    """Return the builds that the options choose, in the order of the table."""
    rules = options.rules or (list(RULES) if options.all else RULES_SHOWN)
    formats = options.formats or list(builds.FORMATS)
    targets = options.targets or (list(builds.TARGETS) if options.all else TARGETS_SHOWN)
    alignments = (True, False) if options.all or options.unaligned else (True,)
    # the norm depends on nothing but the gradient
    kinds = {name: builds.FORMATS[name](RULES[rules[0]]) for name in reversed(formats)}
    norms = {kind.dtypes[kind.first[1]]: name for name, kind in kinds.items()}
    return [
        builds.Build(rule, name, target, aligned, kernel)
        for kernel in KERNELS_SHOWN
        for rule in rules
        if kernel != "norm" or rule == rules[0]
        if kernel != "reduce" or RULES[rule].reduction is not None
        for name in (norms.values() if kernel == "norm" else formats)
        for target in targets
        for aligned in alignments
    ]


def read_line(build: builds.Build) -> table.Line:
    """Compile one kernel and read its facts."""
    kernel = builds.compiled(build.kind, build.kernel, build.target)
    facts = Facts(kernel, build.kernel, build.target, build.kind)
    return table.line(facts, "" if build.kernel == "norm" else build.rule, build.format)


def read_lines(wanted: Sequence[builds.Build], jobs: int) -> Iterable[table.Line]:
    """Yield a line of the table for every build, in order; ``jobs`` processes compile."""
    if jobs <= 1:
        yield from map(read_line, wanted)
        return
    # forking a process that has started the compiler's threads is not safe
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        yield from pool.map(read_line, wanted, chunksize=4)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return 1 if a kernel fails a check, else 0."""
    options = parser().parse_args(arguments)
    wanted = chosen(options)
    progress = Console(stderr=True)
    found = read_lines(wanted, options.jobs)
    lines = list(track(found, "compiling", len(wanted), console=progress))
    table.show(lines, Console(width=None if sys.stdout.isatty() else 240))
    if not options.dry:
        given = sys.argv[1:] if arguments is None else list(arguments)
        command = shlex.join(["python", "-m", "ci.codegen", *given])
        for path in table.write(lines, command, options.output):
            progress.print(f"written: {path}")
    wrong = [one for one in lines if one.complaints]
    for one in wrong:
        where = f"{one.kernel} {one.rule} {one.format} {one.target}"
        progress.print(f"{where}: {'; '.join(one.complaints)}", style="red", markup=False)
    return 1 if wrong else 0
