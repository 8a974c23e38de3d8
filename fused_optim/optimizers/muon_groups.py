"""Parameter groups for Muon, by the type of the module that has a parameter."""

import sys
from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from fused_optim.explain import align
from fused_optim.matrix.blocks import Cut, describe_misfit
from fused_optim.matrix.summary import describe_matrices, list_matrices
from fused_optim.optimizers.base import Group
from fused_optim.optimizers.group_choices import Choice, check_options, choose_by_name
from fused_optim.private_api import is_fsdp1_flat

MUON, OTHERS = "muon", "adamw"
EMBEDDINGS = (nn.Embedding, nn.EmbeddingBag)
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
NORMS = (nn.LayerNorm, nn.RMSNorm)
CUT_OPTIONS = ("batch_dims", "split", "heads")


class Entry(NamedTuple):
    """A parameter with every place where the model has it.

    Attributes:
        name: its first name in ``named_parameters()``.
        param: parameter.
        names: all its names.
        owners: for each name the module that has the parameter.
    """

    name: str
    param: Tensor
    names: list[str]
    owners: list[nn.Module]

    @property
    def attribute(self) -> str:
        """Name of the parameter in its module."""
        return self.name.rpartition(".")[2]


def param_groups_for_muon(
    model: nn.Module,
    *,
    muon: Mapping[str, Any] | None = None,
    adamw: Mapping[str, Any] | None = None,
    named: Mapping[str, str | Mapping[str, Any]] | None = None,
    print_table: bool = False,
    **rules: Mapping[str, Any],
) -> list[Group]:
    """Return parameter groups for :class:`fused_optim.Muon`, chosen by the types of the modules.

    The number of dims does not tell a hidden matrix from an embedding or an output layer, which
    Muon is not for. The choice is by the module:

    - ``nn.Linear``: Muon; ``nn.Conv1d``, ``2d`` and ``3d``: Muon with ``batch_dims=0``, and
      ``heads=groups`` for the filters of each group; the fused projection of
      ``nn.MultiheadAttention``: Muon with ``split`` into query, key and value;
    - embeddings, weights that a linear layer shares with one, norms, the output layer, depthwise
      convolutions, and every parameter with at most one dim above 1 (biases): AdamW;
    - any other parameter of two or more dims must be named in ``named``, or an error lists it: a
      ``Conv1D`` of transformers has its rows and columns exchanged, a custom module may look up
      rows, and a wrong guess would only show in the loss.

    The output layer is the last ``nn.Linear`` with as many outputs as the largest embedding has
    rows. In a model without such a layer it is the last ``nn.Linear``, unless that is one of
    several alike in repeated blocks, as where the output is multiplied by the embedding.

    Args:
        model: module; its frozen parameters are in the groups too, as with ``model.parameters()``.
        muon: options of the groups of Muon, such as ``{"lr": 0.02}``.
        adamw: options of the groups of AdamW.
        named: choices by name, which override the choice by type; the last pattern (as in
            :mod:`fnmatch`) that fits a name counts. A value is the name of a rule, or a dict of
            options, with the rule as ``"algorithm"`` unless the type or one of the options
            ``batch_dims``, ``split`` and ``heads``, which are Muon's, tells it. An embedding goes
            to Muon by its full name only.
        print_table: print name, shape, rule, matrices with their factors of the learning rate, and
            the reason of each choice.
        rules: options of the groups of further rules, by lower-case name, for ``named``.

    Returns:
        groups of ``(name, parameter)`` pairs, which name their rule as ``algorithm`` unless it is
        Muon.

    Raises:
        ValueError: the rule of a parameter is not known; a pattern fits no name; a pattern with
            wildcards moves an embedding to Muon; a matrix does not fit ``split`` or ``heads``;
            there is no such rule, or the rule has no such option.

    Source: Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/
    """
    options: dict[str, Mapping[str, Any]] = {MUON: muon or {}, OTHERS: adamw or {}, **rules}
    for rule, given in options.items():
        check_options(rule, given)
    entries = list_entries(model)
    chosen = choose_by_type(model, entries)
    named_choices = choose_by_name([(e.name, e.names) for e in entries], named or {})
    final = [
        _combine(entry, by_type, named_choices.get(entry.name), options)
        for entry, by_type in zip(entries, chosen, strict=True)
    ]
    _refuse_undecided(entries, final)
    pairs = list(zip(entries, final, strict=True))
    rows = [_describe(entry, choice) for entry, choice in pairs]
    if print_table:
        sys.stdout.write(align(rows, ("parameter", "shape", "rule", "matrices", "why")) + "\n")
    return _make_groups(pairs)


def list_entries(model: nn.Module) -> list[Entry]:
    """Return the parameters of a model in the order of ``named_parameters()``.

    Raises:
        ValueError: a parameter has no shape yet, or was flattened.
    """
    entries: dict[int, Entry] = {}
    for prefix, module in model.named_modules(remove_duplicate=False):
        for attribute, param in module.named_parameters(recurse=False, remove_duplicate=False):
            name = f"{prefix}.{attribute}" if prefix else attribute
            if is_lazy(param):
                raise ValueError(f"parameter {name!r} must have a shape: run a forward pass first")
            if is_fsdp1_flat(param):
                raise ValueError(
                    f"parameter {name!r} must not be flattened by FullyShardedDataParallel (FSDP1),"
                    " which leaves no matrices: use FSDP2, torch.distributed.fsdp.fully_shard"
                )
            entry = entries.setdefault(id(param), Entry(name, param, [], []))
            entry.names.append(name)
            entry.owners.append(module)
    return list(entries.values())


def choose_by_type(model: nn.Module, entries: list[Entry]) -> list[Choice]:
    """Return the choice for each parameter by its modules; one without a rule if none is known."""
    head = find_output_layer(model)
    return [_choose(entry, head) for entry in entries]


def find_output_layer(model: nn.Module) -> nn.Module | None:
    """Return the output layer, as :func:`param_groups_for_muon` finds it, or None."""
    linears = [(n, m) for n, m in model.named_modules() if isinstance(m, nn.Linear)]
    rows = [m.num_embeddings for m in model.modules() if isinstance(m, EMBEDDINGS)]
    if rows:
        fitting = [m for _, m in linears if m.out_features == max(rows)]
        if fitting:
            return fitting[-1]
    if not linears:
        return None
    patterns = [_replace_numbers(name) for name, _ in linears]
    name, last = linears[-1]
    # "blocks.3.down" is one of several alike; "2" of a plain Sequential is not
    repeated = patterns.count(patterns[-1]) > 1 and not name.rpartition(".")[2].isdigit()
    return None if repeated else last


def _replace_numbers(name: str) -> str:
    return ".".join("*" if part.isdigit() else part for part in name.split("."))


def _choose(entry: Entry, head: nn.Module | None) -> Choice:
    """Return the choice for a parameter by the modules that have it."""
    owner, shape = entry.owners[0], entry.param.shape
    kinds = [type(module).__name__ for module in entry.owners]
    if any(isinstance(module, EMBEDDINGS) for module in entry.owners):
        tied = f", tied with {', '.join(entry.names[1:])}" if len(entry.names) > 1 else ""
        return Choice(OTHERS, {}, f"embedding{tied}", embedding=True)
    if sum(size > 1 for size in shape) < 2:
        return Choice(OTHERS, {}, "vector")
    if isinstance(owner, NORMS):
        return Choice(OTHERS, {}, kinds[0])
    if any(module is head for module in entry.owners):
        return Choice(OTHERS, {}, "output layer")
    if isinstance(owner, nn.Linear) and entry.attribute == "weight":
        return Choice(MUON, {}, kinds[0])
    if isinstance(owner, CONVOLUTIONS) and entry.attribute == "weight":
        return _choose_convolution(owner)
    if isinstance(owner, nn.MultiheadAttention) and entry.attribute.endswith("proj_weight"):
        third = shape[0] // 3
        fused = entry.attribute == "in_proj_weight"
        return Choice(MUON, {"split": (third,) * 3} if fused else {}, kinds[0])
    return Choice(None, {}, kinds[0])


def _choose_convolution(owner: Any) -> Choice:
    """Return the choice for the filters of a convolution."""
    kind = type(owner).__name__
    if owner.groups == 1:
        return Choice(MUON, {"batch_dims": 0}, kind)
    if owner.groups == owner.out_channels:
        return Choice(OTHERS, {}, f"depthwise {kind}")
    return Choice(MUON, {"batch_dims": 0, "heads": owner.groups}, f"{kind}, groups={owner.groups}")


def _combine(
    entry: Entry,
    by_type: Choice,
    by_name: Choice | None,
    options: Mapping[str, Mapping[str, Any]],
) -> Choice:
    """Return the final choice: by name where there is one, with all options of the rule.

    Raises:
        ValueError: a pattern with wildcards moves an embedding to Muon, or the matrix does not fit.
    """
    rule, own, why = by_type.rule, by_type.options, by_type.why
    if by_name is not None:
        cuts = any(name in by_name.options for name in CUT_OPTIONS)
        rule = by_name.rule or (MUON if cuts else rule)
        if rule is None:
            return by_type
        kept = own if rule == by_type.rule else {}
        own, why = {**kept, **by_name.options}, f"named {by_name.why!r}"
        check_options(rule, own)
        if rule == MUON and by_type.embedding and by_name.why not in entry.names:
            raise ValueError(
                f"named[{by_name.why!r}] must not move the embedding {entry.name!r} to Muon, which "
                "is not for rows that are looked up: name it without wildcards if that is meant"
            )
    choice = Choice(rule, {**options.get(rule or "", {}), **own}, why)
    misfit = describe_misfit(entry.param.shape, _cut_of(choice)) if rule == MUON else None
    if misfit is not None:
        raise ValueError(f"parameter {entry.name!r} ({why}) must {misfit}")
    return choice


def _refuse_undecided(entries: list[Entry], choices: list[Choice]) -> None:
    """Raise ValueError if a parameter has no rule."""
    undecided = [
        f"{entry.name!r} {tuple(entry.param.shape)} of {choice.why}"
        for entry, choice in zip(entries, choices, strict=True)
        if choice.rule is None
    ]
    if undecided:
        shown = "; ".join(undecided[:8]) + ("; ..." if len(undecided) > 8 else "")
        raise ValueError(
            f"named must have a pattern for each of {len(undecided)} parameters, whose module does "
            f"not tell their rule: {shown}. Pass named={{{undecided[0].split()[0]}: 'adamw'}}, or "
            "'muon' for a hidden matrix of [outputs, inputs], or {'batch_dims': 1} for a stack of "
            "them"
        )


def _cut_of(choice: Choice) -> Cut:
    given = choice.options
    split = tuple(given.get("split") or ())
    return Cut(given.get("batch_dims"), split, given.get("heads", 1))


def _describe(entry: Entry, choice: Choice) -> tuple[str, ...]:
    """Return the cells of a row of the table."""
    shape = " x ".join(map(str, entry.param.shape)) or "0-dim"
    frozen = "" if entry.param.requires_grad else ", frozen"
    matrices = "-"
    if choice.rule == MUON:
        adjust = choice.options.get("adjust_lr_fn") or "original"
        matrices = describe_matrices(list_matrices(entry.param.shape, _cut_of(choice), adjust))
    return (entry.name, shape, str(choice.rule), matrices, f"{choice.why}{frozen}")


def _make_groups(pairs: list[tuple[Entry, Choice]]) -> list[Group]:
    """Return a group for all parameters with the same rule and options, those of Muon first."""
    groups: list[tuple[Choice, Group]] = []
    for entry, choice in sorted(pairs, key=lambda pair: pair[1].rule != MUON):
        key = choice._replace(why="", embedding=False)
        group = next((group for known, group in groups if known == key), None)
        if group is None:
            named = {} if choice.rule == MUON else {"algorithm": choice.rule}
            group = {"params": [], **named, **choice.options}
            groups.append((key, group))
        group["params"].append((entry.name, entry.param))
    return [group for _, group in groups]
