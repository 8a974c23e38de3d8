"""The conversion of the options of a parameter group to the numbers that kernels read."""

import math
from typing import Any

from torch import Tensor

from fused_optim.backends.base import GroupOptions
from fused_optim.kernels.signatures import CommonOptions
from fused_optim.options import get_option
from fused_optim.rules.common import Rule
from fused_optim.step.guards import Group
from fused_optim.validation import to_number


def read_common_options(
    group: Group, max_grad_norm: Any, l2: Any, any_skips: bool
) -> CommonOptions:
    """Return the options of a group that do not depend on its rule.

    Args:
        group: parameter group.
        max_grad_norm: bound on the norm over all gradients, or None.
        l2: weight of the parameter in the gradient (L2 penalty).
        any_skips: True if an Inf or NaN skips any group of the optimizer.
    """
    limit, decay = get_option(group, "max_grad_value"), get_option(group, "ema_decay")
    options = CommonOptions(
        grad_sign=-1.0 if group.get("maximize") else 1.0,
        max_grad_norm=math.inf if max_grad_norm is None else max_grad_norm,
        max_grad_value=math.inf if limit is None else limit,
        l2=l2,
        l1=get_option(group, "l1"),
        skips=get_option(group, "nonfinite") == "skip",
        any_skips=any_skips,
        ema_decay=0.0 if decay is None else decay,
        seed=get_option(group, "seed"),
    )
    return CommonOptions._make(map(read_option, options))


def read_hparams(rule: Rule, group: Group, is_decoupled: bool) -> Any:
    """Return the hyperparameters of ``rule`` from the options of the same names.

    ``beta1`` is ``betas[0]`` and so on; ``weight_decay`` is 0 unless it is decoupled.
    """

    def read(name: str) -> Any:
        if name.startswith("beta") and name[4:].isdigit():
            return group["betas"][int(name[4:]) - 1]
        return 0.0 if name == "weight_decay" and not is_decoupled else group[name]

    return rule.hparams(*map(read, rule.hparams._fields))


def make_group_options(
    common: CommonOptions, rule: Rule, hparams: Any, group: Group
) -> GroupOptions:
    """Return the options of a group as kernels need them, with those of a second pass."""
    options = GroupOptions(common, hparams._make(map(read_option, hparams)))
    if rule.matrix_step is None:
        return options
    # the gradient of the second pass is the direction, which is complete
    untouched = common._replace(
        grad_sign=1.0, max_grad_norm=math.inf, max_grad_value=math.inf, l2=0.0, l1=0.0
    )
    second = read_hparams(rule.matrix_step.second, group, is_decoupled=True)
    return options._replace(second=GroupOptions(untouched, second._make(map(read_option, second))))


def read_option(value: Any) -> float | Tensor:
    """Return an option as a float; a tensor on an accelerator unchanged, without waiting for it."""
    if isinstance(value, Tensor) and value.device.type != "cpu":
        return value
    return to_number("an option", value)
