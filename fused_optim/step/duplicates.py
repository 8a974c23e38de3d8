"""Parameters that a group has more than once: torch updates them once for each occurrence.

Kernels update all rows at once, so every occurrence after the first has a pass of its own.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Protocol, TypeVar

from torch import Tensor

from fused_optim.rules.common import Rule
from fused_optim.step.guards import State


class Occurrence(Protocol):
    """A parameter with the rule of its group."""

    @property
    def param(self) -> Tensor:
        """The parameter."""

    @property
    def rule(self) -> Rule:
        """The rule of its group."""


T = TypeVar("T", bound=Occurrence)


def split_passes(occurrences: Iterable[T], needs_norm: bool) -> list[list[T]]:
    """Return the passes of a step: the first has each parameter once, in the order given.

    Raises:
        ValueError: there are duplicates, and the norm of all gradients is needed.
    """
    passes: list[list[T]] = [[]]
    seen: Counter[Tensor] = Counter()
    for one in occurrences:
        number = seen[one.param]
        seen[one.param] += 1
        passes += [[] for _ in range(number + 1 - len(passes))]
        passes[number].append(one)
    if len(passes) > 1 and needs_norm:
        raise ValueError(
            "optimizer contains a parameter group with duplicate parameters, whose gradients "
            "would be counted more than once in the norm that max_grad_norm and nonfinite='skip' "
            "need: remove the duplicates or these options"
        )
    return passes


def list_unstarted(later_passes: Sequence[Sequence[T]], state: State) -> set[Tensor]:
    """Return the duplicate parameters of which a late state does not exist yet."""
    return {
        one.param
        for one in chain.from_iterable(later_passes)
        if any(state.get(one.param, {}).get(key) is None for key in one.rule.late_keys)
    }


def restart(occurrences: Sequence[T], unstarted: set[Tensor], state: State) -> None:
    """Remove the states that the first occurrence of an unstarted parameter has created."""
    for one in occurrences:
        if one.param in unstarted:
            for key in (*one.rule.late_keys, *one.rule.scalar_state):
                del state[one.param][key]
