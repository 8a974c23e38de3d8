"""The static facts of many kernels as a table on the terminal, in Markdown and in JSON."""

import datetime
import json
import platform
from collections import Counter
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table

from ci.codegen.checks import complaints
from ci.codegen.devices import DEVICES, roofline
from ci.codegen.facts import Facts
from ci.codegen.sass import ptxas_version

NOTE = (
    "Read from the compiled code; nothing was run. Registers are 32-bit registers a thread (vector "
    "registers on AMD), spills and local memory are in the column `spills` (registers, or bytes of "
    "stack on NVIDIA). Widths are the bits of each access of a column on the path of full chunks. "
    "Instructions an element: machine code (SASS, amdgcn) of that path, without the slow path of "
    "division and root; blank where predicates replace paths. Bytes an element: of "
    "that path. Occupancy: from the limits that the makers publish. Times are bytes / bandwidth of "
    "the data sheet: a bound that no kernel can pass, not a measurement."
)


class Line(NamedTuple):
    """The facts of one kernel: a row of the table."""

    kernel: str
    rule: str
    format: str
    target: str
    aligned: bool
    registers: int
    spills: int
    loads: str
    stores: str
    instructions_per_element: float | None
    bytes_per_element: float
    floor: float
    occupancy: float
    roofline_ms_per_billion: dict[str, float]
    complaints: list[str]


def widths(facts: Facts, store: bool) -> str:
    """Return the number of accesses of each width in bits: ``2x64 4x128``."""
    found = Counter(8 * access.size for access in facts.full if access.store == store)
    return " ".join(f"{found[bits]}x{bits}" for bits in sorted(found))


def line(facts: Facts, rule: str, format_: str) -> Line:
    """Return the facts of one kernel."""
    moved, instructions = facts.bytes_per_element, facts.instructions_per_element
    bounds = {
        name: round(1e3 * roofline(moved, device), 3)
        for name, device in DEVICES.items()
        if device.target == facts.target
    }
    return Line(
        facts.name,
        rule,
        format_,
        facts.target,
        facts.kind.aligned,
        facts.registers,
        facts.spills,
        widths(facts, store=False),
        widths(facts, store=True),
        None if instructions is None else round(instructions, 1),
        moved,
        facts.floor,
        round(facts.occupancy, 2),
        bounds,
        complaints(facts),
    )


def versions() -> dict[str, str]:
    """Return the versions of the packages and assemblers that were used."""
    return {
        "python": platform.python_version(),
        "torch": metadata.version("torch"),
        "triton": metadata.version("triton"),
        "ptxas": ptxas_version(blackwell=False),
        "ptxas-blackwell": ptxas_version(blackwell=True),
    }


def _rows(lines: list[Line]) -> list[list[str]]:
    return [
        [
            one.kernel if one.aligned else f"{one.kernel}, unaligned",
            one.rule,
            one.format,
            one.target,
            str(one.registers),
            str(one.spills),
            one.loads,
            one.stores,
            "" if one.instructions_per_element is None else f"{one.instructions_per_element:.1f}",
            f"{one.bytes_per_element:g}",
            f"{one.occupancy:.0%}",
            *(_time(one, device) for device in DEVICES),
        ]
        for one in lines
    ]


def _time(one: Line, device: str) -> str:
    value = one.roofline_ms_per_billion.get(device)
    return "" if value is None else f"{value:.2f}"


HEAD = [
    "kernel",
    "rule",
    "format",
    "target",
    "registers",
    "spills",
    "loads",
    "stores",
]
HEAD += ["instr/el", "B/el", "occupancy", *(f"{name} ms/1e9" for name in DEVICES)]


def show(lines: list[Line], console: Console) -> None:
    """Print the table."""
    table = Table(title="Static facts of the compiled kernels", caption=NOTE)
    for i, name in enumerate(HEAD):
        table.add_column(name, justify="left" if i < 4 else "right", no_wrap=True)
    for row in _rows(lines):
        table.add_row(*row)
    console.print(table)


def _markdown(lines: list[Line], record: dict[str, Any]) -> str:
    made = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    parts = [
        "# Static facts of the compiled kernels",
        NOTE,
        f"`{record['command']}`, {record['date']}: {made}.",
        "Bandwidths: " + "; ".join(device.source for device in DEVICES.values()) + ".",
        "\n".join(
            "| " + " | ".join(row) + " |"
            for row in [
                HEAD,
                ["---"] * 4 + ["---:"] * (len(HEAD) - 4),
                *_rows(lines),
            ]
        ),
    ]
    return "\n\n".join(parts) + "\n"


def write(lines: list[Line], command: str, folder: Path) -> list[Path]:
    """Write ``kernels.json`` and ``kernels.md`` to ``folder``; return their paths."""
    record = {
        "command": command,
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "versions": versions(),
        "note": NOTE,
        "bandwidths": {name: device._asdict() for name, device in DEVICES.items()},
    }
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / "kernels.json", folder / "kernels.md"]
    facts = ",\n".join(json.dumps(one._asdict()) for one in lines)
    head = json.dumps(record, indent=1).removesuffix("\n}")
    paths[0].write_text(f'{head},\n "kernels": [\n{facts}\n ]\n}}\n')
    paths[1].write_text(_markdown(lines, record))
    return paths
