"""Shapes of the tensors of real models, with fewer layers where memory is short."""

from collections.abc import Callable, Iterator
from math import prod
from typing import NamedTuple

from fused_optim.cli import models
from fused_optim.cli.models import Shape


class Model(NamedTuple):
    """Shapes of the tensors of a model, which may be cut to fewer layers.

    Attributes:
        tensors: function from a number of layers to the shapes.
        layers: number of layers of the whole model; 0 if it cannot be cut.
        alone: True if every tensor is a parameter group of its own.
    """

    tensors: Callable[[int], list[Shape]]
    layers: int = 0
    alone: bool = False

    def fitting(self, elements: float) -> int | None:
        """Return the number of layers that fit into ``elements``; None if one does not fit."""
        choices = range(self.layers, 0, -1) if self.layers else [0]
        return next((n for n in choices if count(self.tensors(n)) <= elements), None)


def count(shapes: list[Shape]) -> int:
    """Return the number of elements."""
    return sum(prod(shape) for shape in shapes)


def linear(outputs: int, inputs: int) -> list[Shape]:
    """Return a weight and its bias."""
    return [(outputs, inputs), (outputs,)]


def demo(layers: int) -> list[Shape]:
    """Return the GPT that ``ci/demo.sh`` trains, the default of ``examples/gpt``."""
    block: list[Shape] = [(144,), (432, 144), (144, 144), (144,), (576, 144), (144, 576)]
    return [(256, 144), (64, 144), *block * layers, (144,)]


def small_gpt(layers: int) -> list[Shape]:
    """Return a GPT of 50 tensors, most of them biases and gains of norms."""
    norm: list[Shape] = [(128,), (128,)]
    block = norm + linear(384, 128) + linear(128, 128)
    block += norm + linear(512, 128) + linear(128, 512)
    return [(256, 128), (128, 128), *block * layers]


def detector(layers: int) -> list[Shape]:
    """Return 465 tensors: a ResNet-50, a transformer on four scales, heads of decoder layers."""
    norm: list[Shape] = [(256,), (256,)]
    deformable = linear(256, 256) + linear(128, 256) + linear(256, 256) * 2
    mlp = linear(1024, 256) + linear(256, 1024) + norm
    encoder = deformable + norm + mlp
    decoder = deformable + norm + linear(768, 256) + linear(256, 256) + norm + mlp
    head = linear(91, 256) + linear(256, 256) * 2 + linear(4, 256)
    necks = [shape for c in (512, 1024, 2048, 2048) for shape in [*linear(256, c), *norm]]
    queries: list[Shape] = [(4, 256), (300, 512)]
    body = (
        [*models.resnet50_body().values()] + encoder * 6 + decoder * 6 + head * 7 + necks + queries
    )
    return [*body, *norm * 3, *linear(256, 256)][:465]


def moe(layers: int) -> list[Shape]:
    """Return 10,000 tensors, almost all of them small experts."""
    expert: list[Shape] = [(64, 128), (64, 128), (128, 64)]
    return [(4096, 128), (128,), *[(384, 128), (128, 128)] * 7, *expert * 3328]


def published(name: str) -> Model:
    """Return a model of :mod:`fused_optim.cli.models`."""
    model = models.MODELS[name]
    return Model(lambda layers: list(model.shapes(layers).values()), model.layers)


MODELS = {
    "one-50m": Model(lambda _: [(50_000_000,)]),
    "one-16m": Model(lambda _: [(1 << 24,)]),
    "gpt2-124m": published("gpt2"),
    "gpt-1m": Model(demo, 4),
    "gpt-0.8m": Model(small_gpt, 4),
    "tiny-1000": Model(lambda _: [(1 + 7 * i % 257,) for i in range(1000)]),
    "resnet-50": published("resnet-50"),
    "vit-b": published("vit-b"),
    "vit-l": published("vit-l"),
    "detector-465": Model(detector, alone=True),
    "moe-10000": Model(moe),
    "llama-3.2-1b": published("llama-3.2-1b"),
    "llama-3.1-8b": published("llama-3.1-8b"),
    "llama-3.1-70b": published("llama-3.1-70b"),
    "one-1b": Model(lambda _: [(1_000_000_000,)]),
}


def grouped(shapes: list[Shape], groups: int) -> Iterator[list[Shape]]:
    """Divide ``shapes`` among groups of equal size; the last ones are smaller by one."""
    each, rest = divmod(len(shapes), groups)
    start = 0
    for group in range(groups):
        end = start + each + (group < rest)
        yield shapes[start:end]
        start = end


def smallest(shapes: list[Shape], tensors: int) -> list[Shape]:
    """Return the first tensors with no side above 8, to run a benchmark without measuring."""
    return [tuple(min(side, 8) for side in shape) for shape in shapes[:tensors]]
