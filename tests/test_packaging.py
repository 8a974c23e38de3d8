"""Installations from wheel and sdist: all modules import, with and without the C module.

With a C compiler the wheel has the C module and is for one platform, without one it is for all.

Faults tried by hand: a package left out of pyproject.toml, an extension that is not optional, a
wheel that keeps its platform or has no stable ABI, csrc/ left out of the sdist; py.typed left out,
``backend: Any`` among the additions, a description in a format that is not declared.
"""

import json
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
MISSING = "/nowhere/cc"
TOPS = {"fused_optim", "_fused_optim_command.py", "_fused_optim_pytestplugin.py"}

# One process imports torch once; a child of it takes steps with each installation. A job: folder of
# the installation, whether triton is blocked, backends, modules to import at last, and the path to
# write to. The returncodes are printed.
STEPS = """
import importlib, json, logging, os, site, sys
import torch

class Ways(logging.Handler):
    def emit(self, record):
        way = record.getMessage().partition("the tensors of a step are compared in ")[2]
        print(way, file=sys.stderr, end="\\n" if way else "")

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

def work(folder, blocked, backends, names, written):
    for descriptor, suffix in ((1, ".out"), (2, ".err")):
        os.dup2(os.open(written + suffix, os.O_CREAT | os.O_WRONLY), descriptor)
    sys.path.insert(0, folder)
    site.addsitedir(folder)
    triton = sys.modules.get("triton")
    if blocked:
        sys.modules["triton"] = None  # Python's way of saying that there is no such module
    import fused_optim
    logging.getLogger("fused_optim").addHandler(Ways())
    logging.getLogger("fused_optim").setLevel(logging.DEBUG)
    for backend in backends:
        steps(backend, fused_optim.AdamW, weight_decay=0.1)
        steps(backend, fused_optim.SGD, momentum=0.9)
    if blocked:
        del sys.modules["triton"]
        sys.modules |= {} if triton is None else {"triton": triton}
    for name in names:
        print(importlib.import_module(name).__file__)

modules, *jobs = json.loads(sys.argv[1])
for name in modules:
    importlib.import_module(name)
codes = []
for job in jobs:
    child = os.fork()
    if child == 0:
        code = 1
        try:
            work(*job)
            code = 0
        except BaseException:
            sys.excepthook(*sys.exc_info())
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    codes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
print(json.dumps(codes))
"""
# what steps and the modules of an installation import
COSTLY = ("torch._dynamo", "triton", "llvmlite.binding", "typer", "rich.progress", "numpy.testing")

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


def take_steps(python, cwd, **jobs):
    """Take steps in children of one process, which imports torch and ``COSTLY`` first.

    Args:
        python: interpreter, in whose environment this project is not installed.
        cwd: folder for what the children write.
        jobs: arguments of ``work`` but the last, by name.

    Returns:
        For each name the returncode, and the lines of stdout and stderr.
    """
    own = [(*job, str(cwd / name)) for name, job in jobs.items()]
    printed = run(python, "-W", "error", "-c", STEPS, json.dumps([COSTLY, *own]), cwd=cwd).stdout
    return {
        name: (code, *((cwd / f"{name}{end}").read_text().splitlines() for end in (".out", ".err")))
        for name, code in zip(jobs, json.loads(printed), strict=True)
    }


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
    """Return sdist and wheel, and a wheel of the sdist without a C compiler, for all workers."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent  # that of all workers
    dist, pure = folder / "dist", folder / "pure"
    with FileLock(folder / "archives.lock"):
        if not pure.exists():
            build = ("-m", "build", "--no-isolation", "--outdir")
            run(sys.executable, *build, dist, cwd=source)
            (sdist,) = dist.glob("*.tar.gz")
            pip(sys.executable, "wheel", "--wheel-dir", pure, sdist, cwd=folder, CC=MISSING)
    (sdist,), (wheel,), (without,) = map(
        list, (dist.glob("*.tar.gz"), dist.glob("*.whl"), pure.glob("*.whl"))
    )
    return {"sdist": sdist, "wheel": wheel, "pure": without}


def pip(python, command, *arguments, **options):
    offline = ("--disable-pip-version-check", "--no-deps", "--no-build-isolation", "--no-index")
    return run(python, "-m", "pip", command, *offline, *arguments, **options)


def create_venv(path):
    """Create an environment with the packages of this one, without its .pth files.

    A ``.pth`` file gives it torch and pip; an editable install of this checkout is not followed.

    Returns:
        Its interpreter, and the folder of its own packages.
    """
    run(sys.executable, "-m", "venv", "--without-pip", path, cwd=path.parent)
    site = Path(sysconfig.get_path("purelib", vars={"base": str(path)}))
    (site / "parent.pth").write_text(sysconfig.get_path("purelib"))
    return path / "bin" / "python", site


def install(path, *what, **variables):
    """Install in a new environment; return its interpreter and the folder of its packages."""
    python, site = create_venv(path)
    # an installation of this project in the environment of pytest must not be used
    pip(python, "install", "--ignore-installed", "--no-compile", *what, cwd=path, **variables)
    return python, site


def unpack(path, wheel):
    """Unpack a wheel, which is all of its installation but the command; return the folder."""
    path.mkdir()
    # a namesake of our folder, which the installation must leave alone
    (path / "kernels").mkdir()
    (path / "kernels" / "__init__.py").touch()
    zipfile.ZipFile(wheel).extractall(path)
    return path


def install_all(source, archives, folder):
    """Install in every way; return the folder of the modules, and of the packages, by name."""
    homes, sites = {}, {}
    for name, kind in {"wheel": "wheel", "sdist_without_c": "pure"}.items():
        homes[name] = sites[name] = unpack(folder / name, archives[kind])
    for name, variables in {"editable": {}, "editable_without_c": {"CC": MISSING}}.items():
        homes[name] = folder / name / "source"
        ignored = shutil.ignore_patterns("build", "dist")
        shutil.copytree(source, homes[name], symlinks=True, ignore=ignored)
        _, sites[name] = install(folder / f"{name}_venv", "--editable", homes[name], **variables)
    return homes, sites


@pytest.mark.slow
def test_installations(source, archives, tmp_path):
    """Take steps with the wheel, without a C compiler, and with an editable source.

    Guards against a package missing from the list, which would import from the checkout alone,
    against an installation that needs a compiler, or has other bits without one, against imports of
    triton outside the backend that needs it, and against a top-level ``kernels``, which would
    overwrite PyPI's package of that name. One test, as the installations share what is slow: a
    process that imports torch and triton.
    """
    pytest.importorskip("triton")
    bare, _ = create_venv(tmp_path / "bare")
    homes, sites = install_all(source, archives, tmp_path)
    has_c = {name: HAS_COMPILER and not name.endswith("without_c") for name in homes}
    names = {name: ["fused_optim._host"] * has_c[name] + modules(source) for name in homes}
    jobs = {name: (str(site), True, ["auto"], names[name]) for name, site in sites.items()}
    jobs["wheel"][3].append("kernels")
    site = str(sites["wheel"])
    jobs["with_triton"] = (site, False, ["reference"], [])
    jobs["refused"] = (site, True, ["triton"], [])
    found = take_steps(bare, tmp_path, **jobs)
    code, expected, err = found["with_triton"]
    assert code == 0, err
    assert [line.split()[0] for line in expected] == ["reference"] * 2
    code, out, err = found["refused"]
    assert (code, out) == (1, [])
    assert "RuntimeError" in err[-1]
    assert "triton" in err[-1]
    for name, home in homes.items():
        code, out, err = found[name]
        assert code == 0, (name, err)
        assert {line.split()[0] for line in err} == {"C" if has_c[name] else "Python:"}, name
        assert out[:2] == expected, name
        assert len(out[2:]) == len(names[name])
        assert not [file for file in out[2:] if not Path(file).is_relative_to(home)], name
    namesake = sites["wheel"] / "kernels" / "__init__.py"
    assert Path(found["wheel"][1][-1]) == namesake
    assert not namesake.read_text()


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
        # and no "kernels", which would overwrite PyPI's package of that name
        tops = {name.partition("/")[0] for name in files}
        assert {top for top in tops if not top.endswith(".dist-info")} == TOPS


@pytest.mark.slow
def test_what_a_registry_checks(archives):
    files = [archives[kind] for kind in ("sdist", "wheel", "pure")]
    run(sys.executable, "-m", "twine", "check", "--strict", *files, cwd=ROOT)
    metadata = zipfile.ZipFile(archives["wheel"])
    (name,) = (name for name in metadata.namelist() if name.endswith("METADATA"))
    assert f"\nVersion: {fused_optim.__version__}\n" in metadata.read(name).decode()


# mypy follows torch to its optimizers, modules and tensors; all of it takes half a minute
MYPY = """
[mypy]
strict = true
cache_dir = /dev/null
[mypy-torch.*,numpy.*]
follow_imports = skip
[mypy-torch,torch._tensor,torch._C.*,torch.nn,torch.nn.modules.*,torch.nn.parameter,torch.optim.*]
follow_imports = normal
"""
CHECKERS = {
    "mypy": ["--config-file", "mypy.ini"],
    "basedpyright": ["--level", "error", "--pythonpath", "bin/python"],
}


@pytest.mark.slow
def test_types_of_an_installation(archives, tmp_path):
    """Type checkers read the annotations of the wheel, and report each mistake of a user."""
    venv = tmp_path / "venv"
    python, _ = install(venv, archives["pure"])
    (venv / "good.py").write_text(GOOD)
    (venv / "bad.py").write_text(BAD)
    (venv / "mypy.ini").write_text(MYPY)
    for checker, options in CHECKERS.items():
        result = run(python, "-m", checker, *options, "good.py", "bad.py", cwd=venv, check=False)
        printed = f"{checker}: {result.stdout}{result.stderr}"
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
    found = run(sys.executable, "-c", code, cwd=ROOT).stdout
    assert found == "None\n"  # a folder, which is no installed package
