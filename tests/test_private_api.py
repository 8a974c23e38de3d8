"""Private names of torch and Triton: found in one module, and dispensable one by one.

Faults tried by hand: each fallback changed (copies in the wrong order, a decorator that does not
disable, wrappers that are not seen), the import of a private name put into
fused_optim/optimizers/base.py, and ``param._version`` put back.
"""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers.models import KERNELS
from torch.nn import Parameter

from fused_optim import AdamW, private_api
from fused_optim.backends.select import triton_unavailable_reason

ROOT = Path(__file__).parent.parent
OWNER = ROOT / "fused_optim" / "private_api.py"
FILES = sorted(
    path for folder in ("fused_optim", "kernels") for path in (ROOT / folder).rglob("*.py")
)
READERS = ("getattr", "hasattr", "setattr", "attrgetter", "methodcaller", "import_module", "find")


def is_private(name):
    return name.startswith("_") and not name.startswith("__")


def defined(tree):
    """Return the names that a file defines or assigns, and the methods of NamedTuple."""
    names = {"_replace", "_make", "_fields", "_field_defaults", "_asdict"}
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Store):
            names.add(getattr(node, "id", None) or node.attr)
    return names


def foreign(tree, own):
    """Yield every private name in ``tree`` that ``own`` lacks, with its line."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            names = [node.attr]
        elif isinstance(node, ast.Import):
            names = [part for alias in node.names for part in alias.name.split(".")]
        elif isinstance(node, ast.ImportFrom):
            names = [*(node.module or "").split("."), *(alias.name for alias in node.names)]
        elif isinstance(node, ast.Call):
            called = getattr(node.func, "attr", getattr(node.func, "id", None))
            texts = [a.value for a in node.args if isinstance(a, ast.Constant)]
            names = [part for text in texts if isinstance(text, str) for part in text.split(".")]
            names = names if called in READERS else []
        else:
            continue
        yield from (f"{node.lineno}: {n}" for n in names if is_private(n) and n not in own)


TREES = {path: ast.parse(path.read_text()) for path in FILES}
OWN = {"_host"}.union(*map(defined, TREES.values()))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_private_names_stand_in_one_module(path):
    result = list(foreign(TREES[path], OWN))
    if path == OWNER:
        assert result, "no private name is in use: this test and that module can go"
    else:
        assert not result, f"move these to {OWNER.relative_to(ROOT)}: {result}"


@pytest.mark.parametrize(
    "line",
    [
        "from torch._compile import _disable_dynamo",
        "import torch._inductor.cpp_builder",
        "from torch._inductor import cpp_builder",
        "torch._foreach_copy_([], [])",
        "param._version",
        "attrgetter('_version')",
        "importlib.import_module('torch._C._dynamo.guards')",
        "self._zero_grad_profile_name",
    ],
)
def test_private_names_are_found(line):
    assert list(foreign(ast.parse(line), OWN))


# whose attribute, and which; None: nothing is missing
TAKEN = {
    "nothing": None,
    "TensorGuards": "torch._C._dynamo.guards",
    "_disable_dynamo": "torch._compile",
    "_foreach_copy_": "torch",
    "is_traceable_wrapper_subclass": "torch.utils._python_dispatch",
}

STEPS = """
import contextlib, hashlib, json, sys
import torch
import torch._dynamo  # which needs the names itself
from torch.nn import Parameter
from torch.testing._internal.two_tensor import TwoTensor

@contextlib.contextmanager
def without(owner, name):
    value = vars(owner).pop(name)
    try:
        assert not hasattr(owner, name)
        yield
    finally:
        setattr(owner, name, value)

def digest(tensors):
    whole = hashlib.sha256()
    for tensor in tensors:
        whole.update(tensor.detach().reshape(-1).view(torch.uint8).numpy().tobytes())
    return whole.hexdigest()

def params(dtype):
    torch.manual_seed(0)
    return [Parameter(torch.randn(n).to(dtype)) for n in (5, 1, 1025, 5000)]

def train(optimizer, steps=3):
    (group,) = optimizer.param_groups
    for number in range(steps):
        for param in group["params"]:
            param.grad = torch.randn(param.shape).to(param.dtype)
        optimizer.step()
        if number == 1:
            with torch.no_grad():
                group["params"][2].mul_(0.5)
    states = [t for state in optimizer.state.values() for t in state.values()]
    return digest([*group["params"], *states])

def traced(optimizer):
    # a decorator that does nothing would have torch.compile make a graph of the step
    (group,) = optimizer.param_groups
    graphs = []
    def backend(module, inputs):
        graphs.append(str(module.code))
        return module.forward
    @torch.compile(backend=backend)
    def loop():
        for p in group["params"]:
            p.grad = p.sin()
        optimizer.step()
        return group["params"][0].cos()
    torch._dynamo.reset()
    loop(), loop()
    return [digest(group["params"]), graphs]

def refused(fused_optim):
    try:
        fused_optim.SGD([TwoTensor(torch.ones(2), torch.ones(2)).requires_grad_()])
    except ValueError as error:
        return str(error)

def run():
    for name in [name for name in sys.modules if name.split(".")[0] == "fused_optim"]:
        del sys.modules[name]
    import fused_optim
    from fused_optim.step.engine import StepEngine
    full, found = [], {}
    full_step = StepEngine._full_step
    StepEngine._full_step = lambda *args: (full.append(0), full_step(*args))[1]
    found["packed"] = train(fused_optim.SGD(params(torch.float32), 0.1, backend="reference"))
    for weights in ("split", "kahan"):
        optimizer = fused_optim.AdamW(
            params(torch.bfloat16), 0.1, weights=weights, ema_decay=0.5, backend="reference"
        )
        found[weights] = train(optimizer)
        with optimizer.swap_ema():
            found[weights + ", average"] = digest(optimizer.param_groups[0]["params"])
        found[weights + ", swapped back"] = train(optimizer)
    found["refused"] = refused(fused_optim)
    found["full steps"] = len(full)
    return fused_optim, found

found = {}
for name, owner in json.loads(sys.argv[1]).items():
    taken = contextlib.nullcontext()
    if owner is not None:
        owner = eval(owner, {"torch": torch})
        taken = without(owner, name)
    with taken:
        fused_optim, found[name] = run()
    # torch.compile needs the names itself
    optimizer = fused_optim.Adam(params(torch.float32), backend="reference")
    found[name]["traced"] = traced(optimizer)
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def steps():
    """Return the results of the same steps without each of the names."""
    command = [sys.executable, "-W", "ignore", "-c", STEPS, json.dumps(TAKEN)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


@pytest.mark.parametrize("name", [name for name in TAKEN if name != "nothing"])
def test_steps_have_the_same_bits_without(name, steps):
    assert steps[name] == steps["nothing"]
    assert "dense tensor that owns its memory" in steps[name]["refused"]


def test_a_scaler_may_unscale_by_itself(monkeypatch):
    """Guard against other bits where the scaler unscales: the scale is a power of two."""
    result = []
    for knows in (True, False):
        if not knows:
            monkeypatch.delattr(
                "fused_optim.optimizers.base.FusedOptimizer._step_supports_amp_scaling"
            )
        params = [Parameter(torch.linspace(0.5, 1.5, 40))]
        optimizer = AdamW(params, 0.1, max_grad_norm=1.0, backend="reference")
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
        for number in range(4):
            scaler.scale(params[0].sin().sum()).backward()
            if number == 2:
                params[0].grad[3] = torch.inf
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
        result.append([params[0].detach(), *optimizer.state[params[0]].values()])
    assert len(result[0]) == 4
    assert all(map(torch.equal, *result))


def hide(monkeypatch, *names):
    """Make ``private_api`` find none of ``names``."""
    original = private_api.find
    monkeypatch.setattr(private_api, "find", lambda m, n: None if n in names else original(m, n))


@pytest.mark.parametrize("value", ["0", "1"])
def test_whether_triton_is_interpreted_is_known_without_its_knobs(value, monkeypatch):
    assert private_api.triton_is_interpreted() == (KERNELS == "triton")
    hide(monkeypatch, "knobs")
    monkeypatch.setenv("TRITON_INTERPRET", value)
    assert private_api.triton_is_interpreted() == (value == "1")


def test_the_device_of_triton_is_that_of_torch_without_its_driver(monkeypatch):
    hide(monkeypatch, "driver")
    monkeypatch.setattr(private_api, "triton_is_interpreted", lambda: False)
    result = torch.device("cuda", 0)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda **options: result)
    assert private_api.triton_device() == result
    assert "on cuda" in triton_unavailable_reason(torch.device("cpu"))
    assert triton_unavailable_reason(result) is None
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda **options: None)
    assert "no accelerator" in triton_unavailable_reason(result)
