"""Installations from wheel and sdist: all modules import, with and without the C module.

With a C compiler the wheel has the C module and is for one platform, without one it is for all.

Faults tried by hand: a package left out of pyproject.toml, an extension that is not optional, a
wheel that keeps its platform or has no stable ABI, csrc/ left out of the sdist; py.typed left out,
``backend: Any`` among the additions, a description in a format that is not declared.
"""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest
from filelock import FileLock
from helpers.c_module import HAS_COMPILER

import fused_optim

ROOT = Path(__file__).parent.parent
# the package on PyPI whose import name is that of our folder
NAMESAKE = "kernels==0.17.2"
MISSING = "/nowhere/cc"

# arguments: whether triton is blocked, backends with commas between them, modules to import at last
STEPS = """
import sys
triton, backends, *names = sys.argv[1:]
if triton == "blocked":
    sys.modules["triton"] = None  # Python's way of saying that there is no such module
import importlib, logging, torch, fused_optim

class Ways(logging.Handler):
    def emit(self, record):
        way = record.getMessage().partition("the tensors of a step are compared in ")[2]
        print(way, file=sys.stderr, end="\\n" if way else "")

logging.getLogger("fused_optim").addHandler(Ways())
logging.getLogger("fused_optim").setLevel(logging.DEBUG)

def steps(backend, optimizer, **options):
    torch.manual_seed(0)
    weights = [torch.randn(n) for n in (5, 1, 1025)]
    before = [weight.clone() for weight in weights]
    optimizer = optimizer(weights, lr=0.1, max_grad_norm=1.0, backend=backend, **options)
    for _ in range(3):
        for weight in weights:
            weight.grad = weight.sin()
        optimizer.step()
    assert not any(torch.equal(*pair) for pair in zip(weights, before))
    print(optimizer.backend_used, [weight.double().sum().item().hex() for weight in weights])

for backend in backends.split(","):
    steps(backend, fused_optim.AdamW, weight_decay=0.1)
    steps(backend, fused_optim.SGD, momentum=0.9)
if triton == "blocked":
    del sys.modules["triton"]
for name in names:
    print(importlib.import_module(name).__file__)
"""

# programs of a user, for type checkers: one that is right, one with a mistake in each statement
GOOD = """
from typing import Any

import torch
from torch import Tensor, nn

import fused_optim
from fused_optim import SGD, AdamW, Muon

model = nn.Linear(8, 4)
groups: list[dict[str, Any]] = [{"params": [model.weight], "lr": 1e-3}, {"params": [model.bias]}]
optimizer = AdamW(groups, lr=3e-4, max_grad_norm=1.0, states="int8", backend="auto")
scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=100)
norm: Tensor | None = optimizer.grad_norm
theirs = torch.optim.SGD(model.parameters(), lr=0.1)
ours: torch.optim.Optimizer = fused_optim.from_torch(theirs, nonfinite="skip")
total: int = fused_optim.memory(model, SGD, momentum=0.9).total
muon = Muon(fused_optim.param_groups_for_muon(model), lr=1e-3)
with optimizer.swap_ema():
    pairs: list[tuple[Tensor, Tensor]] = list(optimizer.ema_pairs())
with fused_optim.step_in_backward(model, muon) as handle, handle.accumulate():
    model(torch.ones(2, 8)).sum().backward()
version: str = fused_optim.__version__
"""
BAD = """
from torch import nn

from fused_optim import AdamW

model = nn.Linear(8, 4)
AdamW(model.parameters(), lr="fast")
AdamW(model.parameters(), backend="gpu")
AdamW(model.parameters(), max_grad_nom=1.0)
print(AdamW(model.parameters()).grad_nrm)
"""


def run(*command, cwd, check=True, **variables):
    """Run a command in an environment without variables for this checkout."""
    env = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "TRITON_INTERPRET")}
    env.update(variables, OMP_NUM_THREADS="1")
    result = subprocess.run(
        [str(part) for part in command], cwd=cwd, env=env, capture_output=True, text=True
    )
    assert not check or result.returncode == 0, result.stdout + result.stderr
    return result


def python(code, *arguments, cwd, check=True):
    return run(sys.executable, "-W", "error", "-c", code, *arguments, cwd=cwd, check=check)


def modules(source):
    """Return the names of all modules, by the files in git."""
    package = Path("fused_optim")
    files = {path.relative_to(source) for path in (source / package).rglob("*.py")}
    # written out, for rglob need not follow the symlink
    files |= {package / path.relative_to(source) for path in (source / "kernels").rglob("*.py")}
    files |= {Path("_fused_optim_command.py"), Path("_fused_optim_pytestplugin.py")}
    return sorted(".".join(file.with_suffix("").parts).removesuffix(".__init__") for file in files)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Return a copy of the files in git, to build in."""
    listed = run(
        "git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", cwd=ROOT
    ).stdout
    copy = tmp_path_factory.mktemp("project") / "source"
    for name in filter(None, listed.split("\0")):
        if os.path.lexists(ROOT / name):
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, copy / name, follow_symlinks=False)
    return copy


@pytest.fixture(scope="module")
def archives(source, tmp_path_factory):
    """Return the sdist, and wheels built with and without a C compiler, once for all workers."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent  # that of all workers
    dist, pure = folder / "dist", folder / "pure"
    build = (sys.executable, "-m", "build", "--no-isolation", "--outdir")
    with FileLock(folder / "archives.lock"):
        if not pure.exists():
            run(*build, dist, cwd=source)
            run(*build, pure, "--wheel", cwd=source, CC=MISSING)
    (sdist,), (wheel,), (without,) = map(
        list, (dist.glob("*.tar.gz"), dist.glob("*.whl"), pure.glob("*.whl"))
    )
    return {"sdist": sdist, "wheel": wheel, "pure": without}


@pytest.fixture
def venv(tmp_path):
    """Return a virtual environment with the packages of this one, without its .pth files.

    A ``.pth`` file gives it torch and pip; an editable install of this checkout is not followed.
    """
    path = tmp_path / "venv"
    run(sys.executable, "-m", "venv", "--without-pip", path, cwd=tmp_path)
    site = sysconfig.get_path("purelib", vars={"base": str(path)})
    (Path(site) / "parent.pth").write_text(sysconfig.get_path("purelib"))
    return path


def pip(venv, *arguments, check=True, **variables):
    # the version of this checkout that the parent may have installed does not count
    command = (venv / "bin" / "python", "-m", "pip", "install", "--disable-pip-version-check")
    return run(*command, *arguments, cwd=venv, check=check, **variables)


def install(venv, *what, **variables):
    # an installation of this project in the environment of pytest must not be used
    pip(venv, "--no-deps", "--no-build-isolation", "--ignore-installed", *what, **variables)


def compares_in(venv, source, home, has_c):
    """Take steps, and check that all modules import from ``home`` alone.

    Returns:
        The language in which steps are compared, and the bits of their results.
    """
    names = [*modules(source), "fused_optim._host"] if has_c else modules(source)
    command = (venv / "bin" / "python", "-W", "error", "-c", STEPS, "blocked", "auto", *names)
    printed = run(*command, cwd=venv)
    (way,) = {line.split()[0] for line in printed.stderr.splitlines()}
    lines = printed.stdout.splitlines()
    bits, files = lines[: -len(names)], lines[-len(names) :]
    assert len(bits) == 2
    assert not [file for file in files if not Path(file).is_relative_to(home)]
    return way, bits


@pytest.mark.slow
def test_archives(source, archives, venv):
    """Install the sdist without a compiler, and then the wheel that was built from it.

    Guards against a package missing from the list, which would import from the checkout alone, and
    against an installation that needs a compiler, or has other bits without one.
    """
    pytest.importorskip("triton")
    install(venv, archives["sdist"], CC=MISSING)
    assert not list(venv.rglob("_host.*so"))
    way, bits = compares_in(venv, source, venv, has_c=False)
    assert way == "Python:"
    install(venv, archives["wheel"])
    expected = ("C" if HAS_COMPILER else "Python:", bits)
    assert compares_in(venv, source, venv, HAS_COMPILER) == expected


@pytest.mark.slow
def test_names_of_wheels(archives):
    abi = f"-cp310-abi3-{sysconfig.get_platform().replace('-', '_').replace('.', '_')}.whl"
    assert archives["wheel"].name.endswith(abi if HAS_COMPILER else "-py3-none-any.whl")
    assert archives["pure"].name.endswith("-py3-none-any.whl")
    for kind in ("wheel", "pure"):
        files = zipfile.ZipFile(archives[kind]).namelist()
        built = [name for name in files if name.startswith("fused_optim/_host.")]
        assert built.count("fused_optim/_host.pyi") == 1
        assert len(built) == 1 + (kind == "wheel" and HAS_COMPILER)
        assert not [name for name in files if name.endswith(".c") or "csrc" in name]


@pytest.mark.slow
def test_what_a_registry_checks(archives):
    files = [archives[kind] for kind in ("sdist", "wheel", "pure")]
    run(sys.executable, "-m", "twine", "check", "--strict", *files, cwd=ROOT)
    metadata = zipfile.ZipFile(archives["wheel"])
    (name,) = (name for name in metadata.namelist() if name.endswith("METADATA"))
    assert f"\nVersion: {fused_optim.__version__}\n" in metadata.read(name).decode()


@pytest.mark.slow
@pytest.mark.parametrize("checker", ["mypy", "basedpyright"])
def test_types_of_an_installation(checker, archives, venv):
    """Type checkers read the annotations of the wheel, and report each mistake of a user."""
    install(venv, archives["pure"])
    (venv / "good.py").write_text(GOOD)
    (venv / "bad.py").write_text(BAD)
    python = venv / "bin" / "python"
    options = {
        "mypy": ["--strict"],
        "basedpyright": ["--level", "error", "--pythonpath", python],
    }[checker]
    result = run(python, "-m", checker, *options, "good.py", "bad.py", cwd=venv, check=False)
    printed = result.stdout + result.stderr
    lines = sorted({int(line) for line in re.findall(r"bad\.py:(\d+).*error", printed)})
    assert lines == [7, 8, 9, 10], printed
    assert not re.findall(r"good\.py:\d+.*error", printed), printed


@pytest.mark.slow
def test_entry_points(archives):
    """Guard against a command or a pytest plugin that is not installed."""
    files = zipfile.ZipFile(archives["wheel"])
    (name,) = [name for name in files.namelist() if name.endswith("entry_points.txt")]
    text = files.read(name).decode()
    assert "fused-optim = _fused_optim_command:main" in text
    assert "fused_optim = _fused_optim_pytestplugin" in text


@pytest.mark.slow
@pytest.mark.parametrize("compiler", [None, MISSING])
def test_editable(compiler, source, venv, tmp_path):
    pytest.importorskip("triton")
    copy = tmp_path / "source"
    shutil.copytree(source, copy, symlinks=True, ignore=shutil.ignore_patterns("build", "dist"))
    install(venv, "--editable", copy, **({} if compiler is None else {"CC": compiler}))
    has_c = compiler is None and HAS_COMPILER
    assert compares_in(venv, source, copy, has_c)[0] == ("C" if has_c else "Python:")


@pytest.mark.slow
def test_beside_the_namesake(archives, venv):
    """Guard against a top-level ``kernels``, which would overwrite PyPI's package."""
    install(venv, archives["wheel"])
    result = pip(venv, "--retries=1", "--timeout=20", NAMESAKE, check=False)
    if "Retrying (" in result.stdout + result.stderr:
        pytest.skip(f"the registry cannot be reached to install {NAMESAKE}")
    assert result.returncode == 0, result.stderr
    code = (
        "import kernels, fused_optim.kernels\n"
        "print(kernels.get_kernel.__module__, kernels.__file__, *fused_optim.kernels.__path__)"
    )
    module, theirs, ours = run(venv / "bin" / "python", "-c", code, cwd=venv).stdout.split()
    assert module == "kernels.load"
    assert Path(theirs).parent.name == "kernels"
    assert Path(theirs).is_relative_to(venv)
    assert Path(ours).parent.name == "fused_optim"
    assert Path(ours).is_relative_to(venv)


def test_the_folder_does_not_hide_the_namesake(tmp_path):
    """Guard against ``kernels/__init__.py``, with which the folder would be found in a clone.

    transformers imports the namesake where it finds one, so it could not be imported in a clone.
    """
    (tmp_path / "kernels").mkdir()
    (tmp_path / "kernels" / "__init__.py").touch()
    code = "import kernels\nprint(kernels.__file__)"
    path = f"{ROOT}{os.pathsep}{tmp_path}"
    found = run(sys.executable, "-c", code, cwd=ROOT, PYTHONPATH=path).stdout
    assert Path(found.strip()) == tmp_path / "kernels" / "__init__.py"
    code = "import kernels\nprint(kernels.__file__)"
    assert python(code, cwd=ROOT).stdout == "None\n"  # a folder, which is no installed package


def test_without_triton():
    """Guard against imports of triton outside the backend that needs it."""
    with_triton = python(STEPS, "free", "reference", cwd=ROOT).stdout
    assert with_triton.count("reference") == 2
    refused = python(STEPS, "blocked", "auto,triton", cwd=ROOT, check=False)
    assert refused.stdout == with_triton
    assert "RuntimeError" in refused.stderr.splitlines()[-1]
    assert "triton" in refused.stderr.splitlines()[-1]
