"""The constexpr arguments of the kernels that read and write through storage formats."""

from typing import Any, NamedTuple


class UpdateSpec(NamedTuple):
    """What the kernel ``update`` is compiled for.

    Attributes:
        RULE: the update rule, ``(p, g, state, h) -> (p, state)``.
        EMA: 1 if the last value is the exponential moving average of the parameter, else 0.
        LOADS: the load function of each value's codec: parameter, gradient, states.
        STORES: the store function of each value's codec.
        KEYED: for each value, whether its codec rounds stochastically.
        FIRST: the first column of each value, and at the end the number of columns.
        DTYPES: the dtype of each column.
        COMPUTE: the dtype of the arithmetic.
        SCALARS: how many scalars the rule has.
        VECTOR: elements for which every address is aligned.
        BLOCK: elements that are loaded at once.
        CHUNK: elements that a program updates: BLOCK, or a multiple that a loop goes through.
        SPAN: chunks that share an entry of the chunk map.
        COUNTS: whether to count the elements that rounding leaves where they are.
    """

    RULE: Any
    EMA: Any
    LOADS: Any
    STORES: Any
    STOCHASTIC: Any
    FIRST: Any
    DTYPES: Any
    COMPUTE: Any
    SCALARS: Any
    VECTOR: Any
    BLOCK: Any
    CHUNK: Any
    CHUNKS_PER_SPAN: Any
    COUNTS: Any


class ReduceSpec(NamedTuple):
    """What the kernel ``measure`` is compiled for; see :class:`UpdateSpec` for the others.

    Attributes:
        MEASURE: ``(p, g, state, h) -> quantities``, elementwise.
        QUANTITIES: how many quantities are summed.
        STATES: how many states the rule has.
        EARLY: how many of the rule's scalars are known before the sums.
    """

    MAP_FN: Any
    NUM_SUMS: Any
    STATES: Any
    LOADS: Any
    FIRST: Any
    DTYPES: Any
    COMPUTE: Any
    SCALARS: Any
    NUM_ELEMENTWISE: Any
    VECTOR: Any
    BLOCK: Any
    CHUNK: Any
    CHUNKS_PER_SPAN: Any
