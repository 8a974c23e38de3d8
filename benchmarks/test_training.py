"""Training of the GPT of examples/gpt with torch's AdamW and with ours."""

import copy
from typing import Any

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch.optim import Optimizer

from benchmarks import variants
from benchmarks.allocation import peak, tensor_allocations
from benchmarks.bytes_moved import held
from benchmarks.interleaved import CLOCK, DEVICE, Variant, compare
from benchmarks.shapes import count
from benchmarks.variants import BACKENDS, TORCH
from examples.gpt.corpus import Corpus
from examples.gpt.model import GPT, Shape
from examples.gpt.training import Run, Task, Update, clip_and_step, groups, step_alone

pytestmark = pytest.mark.benchmark(timer=CLOCK)

MODELS = {
    "gpt-1m": Shape(),
    "gpt-11m": Shape(layers=6, heads=6, width=384),
    "gpt-85m": Shape(context=256, layers=12, heads=12, width=768),
}
CHOSEN = list(MODELS) if DEVICE.type != "cpu" else ["gpt-1m", "gpt-11m"]
DECAY = 0.1
SECONDS = 6.0


def task_of(shape: Shape) -> Task:
    """Return a task on random bytes: a time does not depend on them."""
    data = torch.randint(256, (1 << 16,), generator=torch.Generator().manual_seed(0))
    corpus = Corpus.split(bytes(data.tolist()), shape.context)
    return Task(corpus, steps=1000, seed=0, device=DEVICE, shape=shape)


def optimizers(weights: GPT, absent: dict[str, str]) -> dict[str, tuple[GPT, Optimizer, Update]]:
    """Return model, optimizer and update by name; each has its own copy of the weights."""
    found: dict[str, tuple[GPT, Optimizer, Update]] = {}
    for name, kind in TORCH.items():
        model = copy.deepcopy(weights)
        found[name] = (model, torch.optim.AdamW(groups(model, DECAY), **kind), clip_and_step)
    for backend, devices in BACKENDS.items():
        refusal = variants.why_not_ours("AdamW", "fp32", backend, DEVICE.type)
        if DEVICE.type not in devices or refusal is not None:
            absent[f"fused_optim {backend}"] = refusal or f"not for {DEVICE.type}"
            continue
        model = copy.deepcopy(weights)
        made = variants.ours("AdamW", "fp32", backend, True, groups(model, DECAY))
        found[f"fused_optim {backend}"] = (model, made, step_alone)
    return found


def peak_of(run: Run, batch: torch.Tensor) -> int:
    """Return the peak memory of a step in bytes: states, and allocations during the step."""
    run.step(batch)
    own = sum(held(run.optimizer))
    if DEVICE.type == "cpu":
        return own + peak(tensor_allocations(lambda: run.step(batch)))
    module: Any = torch.get_device_module(DEVICE)
    module.reset_peak_memory_stats()
    before = module.memory_allocated()
    run.step(batch)
    return own + int(module.max_memory_allocated()) - before


@pytest.mark.parametrize("model", CHOSEN)
def test_training(benchmark: BenchmarkFixture, smoke: bool, model: str) -> None:
    """Time a step of the training: forward, backward, clipping, update, learning rate."""
    shape = Shape(context=8, layers=1, heads=1, width=8) if smoke else MODELS[model]
    task = task_of(shape)
    torch.manual_seed(0)
    weights = GPT(shape).to(DEVICE)
    batch = task.batch(0)
    absent: dict[str, str] = {}
    found = []
    for name, (own, optimizer, update) in optimizers(weights, absent).items():
        run = Run(own, optimizer, update, task)
        facts = {"tokens": task.batch_size * shape.context, "memory": peak_of(run, batch)}
        role = "ours" if name.startswith("fused_optim") else "other"
        found.append(Variant(name, role, lambda run=run: run.step(batch), facts))
    parameters = count([tuple(p.shape) for p in weights.parameters()])
    benchmark.extra_info.update(suite="training", model=model, optimizer="AdamW", absent=absent)
    benchmark.extra_info["parameters"] = parameters
    compare(benchmark, found, lambda: None, 0.0 if smoke else SECONDS)
