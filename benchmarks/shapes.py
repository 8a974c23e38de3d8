"""Shapes of the tensors of real models, with fewer layers where memory is short."""

from collections.abc import Callable, Iterator
from math import prod
from typing import NamedTuple

Shape = tuple[int, ...]


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


def gpt2(layers: int) -> list[Shape]:
    """Return GPT-2 124M, whose embedding is also its head."""
    norm: list[Shape] = [(768,), (768,)]
    attention = linear(3 * 768, 768) + linear(768, 768)
    block = norm + attention + norm + linear(4 * 768, 768) + linear(768, 4 * 768)
    return [(50257, 768), (1024, 768), *block * layers, *norm]


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


def llama(
    width: int, hidden: int, keys: int, layers: int, tied: bool, vocabulary: int = 128256
) -> list[Shape]:
    """Return a Llama 3 with ``keys`` features for the keys and for the values."""
    attention = [(width, width), (keys, width), (keys, width), (width, width)]
    block = [*attention, (hidden, width), (hidden, width), (width, hidden), (width,), (width,)]
    heads = [(vocabulary, width)] * (1 if tied else 2)
    return [*heads, *block * layers, (width,)]


def normed(outputs: int, inputs: int, size: int) -> list[Shape]:
    """Return a convolution and its batch norm."""
    return [(outputs, inputs, size, size), (outputs,), (outputs,)]


def resnet50_body() -> list[Shape]:
    """Return ResNet-50 without its classifier."""
    shapes, inputs = normed(64, 3, 7), 64
    for width, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for block in range(blocks):
            shapes += normed(width, inputs, 1) + normed(width, width, 3)
            shapes += normed(4 * width, width, 1)
            if block == 0:
                shapes += normed(4 * width, inputs, 1)
            inputs = 4 * width
    return shapes


def resnet50(layers: int) -> list[Shape]:
    """Return ResNet-50."""
    return resnet50_body() + linear(1000, 2048)


def vit(width: int, layers: int) -> list[Shape]:
    """Return a vision transformer of patches of 16 x 16, with heads of 1,000 classes."""
    norm: list[Shape] = [(width,), (width,)]
    block = norm + linear(3 * width, width) + linear(width, width)
    block += norm + linear(4 * width, width) + linear(width, 4 * width)
    ends = [(1, 1, width), (1, 197, width), (width, 3, 16, 16), (width,)]
    return [*ends, *block * layers, *norm, *linear(1000, width)]


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
    body = resnet50_body() + encoder * 6 + decoder * 6 + head * 7 + necks + queries
    return [*body, *norm * 3, *linear(256, 256)][:465]


def moe(layers: int) -> list[Shape]:
    """Return 10,000 tensors, almost all of them small experts."""
    expert: list[Shape] = [(64, 128), (64, 128), (128, 64)]
    return [(4096, 128), (128,), *[(384, 128), (128, 128)] * 7, *expert * 3328]


MODELS = {
    "one-50m": Model(lambda _: [(50_000_000,)]),
    "one-16m": Model(lambda _: [(1 << 24,)]),
    "gpt2-124m": Model(gpt2, 12),
    "gpt-1m": Model(demo, 4),
    "gpt-0.8m": Model(small_gpt, 4),
    "tiny-1000": Model(lambda _: [(1 + 7 * i % 257,) for i in range(1000)]),
    "resnet-50": Model(resnet50),
    "vit-b": Model(lambda n: vit(768, n), 12),
    "vit-l": Model(lambda n: vit(1024, n), 24),
    "detector-465": Model(detector, alone=True),
    "moe-10000": Model(moe),
    "llama-3.2-1b": Model(lambda n: llama(2048, 8192, 512, n, tied=True), 16),
    "llama-3.1-8b": Model(lambda n: llama(4096, 14336, 1024, n, tied=False), 32),
    "llama-3.1-70b": Model(lambda n: llama(8192, 28672, 1024, n, tied=False), 80),
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
