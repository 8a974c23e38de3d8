"""One step of an optimizer: ours, torch's ways and other libraries, on tensors of real models."""

import math
from itertools import product
from pathlib import Path

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks.field import Field, Race
from benchmarks.race import CLOCK, DEVICE, Roofline, race
from benchmarks.shapes import MODELS, Shape, count, smallest
from benchmarks.variants import FORMATS, OPTIMIZERS, SHARED, parameters

pytestmark = pytest.mark.benchmark(timer=CLOCK)

LISTS = {
    "cpu": ("one-50m", "gpt2-124m", "tiny-1000"),
    "gpu": ("gpt2-124m", "llama-3.2-1b", "tiny-1000", "detector-465"),
}
# of a whole model on the CPU by default: a step of the slowest takes a second
ON_A_MODEL = ("AdamW", "SGD", "RMSprop", "NAdam")
SECONDS = {"cpu": 1.5, "gpu": 1.0}  # for the turns of one race
KIND = "cpu" if DEVICE.type == "cpu" else "gpu"


def cases(full: bool, smoke: bool) -> list[tuple[str, str, str, bool]]:
    """List, optimizer, format, clip."""
    lists = LISTS[KIND]
    chosen = [
        (model, optimizer, "fp32", True)
        for model, optimizer in product(lists, SHARED)
        if model != "gpt2-124m" or optimizer in ON_A_MODEL
    ]
    if KIND == "gpu":
        chosen = list(product(lists[:2], ["AdamW"], FORMATS, [True]))
        chosen += product(lists[2:], ["AdamW"], ["fp32"], [True])
        chosen += product(lists[:1], SHARED, ["fp32"], [True])
    if smoke:
        chosen += product(lists[1:2], ["AdamW"], FORMATS, [False])
    if full:
        chosen += product(MODELS, ["AdamW"], FORMATS, [True, False])
        chosen += product(lists, OPTIMIZERS, ["fp32"], [True, False])
    return list(dict.fromkeys(chosen))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Choose the cases by ``--full`` and ``--smoke``."""
    option = metafunc.config.getoption
    chosen = cases(option("full"), option("smoke"))
    names = ["-".join([*case[:3], "clip" if case[3] else "no-clip"]) for case in chosen]
    metafunc.parametrize(("model", "optimizer", "format", "clip"), chosen, ids=names)


def memory() -> float:
    """Bytes that are free on the device."""
    if DEVICE.type != "cpu":
        torch.accelerator.empty_cache()
        return float(torch.get_device_module(DEVICE).mem_get_info()[0])
    info = Path("/proc/meminfo")  # with what the page cache would give back
    lines = info.read_text().splitlines() if info.exists() else []
    found = [float(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable")]
    return found[0] if found else math.inf


def tensors_of(model: str, format: str, entrants: int, smoke: bool) -> tuple[list[Shape], str]:
    """The tensors of as many layers as fit into memory, and a word about that if not of all."""
    width = FORMATS[format].dtype.itemsize
    # shared gradients; weights and two or three states of each; temporaries of one step
    each = 2 * width + entrants * (width + (8 if width == 4 else 12)) + 12
    layers = MODELS[model].fitting(0.8 * memory() / each)
    if layers is None:
        pytest.skip(f"{model} does not fit into memory, even with one layer")
    shapes = MODELS[model].tensors(layers)
    cut = "" if layers == MODELS[model].layers else f"{layers} of {MODELS[model].layers} layers"
    return (smallest(shapes, 12) if smoke else shapes), cut


def test_step(
    benchmark: BenchmarkFixture,
    roofline: Roofline,
    request: pytest.FixtureRequest,
    smoke: bool,
    model: str,
    optimizer: str,
    format: str,
    clip: bool,
) -> None:
    """Time of a step, with clipping where ``clip``."""
    # compiling takes minutes; one list shows what it gives
    compiled = request.config.option.full and (model, optimizer, clip) == ("one-50m", "AdamW", True)
    field = Field(Race(optimizer, format, clip), compiled)
    if not field.entrants:
        pytest.skip(f"none of our backends: {field.absent}")
    shapes, cut = tensors_of(model, format, len(field.entrants), smoke)
    groups = [[shape] for shape in shapes] if MODELS[model].alone else [shapes]
    racers = field.racers(parameters(groups, format, DEVICE.type))
    benchmark.extra_info.update(
        suite="step",
        model=model,
        optimizer=optimizer,
        format=format,
        clip=clip,
        cut=cut,
        tensors=len(shapes),
        groups=len(groups),
        parameters=count(shapes),
        absent=field.absent,
    )
    seconds = 0.0 if smoke else SECONDS[KIND]
    race(benchmark, [*racers, *roofline.variants()], roofline.evict, seconds)
