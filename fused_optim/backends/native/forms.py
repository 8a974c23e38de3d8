"""The syntax of each operation of TTIR that the backend supports.

An operation, attribute or keyword that is not in these tables raises UnsupportedTTIR.
"""

from typing import NamedTuple

from fused_optim.backends.native.tree import FLOATS, INTEGERS, POINTER

PREDICATES = {
    "arith.cmpi": {"eq", "ne", "slt", "sle", "sgt", "sge", "ult", "ule", "ugt", "uge"},
    "arith.cmpf": {"oeq", "ogt", "oge", "olt", "ole", "one", "ord"}
    | {"ueq", "ugt", "uge", "ult", "ule", "une", "uno"},
}
INTEGER, FLOAT = frozenset(INTEGERS), frozenset(FLOATS)
POINTERS = frozenset({POINTER})
ANY = INTEGER | FLOAT | POINTERS
WIDE = frozenset({"f32", "f64"})
# hints of Triton about addresses and values, which the backend ignores
HINTS: dict[str, frozenset[int] | None] = dict.fromkeys(
    ("tt.divisibility", "tt.contiguity", "tt.constancy"), None
)
# every operation must round once, so no fastmath flag is supported
WORDS = {"overflow": frozenset({"none", "nsw", "nuw"}), "fastmath": frozenset({"none"})}
CACHING = {
    "cacheModifier": frozenset({"none", "ca", "cg", "cs", "wb", "wt"}),
    "evictionPolicy": frozenset({"normal", "evict_normal", "evict_first", "evict_last"}),
}
VOLATILE: dict[str, frozenset[int] | None] = {"isVolatile": frozenset({0})}


class Form(NamedTuple):
    """The syntax of an operation.

    Attributes:
        reader: name of the parser method for the text after the name, without "_"; "" for none.
        operands: allowed numbers of operands.
        elements: allowed element types of the first operand.
        results: allowed element types of the result of a cast.
        flags: keywords after the operands, each with its allowed values; empty for no value.
        attributes: names in braces, each with its allowed values; None allows any value.
        ends: True if the operation ends a region.
    """

    reader: str
    operands: tuple[int, ...] = ()
    elements: frozenset[str] = ANY
    results: frozenset[str] = ANY
    flags: dict[str, frozenset[str]] = {}  # noqa: RUF012  never written
    attributes: dict[str, frozenset[int] | None] = {}  # noqa: RUF012  never written
    ends: bool = False


def _all(names: str, form: Form) -> dict[str, Form]:
    return dict.fromkeys(names.split(), form)


FORMS = {
    # structure; the parser reads operations without a reader itself
    "tt.func": Form("", attributes={"noinline": frozenset({0}), **HINTS}),
    "tt.return": Form("nothing", ends=True),
    "scf.yield": Form("yielded", ends=True),
    "scf.condition": Form("condition", ends=True),
    "tt.reduce.return": Form("yielded", ends=True),
    "scf.if": Form("conditional"),
    "scf.while": Form("while_loop"),
    "scf.for": Form("for_loop"),
    "tt.reduce": Form("reduction", attributes={"axis": None}),
    # operations without operands
    "arith.constant": Form("constant", attributes=HINTS),
    "tt.get_program_id": Form("program"),
    "tt.get_num_programs": Form("program"),
    "tt.make_range": Form("range", attributes={"start": None, "end": None, **HINTS}),
    # elementwise
    **_all(
        "arith.addi arith.subi arith.muli arith.shli arith.divsi arith.divui arith.remsi "
        "arith.remui arith.andi arith.ori arith.xori arith.shrsi arith.shrui arith.maxsi "
        "arith.minsi arith.maxui arith.minui",
        Form("same", (2,), INTEGER, flags={**WORDS, "exact": frozenset()}, attributes=HINTS),
    ),
    **_all(
        "arith.addf arith.subf arith.mulf arith.divf arith.maxnumf arith.minnumf tt.precise_divf",
        Form("same", (2,), WIDE, flags=WORDS),
    ),
    **_all(
        "arith.negf math.absf math.sqrt tt.precise_sqrt",
        Form("same", (1,), WIDE, flags=WORDS),
    ),
    "arith.cmpi": Form("comparison", (2,), INTEGER),
    "arith.cmpf": Form("comparison", (2,), FLOAT, flags=WORDS),
    "arith.select": Form("selection", (3,)),
    "arith.extsi": Form("cast", (1,), INTEGER, INTEGER),
    "arith.extui": Form("cast", (1,), INTEGER, INTEGER),
    "arith.trunci": Form("cast", (1,), INTEGER, INTEGER, WORDS),
    "arith.sitofp": Form("cast", (1,), INTEGER, WIDE),
    "arith.uitofp": Form("cast", (1,), INTEGER, WIDE),
    "arith.fptosi": Form("cast", (1,), WIDE, INTEGER - {"i1"}),
    "arith.fptoui": Form("cast", (1,), WIDE, INTEGER - {"i1"}),
    "arith.extf": Form("cast", (1,), FLOAT, FLOAT, WORDS),
    "arith.truncf": Form("cast", (1,), FLOAT, FLOAT, {**WORDS, "to_nearest_even": frozenset()}),
    "arith.bitcast": Form("cast", (1,)),
    "tt.bitcast": Form("cast", (1,)),
    "tt.int_to_ptr": Form("cast", (1,), frozenset({"i64"}), POINTERS, attributes=HINTS),
    # shapes
    "tt.splat": Form("cast", (1,)),
    "tt.broadcast": Form("cast", (1,)),
    "tt.expand_dims": Form("cast", (1,), attributes={"axis": None}),
    # allow_reorder permits another order of elements, but does not require it
    "tt.reshape": Form(
        "cast", (1,), flags={"allow_reorder": frozenset(), "efficient_layout": frozenset()}
    ),
    # memory
    "tt.addptr": Form("address", (2,), POINTERS),
    "tt.load": Form(
        "load", (1, 2, 3), POINTERS, flags=CACHING, attributes={"isVolatile": frozenset({0})}
    ),
    "tt.store": Form("store", (2, 3), POINTERS, flags=CACHING),
}
