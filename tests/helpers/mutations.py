"""Changes that users and utilities make to an optimizer between two steps."""

import copy

import torch
from helpers.models import KERNELS, parameters, values
from torch.nn import Parameter


def params_of(optimizer):
    """Return the parameters of all groups."""
    return [param for group in optimizer.param_groups for param in group["params"]]


def replaced(optimizer, name):
    """Replace a state tensor by a copy, and zero the old one so that its use shows."""
    state = optimizer.state[params_of(optimizer)[2]]
    old, state[name] = state[name], state[name].clone()
    old.zero_()


def moved(tensor):
    """Move a tensor to other memory, and zero the old memory so that its use shows."""
    old = tensor.data
    tensor.data = tensor.data.clone()
    old.zero_()


def renamed(optimizer):
    """Give the last state tensor of a parameter another name."""
    state = optimizer.state[params_of(optimizer)[2]]
    name = list(state)[-1]
    state["other"] = state.pop(name)


def loaded(optimizer):
    """Load the optimizer's own checkpoint with other counts."""
    packed = copy.deepcopy(optimizer.state_dict())
    for state in packed["state"].values():
        state["step"] += 3
    optimizer.load_state_dict(packed)


def swapped(optimizer):
    """Replace the state by another mapping with copies, as utilities do that swap it."""
    optimizer.state = copy.copy(optimizer.state)
    for param in params_of(optimizer):
        optimizer.state[param] = {k: v.clone() for k, v in optimizer.state[param].items()}


def exchanged(optimizer):
    """Exchange the states of two parameters of one shape, in the old order."""
    first, second, third, fourth = params_of(optimizer)
    optimizer.state = dict(
        zip([third, second, first, fourth], optimizer.state.values(), strict=True)
    )


def edited(optimizer):
    """Write to a parameter outside a step."""
    with torch.no_grad():
        params_of(optimizer)[1].mul_(0.5)


def ema_update(optimizer):
    """Switch the average of a group on or off."""
    group = optimizer.param_groups[0]
    group["ema_decay"] = 0.9 if group.get("ema_decay") is None else None


def other_parameter(optimizer):
    """Replace a parameter by one without a state, in the same memory."""
    group = optimizer.param_groups[0]
    group["params"][1] = Parameter(group["params"][1].data)


def group_added(optimizer):
    """Add a group with a new parameter."""
    new = values([(7, 9)], params_of(optimizer)[0].dtype, 5)
    optimizer.add_param_group({"params": parameters(new)})


def regrouped(optimizer):
    """Move a parameter to the next group, in the same order of all."""
    first, second = optimizer.param_groups
    second["params"].insert(0, first["params"].pop())


def in_group(index, **options):
    """Return a change that updates options of a group."""
    return lambda optimizer: optimizer.param_groups[index].update(options)


def attribute(name, value):
    """Return a change that sets an attribute."""
    return lambda optimizer: setattr(optimizer, name, value)


def on_param(index, change):
    """Return a change of a parameter."""
    return lambda optimizer: change(params_of(optimizer)[index])


# changes by name, with True where the cached step survives
EVENTS = {
    "nothing": (lambda optimizer: None, True),
    "lr": (in_group(1, lr=0.01), True),
    "betas": (in_group(0, betas=(0.5, 0.6)), True),
    "betas in a list": (in_group(0, betas=[0.5, 0.6]), True),
    "a tensor": (in_group(0, lr=torch.tensor(0.03)), True),
    "nonfinite": (in_group(1, nonfinite="skip"), False),
    "max_grad_norm": (attribute("max_grad_norm", 0.5), True),
    "no norm": (attribute("max_grad_norm", None), False),
    "amsgrad": (in_group(0, amsgrad=True), False),
    "no decay": (in_group(1, weight_decay=0.0), True),
    "maximize": (in_group(1, maximize=True), True),
    "weights": (in_group(1, weights="kahan"), False),
    "states": (in_group(0, states="bf16"), False),
    "average": (ema_update, False),
    "reference": (in_group(1, backend="reference"), False),
    KERNELS: (in_group(1, backend=KERNELS), False),
    "an option more": (in_group(1, mine=1.0), False),
    "an option less": (lambda optimizer: optimizer.param_groups[1].pop("fused"), False),
    "group added": (group_added, False),
    "group removed": (lambda optimizer: optimizer.param_groups.pop(), False),
    "param removed": (lambda optimizer: optimizer.param_groups[1]["params"].pop(0), False),
    "regrouped": (regrouped, False),
    "other parameter": (other_parameter, False),
    "param moved": (on_param(3, moved), False),
    "state replaced": (lambda optimizer: replaced(optimizer, "exp_avg"), False),
    "count replaced": (lambda optimizer: replaced(optimizer, "step"), False),
    "state moved": (lambda o: moved(o.state[params_of(o)[1]]["exp_avg_sq"]), False),
    "state renamed": (renamed, False),
    "state of one gone": (lambda o: o.state.pop(params_of(o)[1]), False),
    "state gone": (lambda optimizer: optimizer.state.clear(), False),
    "state swapped": (swapped, False),
    "states exchanged": (exchanged, False),
    "loaded": (loaded, False),
    "no gradient": (on_param(1, lambda param: param.requires_grad_(False)), False),
    "edited": (edited, True),
    "shard": (lambda o: o.shard(params_of(o)[1], index=7, offset=64, numel=100_000), False),
}
