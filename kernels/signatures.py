"""Options and scalars that every rule shares, and the constexpr argument of each kernel.

torch and Triton code read these tuples by field. The tuples of each rule are in
``kernels/rules/signatures.py``.
"""

from typing import Any, NamedTuple


class CommonOptions(NamedTuple):
    """Options of a parameter group that do not depend on its rule, float64 on the device.

    Attributes:
        grad_sign: 1, or -1 to maximize.
        max_grad_norm: bound on the norm over all gradients; infinity for no bound.
        max_grad_value: bound on the magnitude of each gradient element; infinity for no bound.
        l2: weight of the parameter in the gradient.
        l1: weight of the parameter's sign in the gradient.
        skips: 1 if an Inf or NaN in any gradient skips the group, else 0.
        any_skips: 1 if an Inf or NaN skips any group of the optimizer, else 0.
        ema_decay: decay rate of the exponential moving average of the parameters.
        seed: seed of stochastic rounding.
    """

    grad_sign: Any
    max_grad_norm: Any
    max_grad_value: Any
    l2: Any
    l1: Any
    skips: Any
    any_skips: Any
    ema_decay: Any
    seed: Any


class CommonScalars(NamedTuple):
    """Scalars of one row that do not depend on its rule, in the dtype of the arithmetic.

    Attributes:
        skip: 0 if the row is updated; else it is skipped.
        ema_weight: weight of the new parameter in its average.
        key_low: first half of the key of stochastic rounding.
        key_high: second half of the key.
        factor: factor of the gradient: unscaling, clip factor, and -1 to maximize.
        max_grad_value: bound on the magnitude of each element of the gradient.
        l2: weight of the parameter in the gradient.
        l1: weight of the parameter's sign in the gradient.
    """

    skip: Any
    ema_weight: Any
    key_low: Any
    key_high: Any
    factor: Any
    max_grad_value: Any
    l2: Any
    l1: Any


def make_cache_key(value: Any) -> str:
    """Return text that differs if a value differs, with the source of every jit function in it.

    Triton's disk cache takes ``cache_key`` of a constexpr argument where it has one, else its text,
    which has only the names of the functions in a tuple: a kernel whose rule has changed since
    would be taken for the kernel of the new rule.
    """
    if isinstance(value, tuple):
        return f"({', '.join(map(make_cache_key, value))})"
    return str(getattr(value, "cache_key", value))


class UpdateSpec(NamedTuple):
    """The constexpr argument of the kernel ``update``.

    Attributes:
        RULE: update rule, ``(p, g, state, scalars) -> (p, state)``.
        EMA: 1 if the last value is the exponential moving average of the parameter, else 0.
        LOADS: load function of each value's codec: parameter, gradient, states.
        STORES: store function of each value's codec.
        STOCHASTIC: for each value, True if its codec rounds stochastically.
        FIRST: first column of each value, and at the end the number of columns.
        DTYPES: dtype of each column.
        COMPUTE: dtype of the arithmetic.
        NUM_SCALARS: number of scalars of the rule.
        VECTOR: number of consecutive elements for which every address is aligned.
        BLOCK: number of elements that are loaded at once.
        CHUNK: number of elements that a program updates: BLOCK, or a multiple in a loop.
        CHUNKS_PER_SPAN: number of chunks that share an entry of the chunk map.
        COUNT_STALLED: True to count the elements that rounding leaves unchanged.
        STRIDED: 1 if the elements of a row are in runs, not consecutive in the whole parameter.
        CAUTIOUS: index of the rule's scalar ``decay`` if it decays cautiously, else -1.
    """

    RULE: Any
    EMA: Any
    LOADS: Any
    STORES: Any
    STOCHASTIC: Any
    FIRST: Any
    DTYPES: Any
    COMPUTE: Any
    NUM_SCALARS: Any
    VECTOR: Any
    BLOCK: Any
    CHUNK: Any
    CHUNKS_PER_SPAN: Any
    COUNT_STALLED: Any
    STRIDED: Any
    CAUTIOUS: Any

    @property
    def cache_key(self) -> str:
        """Key in Triton's disk cache."""
        return make_cache_key(tuple(self))


class ReduceSpec(NamedTuple):
    """The constexpr argument of the kernel ``reduce``; see :class:`UpdateSpec` for other fields.

    Attributes:
        MAP_FN: elementwise function, ``(p, g, state, scalars) -> terms``.
        NUM_SUMS: number of terms, each of which is summed.
        NUM_STATES: number of states of the rule.
        NUM_ELEMENTWISE: number of scalars of the rule that are known before the sums.
    """

    MAP_FN: Any
    NUM_SUMS: Any
    NUM_STATES: Any
    LOADS: Any
    FIRST: Any
    DTYPES: Any
    COMPUTE: Any
    NUM_SCALARS: Any
    NUM_ELEMENTWISE: Any
    VECTOR: Any
    BLOCK: Any
    CHUNK: Any
    CHUNKS_PER_SPAN: Any
    STRIDED: Any

    @property
    def cache_key(self) -> str:
        """Key in Triton's disk cache."""
        return make_cache_key(tuple(self))


class PrepareSpec(NamedTuple):
    """The constexpr argument of the kernel ``prepare``.

    Attributes:
        SCALARS_FN: function that forms the scalars of the rule from hyperparameters and step.
        NUM_SCALAR_STATE: number of 0-dim states, the step first.
        SCALAR_STATE_DTYPE: dtype of the 0-dim states.
        COMPUTE: dtype of the arithmetic.
        NUM_HPARAMS: number of hyperparameters of the rule.
        NUM_SCALARS: number of scalars of the rule.
        NUM_ELEMENTWISE: number of scalars that are formed here; a reduction forms the others.
        MAX_PARTIALS: number of partial sums that are added at once.
        ROWS: number of rows that a program prepares.
        ADVANCES: True to advance the 0-dim states; False if another bucket of the same parameters
            has advanced them in this step.
    """

    SCALARS_FN: Any
    NUM_SCALAR_STATE: Any
    SCALAR_STATE_DTYPE: Any
    COMPUTE: Any
    NUM_HPARAMS: Any
    NUM_SCALARS: Any
    NUM_ELEMENTWISE: Any
    MAX_PARTIALS: Any
    ROWS: Any
    ADVANCES: Any

    @property
    def cache_key(self) -> str:
        """Key in Triton's disk cache."""
        return make_cache_key(tuple(self))
