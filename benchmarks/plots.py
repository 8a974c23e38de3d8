"""Plots of the report, drawn with matplotlib."""

from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import median
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.legend_handler import HandlerTuple
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, LogLocator

Row = dict[str, Any]
BLUES = ("#08306b", "#4292c6", "#2171b5", "#9ecae1")
ORANGES = ("#d94801", "#fd8d3c", "#7f2704")
OTHERS = ("#54278f", "#636363", "#238b45", "#ae017e", "#969696")
GREY = "#d9d9d9"
PARTS = {
    "weights_bytes": "parameter",
    "states_bytes": "states, and what is kept of the weight",
    "gradients_bytes": "gradient",
}
OURS_SHADES, OTHERS_SHADES = ("#08306b", "#4292c6", "#deebf7"), ("#7f2704", "#fd8d3c", "#fee6ce")
MARKS = "osD^vP"
MARK_COLOURS = ("#08306b", "#4292c6", "#d94801", "#54278f", "#238b45", "#ae017e")


def colours(rows: Iterable[Row]) -> dict[str, str]:
    """Choose a colour for each name: blues for ours, oranges for torch, others for the rest."""
    found: dict[str, str] = {}
    names = list(dict.fromkeys(row["name"] for row in rows if row["role"] != "roofline"))
    families: dict[tuple[str, ...], list[str]] = {BLUES: [], ORANGES: [], OTHERS: []}
    for name in names:
        first = name.split()[0].strip(",")
        families[{"fused_optim": BLUES, "torch": ORANGES}.get(first, OTHERS)].append(name)
    for palette, members in families.items():
        found |= {name: palette[i % len(palette)] for i, name in enumerate(sorted(members))}
    return found


def figure_of(title: str, width: float = 7.5, height: float = 4.5) -> Figure:
    """Create a figure with a title."""
    figure = Figure(figsize=(width, height), layout="constrained")
    figure.suptitle(title, x=0.01, ha="left", fontsize=11)
    return figure


def bare(axes: Axes) -> Axes:
    """Remove the lines that carry no information."""
    axes.spines[["top", "right"]].set_visible(False)
    return axes


def plain(axis: Any) -> None:
    """Write the numbers of a logarithmic axis as numbers, not as powers."""
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))


def label_ends(axes: Axes, ends: list[tuple[float, float, str, str]]) -> None:
    """Write names at the ends of their lines without overlap."""
    to_axes = axes.transData + axes.transAxes.inverted()
    lowest = -1.0
    for x, y, name, colour in sorted(ends, key=lambda end: end[1]):
        at = max(to_axes.transform((x, y))[1], lowest)
        axes.text(1.01, at, name, color=colour, va="center", fontsize=8, transform=axes.transAxes)
        lowest = at + 0.05


def lines(axes: Axes, rows: list[Row], x: str, y: Callable[[Row], float]) -> None:
    """Draw a line for each variant, on logarithmic axes."""
    paint, ends = colours(rows), []
    variants: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        variants[row["name"]].append(row)
    axes.set_xscale("log")
    axes.set_yscale("log")
    for name, own in variants.items():
        own.sort(key=lambda row: row[x])
        xs, ys = [row[x] for row in own], [y(row) for row in own]
        axes.plot(xs, ys, "o-", color=paint[name], markersize=3.5, linewidth=1.3)
        ends.append((xs[-1], ys[-1], name, paint[name]))
    axes.autoscale_view()
    label_ends(axes, ends)


def milliseconds(row: Row) -> float:
    """Return the median in milliseconds."""
    return float(row["median"] * 1e3)


def time_and_tensors(rows: list[Row]) -> Figure | None:
    """Draw the time of a step over the number of tensors, in one group."""
    found = [row for row in rows if row["suite"] == "host" and row["groups"] == 1]
    sizes = sorted({row["tensors"] for row in found})
    if len(sizes) < 2:
        return None
    figure = figure_of("A step of AdamW with clipping: tensors of 16 elements, one group", 8.5)
    axes = bare(figure.subplots())
    lines(axes, found, "tensors", milliseconds)
    axes.set_xticks(sizes, [f"{size:,}" for size in sizes])
    axes.tick_params(axis="x", which="minor", length=0, labelbottom=False)
    plain(axes.yaxis)
    axes.set_xlabel("tensors")
    axes.set_ylabel("median time, ms")
    return figure


def compared(rows: list[Row], **facts: Any) -> list[Row]:
    """Return clipped steps in fp32 with the largest number of threads, and other ``facts``."""
    wanted = {"suite": "step", "format": "fp32", "clip": True, **facts}
    found = [row for row in rows if all(row.get(key) == value for key, value in wanted.items())]
    threads = max((row["threads"] for row in found), default=0)
    return [row for row in found if row["threads"] == threads]


def by_model(rows: Iterable[Row]) -> dict[str, dict[str, Row]]:
    """Return the rows by model, the largest first, and name."""
    found: dict[str, dict[str, Row]] = defaultdict(dict)
    for row in sorted(rows, key=lambda row: -row["parameters"]):
        found[row["model"]][row["name"]] = row
    return dict(found)


def threads_of(rows: list[Row]) -> str:
    """Write the number of threads of ``rows``, which is the same in all."""
    return f"{rows[0]['threads']} thread{'s' if rows[0]['threads'] != 1 else ''}"


def steps(
    rows: list[Row], optimizer: str = "AdamW", baseline: str = "torch fused"
) -> Figure | None:
    """Draw times relative to a step of torch, for each list of tensors."""
    found = [row for row in compared(rows, optimizer=optimizer) if row["role"] != "roofline"]
    models = {m: own for m, own in by_model(found).items() if baseline in own}
    if not models:
        return None
    shares = {
        model: {name: row["median"] / own[baseline]["median"] for name, row in own.items()}
        for model, own in models.items()
    }
    names = sorted(
        {name for own in shares.values() for name in own},
        key=lambda name: median(own[name] for own in shares.values() if name in own),
    )
    width, height = 2.1 * len(models) + 1.8, 0.34 * len(names) + 1.5
    title = f"A step of {optimizer} with clipping, fp32, {threads_of(found)}"
    figure = figure_of(f"{title}: time / {baseline} + clip_grad_norm_", width, height)
    panels = figure.subplots(1, len(models), sharey=True, squeeze=False)[0]
    low = min(0.5, *(min(own.values()) for own in shares.values())) / 2.2
    high = max(2.0, *(max(own.values()) for own in shares.values())) * 2.6
    for axes, (model, own) in zip(panels, models.items(), strict=True):
        draw_shares(bare(axes), names, shares[model], colours(found))
        axes.set_xlim(low, high)
        parameters, tensors = own[baseline]["parameters"], own[baseline]["tensors"]
        size = f"{parameters / 1e6:.3g} M, {tensors:,} tensor{'s' if tensors != 1 else ''}"
        axes.set_title(f"{model}\n{size}", fontsize=9)
    return figure


def draw_shares(axes: Axes, names: list[str], own: dict[str, float], paint: dict[str, str]) -> None:
    """Draw a bar from 1 to each share on a logarithmic axis: to the left is faster."""
    axes.set_xscale("log")
    for at, name in enumerate(names):
        share = own.get(name)
        if share is None:
            continue
        axes.barh(at, share - 1, left=1, color=paint[name], height=0.7)
        left = share < 1
        axes.annotate(
            f"{share:.2f}",
            (share, at),
            xytext=(-3 if left else 3, 0),
            textcoords="offset points",
            ha="right" if left else "left",
            va="center",
            fontsize=8,
        )
    axes.axvline(1, color="#444444", linewidth=0.8)
    axes.set_yticks(range(len(names)), names)
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.spines["left"].set_visible(False)
    axes.xaxis.set_major_locator(LogLocator(numticks=5))
    axes.tick_params(axis="x", which="minor", length=0, labelbottom=False)
    plain(axes.xaxis)


def optimizers(rows: list[Row]) -> Figure | None:
    """Draw our time relative to torch's fastest, for each optimizer and list of tensors."""
    found = compared(rows)
    shares: dict[str, dict[str, float]] = defaultdict(dict)
    for optimizer in dict.fromkeys(row["optimizer"] for row in found):
        for model, own in by_model(r for r in found if r["optimizer"] == optimizer).items():
            ours = [r["median"] for r in own.values() if r["role"] == "ours"]
            torchs = [r["median"] for name, r in own.items() if name.startswith("torch ")]
            if ours and torchs:
                shares[model][optimizer] = min(ours) / min(torchs)
    if not shares:
        return None
    names = list(dict.fromkeys(name for own in shares.values() for name in own))
    figure = figure_of(
        f"A step with clipping, fp32, {threads_of(found)}: time / torch's fastest + clip_grad_norm_"
    )
    axes = bare(figure.subplots())
    axes.set_xscale("log")
    sizes = {row["model"]: row["parameters"] for row in found}
    models = sorted(shares, key=lambda model: -sizes[model])
    for model, mark, colour in zip(models, MARKS, MARK_COLOURS, strict=False):
        own = shares[model]
        at = [names.index(name) for name in own]
        axes.plot(list(own.values()), at, mark, color=colour, label=model, markersize=6, alpha=0.85)
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.grid(axis="y", color="#eeeeee")
    axes.set_axisbelow(True)
    axes.axvline(1, color="#444444", linewidth=0.8)
    axes.tick_params(axis="y", length=0)
    plain(axes.xaxis)
    axes.set_xlabel("less than 1: ours is faster")
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False, fontsize=8)
    return figure


def bars(axes: Axes, names: list[str], values: list[float], paints: list[str], form: str) -> None:
    """Draw horizontal bars, the first on top, each with its number."""
    drawn = axes.barh(names, values, color=paints, height=0.7)
    axes.bar_label(drawn, fmt=form, padding=3, fontsize=8)
    axes.margins(x=0.08, y=0.02)
    axes.invert_yaxis()
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0)


def bytes_and_roofline(rows: list[Row]) -> Figure | None:
    """Draw the achieved bandwidth, and that of a copy and a triad, on the largest list."""
    found = compared(rows, optimizer="AdamW")
    if not found:
        return None
    largest = max(row["parameters"] for row in found)
    found = [row for row in found if row["parameters"] == largest]
    found.sort(key=lambda row: row["median"] / row["bytes"])
    paint = colours(found)
    title = f"AdamW with clipping, fp32, {found[0]['model']}, {threads_of(found)}"
    height = 0.34 * len(found) + 1.2
    figure = figure_of(f"{title}: bytes that must move / time", height=height)
    axes = bare(figure.subplots())
    values = [row["bytes"] / row["median"] / 1e9 for row in found]
    paints = [paint.get(row["name"], GREY) for row in found]
    bars(axes, [row["name"] for row in found], values, paints, "%.1f")
    axes.set_xlabel("GB/s (grey: what the memory does in a copy and in a triad)")
    return figure


def legend_of_parts() -> dict[str, Any]:
    """Return the entries of the legend, with both shades of each part."""
    shades = zip(OURS_SHADES, OTHERS_SHADES, strict=True)
    handles = [tuple(Patch(color=shade) for shade in pair) for pair in shades]
    return {
        "handles": handles,
        "labels": list(PARTS.values()),
        "handler_map": {tuple: HandlerTuple(ndivide=None, pad=0)},
        "title": "blue: fused_optim, orange: others",
        "title_fontsize": 8,
        "alignment": "left",
    }


def memory(rows: list[Row]) -> Figure | None:
    """Draw what AdamW keeps for each parameter, in every format of every library."""
    found = {r["name"]: r for r in rows if r["suite"] == "formats" and r["role"] != "roofline"}
    if not found:
        return None
    kept = {name: [row[key] / row["parameters"] for key in PARTS] for name, row in found.items()}
    names = sorted(kept, key=lambda name: (sum(kept[name][:2]), sum(kept[name]), name))
    labels = [f"{found[name]['library'].split(' ')[0]}, {found[name]['format']}" for name in names]
    figure = figure_of("AdamW: bytes kept for each parameter", 8.0, 0.27 * len(names) + 1.4)
    axes = bare(figure.subplots())
    for at, name in enumerate(names):
        shades = OURS_SHADES if found[name]["role"] == "ours" else OTHERS_SHADES
        left = 0.0
        for size, shade in zip(kept[name], shades, strict=True):
            axes.barh(at, size, left=left, color=shade, height=0.72)
            left += size
        text = f" {sum(kept[name][:2]):.2f} + {kept[name][2]:.0f}"
        axes.text(left, at, text, va="center", fontsize=8)
    axes.set_yticks(range(len(names)), labels)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.margins(x=0.12)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.set_xlabel("bytes")
    axes.legend(**legend_of_parts(), loc="upper right", frameon=False, fontsize=8)
    return figure


PLOTS = {
    "tensors": time_and_tensors,
    "steps": steps,
    "optimizers": optimizers,
    "bandwidth": bytes_and_roofline,
    "memory": memory,
}


def draw(rows: list[Row], stem: Path) -> list[str]:
    """Save the plots that ``rows`` give as ``<stem>-<plot>.png``; return the files' names."""
    names = []
    for name, plot in PLOTS.items():
        figure = plot(rows)
        if figure is not None:
            path = stem.with_name(f"{stem.name}-{name}.png")
            figure.savefig(path, dpi=130)
            names.append(path.name)
    return names
