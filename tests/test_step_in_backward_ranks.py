"""``step_in_backward`` with the process group of one rank, and what wrappers are refused.

On two ranks: ``distributed/backward.py``. Faults tried by hand: a fast path kept when
``norm_group`` is set, each refusal left out.
"""

import pytest
import torch
from helpers.models import parameters, values
from torch import nn

from fused_optim import AdamW, step_in_backward

dist = torch.distributed


@pytest.fixture
def one_rank():
    """Create a process group of this process alone."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_a_process_group_that_is_set_later(one_rank, monkeypatch):
    """Guard against a fast path without the sums over the group."""
    calls = []
    monkeypatch.setattr(dist, "all_reduce", lambda *_, **__: calls.append(1))
    params = parameters(values([(5,), (6,)], torch.float32))
    optimizer = AdamW(params, max_grad_norm=1.0)
    step_in_backward(params, optimizer, clip_by_last_norm=True)
    seen = []
    for group in (None, dist.group.WORLD, None):
        optimizer.norm_group = group
        calls.clear()
        for param in params:
            param.backward(torch.ones_like(param))
        seen.append(len(calls))
        optimizer.step()
    assert seen == [0, 2, 0]


def test_data_parallel_models_are_refused(one_rank):
    model = nn.parallel.DistributedDataParallel(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="DistributedDataParallel, which reduces gradients after"):
        step_in_backward(nn.Sequential(model), AdamW(model.parameters()))


@pytest.mark.filterwarnings("ignore")  # of FSDP1, which is deprecated
def test_flattened_parameters_are_refused(one_rank):
    from torch.distributed.fsdp import FullyShardedDataParallel, ShardingStrategy

    model = FullyShardedDataParallel(
        nn.Linear(2, 2),
        sharding_strategy=ShardingStrategy.NO_SHARD,
        device_id=torch.device("cpu"),
    )
    params = list(model.parameters())
    with pytest.raises(ValueError, match=r"FSDP1.*use torch.distributed.fsdp.fully_shard"):
        step_in_backward(params, AdamW(params))
