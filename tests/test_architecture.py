"""The architecture: imports in one direction, counterparts in torch and Triton, short files."""

import ast
import importlib
import inspect
import re
import types
from pathlib import Path

import pytest
import triton

import fused_optim
from ci.codegen.rules import RULE_MODULES, RULES
from fused_optim.backends.triton import kernel_counterpart
from fused_optim.formats import codecs, registry, stochastic_rounding

ROOT = Path(__file__).parent.parent
# the modules and packages of the project that each may import, besides itself
MAY_IMPORT = {
    "fused_optim/matrix": {"matrix"},
    "fused_optim/rules": {"rules", "kernels", "private_api"},
    "fused_optim/private_api.py": set(),
    "fused_optim/dtensors.py": {"private_api"},
    "fused_optim/formats": {"dtensors", "formats", "options", "rules"},
    "fused_optim/options.py": set(),
    "fused_optim/user_warnings.py": set(),
    "fused_optim/validation.py": {
        "formats",
        "options",
        "private_api",
        "rules",
        "user_warnings",
    },
    "fused_optim/tensor_checks.py": {"dtensors", "formats", "private_api", "rules"},
    "fused_optim/backends": {
        "backends",
        "formats",
        "kernels",
        "matrix",
        "private_api",
        "rules",
    },
    "fused_optim/step": {
        "_host",
        "backends",
        "dtensors",
        "formats",
        "kernels",
        "options",
        "private_api",
        "rules",
        "step",
        "tensor_checks",
        "user_warnings",
        "validation",
    },
    "fused_optim/optimizer_view.py": {"backends", "formats", "rules", "step"},
    "fused_optim/bucket_prediction.py": {
        "backends",
        "dtensors",
        "formats",
        "optimizer_view",
        "options",
        "private_api",
        "step",
        "tensor_checks",
    },
    "fused_optim/explain.py": {
        "backends",
        "bucket_prediction",
        "formats",
        "matrix",
        "options",
        "step",
        "tensor_checks",
    },
    "fused_optim/optimizers": {
        "backends",
        "dtensors",
        "explain",
        "formats",
        "matrix",
        "optimizers",
        "options",
        "private_api",
        "rules",
        "step",
        "tensor_checks",
        "validation",
    },
    "fused_optim/memory_estimate.py": {"backends", "dtensors", "optimizers", "step"},
    "fused_optim/backward_engine.py": {
        "backends",
        "optimizer_view",
        "optimizers",
        "options",
        "rules",
        "step",
        "tensor_checks",
    },
    "fused_optim/step_in_backward.py": {
        "backward_engine",
        "optimizers",
        "options",
        "private_api",
        "rules",
        "step",
    },
    "fused_optim/__init__.py": {
        "explain",
        "memory_estimate",
        "optimizers",
        "options",
        "step_in_backward",
    },
    # nothing but tests and the command line imports it
    "fused_optim/testing": {
        "backends",
        "formats",
        "optimizers",
        "rules",
        "testing",
    },
    # the command line is for users: nothing else imports it
    "fused_optim/cli": {
        "backends",
        "cli",
        "explain",
        "formats",
        "memory_estimate",
        "optimizers",
        "options",
        "private_api",
        "testing",
        "validation",
    },
    "fused_optim/__main__.py": {"cli"},
    "kernels": {"kernels"},
}


def list_imports(path):
    """Yield the full name of everything that a file imports."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("module", MAY_IMPORT)
def test_imports_run_one_way(module):
    path = ROOT / module
    for file in [path] if path.is_file() else sorted(path.rglob("*.py")):
        own = [name.split(".") for name in list_imports(file) if name.startswith("fused_optim.")]
        imported = {parts[1] for parts in own}
        assert imported <= MAY_IMPORT[module], f"{file.relative_to(ROOT)} imports {imported}"


def test_the_checks_do_not_need_pytest():
    for path in sorted((ROOT / "fused_optim").rglob("*.py")):
        assert not [name for name in list_imports(path) if name.startswith("pytest")], path


def list_module_imports(path, name):
    """Return the modules of the package that ``path`` imports when it is itself imported."""
    tree = ast.parse(path.read_text())
    nodes = [n for n in tree.body if isinstance(n, ast.ImportFrom | ast.Import)]
    result = set()
    for node in nodes:
        if isinstance(node, ast.ImportFrom):
            result |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return result - {name}


def test_no_module_imports_itself_through_others():
    files = [p for p in (ROOT / "fused_optim").rglob("*.py") if p.name != "__init__.py"]
    names = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in files}
    graph = {n: list_module_imports(path, n) & names.keys() for n, path in names.items()}
    while leaves := [name for name, imports in graph.items() if not imports]:
        for name in leaves:
            del graph[name]
        graph = {name: imports - set(leaves) for name, imports in graph.items()}
    assert not graph, f"these import each other: {sorted(graph)}"


def test_every_module_has_a_direction():
    files = {str(path.relative_to(ROOT)) for path in (ROOT / "fused_optim").glob("*.py")}
    assert files <= set(MAY_IMPORT)


def test_device_code_imports_only_triton():
    for path in sorted((ROOT / "kernels").rglob("*.py")):
        allowed = ("triton", "fused_optim.kernels", "typing", "collections.namedtuple")
        others = [name for name in list_imports(path) if not name.startswith(allowed)]
        assert not others, f"{path.name} imports {others}"


FOLDERS = ("fused_optim", "kernels", "tests", "integrations", "ci", "examples", "benchmarks")


def test_files_are_short():
    for folder in FOLDERS:
        for path in sorted((ROOT / folder).rglob("*.py")):
            assert len(path.read_text().splitlines()) < 400, path


@pytest.mark.parametrize("name", RULES)
def test_every_rule_has_a_triton_counterpart(name):
    rule = RULES[name]
    functions = [rule.update, rule.form_scalars]
    if rule.reduction is not None:
        functions += [rule.reduction.map_fn, rule.reduction.finalize_fn]
    for ours in functions:
        theirs = kernel_counterpart(ours)
        assert inspect.getdoc(ours).splitlines()[0] == inspect.getdoc(theirs.fn).splitlines()[0]


def list_functions(module, kind):
    """Return the names of the functions that a module defines, in order."""
    own = [
        (name, f)
        for name, f in vars(module).items()
        if isinstance(f, kind) and getattr(f, "fn", f).__module__ == module.__name__
    ]
    return [name for name, _ in own]


@pytest.mark.parametrize(
    "module", [*RULE_MODULES, stochastic_rounding], ids=lambda module: module.__name__
)
def test_counterparts_have_one_order(module):
    name = module.__name__.replace("fused_optim.", "fused_optim.kernels.")
    device = list_functions(importlib.import_module(name), triton.JITFunction)
    ours = [n for n in list_functions(module, types.FunctionType) if n != "_shifted"]
    assert [n for n in device if n != "div_rn"] == ours


def test_every_format_is_in_torch_and_triton():
    weights = {codec for codec, _ in registry.WEIGHTS.values()}
    every = weights.union(*registry.STATES.values())
    named = {f.__name__ for codec in every for f in (codec.load, codec.store)}
    functions = list_functions(codecs, types.FunctionType)
    ours = [name for name in functions if name.startswith(("load", "store"))]
    counterpart = importlib.import_module("fused_optim.kernels.formats.codecs")
    device = list_functions(counterpart, triton.JITFunction)
    helpers = {"load_scales", "store_scales"}
    assert [n for n in device if n.startswith(("load", "store")) and n not in helpers] == ours
    assert named | {"store_direction"} == set(ours), "a format without a name cannot be chosen"
    constants = (counterpart.SCALE_BLOCK.value, counterpart.INFINITY.value)
    assert constants == (codecs.SCALE_BLOCK, codecs.INFINITY)


@pytest.mark.parametrize("name", RULES)
def test_a_rule_names_its_own_states_and_hyperparameters(name):
    rule = RULES[name]
    assert {*dict(rule.nonnegative), *rule.fp32_keys} <= set(rule.state_keys)
    assert {option for _, option in rule.nonnegative} <= {None, *rule.hparams._fields}
    # kernels store the scalars of a reduction behind the others
    late = list(rule.scalars._field_defaults)
    assert list(rule.scalars._fields[rule.num_elementwise_scalars :]) == late
    assert bool(late) == (rule.reduction is not None)


# words that an engineer of the field searches for
TERMS = [
    "quantiz",
    "stochastic_round",
    "master.weight",
    "bias_correction",
    "first moment",
    "second moment",
    "learning rate",
    "hyperparam",
    "fast.path",
    "DTensor",
    "FSDP",
    "CUDA graph",
    "clip_factor",
    "weight_decay",
    "found_inf",
]


@pytest.mark.parametrize("term", TERMS)
def test_the_terms_of_the_field_find_a_place(term):
    files = [*(ROOT / "fused_optim").rglob("*.py"), *(ROOT / "kernels").rglob("*.py")]
    assert any(re.search(term, path.read_text(), re.IGNORECASE) for path in files)


def test_the_table_of_the_development_guide_is_true():
    """Guard against a file or a name that has moved: docs/development.md, first table."""
    text = (ROOT / "docs" / "development.md").read_text()
    rows = [line.split("|") for line in text.partition("## Where a line belongs")[0].splitlines()]
    rows = [row for row in rows if len(row) == 5 and "`" in row[3]]
    assert len(rows) >= 8
    for _, _, names, places, _ in rows:
        files = [ROOT / name for name in re.findall(r"`([\w/]+\.py)`", places)]
        content = "".join(path.read_text() for path in files)
        for name in re.findall(r"`([^`]+)`", names):
            assert name.rpartition(".")[2] in content, f"{name} is not in {places}"


def test_nothing_is_imported_by_way_of_the_path():
    """Guard against folders that import each other through ``sys.path``."""
    # the second imports what it has installed, in processes of its own
    excepted = {Path(__file__), ROOT / "tests" / "test_packaging.py"}
    for folder in FOLDERS:
        for path in sorted((ROOT / folder).rglob("*.py")):
            if path not in excepted:
                assert "sys.path" not in path.read_text(), path


def test_public_names_are_documented():
    for name in set(fused_optim.__all__) - {"Additions", "Explanation", "Memory", "StepInBackward"}:
        assert "Source:" in inspect.getdoc(getattr(fused_optim, name))
