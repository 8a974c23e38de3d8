"""The registry of storage formats by name, and the choice of a format for each value."""

from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from fused_optim.formats import codecs
from fused_optim.formats.codecs import Codec, ColumnSpec, Load, Store
from fused_optim.rules.common import Rule

MIN_SCALED_NUMEL = 4096  # smaller tensors have float32 states instead of block-scaled ones
BF16 = torch.bfloat16
HALVES = (torch.bfloat16, torch.float16)


class Weights(NamedTuple):
    """A format of weights: its codec, and the dtypes of the parameters that it supports."""

    codec: Codec
    dtypes: tuple[torch.dtype, ...]


class States(NamedTuple):
    """A format of states: the codec of signed states, and of states that are never negative."""

    signed: Codec
    unsigned: Codec


PLAIN = Codec(codecs.load_plain, codecs.store_plain)
FP32 = PLAIN._replace(columns=(ColumnSpec(dtype=torch.float32),))
STOCHASTIC = Codec(
    codecs.load_stochastic, codecs.store_stochastic, (ColumnSpec(dtype=BF16),), stochastic=True
)


def _with_extra_column(
    load: Load, store: Store, name: str, dtype: torch.dtype | None, stochastic: bool = False
) -> Codec:
    """Return a codec whose columns are the parameter and one more tensor."""
    return Codec(load, store, (ColumnSpec(), ColumnSpec(name, dtype)), stochastic)


def _block_scaled(load: Load, store: Store, dtype: torch.dtype) -> Codec:
    """Return a block-scaled codec: codes and, for each block of codes, a power of two."""
    columns = (ColumnSpec(dtype=dtype), ColumnSpec("_scale", torch.uint8, codecs.SCALE_BLOCK))
    return Codec(load, store, columns, stochastic=True)


WEIGHTS = {
    "plain": Weights(PLAIN, HALVES),
    "master": Weights(
        _with_extra_column(codecs.load_master, codecs.store_master, "master", torch.float32), HALVES
    ),
    "split": Weights(
        _with_extra_column(codecs.load_split, codecs.store_split, "remainder", torch.int16), (BF16,)
    ),
    "split24": Weights(
        _with_extra_column(
            codecs.load_split24, codecs.store_split24, "remainder", torch.int8, stochastic=True
        ),
        (BF16,),
    ),
    "kahan": Weights(
        _with_extra_column(
            codecs.load_kahan, codecs.store_kahan, "compensation", None, stochastic=True
        ),
        HALVES,
    ),
    "stochastic": Weights(STOCHASTIC, (BF16,)),
}

# scales are powers of two, so that codes depend on the values of a block alone; among the 8-bit
# floating-point formats these have the least error in the update: benchmarks/results/formats.md
STATES = {
    "param": States(PLAIN, PLAIN),
    "fp32": States(FP32, FP32),
    # stochastic for every state: changes below half an ulp per step would be rounded away
    "bf16": States(STOCHASTIC, STOCHASTIC),
    "int8": States(
        _block_scaled(codecs.load_e3m4, codecs.store_e3m4, torch.int8),
        _block_scaled(codecs.load_e4m4, codecs.store_e4m4, torch.uint8),
    ),
    "fp8": States(
        _block_scaled(codecs.load_e4m3, codecs.store_e4m3, torch.float8_e4m3fn),
        _block_scaled(codecs.load_e5m2, codecs.store_e5m2, torch.float8_e5m2),
    ),
}


def unsupported_reason(param: Tensor, weights: str, states: str) -> str | None:
    """Return the reason why ``param`` cannot be stored in these formats, or None if it can."""
    if param.is_complex() and (weights, states) != ("plain", "param"):
        return (
            f"weights='plain' and states='param' for {param.dtype}, got {weights!r}, {states!r}: "
            "put them in a separate group, {'params': ..., 'weights': 'plain', "
            "'states': 'param'}"
        )
    dtypes = WEIGHTS[weights].dtypes
    if param.dtype in HALVES and param.dtype not in dtypes:
        names = " or ".join(str(dtype) for dtype in dtypes)
        return f"{names} for weights={weights!r}, got {param.dtype}"
    return None


def is_stochastic(weights: str, states: str) -> bool:
    """Return True if one of these formats rounds stochastically."""
    codecs = (WEIGHTS[weights].codec, *STATES[states])
    return any(codec.stochastic for codec in codecs)


def scale_block(numel: int, states: str) -> int:
    """Return the number of elements that share a scale, for a whole parameter; 1 without scales."""
    blocks = [column.block for codec in STATES[states] for column in codec.columns]
    return 1 if numel < MIN_SCALED_NUMEL else max(blocks)


@cache
def formats_for(
    rule: Rule, dtype: torch.dtype, small: bool, weights: str, states: str
) -> tuple[Codec, ...]:
    """Return the codecs of parameter, gradient and every state of ``rule``.

    A parameter of float32 or more is stored unchanged, whatever the value of ``weights``.
    """
    weight = WEIGHTS[weights].codec if dtype in HALVES else PLAIN
    wide = PLAIN
    if weight is not PLAIN or states != "param":
        # z and the EMA change by small amounts per step, like the weight, but have no column for
        # the rounding error
        wide = PLAIN._replace(
            columns=(ColumnSpec(dtype=torch.promote_types(dtype, torch.float32)),)
        )
    state_codecs = [
        wide if key in (*rule.fp32_keys, "ema") else _state_format(rule, key, small, states)
        for key in rule.state_keys
    ]
    return (weight, PLAIN, *state_codecs)


def _state_format(rule: Rule, state_key: str, small: bool, states: str) -> Codec:
    pair = STATES[states]
    codec = pair.unsigned if state_key in dict(rule.nonnegative) else pair.signed
    if small and any(column.block > 1 for column in codec.columns):
        return FP32
    return codec
