"""Fused optimizers: drop-ins for torch.optim that update all tensors in one pass."""

from fused_optim.explain import Explanation
from fused_optim.memory_estimate import Memory, memory
from fused_optim.optimizers.adadelta import Adadelta
from fused_optim.optimizers.adagrad import Adagrad
from fused_optim.optimizers.adam import Adam, AdamW
from fused_optim.optimizers.adamax import Adamax
from fused_optim.optimizers.adan import Adan
from fused_optim.optimizers.ademamix import AdEMAMix
from fused_optim.optimizers.asgd import ASGD
from fused_optim.optimizers.from_torch import from_torch
from fused_optim.optimizers.lamb import LAMB
from fused_optim.optimizers.lars import LARS
from fused_optim.optimizers.lion import Lion
from fused_optim.optimizers.muon import Muon
from fused_optim.optimizers.muon_groups import param_groups_for_muon
from fused_optim.optimizers.nadam import NAdam
from fused_optim.optimizers.normuon import NorMuon
from fused_optim.optimizers.radam import RAdam
from fused_optim.optimizers.rmsprop import RMSprop
from fused_optim.optimizers.schedule_free import ScheduleFreeAdamW, ScheduleFreeSGD
from fused_optim.optimizers.sgd import SGD
from fused_optim.optimizers.sparse_adam import SparseAdam
from fused_optim.optimizers.stable_adamw import StableAdamW
from fused_optim.optimizers.to_torch import to_torch
from fused_optim.options import Additions
from fused_optim.step_in_backward import StepInBackward, step_in_backward

__version__ = "0.1.0"

__all__ = [
    "ASGD",
    "LAMB",
    "LARS",
    "SGD",
    "AdEMAMix",
    "Adadelta",
    "Adagrad",
    "Adam",
    "AdamW",
    "Adamax",
    "Adan",
    "Additions",
    "Explanation",
    "Lion",
    "Memory",
    "Muon",
    "NAdam",
    "NorMuon",
    "RAdam",
    "RMSprop",
    "ScheduleFreeAdamW",
    "ScheduleFreeSGD",
    "SparseAdam",
    "StableAdamW",
    "StepInBackward",
    "from_torch",
    "memory",
    "param_groups_for_muon",
    "step_in_backward",
    "to_torch",
]
