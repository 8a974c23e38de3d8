"""Time of a step of Muon, with AdamW for the rest, beside torch.optim's two optimizers.

Two variants are ours: with the products in the default dtype of the device, and in bf16 as torch's.
A CPU without instructions for bf16 emulates its products, so that the default there is float32.
``--layers 12 --rounds 1`` times whole models in few runs; ``-k gpt2`` chooses one.
"""

import time
from collections.abc import Callable
from functools import partial
from typing import Any
from unittest import mock

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch.optim import _muon

import fused_optim
from benchmarks.bytes_moved import Columns, held, moved, step_bytes
from benchmarks.candidates import facts_of
from benchmarks.interleaved import CLOCK, DEVICE, Roofline, Variant, compare, synchronize
from benchmarks.machine import thread_counts
from benchmarks.muon_libraries import LIBRARIES, MuonLibrary
from benchmarks.shapes import MODELS, Shape, count
from benchmarks.threads import threads
from benchmarks.variants import MAX_GRAD_NORM, Groups, Step, copied, parameters, reason
from fused_optim.backends import matrix_runner

pytestmark = pytest.mark.benchmark(timer=CLOCK)

# number of embeddings at the start and of tensors of the output layer at the end
ENDS = {"gpt2-124m": (2, 0), "vit-b": (4, 2), "gpt-1m": (2, 0)}
LAYERS = {"cpu": 1, "gpu": 12}  # a step of torch's takes seconds a layer on a CPU
KIND = "cpu" if DEVICE.type == "cpu" else "gpu"
SECONDS = {"cpu": 10.0, "gpu": 2.0}
LR = 1e-5


def divide(model: str, shapes: list[Shape]) -> tuple[list[Shape], list[Shape]]:
    """Return the hidden matrices, and the rest."""
    first, last = ENDS[model]
    inner = range(first, len(shapes) - last)
    hidden = [i for i, shape in enumerate(shapes) if i in inner and len(shape) == 2]
    return [shapes[i] for i in hidden], [s for i, s in enumerate(shapes) if i not in hidden]


def share_of(run: Step, owner: Any, name: str) -> float:
    """Return the share of the products, the calls of a function, in the time of one step."""
    inside = [0.0]
    inner: Callable[..., Any] = getattr(owner, name)

    def timed(*arguments: Any, **options: Any) -> Any:
        synchronize()
        start = time.perf_counter()
        result = inner(*arguments, **options)
        synchronize()
        inside[0] += time.perf_counter() - start
        return result

    with mock.patch.object(owner, name, timed):
        synchronize()
        start = time.perf_counter()
        run()
        synchronize()
        whole = time.perf_counter() - start
    return inside[0] / whole


def build_ours(groups: Groups, dtype: torch.dtype | None) -> Variant:
    """Create our optimizer, of both groups."""
    hidden, rest = groups
    optimizer = fused_optim.Muon(
        [hidden, {**rest, "algorithm": "adamw"}],
        lr=LR,
        ns_dtype=dtype,
        max_grad_norm=MAX_GRAD_NORM,
    )
    facts = facts_of(step_bytes(optimizer), held(optimizer))
    share = share_of(optimizer.step, matrix_runner, "transform_batches")
    name = f"fused_optim {optimizer.backend_used}" + (", bf16 products" if dtype else "")
    return Variant(name, "ours", optimizer.step, {**facts, "products": share})


def build_torch(groups: Groups) -> Variant:
    """Create torch's two optimizers, with clipping before them."""
    hidden, rest = groups
    muon = torch.optim.Muon([hidden], lr=LR)
    adamw = torch.optim.AdamW([rest], lr=LR, fused=True)
    params = [param for group in groups for param in group["params"]]

    def step() -> None:
        torch.nn.utils.clip_grad_norm_(params, MAX_GRAD_NORM, foreach=True)
        muon.step()
        adamw.step()

    step()
    share = share_of(step, _muon, "_zeropower_via_newtonschulz")
    sizes, others = held(muon), held(adamw)
    total = moved(others, 3, 1) + moved(sizes, 3, 1) + torch_temporaries(sizes.weights)
    columns = type(sizes)(*map(sum, zip(sizes, others, strict=True)))
    return Variant("torch", "other", step, {**facts_of(total, columns), "products": share})


def torch_temporaries(weights: int) -> int:
    """Return the bytes that torch.optim.Muon moves beyond one pass over float32 parameters.

    Of each 4 bytes: lerp of the gradient with the momentum (12 less the gradient that is read
    once more), the cast (4 + 2), the norm and the division in bf16 (2 + 4), a second pass over the
    parameter for the decay (8) and the update in bf16 (2).
    """
    return weights // 4 * (12 + 6 + 6 + 8 + 2)


def build_library(groups: Groups, library: MuonLibrary) -> Variant:
    """Create the optimizers of another library, with clipping before them.

    Their bytes are the minimum: one state for the hidden matrices, two for the rest.
    """
    own_step = library.create_step(*groups, LR)
    params = [param for group in groups for param in group["params"]]

    def step() -> None:
        torch.nn.utils.clip_grad_norm_(params, MAX_GRAD_NORM, foreach=True)
        own_step()

    step()
    sizes = [sum(param.nbytes for param in group["params"]) for group in groups]
    both = [Columns(n, n, states * n) for n, states in zip(sizes, (1, 2), strict=True)]
    columns = Columns(*map(sum, zip(*both, strict=True)))
    facts = facts_of(sum(moved(part, 3, 1) for part in both), columns)
    return Variant(library.name, "other", step, {**facts, "products": None})


def find_absent(library: MuonLibrary, full: bool) -> str | None:
    """Return the reason why a library is not timed here, or None."""
    if KIND == "cpu" and library.slow_on_cpu and not full:
        return library.slow_on_cpu
    small = parameters([[(16, 8), (8, 24)], [(5,)]], "fp32", DEVICE.type)
    return reason(lambda: build_library(small, library))


BUILDERS: list[Callable[[Groups], Variant]] = [
    partial(build_ours, dtype=None),
    partial(build_ours, dtype=torch.bfloat16),
    build_torch,
]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Choose the lists of tensors by ``--smoke``, and the numbers of threads."""
    option = metafunc.config.getoption
    models = ["gpt-1m"] if option("smoke") else list(ENDS)
    chosen = [(model, n) for model in models for n in thread_counts(option("threads"))[:1]]
    names = [f"{model}-{n}-threads" for model, n in chosen]
    metafunc.parametrize(("model", "thread_count"), chosen, ids=names)


def test_muon(
    benchmark: BenchmarkFixture,
    roofline: Roofline,
    pytestconfig: pytest.Config,
    model: str,
    thread_count: int,
) -> None:
    """Time a clipped step of a model."""
    smoke, asked, rounds = map(pytestconfig.getoption, ("smoke", "layers", "rounds"))
    whole = MODELS[model].layers
    layers = 1 if smoke else whole if model == "gpt-1m" else min(asked or LAYERS[KIND], whole)
    hidden, rest = divide(model, MODELS[model].tensors(layers))
    with threads(thread_count):
        groups = parameters([hidden, rest], "fp32", DEVICE.type)
        full = pytestconfig.getoption("full")
        absent = {library.name: find_absent(library, full) for library in LIBRARIES}
        found = [library for library in LIBRARIES if absent[library.name] is None]
        builders = [*BUILDERS, *(partial(build_library, library=one) for one in found)]
        benchmark.extra_info.update(
            suite="muon",
            model=model,
            threads=thread_count,
            cut="" if layers == whole else f"{layers} of {whole} layers",
            matrices=len(hidden),
            hidden=count(hidden),
            tensors=len(hidden) + len(rest),
            parameters=count(hidden + rest),
            absent={name: why for name, why in absent.items() if why is not None},
        )
        variants = [build(copied(groups)) for build in builders]
        budget = 0.0 if smoke else SECONDS[KIND]
        compare(benchmark, [*variants, *roofline.variants()], roofline.evict, budget, rounds)
