"""The constexpr arguments of the kernels, without importing Triton.

A function represents the jit function of the same name in ``kernels/``, and a torch dtype the dtype
of Triton. So the arguments can be described, as the key of compiled code, without Triton.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from fused_optim.backends.base import BucketKey
from fused_optim.kernels.signatures import PrepareSpec, ReduceSpec, UpdateSpec

Constexprs = dict[str, Any]


class Geometry(NamedTuple):
    """The sizes by which work is divided into programs.

    Attributes:
        block: number of elements that a program of update or reduce loads at once.
        norm_block: number of elements that a program of norm loads at once.
        chunk: number of elements that a program of update or reduce processes.
        span: number of chunks that share an entry of the chunk map.
        rows: number of rows that a program of prepare processes.
        partials: maximum number of programs of norm. Their number, and so the order of the sum,
            depends on the sizes alone.
        consecutive: True if the chunks of a program of norm are consecutive.
    """

    block: int
    norm_block: int
    chunk: int
    span: int
    rows: int
    partials: int
    consecutive: bool


def constants(key: BucketKey, geometry: Geometry) -> dict[str, Constexprs]:
    """Return the constexpr arguments of each kernel that a bucket needs, by kernel name.

    They contain no option of a group: a new learning rate needs no compilation.
    """
    result: dict[str, Constexprs] = {
        "norm": _norm(key, geometry),
        "prepare": {"SPEC": _prepare(key, geometry)},
        "update": {"SPEC": _update(key, geometry)},
    }
    if key.rule.reduction is not None:
        result["reduce"] = {"SPEC": _reduce(key, geometry)}
        result["finalize"] = {
            "FINALIZE_FN": key.rule.reduction.finalize_fn,
            "NUM_SUMS": key.rule.reduction.num_sums,
            "WIDTH": key.table_width,
            **_scalars(key),
            "BLOCK": geometry.partials,
        }
    return result


# type of each runtime argument, the same in every kernel
_TYPES = {
    "table_ptr": "*i64",
    "first_ptr": "*i64",
    "span_ptr": "*i32",
    "count_ptr": "*i32",
    "partial_ptr": "*fp64",
    "sum_ptr": "*fp64",
    "state_ptr": "*i64",
    "group_ptr": "*i32",
    "option_ptr": "*fp64",
    "scale_ptr": "*fp32",
    "found_inf_ptr": "*fp32",
    "report_ptr": "*fp64",
    "chunks": "i32",
    "partials": "i32",
    "n_rows": "i32",
}


def argument_types(compute: torch.dtype) -> dict[str, str]:
    """Return Triton's type of each kernel argument by name, for arithmetic in ``compute``."""
    return {**_TYPES, "scalar_ptr": "*fp64" if compute is torch.float64 else "*fp32"}


def _dtypes(key: BucketKey) -> tuple[torch.dtype, ...]:
    # the kernels read 8-bit codes as bytes: not every GPU has the float8 types
    return tuple(torch.uint8 if dtype.itemsize == 1 else dtype for dtype in key.dtypes)


def _scalars(key: BucketKey) -> Constexprs:
    rule = key.rule
    return {
        "COMPUTE": key.compute,
        "NUM_SCALARS": len(rule.scalars._fields),
        "NUM_ELEMENTWISE": rule.num_elementwise_scalars,
    }


def _norm(key: BucketKey, geometry: Geometry) -> Constexprs:
    dtypes, grad = _dtypes(key), key.first[1]
    return {
        "GRAD": grad,
        "DTYPE": dtypes[grad],
        "WIDTH": key.table_width,
        "VECTOR": key.vector,
        "BLOCK": geometry.norm_block,
        "CHUNK": geometry.chunk,
        "CHUNKS_PER_SPAN": geometry.span,
        "CONSECUTIVE": geometry.consecutive,
    }


def _prepare(key: BucketKey, geometry: Geometry) -> PrepareSpec:
    return PrepareSpec(
        SCALARS_FN=key.rule.form_scalars,
        NUM_SCALAR_STATE=len(key.rule.scalar_state),
        SCALAR_STATE_DTYPE=key.scalar_state_dtype,
        NUM_HPARAMS=len(key.rule.hparams._fields),
        **_scalars(key),
        MAX_PARTIALS=geometry.partials,
        ROWS=geometry.rows,
        ADVANCES=key.advances,
    )


def _update(key: BucketKey, geometry: Geometry) -> UpdateSpec:
    return UpdateSpec(
        RULE=key.rule.update,
        EMA=int(key.ema),
        LOADS=tuple(codec.load for codec in key.codecs),
        STORES=tuple(codec.store for codec in key.codecs),
        STOCHASTIC=tuple(codec.stochastic for codec in key.codecs),
        FIRST=key.first,
        DTYPES=_dtypes(key),
        COMPUTE=key.compute,
        NUM_SCALARS=len(key.rule.scalars._fields),
        VECTOR=key.vector,
        BLOCK=geometry.block,
        CHUNK=geometry.chunk,
        CHUNKS_PER_SPAN=geometry.span,
        COUNT_STALLED=key.count_stalled,
        STRIDED=int(key.strided),
        CAUTIOUS=key.rule.scalars._fields.index("decay") if key.cautious else -1,
    )


def _reduce(key: BucketKey, geometry: Geometry) -> ReduceSpec:
    assert key.rule.reduction is not None
    return ReduceSpec(
        MAP_FN=key.rule.reduction.map_fn,
        NUM_SUMS=key.rule.reduction.num_sums,
        NUM_STATES=len(key.codecs) - 2 - key.ema,
        LOADS=tuple(codec.load for codec in key.codecs),
        FIRST=key.first,
        DTYPES=_dtypes(key),
        VECTOR=key.vector,
        BLOCK=geometry.block,
        CHUNK=geometry.chunk,
        CHUNKS_PER_SPAN=geometry.span,
        STRIDED=int(key.strided),
        **_scalars(key),
    )


def map_nested(value: Any, function: Callable[[Any], Any]) -> Any:
    """Apply ``function`` to every value in nested tuples and dicts; preserve their types."""
    if isinstance(value, dict):
        return {name: map_nested(entry, function) for name, entry in value.items()}
    if isinstance(value, tuple):
        entries = [map_nested(entry, function) for entry in value]
        return type(value)(*entries) if hasattr(value, "_fields") else tuple(entries)
    return function(value)


def describe(value: Any) -> str:
    """Return a text that identifies constexpr arguments, the same in every process."""

    def name(entry: Any) -> Any:
        return f"{entry.__module__}.{entry.__name__}" if callable(entry) else entry

    return repr(map_nested(value, name))
