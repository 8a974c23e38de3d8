"""The comparison with torch.optim, by the tolerances of all tests."""

from torch import nn

from fused_optim.testing.closeness import assert_as_accurate, assert_same_bits, join_flat


def assert_as_close(ours, theirs, exact):
    """Bound the error of a model's parameters by twice that of torch.optim, plus one rounding.

    Args:
        ours: model, or its parameters, trained with fused_optim.
        theirs: the same, trained with torch.optim in the same framework.
        exact: the same, trained with torch.optim in float64.
    """
    ours, theirs, exact = (
        join_flat(trained.parameters() if isinstance(trained, nn.Module) else trained)
        for trained in (ours, theirs, exact)
    )
    assert_as_accurate("parameters", ours, theirs, exact.double())


def assert_far(ours, theirs):
    """Check that two models differ by far more than rounding."""
    pairs = zip(ours.parameters(), theirs.parameters(), strict=True)
    assert max((p - q).abs().max().item() for p, q in pairs) > 1e-3


def assert_same_run(first, second):
    """Check that two optimizers have the same bits: parameters, states and options."""
    for group, other in zip(first.param_groups, second.param_groups, strict=True):
        options = [{k: v for k, v in g.items() if k != "params"} for g in (group, other)]
        assert options[0] == options[1]
        for param, copy in zip(group["params"], other["params"], strict=True):
            assert_same_bits("parameter", param.detach(), copy.detach())
            states, copies = first.state[param], second.state[copy]
            assert states.keys() == copies.keys()
            assert states
            for name, state in states.items():
                assert_same_bits(name, state, copies[name])
