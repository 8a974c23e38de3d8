"""``assert_equivalent`` on a user's parameters, and its pytest fixture.

Faults of it tried by hand: a budget that grows with the error of ours, the largest value of all
parameters in the place of each one's, parameters of the user that are stepped themselves, groups
whose options are dropped from the copies.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import fused_optim
from fused_optim.testing import assert_equivalent

ROOT = Path(__file__).parent.parent
pytest_plugins = ["pytester"]


def model(dtype=torch.float32):
    torch.manual_seed(0)
    layers = nn.Linear(30, 40), nn.LayerNorm(40), nn.Linear(40, 3)
    return nn.Sequential(*layers).to(dtype)


def ours(**options):
    return lambda params: fused_optim.AdamW(params, **{"lr": 1e-3, **options})


def theirs(**options):
    return lambda params: torch.optim.AdamW(params, **{"lr": 1e-3, **options})


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_adamw_is_torchs(dtype):
    params = list(model(dtype).named_parameters())
    before = [param.detach().clone() for _, param in params]
    for seed in range(3):
        assert_equivalent(ours(), theirs(), params, gradients=seed)
    assert all(torch.equal(p, old) for (_, p), old in zip(params, before, strict=True))
    assert all(param.grad is None for _, param in params)


@pytest.mark.parametrize(
    "options",
    [
        {"lr": 1.01e-3},
        {"weight_decay": 0.0},
        {"betas": (0.9, 0.9999)},
        {"maximize": True},
        {"max_grad_norm": 1e-3},
    ],
)
def test_other_options_are_named(options):
    shape = r"^\d\.(weight|bias) \(\d+(, \d+|,)\)"
    words = rf"{shape} differs after step [12]: worst error .* ulps, budget .* ulps of torch"
    params = model().named_parameters()
    with pytest.raises(AssertionError, match=words):
        # with an eps that a smaller gradient feels
        assert_equivalent(ours(eps=1e-3, **options), theirs(eps=1e-3), params)


def test_a_small_parameter_is_compared_by_its_own_size():
    values = {"large": 1e6, "small": 1e-3}
    params = [(name, nn.Parameter(torch.full((50,), x))) for name, x in values.items()]
    with pytest.raises(AssertionError, match=r"^small .*\(1 of 2 parameters"):
        assert_equivalent(
            lambda p: fused_optim.SGD(p, lr=1.001e-5),
            lambda p: torch.optim.SGD(p, lr=1e-5),
            params,
        )


def test_groups_clipping_and_gradients_of_the_user():
    network = model()
    groups = [
        {"params": network[0].parameters(), "weight_decay": 0.5},
        {"params": [network[1].weight], "lr": 0.1},
    ]

    def clip_and_step(optimizer):
        params = [p for group in optimizer.param_groups for p in group["params"]]
        nn.utils.clip_grad_norm_(params, 1.0)
        optimizer.step()

    asked, given = [], []

    def make(groups):
        given.append([(len(g["params"]), g.get("weight_decay"), g.get("lr")) for g in groups])
        return ours(max_grad_norm=1.0)(groups)

    def gradient(step, name, param):
        asked.append((step, name))
        return None if name == "params[1]" else torch.full_like(param, 1.0 / step)

    arguments = {"steps": 2, "gradients": gradient, "step_theirs": clip_and_step}
    assert_equivalent(make, theirs(), groups, **arguments)
    assert given == [[(2, 0.5, None), (1, None, 0.1)]]
    assert asked == [(step, f"params[{i}]") for step in (1, 2) for i in range(3)]
    groups[0]["params"] = network[0].parameters()
    with pytest.raises(AssertionError, match="differs after step 1"):
        assert_equivalent(ours(max_grad_norm=0.5, eps=0.1), theirs(eps=0.1), groups, **arguments)


def test_nan_is_not_equivalent():
    def fill(optimizer):
        optimizer.param_groups[0]["params"][0].data.fill_(torch.nan)

    with pytest.raises(AssertionError, match="worst error inf ulps"):
        assert_equivalent(ours(), theirs(), [nn.Parameter(torch.ones(3))], step_ours=fill)


@pytest.mark.parametrize(
    ("params", "more", "words"),
    [
        ([], {}, "requires a gradient.* got 0 tensors"),
        ([torch.ones(1)], {}, "requires a gradient.* got 1 tensors"),
        ([nn.Parameter(torch.ones(1))], {"steps": 0}, "steps must be at least 1, got 0"),
        (
            [nn.Parameter(torch.ones(1, dtype=torch.complex64))],
            {},
            "must be floating-point.* torch.complex64",
        ),
    ],
)
def test_arguments_are_checked(params, more, words):
    with pytest.raises(ValueError, match=words):
        assert_equivalent(ours(), theirs(), params, **more)


def test_the_fixture(pytester, monkeypatch):
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    pytester.makepyfile("""
        import torch, fused_optim

        params = [torch.nn.Parameter(torch.ones(3))]

        def test_same(assert_optimizers_equivalent):
            assert_optimizers_equivalent(fused_optim.SGD, torch.optim.SGD, params)

        def test_other(assert_optimizers_equivalent):
            assert_optimizers_equivalent(fused_optim.SGD, torch.optim.Adam, params)
    """)
    result = pytester.runpytest_inprocess("-p", "_fused_optim_pytestplugin")
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.re_match_lines([r"E .*params\[0\] \(3,\) differs after step 1"])


def test_the_plugin_imports_nothing(tmp_path):
    """Guard against a plugin that makes every run of pytest import torch."""
    code = """
import sys

def test_nothing():
    assert not {"torch", "fused_optim", "triton"} & sys.modules.keys()
"""
    (tmp_path / "test_user.py").write_text(code)
    env = os.environ | {"PYTHONPATH": str(ROOT), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    command = [sys.executable, "-m", "pytest", "-p", "_fused_optim_pytestplugin", tmp_path]
    result = subprocess.run(
        [*command, "-c", os.devnull, f"--rootdir={tmp_path}"],
        capture_output=True,
        text=True,
        env=env,
        cwd=tmp_path,
    )
    assert "1 passed" in result.stdout, result.stdout + result.stderr
