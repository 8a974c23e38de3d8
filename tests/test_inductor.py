"""The compiled backend has the reference's bits, or says why not and changes nothing.

A program takes seconds to compile, so here are few of them; ``--full`` has every optimizer and
every format. Gradients are small multiples of 1/8: then sums are exact in any order.
"""

import itertools
import logging
import math
import re

import pytest
import torch
import torch._inductor.config
from cases import CASES
from closeness import assert_same_bits
from models import FORMATS, exact_values, give, parameters, state_of, values

from fused_optim import LAMB, SGD, AdamW, backends, formats
from fused_optim.backends import NotCompiled, compiled, packing, reference

LARGE = 3 * compiled.LEAST + 77
SIZES = [0, 1, 31, compiled.LEAST - 1, compiled.LEAST, LARGE]


def run_twins(make, start, steps=2, grads=None):
    """Run both backends on equal parameters and compare everything they leave behind."""
    twins = []
    for backend in ("compiled", "reference"):
        params = parameters(start)
        optimizer = make(params, backend)
        for step in range(steps):
            given = exact_values([p.shape for p in params], torch.float32, step)
            give(params, given if grads is None else grads)
            for group in optimizer.param_groups:
                group["lr"] = group["lr"] / (1 + step)
            optimizer.step()
        assert optimizer.backend_used == backend
        twins.append((params, optimizer))
    (params, ours), (others, theirs) = twins
    for i, (param, other) in enumerate(zip(params, others, strict=True)):
        assert_same_bits(f"param {i}", param.detach(), other.detach())
        mine, its = state_of(ours, param), state_of(theirs, other)
        assert mine.keys() == its.keys()
        for slot in mine:
            assert_same_bits(f"{slot} {i}", mine[slot], its[slot])
    for name in ("skipped", "clip_factor", "grad_norm"):
        assert_same_bits(name, getattr(ours, name), getattr(theirs, name))
    assert not torch.equal(params[-1], start[-1]), "a step that does nothing equals itself"
    return params, ours


@pytest.fixture
def programs(monkeypatch):
    """The names of the programs that are called."""
    calls = []
    make = compiled.compiled

    def spied(function):
        program = make(function)

        def run(*arguments):
            calls.append(function.__name__)
            return program(*arguments)

        return run

    monkeypatch.setattr(compiled, "compiled", spied)
    for page in (compiled.squares, compiled.updating, compiled.measuring):
        page.cache_clear()
    yield calls
    for page in (compiled.squares, compiled.updating, compiled.measuring):
        page.cache_clear()


def test_one_program_whatever_the_sizes_and_options(programs):
    """Also guards that programs run at all: without them the reference would equal itself."""
    sizes = [compiled.LEAST + 997 * i for i in range(20)]
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    made = itertools.count()

    def make(params, backend):
        lr = 0.1 / (1 + next(made) // 2)
        groups = [{"params": params[:9]}, {"params": params[9:], "betas": (0.5, 0.6), "lr": lr}]
        return AdamW(groups, lr=0.01, weight_decay=0.1, max_grad_norm=1.0, backend=backend)

    run_twins(make, values([*SIZES, *sizes], torch.float32))
    tried = ["update"] * 3 + ["norm"]
    assert sorted(programs) == sorted(tried + ["update", "norm"] * 2 * 22)
    run_twins(make, values([LARGE], torch.float32))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == graphs + 2


def test_a_weight_and_its_remainder_and_states_of_blocks():
    """With a shard, whose elements are counted from far on, and a last block that is not full."""

    def make(params, backend):
        optimizer = AdamW(params, weights="split", states="int8", seed=2**52 + 5, backend=backend)
        optimizer.shard(params[1], index=3, offset=2**33 + 64, numel=2**34)
        return optimizer

    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    start = values([4161, compiled.CACHED + compiled.LEAST + 7], torch.bfloat16)
    run_twins(make, start)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] <= graphs + 1


def test_torch_does_not_count_programs_as_recompilations():
    """After 8 of one code object it would run them uncompiled."""
    plain = formats.PLAIN
    with torch._dynamo.config.patch(recompile_limit=1):
        for dtype in (torch.bfloat16, torch.float16):
            compiled.squares.__wrapped__(plain, (dtype,), torch.float32, 1)


def heavy(params, backend, **options):
    return SGD(params, lr=0.1, momentum=0.9, backend=backend, **options)


def test_strides_complex_and_shared_memory():
    """What the plan makes rows of, a program takes: no view and no parameter is a new one."""
    gaps = torch.randn(300, 400)[:, ::2]
    turned = torch.randn(250, 200).t()
    number = torch.randn(LARGE, dtype=torch.complex64)
    shared = torch.randn(2 * LARGE)[LARGE:]
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    starts = [gaps, turned, number, shared]
    ours = [torch.nn.Parameter(t.clone()) for t in starts]
    theirs = [torch.nn.Parameter(t.clone()) for t in starts]
    for mine, start in zip((ours, theirs), ("compiled", "reference"), strict=True):
        # as_strided keeps gaps, which a clone would not
        mine[0] = torch.nn.Parameter(torch.randn(300, 400)[:, ::2].copy_(gaps))
        mine[3] = torch.nn.Parameter(torch.randn(2 * LARGE)[LARGE:].copy_(shared))
        for param in mine:
            param.grad = torch.ones_like(param)
        optimizer = heavy(mine, start)
        optimizer.step()
        optimizer.step()
    for a, b in zip(ours, theirs, strict=True):
        assert torch.equal(a, b)
    assert not ours[0].is_contiguous()
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] <= graphs + 1


def test_a_bad_gradient_is_skipped():
    """A sum that is not finite is the reference's to judge."""
    for bad in (math.inf, math.nan):
        params = parameters(values([LARGE], torch.float32))
        before = params[0].detach().clone()
        optimizer = heavy(params, "compiled", nonfinite="skip", max_grad_norm=1.0)
        params[0].grad = torch.ones(LARGE)
        params[0].grad[-1] = bad
        optimizer.step()
        assert optimizer.skipped
        assert torch.equal(params[0], before)


def test_what_rounding_leaves_is_counted(programs):
    def make(params, backend):
        return heavy(params, backend, count_stalled=True)

    start = [1000 * torch.ones(LARGE, dtype=torch.bfloat16), torch.ones(5, dtype=torch.bfloat16)]
    stalled = []
    for backend in ("compiled", "reference"):
        params = parameters(start)
        optimizer = make(params, backend)
        give(params, exact_values([LARGE, 5], torch.float32))
        params[0].grad[: LARGE // 2] = 100.0
        optimizer.step()
        stalled.append(optimizer.stalled.item())
    assert stalled[0] == stalled[1]
    assert 0.4 < stalled[0] < 0.5
    assert programs[-1] == "update"


def test_what_is_measured_first(programs):
    """The scalars that depend on sums over a tensor, with a tail that the reference measures."""

    def make(params, backend):
        return LAMB(params, lr=0.1, weight_decay=0.1, backend=backend)

    run_twins(make, values([31, LARGE], torch.float32))
    assert programs.count("measure") == 1 + 2


def test_another_number_of_threads_is_another_program(monkeypatch):
    """Else torch would compile in the middle of a step, and for one size."""
    optimizer = heavy(parameters([torch.ones(5)]), "compiled")
    give(optimizer.param_groups[0]["params"], [torch.ones(5)])
    optimizer.step()
    (launch,) = optimizer._plan.launches.values()
    one = launch._spec((math.inf, 0.0, 0.0))
    assert launch._spec((math.inf, 0.0, 0.0)) == one
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    assert launch._spec((math.inf, 0.0, 0.0)) != one
    assert launch._spec((math.inf, 0.0, 0.1)).on == (False, False, True)


def allocated(run):
    """Bytes of the largest tensor that ``run`` makes."""
    with torch.profiler.profile(profile_memory=True) as profiler:
        run()
    # profiler.events() leaves out what no operation of torch allocates
    events = profiler.profiler.kineto_results.events()
    return max(event.nbytes() for event in events if event.name() == "[memory]")


def test_no_temporaries():
    """What a step allocates does not grow with the model."""
    params = parameters([torch.ones(1 << 22)])
    optimizer = AdamW(params, max_grad_norm=1.0, backend="compiled")
    give(params, [torch.ones(1 << 22)])
    assert allocated(lambda: torch.ones(1 << 22)) == 1 << 24
    optimizer.step()
    assert 0 < allocated(optimizer.step) < 1 << 16


def test_its_temporaries_for_blocks_are_bounded():
    """They are of a piece that stays in cache."""
    params = parameters([torch.ones(1 << 22, dtype=torch.bfloat16)])
    optimizer = AdamW(params, weights="split", states="int8", backend="compiled")
    give(params, [torch.ones(1 << 22)])
    optimizer.step()
    assert 0 < allocated(optimizer.step) <= 4 * compiled.CACHED


def test_small_rows_are_packed(programs, monkeypatch):
    """Whatever their number: an operation of torch takes longer than a small row's elements."""
    pieces = []
    update = reference.ReferenceLaunch._update_piece

    def spied(self, piece, scalars, offset):
        pieces.append(len(piece.columns[0]))
        return update(self, piece, scalars, offset)

    monkeypatch.setattr(reference.ReferenceLaunch, "_update_piece", spied)
    for backend in ("compiled", "reference"):
        params = parameters(values([100] * 50, torch.float32))
        optimizer = AdamW(params, max_grad_norm=1.0, backend=backend)
        give(params, params)
        optimizer.step()
    assert pieces == [5000, 5000]
    assert not programs


# ---- refusals


@pytest.fixture
def no_triton(monkeypatch):
    monkeypatch.setattr(backends, "why_not_triton", lambda device: "not here")


@pytest.fixture
def no_compiler():
    with torch._inductor.config.patch({"cpp.cxx": ("no-such-compiler",)}):
        yield


def stepped(backend, numel=LARGE):
    params = parameters([torch.ones(numel)])
    optimizer = AdamW(params, lr=0.1, weight_decay=0.0, eps=0.0, backend=backend)
    give(params, [torch.ones(numel)])
    optimizer.step()
    return params[0], optimizer


def test_without_a_compiler(no_compiler):
    with pytest.raises(RuntimeError, match=r"'compiled' cannot be used: there is no C\+\+ compil"):
        stepped("compiled")


def test_not_for_other_devices():
    param = torch.nn.Parameter(torch.ones(5, device="meta"))
    param.grad = torch.ones(5, device="meta")
    with pytest.raises(RuntimeError, match="it is for the CPU and the parameters are on meta"):
        AdamW([param], backend="compiled").step()


@pytest.mark.parametrize(
    ("numel", "worthwhile", "used", "said"),
    [
        (LARGE, LARGE, "compiled", f"'compiled' for {LARGE} elements on the CPU"),
        (LARGE, LARGE + 1, "reference", f"'reference' .*: of less than {LARGE + 1} elements"),
    ],
)
def test_auto_compiles_what_is_large(numel, worthwhile, used, said, monkeypatch, caplog, no_triton):
    monkeypatch.setattr(backends, "WORTHWHILE", worthwhile)
    caplog.set_level(logging.INFO, "fused_optim")
    _, optimizer = stepped("auto", numel)
    optimizer.step()
    assert optimizer.backend_used == used
    (record,) = caplog.records
    assert record.levelno == logging.INFO
    assert re.search(said, record.getMessage())


def test_auto_without_a_compiler(monkeypatch, caplog, no_triton, no_compiler):
    monkeypatch.setattr(backends, "WORTHWHILE", 1)
    caplog.set_level(logging.INFO, "fused_optim")
    _, optimizer = stepped("auto")
    assert optimizer.backend_used == "reference"
    assert "no C++ compiler" in caplog.text


def failing(function):
    def program(*arguments):
        raise OSError("disk full\nand more")

    return program


def other(function):
    def program(*arguments):
        answer = function(*arguments)
        arguments[0][0][7] += 1
        return answer._replace(is_compiled=True)

    return program


def plain(function):
    return function


REFUSED = [
    (failing, "failed on update: OSError: disk full$"),
    (other, "other bits: update, 1 in column 0"),
    (plain, "switched off"),
]


@pytest.mark.parametrize(("make", "reason"), REFUSED)
def test_refused_with_the_reason(make, reason, programs, monkeypatch):
    monkeypatch.setattr(compiled, "compiled", make)
    params = parameters([torch.ones(LARGE)])
    optimizer = AdamW(params, max_grad_norm=1.0, backend="compiled")
    give(params, [torch.ones(LARGE)])
    with pytest.raises(NotCompiled, match=reason):
        optimizer.step()
    assert torch.equal(params[0], torch.ones(LARGE))
    assert optimizer.state[params[0]]["step"] == 0


def test_auto_goes_on_with_the_reference(programs, monkeypatch, no_triton):
    monkeypatch.setattr(backends, "WORTHWHILE", 1)
    monkeypatch.setattr(compiled, "compiled", failing)
    with pytest.warns(UserWarning, match="'reference' from now on: .*disk full"):
        param, optimizer = stepped("auto")
    torch.testing.assert_close(param.detach(), torch.full((LARGE,), 0.9))
    optimizer.step()  # without another warning
    assert optimizer.backend_used == "reference"
    assert optimizer.state[param]["step"] == 2


def test_dynamo_is_off_by_its_own_switch(programs):
    with torch.compiler.set_stance("force_eager"), pytest.raises(NotCompiled, match="switched off"):
        stepped("compiled")


def test_trials_see_every_kind_of_difference():
    same = torch.tensor([0.0, math.nan, 1.0])
    assert compiled.different(same, torch.tensor([0.0, -math.nan, 1.0])) == 0
    assert compiled.different(same, torch.tensor([-0.0, math.nan, 1.0])) == 1
    assert compiled.different(same, torch.tensor([0.0, 2.0, 1.0 + 2**-23])) == 2
    codes = torch.tensor([0x7F, 1], dtype=torch.uint8).view(torch.float8_e4m3fn)
    assert compiled.different(codes, codes.clone()) == 0
    assert compiled.different(codes, codes.view(torch.uint8).flip(0).view(codes.dtype)) == 2


# ---- everything


def pytest_generate_tests(metafunc):
    """An hour of compiling, for who asks for it."""
    if "kept" in metafunc.fixturenames:
        full = metafunc.config.getoption("--full")
        cases = list(itertools.product(CASES, [{}, *FORMATS])) if full else []
        ids = [f"{case.name}-{kept}" for case, kept in cases]
        metafunc.parametrize(("case", "kept"), cases, ids=ids)


def test_every_case_and_format(case, kept):
    def make(params, backend):
        options = {**case.options, **case.additions, **kept}
        ema = {"ema_decay": 0.9} if kept else {}
        return case.fused(params, **options, **ema, backend=backend)

    dtype = torch.bfloat16 if kept else torch.float32
    run_twins(make, values([31, LARGE], dtype))


assert packing.SIZE <= compiled.LEAST  # packed rows are the reference's
