"""The bucket in which a step will update a parameter, found without a change of any tensor."""

from collections import defaultdict
from typing import Any, NamedTuple

import torch
from torch import Tensor
from typing_extensions import override

from fused_optim import tensor_checks
from fused_optim.backends.base import BucketKey
from fused_optim.backends.rows import make_row
from fused_optim.backends.select import resolve
from fused_optim.dtensors import find_position, is_dtensor, sharding_groups, to_local
from fused_optim.formats.conversion import State
from fused_optim.optimizer_view import OptimizerView
from fused_optim.options import get_option
from fused_optim.private_api import has_data
from fused_optim.step.engine import Shard, StepEngine, SteppedOptimizer, with_ema_and_step
from fused_optim.step.guards import Group
from fused_optim.step.matrix_exchange import is_exchanged


class Subject(NamedTuple):
    """A parameter that will be updated.

    Attributes:
        param: parameter.
        name: name of the parameter, or None.
        group_index: index of its parameter group.
        optimizer: optimizer of the parameter.
        engine: engine of the optimizer's steps.
    """

    param: Tensor
    name: str | None
    group_index: int
    optimizer: SteppedOptimizer
    engine: StepEngine

    @property
    def group(self) -> Group:
        """Options of the parameter's group."""
        return self.optimizer.param_groups[self.group_index]

    @property
    def state(self) -> dict[str, Any]:
        """State entries of the parameter; empty before its first step."""
        entry: dict[str, Any] = self.optimizer.state.get(self.param, {})
        return entry


def predict_key(subject: Subject) -> BucketKey:
    """Return the key of the bucket in which the next step will update a parameter.

    The engine makes a row of copies on the meta device, of the parameter, gradient and states.

    Raises:
        ValueError, TypeError, RuntimeError: the step will raise this.
    """
    param, name, index, optimizer, engine = subject
    group = subject.group
    optimizer.check_param(param, name, index)
    if param.grad is not None and not is_dtensor(param):  # a collective may move that of a DTensor
        tensor_checks.check_gradient(param, index, name)
    rule = with_ema_and_step(optimizer.rule(group), group)
    tensor_checks.check_states(param, subject.state, rule, index, name)
    asked = (get_option(group, "backend"), param.device, has_data(to_local(param)))
    backend = engine.resolved.get(asked) or resolve(*asked)
    view: _MetaView = _MetaView.of(optimizer)
    copy = view.add(subject)
    shard = engine.shards.get(param, Shard(0, 0, param.numel()))
    ((key, _),) = StepEngine({copy: shard}).prepare_rows(view)
    names = tuple(sorted(group.group_name for group in sharding_groups(param)))
    key = key._replace(backend=backend, device=asked[1], has_data=asked[2], sharded_over=names)
    key = key._replace(exchanged=is_exchanged(param, rule))
    if is_dtensor(param) and any(codec.stochastic for codec in key.codecs):
        key = key._replace(strided=find_position(param).run > 0)
    return key._replace(aligned=backend == "triton" and view.is_aligned(key, copy))


class _MetaView(OptimizerView):
    """A view of an optimizer with copies on the meta device of one parameter and its states."""

    def add(self, subject: Subject) -> Tensor:
        """Add the copy of a parameter, with a gradient and with its states, and return it."""
        param = to_local(subject.param)
        copy = _copy_to_meta(param)
        sparse = self.rule(subject.group).sparse == "required"
        given = to_local(subject.param.grad)
        gradient = _copy_gradient(given, param.dtype, copy, sparse)
        if hasattr(copy, "grad_dtype"):
            copy.grad_dtype = gradient.dtype
        copy.grad = gradient
        entry = {
            name: _copy_to_meta(to_local(value)) if isinstance(value, Tensor) else value
            for name, value in subject.state.items()
        }
        self.originals = {id(copy): param, id(gradient): given}
        self.originals |= {
            id(entry[name]): to_local(value) for name, value in subject.state.items()
        }
        # the index of the group is part of messages
        self.param_groups = [{**group, "params": []} for group in self.optimizer.param_groups]
        names = {} if subject.name is None else {"param_names": [subject.name]}
        own = {"params": [copy], "backend": "reference", **names}
        self.param_groups[subject.group_index] |= own
        self.state = defaultdict(dict, {copy: entry} if entry else {})
        return copy

    @override
    def new_state(self, param: Tensor, state: State, state_key: str, group: Group) -> Tensor | None:
        return None  # the value does not matter

    @override
    def new_scalar_state(self, name: str, group: Group) -> Tensor:
        value = super().new_scalar_state(name, group)
        if isinstance(value, Tensor):
            return torch.empty_like(value, device="meta")
        # not torch.tensor(value, device="meta"), which in FakeTensorMode is no fake tensor
        wide = torch.get_default_dtype() is torch.float64
        return torch.empty((), dtype=torch.float64 if wide else torch.float32, device="meta")

    @override
    def before_first_step(self, param: Tensor) -> None:
        pass

    @override
    def check_param(self, param: Tensor, name: str | None, group_index: int) -> None:
        pass  # the original was checked

    def is_aligned(self, key: BucketKey, copy: Tensor) -> bool:
        """Return True if the original addresses allow accesses of 16 bytes in the widest column.

        A tensor that the step will create or copy begins at such an address.
        """
        gradient: Any = copy.grad
        state = self.state.get(copy, {})
        codecs = zip(key.rule.state_keys, key.codecs[2:], strict=True)
        names = [*key.codecs[0].extra_keys]
        names += [name for state_key, codec in codecs for name in codec.column_keys(state_key)]
        columns = [copy, gradient, *map(state.get, names)]
        if gradient.layout is not torch.strided:
            if key.rule.sparse != "dense":
                return True  # the rows of the gradient are copied
            del columns[1]
        copied = {id(one.tensor) for one in make_row(columns, (), 0, grad=-1).copies}
        used = [self.originals.get(id(column)) for column in columns if id(column) not in copied]
        elements = key._replace(aligned=True).vector
        return all(t.data_ptr() % (elements * t.itemsize) == 0 for t in used if t is not None)


def _copy_to_meta(tensor: Tensor) -> Tensor:
    """Return a tensor on the meta device with shape, strides and dtype of ``tensor``."""
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")


def _copy_gradient(
    gradient: Tensor | None, dtype: torch.dtype, copy: Tensor, sparse: bool
) -> Tensor:
    """Return a gradient on the meta device for ``copy``.

    Args:
        gradient: gradient to copy, or None.
        dtype: dtype of a gradient that is None.
        copy: copy of the parameter on the meta device.
        sparse: True for a sparse gradient where it is None.
    """
    dims = 1
    if gradient is not None:
        dtype = gradient.dtype
        if gradient.layout is torch.strided:
            fits = gradient.shape == copy.shape  # else it is redistributed first
            return _copy_to_meta(gradient) if fits else torch.empty_like(copy, dtype=dtype)
        dims = gradient.sparse_dim()
    elif not sparse or copy.dim() == 0:
        return torch.empty_like(copy)
    rows = torch.empty(dims, 1, dtype=torch.int64, device="meta")
    values = torch.empty(1, *copy.shape[dims:], dtype=dtype, device="meta")
    return torch.sparse_coo_tensor(
        rows, values, copy.shape, device="meta", check_invariants=False, is_coalesced=True
    )
