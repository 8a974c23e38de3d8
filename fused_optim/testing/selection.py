"""The choice of checks: which cases, dtypes and storage formats are compared with what."""

from collections.abc import Iterator, Sequence
from functools import cache
from itertools import product, zip_longest
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch.nn import Parameter

from fused_optim.formats.registry import STATES, WEIGHTS
from fused_optim.testing import cases
from fused_optim.testing.cases import Case
from fused_optim.testing.comparisons import LOSSLESS_FORMATS, TORCH_FORMATS, Variant

Against = Literal["reference", "float64", "torch"]
Amount = Literal["quick", "default", "full"]
AGAINST: tuple[Against, ...] = get_args(Against)
AMOUNTS: tuple[Amount, ...] = get_args(Amount)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
DTYPES |= {"float16": torch.float16, "float64": torch.float64}
# every format of weights and every format of states, in as few pairs as there are of either;
# the first pair is torch's
FORMAT_PAIRS = [
    (weights or "plain", states or "param") for weights, states in zip_longest(WEIGHTS, STATES)
]
CASES = [*cases.CASES, *cases.MATRIX_CASES, *cases.SPARSE_CASES]
QUICK_CLASSES = ("AdamW", "Adam", "SGD", "Lion")
QUICK_FORMATS = ("split24", "int8")


class Check(NamedTuple):
    """A variant, and what it is compared with."""

    variant: Variant
    against: Against

    @property
    def dtype(self) -> str:
        """Name of the dtype, without ``torch.``."""
        return str(self.variant.dtype).removeprefix("torch.")

    @property
    def name(self) -> str:
        """Identifier: case, dtype, formats, and what is compared."""
        variant = self.variant
        formats = f"{variant.weights}-{variant.states}"
        return f"{variant.case.name}/{self.dtype}/{formats}/{self.against}"


class Wanted(NamedTuple):
    """The checks that the user asks for; a field that is empty is chosen by ``amount``.

    Attributes:
        optimizers: names of classes or of cases.
        weights: formats of weights.
        states: formats of states.
        dtypes: names of dtypes.
        against: what to compare with.
        amount: how much is checked of what is not named.
    """

    optimizers: Sequence[str] = ()
    weights: Sequence[str] = ()
    states: Sequence[str] = ()
    dtypes: Sequence[str] = ()
    against: Sequence[str] = ()
    amount: Amount = "default"

    def check(self) -> None:
        """Check every name.

        Raises:
            ValueError: a name is unknown; the message names the argument and what is possible.
        """
        classes = list(dict.fromkeys(case.class_name for case in CASES))
        known: dict[str, tuple[Sequence[str], Sequence[str]]] = {
            "optimizer": (self.optimizers, [*classes, *(case.name for case in CASES)]),
            "weights": (self.weights, list(WEIGHTS)),
            "states": (self.states, list(STATES)),
            "dtype": (self.dtypes, list(DTYPES)),
            "against": (self.against, AGAINST),
        }
        for argument, (given, possible) in known.items():
            for value in given:
                if value not in possible:
                    shown = classes if argument == "optimizer" else possible
                    more = ", or of a case such as adamw-decay" if argument == "optimizer" else ""
                    raise ValueError(
                        f"--{argument} must be one of {', '.join(shown)}{more}, got {value!r}"
                    )


@cache
def first_of_rules() -> tuple[Case, ...]:
    """Return the first case of each class and rule."""
    first: dict[Any, Case] = {}
    for case in CASES:
        options: dict[str, Any] = {**case.options, **case.additions}
        optimizer = case.fused([Parameter(torch.zeros(1, 1))], **options)
        rule = optimizer.rule(optimizer.param_groups[0])
        first.setdefault((case.class_name, rule.update, rule.form_scalars), case)
    return tuple(first.values())


def list_checks(wanted: Wanted, backend: str) -> list[Check]:
    """Return the checks of ``backend`` that are wanted; those of one kernel are neighbours.

    Raises:
        ValueError: a name is unknown, or no check has all that is named.
    """
    wanted.check()
    found = [
        Check(variant, against)
        for variant in _list_variants(wanted, backend)
        for against in AGAINST
        if against in (wanted.against or AGAINST) and _can_compare(variant, against)
    ]
    if not found:
        raise ValueError(
            "no check has all of these arguments: weights other than plain are for bfloat16 "
            "(master and kahan for float16 too), and --against torch needs a format that torch "
            "has: --weights plain --states param, or master or split with --states fp32"
        )
    return found


def _list_variants(wanted: Wanted, backend: str) -> Iterator[Variant]:
    for case in _select_cases(wanted):
        usual = _list_usual(case, wanted)
        pairs = list(dict.fromkeys(pair for _, pair in usual))
        dtypes = wanted.dtypes
        if wanted.weights or wanted.states:
            pairs = list(product(wanted.weights or WEIGHTS, wanted.states or STATES))
            dtypes = dtypes or ("float32", "bfloat16")
        for dtype, pair in product(dtypes, pairs) if dtypes else usual:
            if _can_store(case, DTYPES[dtype], pair):
                yield Variant(case, DTYPES[dtype], backend, *pair)


def _select_cases(wanted: Wanted) -> list[Case]:
    """Return the cases that are named, or those of the amount."""
    first = {case.class_name: case for case in reversed(CASES)}
    if wanted.amount == "quick":
        classes = wanted.optimizers or QUICK_CLASSES
        named = [case for case in CASES if case.name in classes]
        return named + [first[name] for name in classes if name in first]
    names = wanted.optimizers
    return [c for c in CASES if not names or c.name in names or c.class_name in names]


def _list_usual(case: Case, wanted: Wanted) -> list[tuple[str, tuple[str, str]]]:
    """Return the dtypes and formats in which a case is checked if none are named."""
    named, rules = case.name in wanted.optimizers, first_of_rules()
    result = [("float32", TORCH_FORMATS)]
    if wanted.amount == "quick":
        return result + [("bfloat16", QUICK_FORMATS)] * (case is CASES[0])
    if wanted.amount == "full":
        every = list(product(WEIGHTS, STATES)) if named or case in rules else [TORCH_FORMATS]
        return list(product(DTYPES, every))
    if named or case is CASES[0]:
        return result + [("bfloat16", pair) for pair in FORMAT_PAIRS]
    if case in rules:
        pairs = [pair for pair in FORMAT_PAIRS[1:] if _can_store(case, torch.bfloat16, pair)]
        result += [("bfloat16", pairs[rules.index(case) % len(pairs)])]
    if case is next(other for other in CASES if other.class_name == case.class_name):
        result += [("bfloat16", TORCH_FORMATS)]
    return result


def _can_store(case: Case, dtype: torch.dtype, formats: tuple[str, str]) -> bool:
    """Return True if a parameter of the dtype, and the states, can be stored in the formats."""
    weights, states = formats
    if weights != "plain" and dtype not in WEIGHTS[weights].dtypes:
        return False
    # the rows of a sparse gradient are not rounded stochastically
    codecs = [WEIGHTS[weights].codec, *STATES[states]]
    return not case.sparse or not any(codec.stochastic for codec in codecs)


def _can_compare(variant: Variant, against: Against) -> bool:
    if against == "reference":
        return variant.backend != "reference"
    if against == "float64":
        return True
    if variant.formats not in (TORCH_FORMATS, *LOSSLESS_FORMATS):
        return False
    # numpy has no arithmetic of 16 bits to compare with, but for float16, which overflows
    return variant.case.torch_class is not None or variant.torch_dtype.itemsize >= 4
