"""Runs of the algorithm of a case in any dtype: by torch.optim, or by an oracle of its paper."""

import contextlib
import copy
import inspect
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from typing_extensions import override

from fused_optim.testing.cases import Case, step_torch
from fused_optim.testing.inputs import parameters, set_grads, state_of
from fused_optim.testing.matrix_oracles import MATRIX_ORACLES
from fused_optim.testing.oracles import ORACLES

Tensors = dict[str, Tensor]


@contextlib.contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Set torch's default dtype within a context: torch creates counters in it."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def to_numbers(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return options with numbers for tensors: torch forms ``1 - lr * weight_decay`` in theirs."""
    return {k: float(v) if isinstance(v, Tensor) else v for k, v in options.items()}


class AlgorithmRun(Protocol):
    """A run of the algorithm in one dtype."""

    @property
    def weights(self) -> list[Tensor]:
        """The parameters."""

    @property
    def states(self) -> list[Tensors]:
        """The states of each parameter."""

    def step(self, grads: Sequence[Tensor]) -> None:
        """Take a step."""

    def load(self, weights: Sequence[Tensor], packed: Mapping[str, Any], steps: int) -> None:
        """Continue from these weights and a state dict in torch's format, after ``steps`` steps."""


class TorchRun(AlgorithmRun):
    """A run of torch.optim; with numbers for options in float64, which is exact."""

    def __init__(self, case: Case, start: Sequence[Tensor], dtype: torch.dtype) -> None:
        assert case.torch_class is not None
        self.case, self.dtype = case, dtype
        self.params = parameters(start, dtype)
        exact = dtype is torch.float64
        options = to_numbers(case.options) if exact else copy.deepcopy(case.options)
        if "foreach" in inspect.signature(case.torch_class).parameters:
            options["foreach"] = False
        self.optimizer = case.torch_class(self.params, **options)

    @property
    @override
    def weights(self) -> list[Tensor]:
        return list(self.params)

    @property
    @override
    def states(self) -> list[Tensors]:
        states = (state_of(self.optimizer, param).items() for param in self.params)
        # the step count of SparseAdam is an int
        return [{k: v for k, v in state if isinstance(v, Tensor)} for state in states]

    @override
    def step(self, grads: Sequence[Tensor]) -> None:
        set_grads(self.params, grads)
        wide = torch.float64 if self.dtype is torch.float64 else torch.float32
        with default_dtype(wide):
            step_torch(self.optimizer, self.case.additions)

    @override
    def load(self, weights: Sequence[Tensor], packed: Mapping[str, Any], steps: int) -> None:
        with torch.no_grad():
            for param, weight in zip(self.params, weights, strict=True):
                param.copy_(weight)
        if not packed["state"]:
            return
        # its own options: those of the other optimizer may be tensors
        groups = [
            {**mine, "params": given["params"]}
            for mine, given in zip(
                self.optimizer.state_dict()["param_groups"], packed["param_groups"], strict=True
            )
        ]
        states = {
            i: {name: value for name, value in state.items() if name != "master"}
            for i, state in packed["state"].items()
        }
        has_int = any(isinstance(s.get("step"), int) for s in self.optimizer.state.values())
        self.optimizer.load_state_dict({"state": states, "param_groups": groups})
        for state in self.optimizer.state.values():  # loading shares what it does not cast
            state.update({k: v.clone() for k, v in state.items() if isinstance(v, Tensor)})
            if has_int:  # the powers of a float32 tensor have too few digits
                state["step"] = int(state["step"])


class PaperRun(AlgorithmRun):
    """A run of an oracle in numpy, on the CPU; its results are on the device of the start."""

    def __init__(self, case: Case, start: Sequence[Tensor], dtype: torch.dtype) -> None:
        self.oracle = (ORACLES | MATRIX_ORACLES)[case.class_name]
        options = to_numbers(case.options)
        self.sign = -1 if options.pop("maximize", False) else 1
        self.options, self.dtype = options, dtype
        self.device = start[0].device if start else torch.device("cpu")
        self.arrays = [self._array(tensor) for tensor in start]
        self.entries: list[dict[str, Any]] = [{} for _ in start]
        self.count = 0

    def _array(self, tensor: Tensor) -> "np.ndarray[Any, Any]":
        array: np.ndarray[Any, Any] = tensor.detach().to("cpu", self.dtype).numpy().copy()
        return array

    def _tensor(self, array: Any) -> Tensor:
        return torch.as_tensor(np.asarray(array), dtype=self.dtype).to(self.device)

    @property
    @override
    def weights(self) -> list[Tensor]:
        return [self._tensor(array) for array in self.arrays]

    @property
    @override
    def states(self) -> list[Tensors]:
        return [
            {name: self._tensor(value) for name, value in entry.items()} for entry in self.entries
        ]

    @override
    def step(self, grads: Sequence[Tensor]) -> None:
        self.count += 1
        for i, grad in enumerate(grads):
            given = self.sign * self._array(grad)
            result = self.oracle(self.arrays[i], given, self.entries[i], self.count, **self.options)
            self.arrays[i] = np.asarray(result, self.arrays[i].dtype)

    @override
    def load(self, weights: Sequence[Tensor], packed: Mapping[str, Any], steps: int) -> None:
        self.arrays = [self._array(weight) for weight in weights]
        self.count = steps
        self.entries = [self._entry(i, packed["state"].get(i, {})) for i in range(len(weights))]

    def _entry(self, i: int, state: Mapping[str, Tensor]) -> dict[str, Any]:
        entry: dict[str, Any] = {
            name: value.item() if value.dim() == 0 and self.arrays[i].ndim else self._array(value)
            for name, value in state.items()
            if name not in ("step", "master")
        }
        if "z" in entry:  # the parameter is y, between the iterate z and its average x
            share = self.options.get("momentum", self.options.get("betas", (0.9,))[0])
            entry["x"] = (self.arrays[i] - (1 - share) * entry["z"]) / share
            entry |= {name: state[name].item() for name in ("lr_max", "weight_sum")}
        return entry


def start_run(case: Case, start: Sequence[Tensor], dtype: torch.dtype) -> AlgorithmRun:
    """Return a run by torch.optim, or by the oracle if torch lacks the optimizer."""
    run: type[TorchRun] | type[PaperRun] = PaperRun if case.torch_class is None else TorchRun
    return run(case, start, dtype)
