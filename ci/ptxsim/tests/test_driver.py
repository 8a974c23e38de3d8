"""The interpreter as Triton's driver: arguments, options, targets."""

import pytest
import torch
import triton
import triton.language as tl

from ci import ptxsim


@triton.jit
def take_turns(turn_ptr, state_ptr):
    tl.store(turn_ptr + tl.program_id(0), tl.atomic_add(state_ptr, 1))


@pytest.mark.parametrize("order", [None, 0, 1])
def test_the_order_of_blocks_is_permuted(order):
    seen = []

    def blocks(kernel, count):
        seen.append((kernel, count))
        return range(count)

    turns, counter = torch.zeros(40, dtype=torch.int32), torch.zeros(1, dtype=torch.int32)
    with ptxsim.install(90, order=order, threads_at_once=128, blocks=blocks) as driver:
        take_turns[(40,)](turns, counter)
    assert (turns.tolist() == list(range(40))) == (order is None)
    assert sorted(turns.tolist()) == list(range(40))
    assert seen == [("take_turns", 40)]
    assert driver.launches == [("take_turns", (40, 1, 1))]


def test_some_blocks_only_are_run():
    turns, counter = torch.full((40,), -1, dtype=torch.int32), torch.zeros(1, dtype=torch.int32)
    with ptxsim.install(90, blocks=lambda kernel, count: (count - 1, 7)):
        take_turns[(40,)](turns, counter)
    assert turns[39] == 0
    assert turns[7] == 1
    assert (turns >= 0).sum() == 2
    for missing in (40, -1):
        with (
            ptxsim.install(90, blocks=lambda kernel, count, i=missing: [i]),
            pytest.raises(ValueError, match="no such block"),
        ):
            take_turns[(40,)](turns, counter)


@triton.jit
def positions(out_ptr):
    x, y, z = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    width, height = tl.num_programs(0), tl.num_programs(1)
    at = (z * height + y) * width + x
    tl.store(out_ptr + at, 100 * x + 10 * y + z + 1000 * tl.num_programs(2))


def test_grids_of_three_axes():
    out = torch.zeros(2, 3, 4, dtype=torch.int32)
    with ptxsim.install(90):
        positions[(4, 3, 2)](out)
    z, y, x = torch.meshgrid(torch.arange(2), torch.arange(3), torch.arange(4), indexing="ij")
    assert torch.equal(out, (100 * x + 10 * y + z + 2000).int())


@triton.jit
def fused(x_ptr, out_ptr, BLOCK: tl.constexpr):
    x = tl.load(x_ptr + tl.arange(0, BLOCK))
    tl.store(out_ptr + tl.arange(0, BLOCK), x * x + tl.exp(x))


@triton.jit
def with_tuple(x_ptr, bias, several, NONE: tl.constexpr, BLOCK: tl.constexpr):
    scale, offset_ptr, extra_ptr, wide = several
    offs = tl.arange(0, BLOCK)
    x = tl.load(x_ptr + offs) * scale + tl.load(offset_ptr) + bias
    if extra_ptr is not None:
        x += tl.load(extra_ptr)
    tl.store(x_ptr + offs, x + (wide >> 40).to(tl.float32))


def test_arguments_of_every_kind():
    x = torch.ones(128)
    offset = torch.tensor([100.0])
    with ptxsim.install(90) as driver:
        several = (2.5, offset, None, 7 << 40)
        with_tuple[(1, 1)](x, -1, several, NONE=None, BLOCK=128, num_warps=1)
        with_tuple[(0,)](x, -1, several, NONE=None, BLOCK=128, num_warps=1)
    assert (x == 2.5 + 100 - 1 + 7).all()
    assert driver.launches == [("with_tuple", (1, 1, 1))]


def test_the_driver_is_put_back_and_tells_what_it_is():
    with ptxsim.install(80) as outer:
        with ptxsim.install(100, multiprocessors=3) as inner:
            active = triton.runtime.driver.active
            assert active is inner
            assert active.get_current_target().arch == 100
            assert active.get_active_torch_device() == torch.device("cpu")
            assert active.utils.get_device_properties(0)["multiprocessor_count"] == 3
        assert triton.runtime.driver.active is outer
    with pytest.raises(ValueError, match="arch must be one of"):
        ptxsim.install(75)


def test_each_target_has_its_own_code_and_inexact_instructions_are_listed():
    x, out = torch.randn(128), torch.zeros(128)
    texts = []
    for arch in (80, 90, 100):
        with ptxsim.install(arch) as driver:
            texts.append(fused[(1,)](x, out, BLOCK=128).asm["ptx"])
            assert f".target sm_{arch}" in texts[-1]
            assert "ex2.approx.f32" in driver.inexact["fused"]
        with ptxsim.install(arch) as driver:
            fused[(1,)](x, out, BLOCK=128, enable_fp_fusion=False)
            assert driver.inexact["fused"] == {"ex2.approx.f32"}
        assert torch.allclose(out, x * x + x.exp(), rtol=1e-6)
    assert len(set(texts)) == 3


def test_interpreted_kernels_are_refused(monkeypatch):
    monkeypatch.setattr(triton.knobs.runtime, "interpret", True)
    with pytest.raises(RuntimeError, match="TRITON_INTERPRET"):
        ptxsim.install(90)
