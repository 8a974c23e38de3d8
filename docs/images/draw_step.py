"""Draw docs/images/step.svg: ``python docs/images/draw_step.py`` (needs matplotlib)."""

from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

BLUE, ORANGE, GREY = "#dbe8f6", "#fde6cf", "#eeeeee"

# left, bottom, width, height, colour, title, lines
BOXES = [
    (
        0.1,
        2.6,
        2.7,
        2.3,
        GREY,
        "host",
        "read addresses\nand options; as in\nthe last step?\nreuse its tables",
    ),
    (3.5, 5.9, 9.6, 1.0, ORANGE, "gradients", "read, never written"),
    (3.5, 3.4, 2.8, 1.5, BLUE, "1  norm", "only to clip or skip:\nsums of squares"),
    (6.9, 3.4, 2.8, 1.5, BLUE, "2  prepare", "finish the norm,\nform the scalars"),
    (10.3, 3.4, 2.8, 1.5, BLUE, "3  update", "every element:\nload, rule, store"),
    (
        6.9,
        0.7,
        2.8,
        1.7,
        ORANGE,
        "scalars",
        "clip factor, skip,\ncount, rate, bias\ncorrections: float64",
    ),
    (
        10.3,
        0.7,
        2.8,
        1.7,
        ORANGE,
        "weights, states",
        "in their formats,\nand the average\nof ema_decay",
    ),
]
# from, to: x and y in the units of the boxes
ARROWS = [
    ((2.8, 4.1), (3.5, 4.1)),
    ((6.3, 4.1), (6.9, 4.1)),
    ((9.7, 4.1), (10.3, 4.1)),
    ((4.9, 5.9), (4.9, 4.9)),
    ((11.7, 5.9), (11.7, 4.9)),
    ((8.3, 3.4), (8.3, 2.4)),
    ((9.7, 2.2), (10.6, 3.4)),
    ((11.4, 2.4), (11.4, 3.4)),
    ((12.2, 3.4), (12.2, 2.4)),
]


def draw_boxes(axes: Axes) -> None:
    """Draw each box with its title and lines."""
    for left, bottom, width, height, colour, title, lines in BOXES:
        box = Rectangle((left, bottom), width, height, facecolor=colour, edgecolor="#555555")
        axes.add_patch(box)
        middle, top = left + width / 2, bottom + height - 0.12
        axes.text(middle, top, title, ha="center", va="top", weight="bold", fontsize=10)
        axes.text(middle, top - 0.45, lines, ha="center", va="top", fontsize=8.5)


def main() -> None:
    """Write the file."""
    mpl.rcParams["svg.hashsalt"] = "step"  # the same file in every run
    figure = Figure(figsize=(10.5, 5.0))
    axes = figure.add_subplot()
    axes.set_xlim(0, 13.2)
    axes.set_ylim(0.0, 7.2)
    axes.axis("off")
    draw_boxes(axes)
    for start, end in ARROWS:
        style = {"arrowstyle": "-|>", "color": "#555555", "shrinkA": 0, "shrinkB": 0}
        axes.annotate("", xy=end, xytext=start, arrowprops=style)
    note = "blue: the three launches, each for all tensors; orange: memory of the device"
    axes.text(8.3, 0.15, note, ha="center", fontsize=9)
    target = Path(__file__).with_name("step.svg")
    figure.savefig(target, bbox_inches="tight", metadata={"Date": None})


if __name__ == "__main__":
    main()
