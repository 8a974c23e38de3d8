"""The reader of TTIR: texts it refuses by name, and LLVM's acceptance of the others.

Faults tried by hand: the words after operands skipped unread; attributes skipped unread; operands
not compared with the types beside them; a reduction along any axis taken for one along the last.
"""

import random

import pytest
from native.kernels import Case, covering, ir, module, text

from fused_optim.backends.native.codegen import LEVELS
from fused_optim.backends.native.scanner import TOKEN
from fused_optim.backends.native.tree import UnsupportedTTIR
from fused_optim.backends.native.ttir import parse

# a machine with a GPU may have none
llvm = pytest.importorskip("llvmlite.binding", reason="llvmlite is not installed")

SMALL = module(
    """
    %cst = arith.constant dense<1.000000e+00> : tensor<8xf32>
    %c8_i32 = arith.constant 8 : i32
    %0 = tt.get_program_id x : i32
    %1 = arith.muli %0, %c8_i32 : i32
    %2 = tt.make_range {end = 8 : i32, start = 0 : i32} : tensor<8xi32>
    %3 = tt.splat %1 : i32 -> tensor<8xi32>
    %4 = arith.addi %3, %2 : tensor<8xi32>
    %5 = tt.splat %arg1 : i32 -> tensor<8xi32>
    %6 = arith.cmpi slt, %4, %5 : tensor<8xi32>
    %7 = tt.splat %arg0 : !tt.ptr<f32> -> tensor<8x!tt.ptr<f32>>
    %8 = tt.addptr %7, %4 : tensor<8x!tt.ptr<f32>>, tensor<8xi32>
    %9 = tt.load %8, %6 : tensor<8x!tt.ptr<f32>>
    %10 = arith.addf %9, %cst : tensor<8xf32>
    %11 = tt.reshape %10 allow_reorder : tensor<8xf32> -> tensor<2x4xf32>
    %12 = "tt.reduce"(%11) <{axis = 1 : i32}> ({
    ^bb0(%arg2: f32, %arg3: f32):
      %14 = arith.addf %arg2, %arg3 : f32
      tt.reduce.return %14 : f32
    }) : (tensor<2x4xf32>) -> tensor<2xf32>
    %13 = arith.truncf %10 : tensor<8xf32> to tensor<8xbf16>
    tt.store %8, %10, %6 : tensor<8x!tt.ptr<f32>>""",
    "%arg0: !tt.ptr<f32> {tt.divisibility = 16 : i32}, %arg1: i32",
)
# a text, a text that a future Triton might write instead, and the words of the message
REFUSED = [
    ("%10 = arith.addf %9, %cst :", "%10 = math.exp %9 :", "`math.exp`"),
    ("tt.get_program_id x", "tt.get_program_id y", "`y` in the place of `x`"),
    ("arith.addf %9, %cst :", "arith.addf %9, %cst fastmath<contract> :", "`fastmath contract`"),
    ("arith.addf %9, %cst :", "arith.addf %9, %cst {rounding = 1 : i32} :", "attribute `rounding`"),
    ("arith.addf %9, %cst :", "arith.addf %9, %cst stochastic :", "`stochastic` of `arith.addf`"),
    ("arith.truncf %10 :", "arith.truncf %10 toward_zero :", "`toward_zero` of `arith.truncf`"),
    ("arith.muli %0, %c8_i32 :", "arith.muli %0, %c8_i32 overflow<foo> :", "`overflow foo`"),
    ("tt.load %8, %6 :", "tt.load %8, %6 {isVolatile = true} :", "`isVolatile = 1` of `tt.load`"),
    ("tt.load %8, %6 :", "tt.load %8, %6 {padding = 1 : i32} :", "attribute `padding`"),
    ("tt.load %8, %6 :", "tt.load %8, %6 cacheModifier = cv :", "`cacheModifier cv` of `tt.load`"),
    ("tt.store %8, %10, %6 :", "tt.store %8, %10, %6 evictionPolicy = foo :", "evictionPolicy foo"),
    ("to tensor<8xbf16>", "to tensor<8xf8E4M3FN>", "the type `f8E4M3FN`"),
    ("!tt.ptr<f32> {", "!tt.ptr<f32, 3> {", "`,` in the place of `>`"),
    ("-> tensor<8x!tt.ptr<f32>>", "-> tensor<8x!tt.ptr<f32>, #blocked>", "`#`"),
    ("axis = 1 : i32", "axis = 0 : i32", "along axis 0"),
    ("axis = 1 : i32", "axis = 1 : i32, ordering = 1 : i32", "the attribute `ordering`"),
    ("%14 = arith.addf %arg2, %arg3", "%14 = arith.subf %arg3, %arg2", "a reduction by"),
    ("noinline = false", "noinline = true", "`noinline = 1` of `tt.func`"),
    ("noinline = false", "ttg.warps = 4 : i32", "the attribute `ttg.warps`"),
    ("cmpi slt,", "cmpi foo,", "`arith.cmpi foo`"),
    ("dense<1.000000e+00>", "dense<[1.0, 2.0]>", "`[`"),
    ("dense<1.000000e+00>", "dense<1>", "`1` as a constant of type `tensor<8xf32>`"),
    ("tt.splat %1 :", "tt.splat %99 :", "`%99` before its definition"),
    ("%3 = tt.splat", "%2 = tt.splat", "`%2` twice"),
    ("arith.addi %3, %2 : tensor<8xi32>", "arith.addi %3, %2 : tensor<8xi64>", "other values as"),
    ("arith.addi %3, %2 :", "arith.addf %3, %2 :", "`arith.addf` of `tensor<8xi32>`"),
    ("tensor<8xi32>\n    %3", "tensor<12xi32>\n    %3", "the type `tensor<12xi32>`"),
    ("    tt.return\n", "", "no `tt.return`"),
    ("    tt.return\n", "    cf.br ^bb1\n    tt.return\n", "`cf.br`"),
    ("module {", "module attributes {foo = 1 : i32} {", "`attributes`"),
]
TAKEN = [
    ("arith.muli %0, %c8_i32 :", "arith.muli %0, %c8_i32 overflow<nsw, nuw> :"),
    ("arith.addf %9, %cst :", "arith.addf %9, %cst fastmath<none> :"),
    ("arith.truncf %10 :", "arith.truncf %10 to_nearest_even :"),
    ("tt.load %8, %6 :", "tt.load %8, %6 evictionPolicy = evict_first {isVolatile = false} :"),
    ("tt.store %8, %10, %6 :", "tt.store %8, %10, %6 cacheModifier = cs :"),
    ("dense<1.000000e+00>", "dense<0x7FC00000>"),
    ("    tt.return\n", "    tt.return // the end\n"),
]


def accepted(ttir):
    """Read and lower a text, and check that LLVM takes the result."""
    function = parse(ttir, "triton 9.9")
    for level in ("x86-64-v2", "x86-64-v4"):
        llvm.parse_assembly(ir(function, level)).verify()


@pytest.mark.parametrize("case", covering(), ids=str)
def test_every_kernel_is_read(case):
    function = parse(text(case))
    assert function.name == case.kernel
    for level in LEVELS:
        llvm.parse_assembly(ir(function, level)).verify()


@pytest.mark.parametrize(("old", "new", "named"), REFUSED, ids=[new for _, new, _ in REFUSED])
def test_what_is_not_known_is_refused_by_name(old, new, named):
    assert old in SMALL
    with pytest.raises(UnsupportedTTIR) as error:
        accepted(SMALL.replace(old, new))
    assert named in str(error.value)
    assert "triton 9.9 writes" in str(error.value)


def test_the_message_says_the_line():
    line = SMALL[: SMALL.index("arith.truncf")].count("\n") + 1
    with pytest.raises(UnsupportedTTIR, match=rf"`tt\.foo`.*\(line {line} of TTIR\)"):
        parse(SMALL.replace("arith.truncf", "tt.foo"))


@pytest.mark.parametrize(("old", "new"), [("", ""), *TAKEN], ids=["", *[new for _, new in TAKEN]])
def test_what_changes_nothing_is_taken(old, new):
    assert old in SMALL
    accepted(SMALL.replace(old, new))


def mutated(ttir, generator):
    """Return a text with one to three pieces removed, doubled, exchanged or moved."""
    pieces = [match.group() for match in TOKEN.finditer(ttir)]
    for _ in range(generator.randint(1, 3)):
        i, j = generator.randrange(len(pieces)), generator.randrange(len(pieces))
        how = generator.randrange(5)
        if how == 0:
            del pieces[i]
        elif how == 1:
            pieces.insert(i, pieces[j])
        elif how == 2:
            pieces[i] = pieces[j]
        elif how == 3:
            pieces[i], pieces[j] = pieces[j], pieces[i]
        else:
            word = pieces[i]
            at = generator.randrange(len(word) + 1)
            pieces[i] = word[:at] + generator.choice('<>{}%#x0 ,:-é"') + word[at + 1 :]
    return "".join(pieces)


@pytest.mark.parametrize("kernel", ["small", "norm", "finalize", "update"])
def test_a_mutated_text_is_refused_or_understood(kernel):
    """Guard against other errors, and against IR that LLVM refuses."""
    rule = "lamb" if kernel == "finalize" else "sgd"
    ttir = SMALL if kernel == "small" else text(Case(kernel, rule, "fp32"))
    generator = random.Random(kernel)
    refused = 0
    for _ in range(800 if kernel == "small" else 200):
        try:
            accepted(mutated(ttir, generator))
        except UnsupportedTTIR:
            refused += 1
    assert refused > 100
