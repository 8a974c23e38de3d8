"""Small rows that the reference updates together, and large ones in pieces, with equal bits."""

import pytest
import torch
from helpers.models import parameters, set_grads, state_of, values

from fused_optim import SGD, AdamW
from fused_optim.backends import reference, small_tensors
from fused_optim.testing.closeness import assert_same_bits

SMALL = [
    3,
    1,
    700,
    0,
    41,
    small_tensors.MAX_NUMEL - 1,
    64,
    5000,
    2,
    small_tensors.MAX_NUMEL,
    900,
    6000,
    7000,
    8000,
]


def stepped(make, numels, steps=3, before=lambda step, params: None):
    """Return parameters and states after some steps."""
    params = parameters(values(numels, torch.float32))
    optimizer = make(params)
    for step in range(steps):
        set_grads(params, values(numels, torch.float32, seed=step + 1))
        before(step, params)
        optimizer.step()
    return [params, [list(state_of(optimizer, param).values()) for param in params]]


def compare(actual, expected):
    """Compare parameters and states bit for bit."""
    for mine, theirs in zip(actual[0], expected[0], strict=True):
        assert_same_bits("parameter", mine, theirs)
    for mine, theirs in zip(actual[1], expected[1], strict=True):
        for pair in zip(mine, theirs, strict=True):
            assert_same_bits("state", *pair)


def disable_packing(monkeypatch):
    """Make the reference update every row by itself, with its own scalars."""
    monkeypatch.setattr(small_tensors, "MAX_NUMEL", 0)
    monkeypatch.setattr(reference.ReferenceRunner, "_shared_bits", each_row)


def each_row(launch):
    """Return a different value for each row."""
    return range(len(launch.bucket.rows))


def adamw(params):
    """Return an AdamW with every column."""
    return AdamW(params, lr=0.1, amsgrad=True, ema_decay=0.5, backend="reference")


@pytest.mark.parametrize("numels", [SMALL, SMALL[::-1], [5], [0, 0], [0, 7]])
def test_packed_rows_are_as_rows_alone(numels, monkeypatch):
    packed = stepped(adamw, numels)
    disable_packing(monkeypatch)
    compare(packed, stepped(adamw, numels))


def test_rows_that_come_and_go(monkeypatch):
    """Guard against buffers of rows that have no gradient in this step."""

    def lacking(step, params):
        for param in params[step::3]:
            param.grad = None

    packed = stepped(adamw, SMALL, 6, lacking)
    disable_packing(monkeypatch)
    compare(packed, stepped(adamw, SMALL, 6, lacking))


def test_rows_of_any_strides(monkeypatch):
    """Guard against gradients copied in another order than the parameter's memory."""

    def strided():
        params = [
            torch.nn.Parameter(
                values([(4, 3, 2, 2)], torch.float32)[0].to(memory_format=torch.channels_last)
            ),
            torch.nn.Parameter(values([(6, 5)], torch.float32)[0].t()),
            torch.nn.Parameter(values([(8, 10)], torch.float32)[0][:, ::2]),
            torch.nn.Parameter(torch.tensor(2.0)),
        ]
        optimizer = adamw(params)
        for seed in range(3):
            set_grads(params, values([p.shape for p in params], torch.float32, seed))
            optimizer.step()
        return [params, [list(state_of(optimizer, p).values()) for p in params]]

    packed = strided()
    disable_packing(monkeypatch)
    compare(packed, strided())


def test_groups_are_not_packed_together():
    """Guard against rows of one buffer with different limits but equal scalars."""
    params, limits = parameters(values(SMALL, torch.float32)), (0.1, 0.2, 0.3)
    groups = [{"params": params[i::3], "max_grad_value": limits[i]} for i in range(3)]
    optimizer = SGD(groups, lr=1.0, backend="reference")
    grads = values(SMALL, torch.float32, seed=1)
    expected = [
        p.detach() - g.clamp(-limits[i % 3], limits[i % 3])
        for i, (p, g) in enumerate(zip(params, grads, strict=True))
    ]
    set_grads(params, grads)
    optimizer.step()
    compare([params, []], [expected, []])


def test_more_counters_than_a_pack_has_elements(monkeypatch):
    """Guard against a buffer that is too small, for 40 counters and then 50."""

    def lacking(step, params):
        for param in params[: 0 if step else 10]:
            param.grad = None

    expected = stepped(adamw, [3] * 50, 3, lacking)
    monkeypatch.setattr(small_tensors, "SIZE", 32)
    monkeypatch.setattr(small_tensors, "MAX_NUMEL", 8)
    compare(stepped(adamw, [3] * 50, 3, lacking), expected)


def test_gradients_are_not_written():
    params = parameters(values(SMALL, torch.float32))
    optimizer = adamw(params)
    set_grads(params, values(SMALL, torch.float32))
    optimizer.step()
    assert [param.grad._version for param in params] == [0] * len(params)


def test_threads_change_no_bit():
    """Guard against bits that depend on the pieces, which depend on the threads."""
    numels = [3 * reference.CHUNK + 5, 7]
    expected = stepped(adamw, numels)
    torch.set_num_threads(2)
    try:
        compare(stepped(adamw, numels), expected)
    finally:
        torch.set_num_threads(1)


def test_packs_without_use_are_dropped():
    params = parameters(values([4] * 6, torch.float32))
    optimizer = adamw(params)
    for count in (6, 5, 4, 3, 2):
        set_grads(params, values([4] * 6, torch.float32))
        for param in params[count:]:
            param.grad = None
        optimizer.step()
    (bucket,) = optimizer._engine.plan.buckets.values()
    # counters and columns of this step, and of the one before
    assert len(bucket.runner.buffers.this_step) == 2
    assert len(bucket.runner.buffers.last_step) <= 2


def test_what_is_kept_does_not_grow_with_the_tensors():
    """Guard against memory for every buffer."""
    params = parameters(values([small_tensors.MAX_NUMEL - 1] * 40, torch.float32))
    optimizer = adamw(params)
    set_grads(params, values([small_tensors.MAX_NUMEL - 1] * 40, torch.float32))
    optimizer.step()
    (bucket,) = optimizer._engine.plan.buckets.values()
    storages = {
        c.untyped_storage().data_ptr()
        for p in bucket.runner.buffers.this_step.values()
        for c in p.columns
    }
    kept = [column for columns in bucket.runner.buffers.memory.values() for column in columns]
    assert storages == {column.data_ptr() for column in kept}
    assert len(kept) == 1 + 6  # counters; parameter, gradient, three moments, average
