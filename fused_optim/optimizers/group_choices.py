"""The choice of a rule and its options for parameters, by name."""

import inspect
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

from fused_optim import options
from fused_optim.optimizers.mixed import MixedOptimizer, list_algorithms


class Choice(NamedTuple):
    """The rule of a parameter, with the options of its group.

    Attributes:
        rule: lower-case name of the optimizer that has the rule; None if it is not known.
        options: options of the group.
        why: reason of the choice; of a choice by name the pattern, of one without a rule the type
            of the module.
        embedding: True for a parameter whose rows are looked up.
    """

    rule: str | None
    options: Mapping[str, Any]
    why: str
    embedding: bool = False


def list_options(rule: str) -> set[str]:
    """Return the names of the options of the groups of a rule.

    Raises:
        ValueError: there is no such rule, or it cannot be used in a group.
    """
    classes = list_algorithms()
    mixed = [cls for cls in classes.values() if issubclass(cls, MixedOptimizer)]
    # an optimizer with train() and eval() cannot be part of another
    usable = sorted(key for key, cls in classes.items() if not hasattr(cls, "eval"))
    if rule not in usable:
        raise ValueError(f"a rule must be one of {', '.join(usable)}, got {rule!r}")
    names = set(options.GROUP_DEFAULTS)
    for cls in mixed if classes[rule] in mixed else [classes[rule]]:
        names |= inspect.signature(cls).parameters.keys() - {"params", "additions"}
    return names


def check_options(rule: str, given: Mapping[str, Any]) -> None:
    """Raise ValueError unless a rule has every one of the options given."""
    known = list_options(rule)
    unknown = sorted(given.keys() - known)
    if unknown:
        listed = ", ".join(sorted(known))
        raise ValueError(f"{rule!r} has no option {unknown[0]!r}: its options are {listed}")


def choose_by_name(
    params: Sequence[tuple[str, Sequence[str]]], named: Mapping[str, Any]
) -> dict[str, Choice]:
    """Return the choice of the last pattern that fits one of the names of each parameter.

    Args:
        params: name of each parameter, with all its names.
        named: rules or options by pattern: see :func:`fused_optim.param_groups_for_muon`.

    Raises:
        ValueError: a pattern fits no name.
        TypeError: a value is neither a name nor a mapping.
    """
    chosen: dict[str, Choice] = {}
    for pattern, value in named.items():
        if isinstance(value, str):
            choice = Choice(value, {}, pattern)
        elif isinstance(value, Mapping):
            rest = {key: option for key, option in value.items() if key != "algorithm"}
            choice = Choice(value.get("algorithm"), rest, pattern)
        else:
            raise TypeError(
                f"named[{pattern!r}] must be a rule or a dict of options, got {value!r}"
            )
        if choice.rule is not None:
            list_options(choice.rule)
        fitting = [n for n, names in params if any(fnmatchcase(a, pattern) for a in names)]
        if not fitting:
            raise ValueError(
                f"named[{pattern!r}] must fit the name of a parameter, got none of "
                f"{', '.join(name for name, _ in params[:6])}, ..."
            )
        chosen.update(dict.fromkeys(fitting, choice))
    return chosen
