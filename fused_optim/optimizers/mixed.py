"""The base class of optimizers whose groups may name another update rule of the library."""

import inspect
from collections.abc import Mapping
from functools import cache
from typing import Any, ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from fused_optim import options
from fused_optim.formats.conversion import State
from fused_optim.optimizers.base import FusedOptimizer, Group
from fused_optim.rules.common import Rule
from fused_optim.validation import Check

# entries of a group that are no options of a rule: of torch, of schedulers, and ours
TAGS = {"params", "param_names", "algorithm", "initial_lr", "name"}


_OTHERS: dict[str, FusedOptimizer] = {}  # optimizers that read the options of groups, by rule


@cache
def list_algorithms() -> dict[str, type[FusedOptimizer]]:
    """Return the optimizer classes of the library by lower-case name."""
    import fused_optim

    classes = [getattr(fused_optim, name) for name in fused_optim.__all__]
    return {
        cls.__name__.lower(): cls
        for cls in classes
        if inspect.isclass(cls) and issubclass(cls, FusedOptimizer)
    }


class MixedOptimizer(FusedOptimizer):
    """Base class of optimizers whose groups may have ``algorithm=``, the name of another rule.

    Such a group has the options of that optimizer, with its defaults, and is updated in the same
    step. A subclass has methods ``own_...`` for the groups of its own rule.

    Attributes:
        OWN_BOUNDS: check of each option of the groups of its own rule, by name.
    """

    OWN_BOUNDS: ClassVar[Mapping[str, Check]] = {}

    def own_rule(self, group: Group) -> Rule:
        """Return the rule of a group without ``algorithm``."""
        return self.RULE

    def own_check(self, group: Group) -> None:
        """Check combinations of options of a group without ``algorithm``."""

    def own_check_param(self, param: Tensor, name: str | None, group_index: int) -> None:
        """Raise ValueError unless the own rule can update ``param``."""

    def _other(self, group: Mapping[str, Any]) -> FusedOptimizer | None:
        """Return an optimizer of the class that a group names; None for the own rule.

        Raises:
            ValueError: there is no such rule, or it cannot be used in a group.
        """
        name = group.get("algorithm")
        own = type(self).__name__.lower()
        if name is None or name == own:
            return None
        classes = list_algorithms()
        usable = sorted(
            key
            for key, cls in classes.items()
            if not issubclass(cls, MixedOptimizer) and not hasattr(cls, "eval")
        )
        if name not in usable:
            why = ""
            if name in classes and hasattr(classes[name], "eval"):
                why = " (it needs train() and eval(): make it an optimizer of its own)"
            listed = ", ".join(map(repr, [own, *usable]))
            raise ValueError(f"algorithm must be one of {listed}, got {name!r}{why}")
        if name not in _OTHERS:
            make: Any = classes[name]
            _OTHERS[name] = make([torch.zeros(0, device="cpu")])
        return _OTHERS[name]

    @override
    def rule(self, group: Group) -> Rule:
        other = self._other(group)
        return self.own_rule(group) if other is None else other.rule(group)

    @override
    def bounds(self, group: Group) -> Mapping[str, Check]:
        other = self._other(group)
        return self.OWN_BOUNDS if other is None else other.bounds(group)

    @override
    def check(self, group: Group) -> None:
        other = self._other(group)
        if other is None:
            self.own_check(group)
        else:
            other.check(group)

    @override
    def hparams(self, group: Group) -> Any:
        other = self._other(group)
        return super().hparams(group) if other is None else other.hparams(group)

    @override
    def _is_decoupled(self, group: Group) -> bool:
        other = self._other(group)
        return super()._is_decoupled(group) if other is None else other._is_decoupled(group)

    def _start_as(self, group: Group) -> FusedOptimizer | None:
        """Return an optimizer of the class that a group names, with its options as defaults."""
        other = self._other(group)
        if other is None:
            return None
        make: Any = type(other)
        known = inspect.signature(make).parameters
        own = {name: group[name] for name in other.defaults if name in known and name in group}
        started: FusedOptimizer = make([torch.zeros(0, device="cpu")], **own)
        return started

    @override
    def new_state(self, param: Tensor, state: State, state_key: str, group: Group) -> Tensor | None:
        other = self._start_as(group)
        if other is None:
            return super().new_state(param, state, state_key, group)
        return other.new_state(param, state, state_key, group)

    @override
    def new_scalar_state(self, name: str, group: Group) -> float | Tensor:
        other = self._start_as(group)
        if other is None:
            return super().new_scalar_state(name, group)
        return other.new_scalar_state(name, group)

    @override
    def check_param(self, param: Tensor, name: str | None, group_index: int) -> None:
        super().check_param(param, name, group_index)
        if self._other(self.param_groups[group_index]) is None:
            self.own_check_param(param, name, group_index)

    @override
    def add_param_group(self, param_group: Group) -> None:
        """Add a group, as in torch; ``algorithm`` in it names the rule that its options belong to.

        Raises:
            ValueError: see :meth:`FusedOptimizer.add_param_group`; or there is no such rule, or the
                rule has no such option.
        """
        if not isinstance(param_group, dict) or param_group.get("algorithm") is None:
            super().add_param_group(param_group)
            return
        other = self._other(param_group)
        defaults = self.defaults if other is None else other.defaults
        known = {name: value for name, value in defaults.items() if name not in _ADDITIONS}
        unknown = sorted(param_group.keys() - known.keys() - TAGS - _ADDITIONS)
        if unknown:
            listed = ", ".join(sorted(known.keys() | _ADDITIONS))
            raise ValueError(
                f"a group with algorithm={param_group['algorithm']!r} has no option "
                f"{unknown[0]!r}: its options are {listed}"
            )
        for name, value in known.items():
            param_group.setdefault(name, value)
        super().add_param_group(param_group)
        self._drop_other_options(param_group)

    @override
    def shard(self, param: Tensor, *, index: int, offset: int, numel: int) -> None:
        """Declare that ``param`` is a slice of a larger parameter: see :class:`FusedOptimizer`.

        Raises:
            ValueError: also if the rule of its group transforms whole matrices.
        """
        for group in self.param_groups:
            whole = self.rule(group).matrix_step is not None
            if whole and any(one is param for one in group["params"]):
                raise ValueError(
                    f"param must be whole in a group of {type(self).__name__}, which transforms "
                    "whole matrices: shard it as a DTensor, or put it in a group with "
                    "algorithm='adamw'"
                )
        super().shard(param, index=index, offset=offset, numel=numel)

    def _drop_other_options(self, group: Group) -> None:
        """Remove the options of the own rule from a group of another rule."""
        other = self._other(group)
        if other is None:
            group.pop("algorithm", None)
            return
        for name in self.defaults.keys() - other.defaults.keys() - TAGS - _ADDITIONS:
            group.pop(name, None)

    @override
    def __setstate__(self, state: dict[str, Any]) -> None:
        before = self.__dict__.get("param_groups")
        if before is not None:  # as the formats, the rule belongs to this optimizer
            for group, own in zip(state["param_groups"], before, strict=True):
                group.pop("algorithm", None)
                if "algorithm" in own:
                    group["algorithm"] = own["algorithm"]
        for group in state["param_groups"]:
            other = self._other(group)
            for name, value in ({} if other is None else other.defaults).items():
                if name not in _ADDITIONS:
                    group.setdefault(name, value)
        super().__setstate__(state)
        for group in self.param_groups:
            self._drop_other_options(group)


_ADDITIONS = options.GROUP_DEFAULTS.keys()
