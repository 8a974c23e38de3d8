"""The plots of the report."""

from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

Row = dict[str, Any]
OURS = ("#08306b", "#2171b5", "#6baed6")
RIVALS = ("#7f2704", "#d94801", "#fd8d3c", "#969696", "#636363", "#bcbddc", "#54278f", "#a63603")


def colours(rows: Iterable[Row]) -> dict[str, str]:
    """Blue for ours, other colours for rivals, the same in every plot."""
    found: dict[str, str] = {}
    for role, palette in (("ours", OURS), ("rival", RIVALS)):
        names = dict.fromkeys(row["name"] for row in rows if row["role"] == role)
        found |= {name: palette[i % len(palette)] for i, name in enumerate(names)}
    return found


def axes_of(title: str, width: float = 7.5) -> tuple[Figure, Axes]:
    """An empty plot with nothing on it that carries no information."""
    figure = Figure(figsize=(width, 4.5), layout="constrained")
    axes = figure.subplots()
    axes.set_title(title, loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def label_ends(axes: Axes, ends: list[tuple[float, float, str, str]]) -> None:
    """Write names beside the ends of their lines, apart from each other on a log scale."""
    lowest = 0.0
    for x, y, name, colour in sorted(ends, key=lambda end: end[1]):
        at = max(y, lowest)
        axes.annotate(
            name,
            (x, at),
            xytext=(6, 0),
            textcoords="offset points",
            color=colour,
            va="center",
            fontsize=8,
            annotation_clip=False,
        )
        lowest = at * 1.28


def lines(axes: Axes, rows: list[Row], x: str, y: Callable[[Row], float]) -> None:
    """A line for each variant, on log scales."""
    paint, ends = colours(rows), []
    variants: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        variants[row["name"]].append(row)
    for name, own in variants.items():
        own.sort(key=lambda row: row[x])
        xs, ys = [row[x] for row in own], [y(row) for row in own]
        axes.plot(xs, ys, "o-", color=paint[name], markersize=3.5, linewidth=1.3)
        ends.append((xs[-1], ys[-1], name, paint[name]))
    axes.set_xscale("log")
    axes.set_yscale("log")
    label_ends(axes, ends)


def milliseconds(row: Row) -> float:
    """The median."""
    return float(row["median"] * 1e3)


def time_and_tensors(rows: list[Row]) -> Figure | None:
    """Host time over the number of tensors, in one group."""
    found = [row for row in rows if row["suite"] == "host" and row["groups"] == 1]
    if len({row["tensors"] for row in found}) < 2:
        return None
    figure, axes = axes_of("Host time of a step: AdamW with clipping, one parameter group")
    lines(axes, found, "tensors", milliseconds)
    axes.set_xlabel("tensors")
    axes.set_ylabel("median time (ms)")
    return figure


def adamw(rows: list[Row]) -> list[Row]:
    """Clipped AdamW in fp32: what every machine measures on all lists."""
    wanted = ("step", "AdamW", "fp32", True)
    return [
        row
        for row in rows
        if (row["suite"], row.get("optimizer"), row.get("format"), row.get("clip")) == wanted
    ]


def time_and_parameters(rows: list[Row]) -> Figure | None:
    """Time over the number of parameters."""
    found = [row for row in adamw(rows) if row["role"] != "roofline"]
    if len({row["parameters"] for row in found}) < 2:
        return None
    figure, axes = axes_of("Time of a step: AdamW with clipping, fp32")
    lines(axes, found, "parameters", milliseconds)
    for model, at in {row["model"]: row["parameters"] for row in found}.items():
        axes.axvline(at, color="#dddddd", linewidth=0.8, zorder=0)
        axes.annotate(
            model,
            (at, 0.02),
            xycoords=axes.get_xaxis_transform(),
            xytext=(-3, 0),
            textcoords="offset points",
            ha="right",
            rotation=90,
            fontsize=7,
            color="#777777",
        )
    axes.set_xlabel("parameters")
    axes.set_ylabel("median time (ms)")
    return figure


def bars(axes: Axes, names: list[str], values: list[float], paints: list[str], form: str) -> None:
    """Horizontal bars, the first on top, each with its number."""
    drawn = axes.barh(names, values, color=paints, height=0.7)
    axes.bar_label(drawn, fmt=form, padding=3, fontsize=8)
    axes.margins(y=0.02)
    axes.invert_yaxis()
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0)


def bytes_and_roofline(rows: list[Row]) -> Figure | None:
    """Achieved bandwidth beside that of a copy and a triad, on the largest list."""
    found = adamw(rows)
    if not found:
        return None
    largest = max(row["parameters"] for row in found)
    found = [row for row in found if row["parameters"] == largest]
    found.sort(key=lambda row: row["median"] / row["bytes"])
    paint = colours(rows)
    figure, axes = axes_of(f"Bytes that must move, by the time taken: AdamW, {found[0]['model']}")
    values = [row["bytes"] / row["median"] / 1e9 for row in found]
    paints = [paint.get(row["name"], "#d9d9d9") for row in found]
    bars(axes, [row["name"] for row in found], values, paints, "%.1f")
    axes.set_xlabel("GB/s")
    return figure


def memory(rows: list[Row]) -> Figure | None:
    """Bytes that each parameter takes: weight, gradient and states, by optimizer and format."""
    found = [row for row in rows if row["suite"] == "step" and row["role"] != "roofline"]
    # on the largest list, where what is not proportional to it does not count
    sizes: dict[str, Row] = {}
    for row in sorted(found, key=lambda row: row["parameters"]):
        library = row["name"].split()[0]  # its variants keep the same states
        if row["name"].startswith("torch fused, bf16"):
            continue  # beside a format that torch does not have
        sizes[f"{row['optimizer']}, {row['format']}, {library}"] = row
    if not sizes:
        return None
    figure, axes = axes_of("Memory: weight, gradient and state")
    figure.set_figheight(max(3.0, 0.24 * len(sizes) + 1.2))
    values = [row["memory"] / row["parameters"] for row in sizes.values()]
    paints = [OURS[1] if row["role"] == "ours" else RIVALS[2] for row in sizes.values()]
    bars(axes, list(sizes), values, paints, "%.2f")
    axes.set_xlabel("bytes a parameter")
    return figure


PLOTS = {
    "tensors": time_and_tensors,
    "parameters": time_and_parameters,
    "bandwidth": bytes_and_roofline,
    "memory": memory,
}


def draw(rows: list[Row], stem: Path) -> list[str]:
    """Save the plots that ``rows`` give as ``<stem>-<plot>.png``; returns the files' names."""
    names = []
    for name, plot in PLOTS.items():
        figure = plot(rows)
        if figure is not None:
            path = stem.with_name(f"{stem.name}-{name}.png")
            figure.savefig(path, dpi=130)
            names.append(path.name)
    return names
