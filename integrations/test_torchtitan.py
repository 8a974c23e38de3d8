"""torchtitan's OptimizersContainer: clipping once, checkpoints by DCP, states made before a load.

Faults tried by hand: a bound that is not passed, no weight decay, states or extra bits not loaded.
"""

import copy
import math

import pytest
import torch
from byte_model import make_model
from closeness import assert_as_close, assert_far, assert_same_bits, assert_same_run
from torch.distributed.checkpoint.api import CheckpointException
from torchtitan.components.optimizer import OptimizersContainer, ParamGroupConfig
from torchtitan_container import CLIP, STEPS, FusedOptimizers, configure, train

FORMATS = {"weights": "split", "states": "int8", "ema_decay": 0.9, "max_grad_norm": CLIP}


@pytest.mark.parametrize("implementation", ["fused", "foreach", "for-loop"])
def test_same_as_torch_and_clips_once(implementation):
    exact, theirs, ours = make_model().double(), make_model(), make_model()
    for model in (exact, theirs):
        train(model, configure(OptimizersContainer, eps=1e-3), CLIP)
    config = configure(FusedOptimizers, eps=1e-3, max_grad_norm=CLIP)
    config.implementation = implementation
    _, optimizers = train(ours, config, math.inf)
    assert_as_close(ours, theirs, exact)
    assert float(optimizers.optimizers[0].grad_norm) > CLIP  # the norm before clipping
    other = make_model()
    _, optimizers = train(other, config, CLIP / 2)  # torchtitan clips first
    assert float(optimizers.optimizers[0].grad_norm) < CLIP / 2 + 1e-6
    assert_far(other, theirs)


@pytest.mark.parametrize("formats", [{"max_grad_norm": CLIP}, FORMATS])
def test_resume_is_exact(formats, tmp_path):
    dtype = torch.bfloat16 if "weights" in formats else torch.float32
    whole, first, again = (make_model().to(dtype) for _ in range(3))
    config = configure(FusedOptimizers, **formats)
    losses, optimizers = train(whole, config, math.inf)
    train(first, config, math.inf, stop=STEPS // 2, folder=str(tmp_path))
    tail, resumed = train(again, config, math.inf, start=STEPS // 2, folder=str(tmp_path))
    assert tail == losses[STEPS // 2 :]
    assert_same_run(resumed.optimizers[0], optimizers.optimizers[0])


def test_states_made_before_a_load_change_no_parameter():
    """torchtitan takes a step with gradients of zero and lr=0 before it loads or saves states."""
    model = make_model().bfloat16()
    before = copy.deepcopy(model)
    optimizers = configure(FusedOptimizers, **FORMATS).build(model_parts=[model])
    assert optimizers.state_dict()
    for param, value in zip(model.parameters(), before.parameters(), strict=True):
        assert_same_bits("parameter", param.detach(), value.detach())


def test_resume_from_a_run_of_torch(tmp_path):
    exact, theirs, ours = make_model().double(), make_model(), make_model()
    folder = str(tmp_path)
    for model in (exact, theirs):
        train(model, configure(OptimizersContainer, eps=1e-3), CLIP)
    train(make_model(), configure(OptimizersContainer, eps=1e-3), CLIP, 0, STEPS // 2, folder)
    # every option of a group must be in the checkpoint, so ours may not clip
    config = configure(FusedOptimizers, eps=1e-3, max_grad_norm=CLIP)
    with pytest.raises(CheckpointException, match=r"Missing key in checkpoint.*max_grad_norm"):
        train(make_model(), config, math.inf, STEPS // 2, folder=folder)
    train(ours, configure(FusedOptimizers, eps=1e-3), CLIP, STEPS // 2, folder=folder)
    assert_as_close(ours, theirs, exact)


def test_a_bound_of_one_group_is_refused():
    config = configure(FusedOptimizers)
    config.param_groups.insert(
        0,
        ParamGroupConfig(
            pattern="hidden", optimizer_name="AdamW", optimizer_kwargs={"max_grad_norm": 1.0}
        ),
    )
    with pytest.raises(ValueError, match="max_grad_norm"):
        config.build(model_parts=[make_model()])
