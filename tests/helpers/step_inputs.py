"""Tensors of every sort that a step may meet, and events that change them between two steps."""

import collections
import random

import torch
from torch import Tensor
from torch.nn import Parameter

SHAPES = [(), (1,), (4,), (3, 5), (5, 5), (2, 3, 4), (0,), (1, 4)]
HALF = {torch.bfloat16: torch.float16, torch.float16: torch.bfloat16}


class Own(Tensor):
    """A subclass of Tensor without additions."""


class StepInputs:
    """Parameters in two groups, their gradients and states, of every dtype that a step may meet."""

    def __init__(self, seed=0, shapes=SHAPES):
        self.random = random.Random(seed)
        dtypes = [torch.float32, torch.bfloat16, torch.float64, torch.float16]
        formats = [torch.float8_e4m3fn, torch.int8, torch.uint8, torch.float8_e5m2, torch.float32]
        params = []
        for i, shape in enumerate(shapes):
            param = Parameter(torch.zeros(shape, dtype=dtypes[i % 4]))
            params.append(param if i % 3 else param.detach().requires_grad_())
            if i % 5 != 4:
                params[-1].grad = torch.zeros_like(params[-1])
        self.groups = [{"params": params[:3]}, {"params": params[3:]}]
        self.state = collections.defaultdict(dict)
        for i, param in enumerate(params):
            code = torch.zeros(shapes[i], dtype=formats[i % 5])
            self.state[param] = {"step": torch.tensor(1.0), "exp_avg": code}

    @property
    def params(self):
        """Parameters of all groups."""
        return [param for group in self.groups for param in group["params"]]

    def param(self):
        """Choose a parameter with a gradient and several elements."""
        return self.random.choice([p for p in self.params if p.grad is not None and p.numel() > 1])

    def entry(self):
        """Choose the state of a parameter."""
        return self.random.choice(list(self.state.values()))


def with_grad(change):
    """Return an event that replaces the gradient of one parameter by ``change(gradient)``."""

    def event(inputs):
        param = inputs.param()
        new = change(param.grad)
        if new is None or new.dtype == param.dtype:
            param.grad = new

    return event


def with_param(change):
    """Return an event that changes one parameter."""
    return lambda inputs: change(inputs.param())


def with_data(change):
    """Return an event that replaces ``param.data`` by ``change(param.data)``."""

    def event(inputs):
        param = inputs.param()
        param.data = change(param.data)

    return event


def with_value(name, change):
    """Return an event that replaces a state tensor by ``change(tensor)``."""

    def event(inputs):
        entry = inputs.entry()
        entry[name] = change(entry[name])

    return event


def swap(param):
    """Swap a parameter with a new one, as ``module.to`` does."""
    torch.utils.swap_tensors(param, Parameter(torch.zeros_like(param)))


def toggle_grad(inputs):
    """Remove a gradient, or set one where there is none."""
    param = inputs.random.choice(inputs.params)
    param.grad = None if param.grad is not None else torch.zeros_like(param)


def other_grad_dtype(param):
    """Set a gradient of another dtype than the parameter's."""
    param.grad = None
    param.grad_dtype = torch.float32 if param.dtype is torch.float64 else torch.float64
    param.grad = torch.zeros(param.shape, dtype=param.grad_dtype)


def regroup(inputs):
    """Move a parameter to the second group."""
    first, second = inputs.groups
    second["params"].insert(0, first["params"].pop())


def exchange(inputs):
    """Exchange two parameters of one group."""
    params = inputs.groups[1]["params"]
    params[0], params[1] = params[1], params[0]


def add_param(inputs):
    """Add a parameter to the second group."""
    inputs.groups[1]["params"].append(Parameter(torch.ones(2)))


def as_tuples(inputs):
    """Turn the lists of parameters into tuples."""
    for group in inputs.groups:
        group["params"] = tuple(group["params"])


def in_state(change):
    """Return an event that replaces the state by ``change(state)``."""

    def event(inputs):
        inputs.state = change(inputs.state)

    return event


def other_order(state):
    """Return the state with its first entry last."""
    ordered = collections.OrderedDict(state)
    ordered.move_to_end(next(iter(ordered)))
    return ordered


def in_entry(change):
    """Return an event that replaces the state of a parameter by ``change(state)``."""

    def event(inputs):
        key = inputs.random.choice(list(inputs.state))
        inputs.state[key] = change(inputs.state[key])

    return event


def without(entry):
    """Remove the last name."""
    entry.popitem()
    return entry


def renamed(entry):
    """Return the state with ``exp_avg`` under another name."""
    return {"other" if name == "exp_avg" else name: value for name, value in entry.items()}


def spelled(entry):
    """Return the state under equal names that are other strings."""
    return {"".join(list(name)): value for name, value in entry.items()}


def negated(tensor):
    """Return a view with the negative bit."""
    return torch._neg_view(tensor)


def enlarge(param):
    """Enlarge the storage of a parameter by 1 MiB."""
    storage = param.untyped_storage()
    storage.resize_(storage.nbytes() + (1 << 20))


def reset(param):
    """Give a parameter another storage by ``set_``."""
    with torch.no_grad():
        param.set_(torch.zeros_like(param).untyped_storage(), 0, param.shape, param.stride())


def aliased(param):
    """Give a parameter its own storage by ``set_``."""
    with torch.no_grad():
        param.set_(param.untyped_storage(), param.storage_offset(), param.shape, param.stride())


def transposed_memory(tensor):
    """Return a copy whose memory is transposed."""
    return tensor.mT.contiguous().mT if tensor.dim() > 1 else tensor.clone()


# events by name, with True where the cached step survives; None: it depends on the tensor
EVENTS = {
    "nothing": (lambda inputs: None, True),
    "grad moved": (with_grad(torch.clone), True),
    "grad in place": (with_grad(lambda g: g.add_(1)), True),
    "grad alias": (with_grad(lambda g: g.view_as(g)), True),
    "grad requires grad": (with_grad(lambda g: g.clone().requires_grad_()), True),
    "grad comes or goes": (toggle_grad, False),
    "grad strides": (with_grad(transposed_memory), None),
    "grad dtype": (with_param(other_grad_dtype), False),
    "grad expanded": (with_grad(lambda g: g.flatten()[:1].expand(g.numel()).view(g.shape)), None),
    "grad negative": (with_grad(negated), False),
    "grad a parameter": (with_grad(lambda g: Parameter(g.clone())), False),
    "grad a subclass": (with_grad(lambda g: g.clone().as_subclass(Own)), False),
    "grad data": (with_param(lambda p: setattr(p.grad, "data", p.grad.data.clone())), True),
    "param moved": (with_data(torch.clone), False),
    "param aliased": (with_data(lambda x: x.view_as(x)), True),
    "param strides": (with_data(lambda x: x.mT if x.shape == (5, 5) else x), None),
    "param flat": (with_data(torch.flatten), None),
    "param dtype": (with_data(lambda x: x.view(HALF[x.dtype]) if x.dtype in HALF else x), None),
    "param swapped": (with_param(swap), False),
    "param enlarged": (with_param(enlarge), None),
    "param set": (with_param(reset), False),
    "param set as it was": (with_param(aliased), True),
    "param transposed": (with_param(lambda p: p.detach().t_() if p.dim() < 3 else None), True),
    "step replaced": (with_value("step", torch.clone), False),
    "step an alias": (with_value("step", lambda x: x.view_as(x)), True),
    "step a view": (with_value("step", lambda x: x.view(1)), False),
    "state dtype": (with_value("exp_avg", lambda x: x.view(torch.bool)), None),
    "state meta": (with_value("step", lambda x: x.to("meta")), False),
    "state sparse": (with_value("exp_avg", lambda x: x.float().to_sparse()), False),
    "state negative": (with_value("step", negated), False),
    "state a number": (with_value("step", lambda x: 1.0), False),
    "state None": (with_value("step", lambda x: None), False),
    "state a parameter": (with_value("step", lambda x: Parameter(x.view_as(x))), False),
    "name gone": (in_entry(without), False),
    "name changed": (in_entry(renamed), False),
    "name spelled anew": (in_entry(spelled), True),
    "name more": (in_entry(lambda e: {**e, "more": torch.zeros(2)}), False),
    "names reversed": (in_entry(lambda e: dict(reversed(e.items()))), False),
    "entry copied": (in_entry(dict), True),
    "entry of another type": (in_entry(collections.OrderedDict), False),
    "state a dict": (in_state(dict), True),
    "state ordered": (in_state(collections.OrderedDict), True),
    "state in another order": (in_state(other_order), False),
    "state a slice": (with_value("exp_avg", lambda x: x[:-1] if x.dim() else x), None),
    "state longer": (lambda inputs: inputs.state[torch.ones(1)].update(), False),
    "state shorter": (lambda inputs: inputs.state.popitem(), False),
    "state emptied": (lambda inputs: inputs.state.clear(), False),
    "regrouped": (regroup, False),
    "exchanged": (exchange, False),
    "in tuples": (as_tuples, True),
    "group more": (lambda inputs: inputs.groups.append({"params": []}), False),
    "param more": (add_param, False),
    "param less": (lambda inputs: inputs.groups[1]["params"].pop(), False),
}
