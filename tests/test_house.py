"""The house keeps its order: imports run one way, the two pages agree, files stay small."""

import ast
import importlib
import inspect
import types
from pathlib import Path

import pytest
import triton
from models import PAGES, RULES

import fused_optim
from fused_optim import codecs, formats, noise
from fused_optim.backends.base import COMMON_OPTIONS
from fused_optim.backends.triton import kernel_counterpart

ROOT = Path(__file__).parent.parent
# what each room may import of the project, besides itself
MAY_IMPORT = {
    "fused_optim/rules": {"rules"},
    "fused_optim/private_api.py": set(),
    "fused_optim/noise.py": set(),
    "fused_optim/codecs.py": {"noise"},
    "fused_optim/formats.py": {"codecs", "rules"},
    "fused_optim/storage.py": {"codecs", "formats", "noise"},
    "fused_optim/layout.py": set(),
    "fused_optim/tensors.py": {"private_api", "rules"},
    "fused_optim/options.py": {"backends", "formats"},
    "fused_optim/backends": {
        "rules",
        "codecs",
        "noise",
        "layout",
        "kernels",
        "backends",
        "private_api",
    },
    "fused_optim/plan.py": {"rules", "codecs", "layout", "backends"},
    "fused_optim/optimizers": {
        "codecs",
        "formats",
        "storage",
        "options",
        "tensors",
        "rules",
        "layout",
        "backends",
        "plan",
        "private_api",
        "_host",
        "optimizers",
    },
    "fused_optim/footprint.py": {"optimizers"},
    "fused_optim/__init__.py": {"optimizers", "options", "footprint"},
    "kernels": {"kernels"},
}


def imported(path):
    """Every module that a file imports, in full."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_imports_run_one_way(room):
    place = ROOT / room
    for path in [place] if place.is_file() else sorted(place.rglob("*.py")):
        own = [name.split(".") for name in imported(path) if name.startswith("fused_optim.")]
        found = {parts[1] for parts in own}
        assert found <= MAY_IMPORT[room], f"{path.relative_to(ROOT)} imports {found}"


def test_every_file_has_a_room():
    files = {str(path.relative_to(ROOT)) for path in (ROOT / "fused_optim").glob("*.py")}
    assert files <= set(MAY_IMPORT)


def test_device_code_imports_only_triton():
    for path in sorted((ROOT / "kernels").rglob("*.py")):
        allowed = ("triton", "fused_optim.kernels", "typing")
        others = [name for name in imported(path) if not name.startswith(allowed)]
        assert not others, f"{path.name} imports {others}"


def test_files_are_short():
    for folder in ("fused_optim", "kernels", "tests", "ci", "examples", "benchmarks"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            assert len(path.read_text().splitlines()) < 400, path


def unpacked(function, name):
    """The names into which a jit function unpacks its argument ``name``."""
    for node in ast.walk(ast.parse(inspect.cleandoc(inspect.getsource(function.fn)))):
        if isinstance(node, ast.Assign) and getattr(node.value, "id", None) == name:
            return tuple(n.id.lstrip("_") for n in node.targets[0].elts)
    return None


@pytest.mark.parametrize("name", RULES)
def test_the_two_pages_agree(name):
    """Guards the order of options, scalars and states, which reach the kernel by position."""
    rule = RULES[name]
    update, scalars = kernel_counterpart(rule.update), kernel_counterpart(rule.scalars)
    assert unpacked(scalars, "hyper") == rule.hyper._fields
    assert unpacked(update, "h") == rule.h._fields
    if rule.state_keys:
        assert unpacked(update, "state") == rule.state_keys
    for ours, theirs in ((rule.update, update), (rule.scalars, scalars)):
        assert inspect.getdoc(ours).splitlines()[0] == inspect.getdoc(theirs.fn).splitlines()[0]


def functions(page, kind):
    return [n for n, f in vars(page).items() if isinstance(f, kind) and defined_in(f, page)]


def defined_in(function, page):
    return getattr(function, "fn", function).__module__ == page.__name__


@pytest.mark.parametrize("page", [*PAGES, noise], ids=lambda page: page.__name__)
def test_the_pages_share_their_order(page):
    twin = importlib.import_module(page.__name__.replace("fused_optim.", "fused_optim.kernels."))
    device = functions(twin, triton.JITFunction)
    ours = [name for name in functions(page, types.FunctionType) if name != "_shifted"]
    assert [n for n in device if n != "divide"] == ours


def test_every_format_is_on_both_pages():
    weights = {codec for codec, _ in formats.WEIGHTS.values()}
    found = {f.__name__ for codec in weights.union(*formats.STATES.values()) for f in codec[:2]}
    ours = [n for n in functions(codecs, types.FunctionType) if n.startswith(("load", "store"))]
    twin = importlib.import_module("fused_optim.kernels.formats.codecs")
    device = functions(twin, triton.JITFunction)
    assert [name for name in device if name.startswith(("load", "store"))] == ours
    assert found == set(ours), "a format that has no name cannot be had"
    assert (twin.BLOCK.value, twin.INFINITY.value) == (codecs.BLOCK, codecs.INFINITY)


@pytest.mark.parametrize("name", RULES)
def test_the_kinds_of_states_are_states(name):
    rule = RULES[name]
    assert {*dict(rule.nonnegative), *rule.fp32_keys} <= set(rule.state_keys)
    assert {option for _, option in rule.nonnegative} <= {None, *rule.hyper._fields}


def test_common_options_are_those_begin_reads():
    source = (ROOT / "kernels" / "begin.py").read_text()
    line = next(line for line in source.splitlines() if "seed = gathered" in line)
    names = [name.strip() for name in line.split("=")[0].split(",")]
    assert names[0] == "sign"
    assert names[3:] == ["l2", "l1", "skips", "_any_skips", "ema_decay", "seed"]
    assert len(names) == len(COMMON_OPTIONS)


def test_public_names_are_documented():
    for name in set(fused_optim.__all__) - {"Additions", "Memory"}:
        assert "Source:" in inspect.getdoc(getattr(fused_optim, name))
