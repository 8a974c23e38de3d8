"""A view of an optimizer with other parameter groups, for the engine of a step."""

from typing import Any, ClassVar

from torch import Tensor

from fused_optim.backends.base import GroupOptions
from fused_optim.formats.conversion import State
from fused_optim.rules.common import Rule
from fused_optim.step.engine import SteppedOptimizer
from fused_optim.step.guards import Group


class OptimizerView:
    """A view of an optimizer; it has the rules and options of the optimizer.

    Attributes:
        REFUSAL: see :class:`fused_optim.step.engine.SteppedOptimizer`.
        optimizer: the optimizer.
        param_groups: parameter groups that the engine sees.
        state: state entries that the engine sees, by parameter.
        norm_group: process group over which the norm is summed as well, or None.
    """

    REFUSAL: ClassVar[str] = ""

    def __init__(self, optimizer: SteppedOptimizer) -> None:
        self.optimizer = optimizer
        self.param_groups: list[Group] = []
        self.state: Any = {}
        self.norm_group: Any = optimizer.norm_group

    @classmethod
    def of(cls, optimizer: SteppedOptimizer) -> Any:
        """Return a view of ``optimizer``, whose class has the same name: messages contain it."""
        words = {"REFUSAL": optimizer.REFUSAL}
        return type(type(optimizer).__name__, (cls,), words)(optimizer)

    @property
    def max_grad_norm(self) -> Any:
        """Bound on the norm over all gradients, or None."""
        return self.optimizer.max_grad_norm

    def rule(self, group: Group) -> Rule:
        """Return the rule that the options of ``group`` select."""
        return self.optimizer.rule(group)

    def group_options(self, group: Group, any_skips: bool) -> GroupOptions:
        """Return the options of ``group`` as kernels need them."""
        return self.optimizer.group_options(group, any_skips)

    def bucket_options(self, group: Group) -> tuple[Any, ...]:
        """Return the options of ``group`` that are part of the bucket keys of its rows."""
        return self.optimizer.bucket_options(group)

    def new_state(self, param: Tensor, state: State, state_key: str, group: Group) -> Tensor | None:
        """Return the first value of a state; None for zeros."""
        return self.optimizer.new_state(param, state, state_key, group)

    def new_scalar_state(self, name: str, group: Group) -> float | Tensor:
        """Return the first value of a 0-dim state."""
        return self.optimizer.new_scalar_state(name, group)

    def before_first_step(self, param: Tensor) -> None:
        """Prepare for the creation of the states of ``param`` in this step."""
        self.optimizer.before_first_step(param)

    def check_param(self, param: Tensor, name: str | None, group_index: int) -> None:
        """Raise ValueError unless ``param`` can be updated."""
        self.optimizer.check_param(param, name, group_index)
