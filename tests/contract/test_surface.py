"""The constructor, attributes, errors, hooks and closures of an optimizer, compared with torch's.

Faults guarded against: another default, a missing group key, a hook that is not called, ``step``
without ``enable_grad`` for the closure.
"""

import inspect

import pytest
import torch
from helpers.torch_pair import Pair, each_case, each_class
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

from fused_optim.options import GROUP_DEFAULTS


def without_additions(group):
    return {name: value for name, value in group.items() if name not in GROUP_DEFAULTS}


def described(groups):
    """Return groups without their parameters, which differ in identity only."""
    return [{n: v for n, v in without_additions(g).items() if n != "params"} for g in groups]


@pytest.mark.feature("signature")
@each_class
def test_signature(case):
    """Guard against torch's arguments in another order, or ours by position."""
    mine, theirs = (
        list(inspect.signature(c).parameters.values()) for c in (case.fused, case.torch_class)
    )
    assert [(p.name, p.default, p.kind) for p in mine[: len(theirs)]] == [
        (p.name, p.default, p.kind) for p in theirs
    ]
    assert [p.kind for p in mine[len(theirs) :]] == [inspect.Parameter.VAR_KEYWORD]


@pytest.mark.feature("signature")
@each_class
def test_positional_arguments(case):
    positional = [
        p.default
        for p in inspect.signature(case.torch_class).parameters.values()
        if p.kind is p.POSITIONAL_OR_KEYWORD and p.default is not p.empty
    ]
    param = torch.zeros(2, requires_grad=True)
    positional[0] = 0.125
    ours, theirs = case.fused([param], *positional), case.torch_class([param], *positional)
    assert described(ours.param_groups) == described(theirs.param_groups)
    with pytest.raises(TypeError, match="positional argument"):
        case.fused([param], *positional, None, None, None, None, None, None, None, None)
    with pytest.raises(TypeError, match="unexpected keyword argument 'learning_rate'"):
        case.fused([param], learning_rate=1.0)


@pytest.mark.feature("defaults, groups and repr")
@each_case
def test_defaults_groups_and_repr(case):
    pair = Pair(case)
    ours, theirs = pair.optimizers
    assert isinstance(ours, torch.optim.Optimizer)
    assert type(ours).__name__ == type(theirs).__name__
    assert without_additions(ours.defaults) == theirs.defaults
    assert ours.defaults.keys() == theirs.defaults.keys() | GROUP_DEFAULTS.keys()
    assert described(ours.param_groups) == described(theirs.param_groups)
    # an addition is listed where it differs from its default
    assert ours.param_groups[0].keys() == theirs.param_groups[0].keys() | {"backend"}
    added = tuple(f"    {name}: " for name in GROUP_DEFAULTS)
    lines = [line for line in repr(ours).splitlines() if not line.startswith(added)]
    assert lines == repr(theirs).splitlines()


WAYS = {
    "iterator": iter,
    "tuple": tuple,
    "groups": lambda p: [{"params": p[:1], "lr": 0.5}, {"params": iter(p[1:])}],
    "one tensor": lambda p: [{"params": p[0]}],
    "names": lambda p: ((f"layer.{i}", x) for i, x in enumerate(p)),
    "named groups": lambda p: [
        {"params": [("a", p[0])], "weight_decay": 0.25},
        {"params": [("b", p[1]), ("c", p[2])]},
    ],
}


@pytest.mark.feature("ways to give parameters")
@pytest.mark.parametrize("way", WAYS)
@each_class
def test_ways_to_give_parameters(case, way):
    """Guard against names lost in ``param_groups`` or in the checkpoint."""
    pair = Pair(case, group=WAYS[way])
    ours, theirs = pair.optimizers
    assert described(ours.param_groups) == described(theirs.param_groups)
    assert ("param_names" in ours.param_groups[0]) == ("name" in way)
    for mine, other in zip(ours.param_groups, theirs.param_groups, strict=True):
        assert [p.shape for p in mine["params"]] == [p.shape for p in other["params"]]
    pair.step(2)
    saved = [optimizer.state_dict()["param_groups"] for optimizer in pair.optimizers]
    assert [without_additions(group) for group in saved[0]] == saved[1]


@pytest.mark.feature("ways to give parameters")
@each_class
@pytest.mark.parametrize(
    "given",
    [
        [],
        torch.zeros(2),
        [{"params": {torch.zeros(2)}}],
        [("a", torch.zeros(2)), torch.zeros(2)],
        [torch.zeros(2, requires_grad=True) * 2],
        [None],
        [{"lr": 1.0}],
    ],
    ids=["nothing", "tensor", "set", "half named", "non-leaf", "none", "no params"],
)
def test_what_torch_refuses(case, given):
    """Guard against another error type or message than torch's."""
    errors = []
    for cls in (case.fused, case.torch_class):
        with pytest.raises((TypeError, ValueError, KeyError)) as error:
            cls(given)
        errors.append((error.type, str(error.value)))
    assert errors[0] == errors[1]


@pytest.mark.feature("step hooks")
@each_class
def test_step_hooks(case):
    """Guard against hooks that are not called, in another order, or with the old arguments."""
    pair, calls = Pair(case), []
    logs = []
    for optimizer in pair.optimizers:
        calls = []

        def note(name, result=None, calls=calls, me=optimizer):
            def hook(got, args, kwargs):
                assert got is me
                calls.append((name, len(args), sorted(kwargs)))
                return result and result(args)

            return hook

        handles = [
            register_optimizer_step_pre_hook(note("global pre")),
            optimizer.register_step_pre_hook(note("pre", lambda a: (a, {"closure": lambda: 7.0}))),
            optimizer.register_step_post_hook(note("post")),
            register_optimizer_step_post_hook(note("global post")),
        ]
        assert optimizer.step() == 7.0
        assert len(calls) == 4
        for handle in handles:
            handle.remove()
        assert optimizer.step() is None
        logs.append(calls)
    assert logs[0] == logs[1]
    assert len(logs[0]) == 4


@pytest.mark.feature("checkpoint hooks")
@each_class
def test_checkpoint_hooks(case):
    """Guard against hooks of ``state_dict`` and ``load_state_dict`` that have no effect."""
    pair, logs = Pair(case), []
    pair.step(1)
    for optimizer in pair.optimizers:
        log = []
        optimizer.register_state_dict_pre_hook(lambda o, log=log: log.append("save"))
        optimizer.register_state_dict_post_hook(lambda o, d: {**d, "extra": 1})
        optimizer.register_load_state_dict_pre_hook(
            lambda o, d, log=log: log.append(d.pop("extra")) or {**d}, prepend=True
        )
        optimizer.register_load_state_dict_post_hook(lambda o, log=log: log.append("loaded"))
        saved = optimizer.state_dict()
        optimizer.load_state_dict(saved)
        assert saved["extra"] == 1
        logs.append(log)
    assert logs[0] == logs[1] == ["save", 1, "loaded"]
    pair.step(2)


@pytest.mark.feature("profiler labels")
@each_class
def test_profiler_labels(case):
    pair = Pair(case)
    pair.backward()
    seen = []
    for optimizer in pair.optimizers:
        with torch.autograd.profiler.profile() as profile:
            optimizer.step()
            optimizer.zero_grad()
        seen.append([e.name for e in profile.function_events if e.name.startswith("Optimizer.")])
    name = case.torch_class.__name__
    expected = [f"Optimizer.step#{name}.step", f"Optimizer.zero_grad#{name}.zero_grad"]
    assert seen == [expected, expected]


@pytest.mark.feature("zero_grad")
@each_class
@pytest.mark.parametrize("foreach", [None, True])
def test_zero_grad(case, foreach):
    pair = Pair(case, foreach=foreach)
    pair.step(1)
    for optimizer, params in pair.both:
        gradients = [p.grad for p in params]
        optimizer.zero_grad(set_to_none=False)
        assert all(p.grad is k for p, k in zip(params, gradients, strict=True))
        assert not any(k.any() for k in gradients)
        optimizer.step()  # a zero gradient is a gradient: momentum goes on
    pair.check()
    for optimizer, params in pair.both:
        optimizer.zero_grad()
        assert all(p.grad is None for p in params)
        optimizer.step()
    pair.check()


@pytest.mark.feature("closures")
@each_class
def test_closures(case):
    """Guard against a closure without gradients enabled, and a changed loss."""
    pair = Pair(case)
    losses = []
    for optimizer, params in pair.both:

        def closure(optimizer=optimizer, params=params):
            assert torch.is_grad_enabled()
            optimizer.zero_grad()
            loss = sum((p**2).sum() for p in params)
            loss.backward()
            return loss

        for step in (optimizer.step, lambda closure, o=optimizer: o.step(closure=closure)):
            with torch.no_grad():
                losses.append(step(closure))
                assert not torch.is_grad_enabled()
        assert losses[-1].requires_grad
        assert losses[-1] < losses[-2]
    pair.check()
    torch.testing.assert_close(losses[:2], losses[2:])


@pytest.mark.feature("subclasses")
@each_class
def test_subclasses(case):
    """Guard against hooks of a subclass with its own ``step`` called more or less than torch's."""
    logs = []
    pair = Pair(case)
    for i, parent in enumerate((case.fused, case.torch_class)):

        class Mine(parent):
            def step(self, closure=None):
                for group in self.param_groups:
                    for p in group["params"]:
                        p.grad.mul_(0.5)
                return super().step(closure)

        optimizer = Mine(pair.params[i], **{n: v for n, v in case.options.items() if n != "lr"})
        log = []
        optimizer.register_step_post_hook(lambda *_, log=log: log.append(1))
        pair.optimizers = tuple(optimizer if j == i else o for j, o in enumerate(pair.optimizers))
        logs.append(log)
    pair.step(3)
    assert type(pair.optimizers[0]).__name__ == "Mine"
    assert len(logs[0]) == len(logs[1]) > 0
