"""Large and odd sizes: offsets past 2 ** 31, the last element after 2 ** 24, 70,000 tensors.

The interpreter executes only the blocks that matter, over mapped memory whose pages are allocated
at the first access. Tried by hand: an offset, or a chunk's index times BLOCK, computed in int32 in
each of the kernels; a number of chunks computed in float32.
"""

import mmap
import time

import torch
from helpers.models import values

import fused_optim
from fused_optim.backends.kernel_runner import KernelRunner
from fused_optim.backends.triton import GEOMETRY
from fused_optim.testing.closeness import assert_same_bits

BLOCK = GEOMETRY.block
HUGE = 2**31 + 3 * BLOCK + 500
TAIL = 2 * BLOCK + 500  # elements that the last three blocks update
NO_RESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000)  # Python 3.10 has no name for it


def sparse(numel, dtype, device):
    """Return zeros; on the CPU pages are allocated at the first access."""
    if device.type != "cpu":
        return torch.zeros(numel, dtype=dtype, device=device)
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | NO_RESERVE
    return torch.frombuffer(mmap.mmap(-1, numel * dtype.itemsize, flags), dtype=dtype)


def last_blocks(count):
    """Return a function that selects all blocks of prepare and the last of other kernels."""
    return lambda kernel, blocks: range(0 if kernel == "prepare" else blocks - count, blocks)


def huge_pair(device, fused, slots, **options):
    """Return an optimizer with a huge and a small tensor, and one with a copy of the tail."""
    found = []
    for numel, place, name in ((HUGE, device.torch, "triton"), (TAIL, "cpu", "reference")):
        place = torch.device(place)
        columns = [sparse(numel, torch.bfloat16, place) for _ in range(2 + len(slots))]
        for i, column in enumerate(columns):
            column[-TAIL:] = values([TAIL], torch.bfloat16, i)[0].to(place).abs()
        param = torch.nn.Parameter(columns[0])
        small = torch.nn.Parameter(torch.ones(5, dtype=torch.bfloat16, device=place))
        param.grad, small.grad = columns[1], torch.ones_like(small)
        optimizer = fused([small, param], lr=0.1, backend=name, **options)
        state = dict(zip(slots, columns[2:], strict=True))
        optimizer.state[param] = {**state, "step": torch.tensor(0.0, device=place)}
        found.append((optimizer, param, columns))
    return found


def test_offsets_past_two_to_the_31(device):
    """Guard against int32 offsets: the last blocks are past 2 ** 31 elements and 2 ** 32 bytes."""
    (kernel, param, columns), (reference, _, expected) = huge_pair(
        device, fused_optim.AdamW, ("exp_avg", "exp_avg_sq")
    )
    with device.on(blocks=last_blocks(3)):
        kernel.step()
    reference.step()
    for i, (column, other) in enumerate(zip(columns, expected, strict=True)):
        assert_same_bits(str(i), column.detach()[-TAIL:].cpu(), other.detach())
        assert column.data_ptr() == [param, param.grad, *columns[2:]][i].data_ptr()
        # elements at offsets that wrapped around would no longer be zero
        assert not column[: 4 * BLOCK].any()
        assert not column[-(2**31) - 2 * BLOCK : -(2**31) + BLOCK].any()
        assert not column[-TAIL - 4 * BLOCK : -TAIL].any()
    assert not torch.equal(expected[0], values([TAIL], torch.bfloat16)[0].abs())


def test_sums_past_two_to_the_31(device, monkeypatch):
    """Check the norm of the last chunk, and the last chunks of a rule with sums per tensor."""
    norms, sums = [], []
    norm, run = KernelRunner.norm, KernelRunner._run

    def spy(self, name, programs, *args):
        run(self, name, programs, *args)
        if name == "reduce":
            sums.append(args[-1])

    def partials(self):
        norms.append(norm(self))
        return norms[-1]

    monkeypatch.setattr(KernelRunner, "_run", spy)
    monkeypatch.setattr(KernelRunner, "norm", partials)
    (kernel, _, columns), _ = huge_pair(
        device, fused_optim.LAMB, ("exp_avg", "exp_avg_sq"), max_grad_norm=float("inf")
    )
    chunks = 1 - (-HUGE // BLOCK)
    last = (chunks - 1) % 1024  # the program of the norm that has the last chunk
    chosen = {"norm": [last], "reduce": range(chunks - 3, chunks), "prepare": [0]}
    with device.on(blocks=lambda name, count: chosen.get(name, [])):
        kernel.step()
    grad = columns[1][-TAIL:].double()
    if device.torch.type == "cpu":  # all its other chunks are zero
        assert norms[0][last, 0] == grad[-500:].square().sum()
    else:
        torch.testing.assert_close(kernel.grad_norm, (grad.square().sum() + 5).sqrt())
    if device.torch.type == "cpu":
        squares = [chunk.double().square().sum() for chunk in columns[0][-TAIL:].split(BLOCK)]
        found = sums[0][-3:]
        assert any(torch.equal(found[:, i], torch.stack(squares)) for i in range(2))


def test_the_last_element_after_two_to_the_24(device):
    """Guard against a size in float32, which cannot represent 2 ** 24 + 1."""
    param = torch.nn.Parameter(sparse(2**24 + 1, torch.float32, device.torch))
    param.grad = sparse(2**24 + 1, torch.float32, device.torch)
    param.grad[-2:] = 1.0
    optimizer = fused_optim.SGD([param], lr=0.5, backend="triton")
    with device.on(blocks=last_blocks(2)) as driver:
        optimizer.step()
    assert param[-3:].tolist() == [0.0, -0.5, -0.5]
    if driver is not None:
        assert driver.launches[-1].grid[0] == 2**24 // BLOCK + 1


def test_more_tensors_than_16_bits_count(device, record_property, monkeypatch):
    """Update them in three launches, each row with its size and group; execute some blocks."""
    # the programs of the norm that are not executed leave their partial sums as they find them
    monkeypatch.setattr(torch, "empty", torch.zeros)
    count = 70_000
    memory = torch.ones(count, 4, device=device.torch)
    grads = (torch.arange(4 * count, device=device.torch) % 8 / 8.0).view(count, 4)
    params = []
    for i, (row, grad) in enumerate(zip(memory.unbind(), grads.unbind(), strict=True)):
        params.append(torch.nn.Parameter(row[: 1 + i % 3]))
        params[-1].grad = grad[: 1 + i % 3]
    groups = [{"params": params[: count // 2]}, {"params": params[count // 2 :], "lr": 0.25}]
    optimizer = fused_optim.SGD(groups, lr=0.5, max_grad_norm=1e9, backend="triton")
    chosen = [*range(0, count, 997), count // 2 - 1, count // 2, count - 1]
    prepared = sorted({i // GEOMETRY.rows for i in chosen})
    blocks = {"norm": [0], "prepare": prepared, "update": chosen}
    start = time.perf_counter()
    with device.on(blocks=lambda kernel, count: blocks[kernel]) as driver:
        optimizer.step()
    record_property("seconds of the first step", round(time.perf_counter() - start, 2))
    if driver is not None:
        assert [launch.name for launch in driver.launches] == ["norm", "prepare", "update"]
        assert driver.launches[-1].grid[0] == count
    expected, grads = torch.ones(count, 4), grads.cpu()
    for i in chosen if driver is not None else range(count):
        lr = 0.5 if i < count // 2 else 0.25
        expected[i, : 1 + i % 3] -= lr * grads[i, : 1 + i % 3]
    assert torch.equal(memory.cpu(), expected)
