"""Results as Markdown and as plots: ``python -m benchmarks.report [RESULTS.json ...]``.

Every ``NAME.json`` that ``pytest benchmarks --benchmark-json=benchmarks/results/NAME.json`` wrote
gives a ``NAME.md`` and plots ``NAME-*.png`` beside it.
"""

import argparse
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from benchmarks import goals

Row = dict[str, Any]
RESULTS = Path(__file__).parent / "results"


def read(path: Path) -> tuple[Row, list[Row]]:
    """The whole file, and its rows: the facts of each variant with its statistics."""
    content: Row = json.loads(path.read_text())
    entries = content.get("benchmarks", []) if isinstance(content, dict) else []
    rows = [
        {**row["extra_info"], **row["stats"], "name": row["name"], "group": row["group"]}
        for row in entries
        if "role" in row.get("extra_info", {})
    ]
    return content, rows


def by_group(rows: Iterable[Row], suite: str) -> dict[str, list[Row]]:
    """The rows of each race, the fastest first, the roofline last."""
    groups: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        if row["suite"] == suite:
            groups[row["group"]].append(row)
    for group in groups.values():
        group.sort(key=lambda row: (row["role"] == "roofline", row["median"]))
    return dict(groups)


def best(rows: Iterable[Row], role: str) -> Row | None:
    """The fastest of a role."""
    return min((r for r in rows if r["role"] == role), key=lambda r: r["median"], default=None)


def bandwidth(row: Row) -> float:
    """Bytes in a second."""
    return float(row["bytes"] / row["median"])


def roofline(rows: Iterable[Row]) -> float:
    """The best that the memory did in a race, in bytes in a second."""
    return max(bandwidth(row) for row in rows if row["role"] == "roofline")


def seconds(value: float) -> str:
    """A time with three digits and a fitting unit."""
    for scale, unit in ((1, "s"), (1e3, "ms")):
        if value * scale >= 1:
            return f"{value * scale:.3g} {unit}"
    return f"{value * 1e6:.3g} µs"


def ratio(row: Row, rival: Row | None) -> str:
    """The time of ours as a multiple of the best rival's."""
    if row["role"] != "ours" or rival is None:
        return ""
    return f"{row['median'] / rival['median']:.2f}"


def table(heads: list[str], lines: Iterable[list[str]]) -> Iterator[str]:
    """A Markdown table; all but the first column to the right."""
    yield "| " + " | ".join(heads) + " |"
    yield "|---|" + "---:|" * (len(heads) - 1)
    for line in lines:
        yield "| " + " | ".join(line) + " |"
    yield ""


def header(content: Row) -> Iterator[str]:
    """Machine, versions, date, commit and command."""
    machine, commit = content["machine_info"], content["commit_info"]
    changed = ", with changes" if commit.get("dirty") else ""
    versions = ", ".join(f"{name} {v}" for name, v in machine["versions"].items())
    parts = [machine.get("gpu"), machine["cpu"], f"{machine['cores']} cores"]
    parts += [f"{machine['threads']} threads", machine["system"]]
    yield f"- machine: {', '.join(part for part in parts if part)}"
    yield f"- versions: Python {machine['python']}, {versions}"
    yield f"- date: {content['datetime'][:10]}, commit {str(commit.get('id'))[:10]}{changed}"
    yield f"- command: `{machine['command']}`"
    yield ""


def steps(rows: list[Row]) -> Iterator[str]:
    """A table for each race of optimizers."""
    heads = ["", "median", "IQR", "ours / best rival", "bytes / parameter", "GB/s", "of roofline"]
    for name, group in by_group(rows, "step").items():
        rival, top, first = best(group, "rival"), roofline(group), group[0]
        clip = ", clipped" if first["clip"] else ""
        yield f"### {first['optimizer']}, {first['format']}{clip}: {first['model']}"
        yield ""
        sizes = [f"tensors: {first['tensors']:,}", f"groups: {first['groups']:,}", first["cut"]]
        sizes.append(f"parameters: {first['parameters']:,}")
        yield f"{', '.join(size for size in sizes if size)} (`{name}`)"
        yield ""
        yield from table(heads, (step_line(row, rival, top) for row in group))


def step_line(row: Row, rival: Row | None, top: float) -> list[str]:
    """The numbers of one variant."""
    each = f"{row['bytes'] / row['parameters']:.1f}" if row["role"] != "roofline" else ""
    return [
        row["name"],
        seconds(row["median"]),
        seconds(row["iqr"]),
        ratio(row, rival),
        each,
        f"{bandwidth(row) / 1e9:.1f}",
        f"{bandwidth(row) / top:.0%}",
    ]


def slope(rows: list[Row]) -> float:
    """Seconds for each further tensor: least squares over relative errors."""
    import numpy as np

    count = np.array([row["tensors"] for row in rows], float)
    time = np.array([row["median"] for row in rows], float)
    return float(np.polyfit(count, time, 1, w=1 / time)[0])


def host(rows: list[Row]) -> Iterator[str]:
    """Host time by number of tensors, its slope, the effect of groups, allocations."""
    found = [row for row in rows if row["suite"] == "host"]
    sizes = sorted({row["tensors"] for row in found})
    heads = ["", "groups", *(f"{size:,} tensors" for size in sizes), "each tensor"]
    heads += ["tensor allocations", "peak of Python objects"]
    lines = []
    for name in dict.fromkeys(row["name"] for row in found):
        for groups in sorted({row["groups"] for row in found}):
            own = [row for row in found if (row["name"], row["groups"]) == (name, groups)]
            own.sort(key=lambda row: row["tensors"])
            if len(own) == len(sizes) > 1:
                times = [seconds(row["median"]) for row in own]
                lines.append([name, str(groups), *times, seconds(slope(own)), *allocated(own[-1])])
    if lines:
        yield "### Host: AdamW with clipping, before the GPU gets its work"
        yield ""
        yield from table(heads, lines)
        yield f"Allocations: of one step of {sizes[-1]:,} tensors."
        yield ""


def allocated(row: Row) -> list[str]:
    """What a step allocates, where it was counted."""
    if "python_peak" not in row:
        return ["", ""]
    return [str(row["tensor_allocations"]), f"{row['python_peak'] / 1e6:.2f} MB"]


def training(rows: list[Row]) -> Iterator[str]:
    """Tokens in a second and peak memory."""
    heads = ["", "tokens/s", "step", "IQR", "ours / best rival", "peak memory"]
    for group in by_group(rows, "training").values():
        rival = best(group, "rival")
        yield f"### Training with {group[0]['optimizer']}: {group[0]['model']}"
        yield ""
        lines = (
            [
                row["name"],
                f"{row['tokens'] / row['median']:,.0f}",
                seconds(row["median"]),
                seconds(row["iqr"]),
                ratio(row, rival),
                f"{row['memory'] / 1e6:,.1f} MB",
            ]
            for row in group
        )
        yield from table(heads, lines)


def absent(content: Row) -> Iterator[str]:
    """Who did not take part, and why."""
    reasons: dict[str, set[str]] = defaultdict(set)
    for found in content.get("absent", {}).values():
        for name, why in found.items():
            reasons[name].add(why)
    if reasons:
        yield "### Not measured"
        yield ""
        yield from (f"- {name}: {'; '.join(sorted(whys))}" for name, whys in reasons.items())
        yield ""


def markdown(content: Row, rows: list[Row], plots: list[str]) -> str:
    """The whole page."""
    lines = [*header(content), *(f"![{plot}]({plot})" for plot in plots), ""]
    lines += [*goals.lines(rows), *steps(rows), *host(rows), *training(rows), *absent(content)]
    return "\n".join(lines).rstrip() + "\n"


def main(arguments: Iterable[str] | None = None) -> int:
    """Write a page and plots for each file of results."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description=__doc__)
    parser.add_argument("results", nargs="*", type=Path, help="default: benchmarks/results/*.json")
    options = parser.parse_args(None if arguments is None else list(arguments))
    for path in options.results or sorted(RESULTS.glob("*.json")):
        content, rows = read(path)
        if not rows:  # of another suite
            continue
        # the plots alone need matplotlib, which a machine that only measures may lack
        from benchmarks.plots import draw

        plots = draw(rows, path.with_suffix(""))
        page = path.with_suffix(".md")
        page.write_text(f"# {path.stem}\n\n{markdown(content, rows, plots)}")
        print(page)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
