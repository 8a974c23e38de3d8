"""Results as Markdown and as plots: ``python -m benchmarks.report [RESULTS.json ...]``.

Every ``NAME.json`` that ``pytest benchmarks --benchmark-json=benchmarks/results/NAME.json`` wrote
gives a ``NAME.md`` and plots ``NAME-*.png`` beside it. With ``--summary`` only the table of
docs/benchmarks.md is printed.
"""

import argparse
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import goals

Row = dict[str, Any]
RESULTS = Path(__file__).parent / "results"
BESIDE = "ours / fastest other"
SUMMARY = ("fused_optim native", "fused_optim reference", "DeepSpeed", "bitsandbytes")
MODELS = {
    "one-50m": "one tensor of 50 M",
    "gpt2-124m": "GPT-2 124 M, 148 tensors",
    "gpt-1m": "GPT of the demo, 27 tensors",
    "tiny-1000": "1,000 tiny tensors",
}


def read(path: Path) -> tuple[Row, list[Row]]:
    """Return the whole file, and its rows: the facts of each variant with its statistics."""
    content: Row = json.loads(path.read_text())
    entries = content.get("benchmarks", []) if isinstance(content, dict) else []
    rows = [
        {**row["extra_info"], **row["stats"], "name": row["name"], "group": row["group"]}
        for row in entries
        if "role" in row.get("extra_info", {})
    ]
    return content, rows


def by_group(rows: Iterable[Row], suite: str) -> dict[str, list[Row]]:
    """Return the rows of each comparison, the fastest first, the roofline last."""
    groups: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        if row["suite"] == suite:
            groups[row["group"]].append(row)
    for group in groups.values():
        group.sort(key=lambda row: (row["role"] == "roofline", row["median"]))
    return dict(groups)


def best(rows: Iterable[Row], role: str) -> Row | None:
    """Return the fastest of a role."""
    return min((r for r in rows if r["role"] == role), key=lambda r: r["median"], default=None)


def bandwidth(row: Row) -> float:
    """Return the bytes in a second."""
    return float(row["bytes"] / row["median"])


def roofline(rows: Iterable[Row]) -> float:
    """Return the best that the memory did in a comparison, in bytes in a second."""
    return max(bandwidth(row) for row in rows if row["role"] == "roofline")


def seconds(value: float) -> str:
    """Write a time with three digits and a fitting unit."""
    for scale, unit in ((1, "s"), (1e3, "ms")):
        if value * scale >= 1:
            return f"{value * scale:.3g} {unit}"
    return f"{value * 1e6:.3g} µs"


def ratio(row: Row, other: Row | None) -> str:
    """Write our time divided by that of the fastest other library."""
    if row["role"] != "ours" or other is None:
        return ""
    return f"{row['median'] / other['median']:.2f}"


def plural(number: int, noun: str) -> str:
    """Write a number with its noun."""
    return f"{number:,} {noun}{'s' if number != 1 else ''}"


def table(heads: list[str], lines: Iterable[list[str]]) -> Iterator[str]:
    """Yield a Markdown table; all but the first column to the right."""
    yield "| " + " | ".join(heads) + " |"
    yield "|---|" + "---:|" * (len(heads) - 1)
    for line in lines:
        yield "| " + " | ".join(line) + " |"
    yield ""


def header(content: Row) -> Iterator[str]:
    """Yield machine, versions, date, commit and command."""
    machine, commit = content["machine_info"], content["commit_info"]
    changed = ", with changes" if commit.get("dirty") else ""
    versions = ", ".join(f"{name} {v}" for name, v in machine["versions"].items())
    parts = [machine.get("gpu"), machine["cpu"], f"{machine['cores']} cores"]
    parts += ["steps with " + " and ".join(plural(n, "thread") for n in machine["threads"])]
    parts += [machine["system"]]
    yield f"- machine: {', '.join(part for part in parts if part)}"
    yield f"- versions: Python {machine['python']}, {versions}"
    yield f"- date: {content['datetime'][:10]}, commit {str(commit.get('id'))[:10]}{changed}"
    yield f"- command: `{machine['command']}`"
    yield ""


def steps(rows: list[Row]) -> Iterator[str]:
    """Yield a table for each comparison of optimizers."""
    heads = ["", "median", "IQR", BESIDE, "bytes / parameter", "GB/s", "of roofline"]
    for name, group in by_group(rows, "step").items():
        other, top, first = best(group, "other"), roofline(group), group[0]
        clip = ", clipped" if first["clip"] else ""
        case = f"{first['optimizer']}, {first['format']}{clip}: {first['model']}"
        yield f"## {case}, {plural(first['threads'], 'thread')}"
        yield ""
        sizes = [f"tensors: {first['tensors']:,}", f"groups: {first['groups']:,}", first["cut"]]
        sizes.append(f"parameters: {first['parameters']:,}")
        yield f"{', '.join(size for size in sizes if size)} (`{name}`)"
        yield ""
        yield from table(heads, (step_line(row, other, top) for row in group))


def step_line(row: Row, other: Row | None, top: float) -> list[str]:
    """Return the cells of one variant."""
    each = f"{row['bytes'] / row['parameters']:.1f}" if row["role"] != "roofline" else ""
    return [
        row["name"],
        seconds(row["median"]),
        seconds(row["iqr"]),
        ratio(row, other),
        each,
        f"{bandwidth(row) / 1e9:.1f}",
        f"{bandwidth(row) / top:.0%}",
    ]


def formats(rows: list[Row]) -> Iterator[str]:
    """Yield a table of the storage formats: memory, bytes, time, time relative to fp32."""
    heads = ["", "bytes kept / parameter", "moved by a step", "median", "IQR", "GB/s"]
    for group in by_group(rows, "formats").values():
        first, top = group[0], roofline(group)
        plain = [r["median"] for r in group if r["role"] == "ours" and r["format"] == "fp32"]
        yield f"## Storage formats of AdamW, clipped: {first['model']}, " + plural(
            first["threads"], "thread"
        )
        yield ""
        lines = [format_line(row, top, plain[0] if plain else None) for row in group]
        yield from table([*heads, "of roofline", "beside ours in fp32"], lines)


def kept(row: Row) -> float:
    """Return the bytes of parameters and states for each parameter."""
    return float((row["weights_bytes"] + row["states_bytes"]) / row["parameters"])


def format_line(row: Row, top: float, plain: float | None) -> list[str]:
    """Return the cells of one format."""
    sizes = ["", ""]
    if row["role"] != "roofline":
        sizes = [f"{kept(row):.2f}", f"{row['bytes'] / row['parameters']:.2f}"]
    beside = "" if plain is None or row["role"] == "roofline" else f"{row['median'] / plain:.2f}"
    rate = [f"{bandwidth(row) / 1e9:.1f}", f"{bandwidth(row) / top:.0%}"]
    return [row["name"], *sizes, seconds(row["median"]), seconds(row["iqr"]), *rate, beside]


def slope(rows: list[Row]) -> float:
    """Return the seconds for each further tensor: least squares over relative errors."""
    import numpy as np

    count = np.array([row["tensors"] for row in rows], float)
    time = np.array([row["median"] for row in rows], float)
    return float(np.polyfit(count, time, 1, w=1 / time)[0])


def host(rows: list[Row]) -> Iterator[str]:
    """Yield the time by number of tensors, its slope, the effect of groups, allocations."""
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
        yield "## Many tensors of 16 elements: AdamW with clipping"
        yield ""
        yield from table(heads, lines)
        yield (
            "No launches, no kernels: the host's part alone. Warm: right after another step. "
            f"Allocations: of one step of {sizes[-1]:,} tensors."
        )
        yield ""


def allocated(row: Row) -> list[str]:
    """Return what a step allocates, where it was counted."""
    if "python_peak" not in row:
        return ["", ""]
    return [str(row["tensor_allocations"]), f"{row['python_peak'] / 1e6:.2f} MB"]


def first_step(rows: list[Row]) -> Iterator[str]:
    """Yield what the first step takes in fresh processes."""
    heads = [
        "",
        "compiling (first step - second)",
        "shortest",
        "longest",
        "first step",
        "it imported",
    ]
    for group in by_group(rows, "first step").values():
        first = group[0]
        size = f"{first['model']}, {first['parameters']:,} parameters"
        yield f"## First step in a fresh process: AdamW with clipping, {size}"
        yield ""
        lines = []
        for row in sorted(group, key=lambda row: str(row["name"])):
            times = [row["median"], row["min"], row["max"], median(row["first"])]
            name = f"{row['name']}, {row['backend']}"
            lines.append([name, *map(seconds, times), row["imported"]])
        yield from table(heads, lines)


def dtensors(rows: list[Row]) -> Iterator[str]:
    """Yield the time of many DTensors."""
    lines = []
    for group in by_group(rows, "dtensors").values():
        for row in group:
            beside = ratio(row, best(group, "other"))
            times = [seconds(row["median"]), beside, seconds(row["first_step"])]
            lines.append([row["name"], f"{row['tensors']:,}", *times])
    if lines:
        yield "## Many DTensors of 256 elements: AdamW with clipping, one process"
        yield ""
        yield from table(["", "tensors", "median", BESIDE, "first step"], lines)


def training(rows: list[Row]) -> Iterator[str]:
    """Yield tokens in a second and peak memory."""
    heads = ["", "tokens/s", "step", "IQR", BESIDE, "peak memory"]
    for group in by_group(rows, "training").values():
        other = best(group, "other")
        yield f"## Training with {group[0]['optimizer']}: {group[0]['model']}"
        yield ""
        lines = (
            [
                row["name"],
                f"{row['tokens'] / row['median']:,.0f}",
                seconds(row["median"]),
                seconds(row["iqr"]),
                ratio(row, other),
                f"{row['memory'] / 1e6:,.1f} MB",
            ]
            for row in group
        )
        yield from table(heads, lines)


def muon(rows: list[Row]) -> Iterator[str]:
    """Yield the time of a step of Muon, with the share of the products of matrices."""
    heads = ["", "median", "IQR", BESIDE, "share of the products", "bytes / parameter"]
    for group in by_group(rows, "muon").values():
        other, first = best(group, "other"), group[0]
        cut = f", {first['cut']}" if first["cut"] else ""
        yield f"## Muon with AdamW, clipped: {first['model']}{cut}, " + plural(
            first["threads"], "thread"
        )
        yield ""
        yield (
            f"matrices: {first['matrices']:,} with {first['hidden']:,} of "
            f"{first['parameters']:,} parameters in {first['tensors']:,} tensors"
        )
        yield ""
        optimizers = [row for row in group if row["role"] != "roofline"]
        yield from table(heads, (muon_line(row, other) for row in optimizers))


def muon_line(row: Row, other: Row | None) -> list[str]:
    """Return the cells of one variant."""
    share = row["products"]
    return [
        row["name"],
        seconds(row["median"]),
        seconds(row["iqr"]),
        ratio(row, other),
        "" if share is None else f"{share:.0%}",
        f"{row['bytes'] / row['parameters']:.1f}",
    ]


def absent(content: Row) -> Iterator[str]:
    """Yield the absent candidates, with the reason of each."""
    reasons: dict[str, set[str]] = defaultdict(set)
    for found in content.get("absent", {}).values():
        for name, why in found.items():
            reasons[name].add(why)
    if reasons:
        yield "## Not measured"
        yield ""
        yield from (f"- {name}: {'; '.join(sorted(whys))}" for name, whys in reasons.items())
        yield ""


def markdown(content: Row, rows: list[Row], plots: list[str]) -> str:
    """Return the whole page."""
    lines = [*header(content), *(f"![{plot}]({plot})" for plot in plots), ""]
    for section in (goals.lines, steps, formats, host, dtensors, first_step, training, muon):
        lines += section(rows)
    lines += absent(content)
    return "\n".join(lines).rstrip() + "\n"


def summary(content: Row, rows: list[Row]) -> Iterator[str]:
    """Yield the table of docs/benchmarks.md: clipped AdamW, times relative to torch's fused step.

    Raises:
        KeyError: the results lack a model or a variant of the table.
    """
    facts = {"optimizer": "AdamW", "format": "fp32", "clip": True}
    chosen = goals.select(rows, suite="step", **facts)
    times = {(r["threads"], r["model"], r["name"]): r["median"] for r in chosen}
    most, *fewer = sorted({r["threads"] for r in chosen}, reverse=True)
    names = {name: f'`backend="{name.split()[1]}"`' for name in SUMMARY if "fused" in name}
    variants = [(most, name) for name in SUMMARY] + [(n, goals.OURS) for n in fewer]
    lines = []
    for threads, name in variants:
        label = names.get(name) or f"{name} {content['machine_info']['versions'][name.lower()]}"
        shares = [
            times[threads, model, name] / times[threads, model, "torch fused"] for model in MODELS
        ]
        head = f"{label}, {plural(threads, 'thread')}"
        lines.append([head, *(f"{share:.2f}" for share in shares)])
    yield from table(["", *MODELS.values()], lines)


def main(arguments: Iterable[str] | None = None) -> int:
    """Write a page and plots for each file of results."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description=__doc__)
    parser.add_argument(
        "--summary", action="store_true", help="print the table of docs/benchmarks.md"
    )
    parser.add_argument("results", nargs="*", type=Path, help="default: benchmarks/results/*.json")
    options = parser.parse_args(None if arguments is None else list(arguments))
    for path in options.results or sorted(RESULTS.glob("*.json")):
        content, rows = read(path)
        if not rows:  # of another suite
            continue
        if options.summary:
            print("\n".join(summary(content, rows)))
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
