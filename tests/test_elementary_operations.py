"""Operations on values: each is one IEEE operation, or a block of rules/common.py made of these.

A library function (``torch.sqrt``, ``exp``, ``**``, a sum) may give other bits on another
processor. The modules that compute are read, and refused if they name anything that is not listed
here; then every optimizer is run, and refused if torch executes anything else.

Faults tried by hand, each refused by module, line and name: ``.sqrt()`` back in adam.py, lamb.py,
lars.py, stable_adamw.py and reference.py; ``torch.lerp`` for ``toward``; ``p ** 2`` for ``p * p``
in lamb.py; division by ``float(n)`` in ``exp``; ``.sum()`` back in both sums of reference.py;
``.rsqrt`` taken from a tensor and called later; ``math.sqrt`` in stable_adamw.py; and ``getattr(x,
"sq" + "rt")()`` in ``root``, which reading sees as ``getattr`` and running as sqrt.
"""

import ast
import builtins
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.models import parameters, set_grads, values
from torch.utils._python_dispatch import TorchDispatchMode

from ci.codegen.rules import FORMAT_PAIRS
from fused_optim import AdamW
from fused_optim.testing.cases import CASES, get_name

PACKAGE = Path(__file__).parent.parent / "fused_optim"
MODULES = [
    *sorted(str(path.relative_to(PACKAGE)) for path in (PACKAGE / "rules").glob("*.py")),
    "formats/codecs.py",
    "formats/stochastic_rounding.py",
    "backends/rows.py",
    "formats/conversion.py",
    "backends/norm_report.py",
    "backends/reference.py",
    "backends/small_tensors.py",
    "backends/sums.py",
]

# one IEEE operation, a selection, a conversion that rounds once or not at all, or bits
EXACT = """abs add add_ all amax clamp count_nonzero double float int isfinite long max maximum
minimum repeat_interleave to tolist where"""
# nothing of these computes: they make tensors, move them, or say what they are
MOVES = """arange as_strided cat clone copy_ detach device dtype empty empty_like empty_strided full
full_like is_complex is_contiguous is_meta is_signed itemsize new_empty numel numpy ones_like shape
split squeeze stack stride tensor type unbind values view view_as_real zero_ zeros zeros_like"""
# of classes of this project: a tensor has a method of that name too
OWN = "chunk fill flat layout name"
METHODS = {*EXACT.split(), *MOVES.split(), *OWN.split()}
# names of torch that are no methods of a tensor
TORCH = """Size Tensor _foreach_copy_ bfloat16 bool compiler compiler.is_compiling finfo float32
float64 get_num_threads inf int32 int64 nan nn.functional.pad no_grad preserve_format uint8"""
FUNCTIONS = {f"torch.{name}" for name in [*METHODS - {"name", "values", "fill"}, *TORCH.split()]}
FUNCTIONS |= {f"numpy.{name}" for name in ("array", "errstate", "float32", "float64", "ndarray")}
PYTHON = {"typing", "typing_extensions", "collections.abc", "functools", "itertools"}
BUILTINS = """all any bool enumerate float int isinstance len list max min property range slice
sorted str tuple zip dict set bytes"""
OPERATORS = (ast.Add, ast.Sub, ast.Mult, ast.Div, ast.BitAnd, ast.BitOr, ast.BitXor)
OPERATORS += (ast.LShift, ast.RShift)
# what is one operation for whole numbers, or numbers of Python, alone, and the functions in which
# these are what it gets; and the two lines that ``root`` is made of
ONLY_IN = {
    ("rules/common.py", "sqrt_rn"): {".sqrt", "numpy.sqrt"},
    ("rules/common.py", "pow_int"): {"%", "//"},
    ("rules/common.py", "log"): {"**"},
    ("formats/codecs.py", "load_kahan"): {"**"},
    ("formats/codecs.py", "_dequantize"): {"**"},
    ("formats/codecs.py", "_quantize"): {"**", "%"},
    ("formats/conversion.py", "matches_column"): {"//"},
    ("formats/conversion.py", "scale_shape"): {"//", "%"},
    ("formats/conversion.py", "_pieces"): {"//"},
    ("backends/reference.py", "_pieces"): {"//"},
    ("backends/reference.py", "_store"): {"//", "%"},
    ("backends/reference.py", "_new_sum"): {"sum"},
    ("backends/small_tensors.py", "get"): {"sum"},
    ("backends/small_tensors.py", ""): {"//"},
    ("backends/sums.py", "_halved"): {"//"},
}
SIGNS = {ast.Pow: "**", ast.Mod: "%", ast.FloorDiv: "//", ast.MatMult: "@"}
# torch's name for a factor within a sum
FUSED = {"alpha"}
# the same operations, as torch calls what it executes, and those that are for whole numbers alone
EXECUTED = """_to_copy abs add add_ bitwise_and bitwise_or bitwise_xor clamp count_nonzero div eq ge
gt isfinite le lt maximum minimum mul ne neg reciprocal rsub sub where"""
EXECUTED += """ _foreach_copy_ _local_scalar_dense any all arange as_strided cat clone copy_ detach
empty empty_like empty_strided expand full full_like index lift_fresh new_empty ones_like
promote_types scalar_tensor select slice split squeeze stack unbind unsqueeze view zero_ zeros
zeros_like _record_function_enter_new _record_function_exit"""
WHOLE = """__lshift__ __rshift__ amax bitwise_not constant_pad_nd floor_divide max remainder
repeat_interleave sum"""


class Reader(ast.NodeVisitor):
    """Collector of names that a module uses and must not, as ``(function, line, name)``."""

    def __init__(self, source):
        self.found, self.functions, self.bound = [], [], [set()]
        self.external = {}  # local name -> dotted name
        self.bases = set()
        tree = ast.parse(source)
        self.bound[0] = self.names(tree)
        self.visit(tree)

    @staticmethod
    def names(node):
        """Return the names bound in a module or function, without those of functions within."""
        result, todo = set(), list(ast.iter_child_nodes(node))
        while todo:
            child = todo.pop()
            if isinstance(child, ast.Name) and isinstance(child.ctx, ast.Store):
                result.add(child.id)
            elif isinstance(child, ast.arg):
                result.add(child.arg)
            elif isinstance(child, (ast.FunctionDef, ast.ClassDef)):
                result.add(child.name)
                continue
            todo += ast.iter_child_nodes(child)
        return result

    def refuse(self, node, name):
        function = self.functions[-1] if self.functions else ""
        self.found.append((function, node.lineno, name))

    def visit_FunctionDef(self, node):
        self.functions.append(node.name)
        self.bound.append(self.names(node))
        self.generic_visit(node)
        self.bound.pop()
        self.functions.pop()

    def visit_Import(self, node):
        for alias in node.names:
            self.imports(node, alias.asname or alias.name.split(".")[0], alias.name)
            if alias.name not in ("torch", "numpy"):
                self.refuse(node, alias.name)

    def visit_ImportFrom(self, node):
        for alias in node.names:
            name = f"{node.module}.{alias.name}"
            if node.level or alias.name == "*":
                self.refuse(node, name)
            elif node.module.split(".")[0] != "fused_optim" and node.module not in PYTHON:
                self.imports(node, alias.asname or alias.name, name)
                if name not in FUNCTIONS:
                    self.refuse(node, name)

    def imports(self, node, local, name):
        self.external[local] = name

    def dotted(self, node):
        """Return the full name of an attribute of an imported name; None for anything else."""
        if isinstance(node, ast.Name):
            self.bases.add(id(node))
            return self.external.get(node.id)
        if isinstance(node, ast.Attribute):
            base = self.dotted(node.value)
            return base and f"{base}.{node.attr}"
        return None

    def visit_Attribute(self, node):
        name = self.dotted(node)
        if name is None:
            known = hasattr(torch.Tensor, node.attr) or hasattr(np.ndarray, node.attr)
            if known and node.attr not in METHODS:
                self.refuse(node, f".{node.attr}")
        elif name not in FUNCTIONS:
            self.refuse(node, name)
        self.generic_visit(node)

    def visit_Name(self, node):
        if self.external.get(node.id) in ("torch", "numpy") and id(node) not in self.bases:
            self.refuse(node, f"{node.id} as a value")
        is_bound = any(node.id in names for names in self.bound)
        if hasattr(builtins, node.id) and not is_bound and node.id not in BUILTINS.split():
            self.refuse(node, node.id)

    def visit_BinOp(self, node):
        self.operation(node, node.left, node.right)

    def visit_AugAssign(self, node):
        self.operation(node, node.target, node.value)

    def operation(self, node, left, right):
        if not isinstance(node.op, OPERATORS):
            self.refuse(node, SIGNS[type(node.op)])
        # torch multiplies by the reciprocal: on a GPU of a divisor that is a number, and for a
        # dividend that is one anywhere; of a power of two that is exact
        if isinstance(node.op, ast.Div) and any(is_inexact_number(x) for x in (left, right)):
            self.refuse(node, "/ with a number")
        self.generic_visit(node)

    def visit_keyword(self, node):
        if node.arg in FUSED:
            self.refuse(node, f"{node.arg}=")
        self.generic_visit(node)


def is_inexact_number(node):
    """Return whether an expression is a Python number other than a power of two."""
    if isinstance(node, ast.UnaryOp):
        return is_inexact_number(node.operand)
    if isinstance(node, ast.Call):
        return getattr(node.func, "id", None) in ("float", "int", "len")
    return isinstance(node, ast.Constant) and np.frexp(node.value)[0] != 0.5


def refused(source, module="rules/new.py"):
    """Return the names in ``source`` that are not listed, and the listed ones that are absent."""
    allowed = {name: set(names) for (where, name), names in ONLY_IN.items() if where == module}
    seen = Reader(source).found
    wrong = [(line, name) for f, line, name in seen if name not in allowed.get(f, ())]
    used = {(f, name) for f, _, name in seen}
    stale = [(f, name) for f in allowed for name in allowed[f] if (f, name) not in used]
    return [f"{module}:{line} {name}" for line, name in wrong] + [
        f"{module}: no {name} in {function}" for function, name in stale
    ]


@pytest.mark.parametrize("module", MODULES)
def test_modules_name_nothing_that_is_not_listed(module):
    assert refused((PACKAGE / module).read_text(), module) == []


def test_no_module_that_computes_is_left_out():
    # tables and constants of kernels; native/ computes nothing in torch; what transforms matrices
    # by products, whose last bits depend on the processor, is not exact
    others = {
        "__init__.py",
        "triton.py",
        "kernel_runner.py",
        "constexprs.py",
        "base.py",
        "select.py",
        "matrix_batches.py",
        "matrix_runner.py",
    }
    beside = {path.name for path in (PACKAGE / "backends").glob("*.py")} - others
    assert beside == {path.split("/")[1] for path in MODULES if path.startswith("backends")}


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("y = x.sqrt()", ".sqrt"),
        ("f = x.rsqrt", ".rsqrt"),
        ("y = torch.exp(x)", "torch.exp"),
        ("f = torch.Tensor.log", "torch.Tensor.log"),
        ("y = torch.special.expm1(x)", "torch.special.expm1"),
        ("t = torch", "torch as a value"),
        ("y = np.log(x)", "numpy.log"),
        ("y = np.sqrt(x)", "numpy.sqrt"),
        ("y = x.numpy().cumsum()", ".cumsum"),
        ("y = x ** z", "**"),
        ("y = 2.0 ** z", "**"),
        ("y **= z", "**"),
        ("y = x // z", "//"),
        ("y = x % z", "%"),
        ("y = x @ z", "@"),
        ("y = x.__pow__(z)", ".__pow__"),
        ("y = pow(x, z)", "pow"),
        ("y = sum(x)", "sum"),
        ("y = getattr(x, 'sqrt')()", "getattr"),
        ("y = x / 3.0", "/ with a number"),
        ("y = x / float(z)", "/ with a number"),
        ("y = 3.0 / x", "/ with a number"),
        ("y = x.sum()", ".sum"),
        ("y = x.lerp(z, w)", ".lerp"),
        ("y = torch.add(x, z, alpha=2)", "alpha="),
        ("import math", "math"),
        ("from math import sqrt", "math.sqrt"),
        ("from torch import rsqrt as root", "torch.rsqrt"),
        ("from torch.nn.functional import normalize", "torch.nn.functional.normalize"),
        ("from .common import *", "common.*"),
    ],
)
def test_what_is_not_listed_is_refused_by_name(line, name):
    source = f"import numpy as np\nimport torch\ndef rule(x, z, w):\n    {line}\n"
    assert f"rules/new.py:4 {name}" in refused(source)


def test_a_permission_holds_in_its_function_alone():
    source = "def pow_int(x, y):\n    return x % y // 2\ndef log(x):\n    return x {} 2.0\n"
    of_root = ["rules/common.py: no .sqrt in sqrt_rn", "rules/common.py: no numpy.sqrt in sqrt_rn"]
    assert sorted(refused(source.format("**"), "rules/common.py")) == of_root
    expected = ["rules/common.py: no ** in log", *of_root, "rules/common.py:4 %"]
    assert sorted(refused(source.format("%"), "rules/common.py")) == expected


class Executed(TorchDispatchMode):
    """A mode that refuses torch operations that are not listed."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name.split("::")[1]
        if name in WHOLE.split():
            given = [arg for arg in args if isinstance(arg, torch.Tensor)]
            assert not any(arg.is_floating_point() for arg in given), f"{name} of floats"
        else:
            assert name in EXECUTED.split(), f"aten.{name} is executed"
        assert (kwargs or {}).get("alpha", 1) == 1, f"aten.{name} with alpha="
        return func(*args, **(kwargs or {}))


def run(make, dtype, gradients):
    params = parameters(values([5, 129], dtype))
    optimizer = make(params)
    for given in gradients:
        set_grads(params, [torch.full_like(p, given) for p in params])
        with Executed():
            optimizer.step()


@pytest.mark.parametrize("case", CASES, ids=get_name)
def test_steps_execute_nothing_that_is_not_listed(case):
    def make(params):
        options = {**case.options, **case.additions}
        return case.fused(params, **options, ema_decay=0.9, backend="reference")

    for dtype in (torch.float32, torch.float64):
        run(make, dtype, [0.25, -0.5, torch.inf])


@pytest.mark.parametrize("formats", FORMAT_PAIRS, ids=lambda names: "-".join(names.values()))
def test_formats_execute_nothing_that_is_not_listed(formats):
    options = {"lr": 0.5, "max_grad_norm": 1.0, "count_stalled": True, "backend": "reference"}
    run(lambda params: AdamW(params, **formats, **options), torch.bfloat16, [0.25, -0.5])
