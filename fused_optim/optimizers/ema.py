"""The exponential moving average (EMA) of the parameters: swapping, and rows without gradient."""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from fused_optim.dtensors import local_state, to_local
from fused_optim.formats import conversion
from fused_optim.formats.weights import load_weight
from fused_optim.options import get_option
from fused_optim.rules.common import ema_update

Group = dict[str, Any]
State = Any


def list_pairs(params: Iterable[Tensor], state: State) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield each parameter that has an average, with the average."""
    for param in dict.fromkeys(params):
        if "ema" in state.get(param, {}):
            yield param, state[param]["ema"]


class ParameterSwap:
    """The parameters' own values while ``swap_ema()`` shows their averages.

    Attributes:
        active: True within ``swap_ema()``.
        values: value of each parameter that has an average, from before ``swap_ema()``.
        is_copy: True if this object was copied by deepcopy or pickle, together with the parameters;
            a shallow copy of an optimizer has the same parameters, and shares this object.
    """

    def __init__(self) -> None:
        self.active = False
        self.values: dict[Tensor, Tensor] = {}
        self.is_copy = False

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, is_copy=True)

    def own_value(self, param: Tensor) -> Tensor:
        """Return the parameter, or its value before ``swap_ema()``."""
        return self.values.get(param, param).detach()

    @torch.no_grad()
    def show_averages(self, params: Iterable[Tensor], state: State) -> None:
        """Set the parameters to their averages, and save their own values."""
        for param, average in list_pairs(params, state):
            self.values[param] = param.clone()
            param.copy_(average)

    @torch.no_grad()
    def restore(self) -> None:
        """Set the parameters to their own values."""
        while self.values:
            param, value = self.values.popitem()
            param.copy_(value)

    @contextlib.contextmanager
    def active_for(self, params: list[Tensor], state: State) -> Iterator[None]:
        """Set the parameters to their averages within this context.

        Raises:
            RuntimeError: the context is entered twice.
        """
        if self.active:
            raise RuntimeError("swap_ema() is active already: leave it before entering it again")
        self.active = True
        self.show_averages(params, state)
        try:
            yield
        finally:
            self.restore()
            self.active = False

    @contextlib.contextmanager
    def suspended(
        self, params: Callable[[], Iterable[Tensor]], state: Callable[[], State]
    ) -> Iterator[None]:
        """Restore the parameters' own values within this context, inside of ``swap_ema()``."""
        self.restore()
        try:
            yield
        finally:
            if self.active:
                self.show_averages(params(), state())

    def for_copy(self) -> "ParameterSwap":
        """Return the swap of a copied optimizer, whose parameters get their own values back."""
        if not self.is_copy:
            return self
        self.restore()
        return ParameterSwap()


class EmaMethods:
    """The methods of an optimizer that read the averages of its parameters."""

    state: Any
    _swap: ParameterSwap
    _params: Callable[[], Iterator[Tensor]]

    def ema_parameters(self) -> Iterator[Tensor]:
        """Yield the averages, in the order of the parameters that have one."""
        return (average for _, average in self.ema_pairs())

    def ema_pairs(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield each parameter that has an average, with the average.

        An average starts at the first step in which its parameter has a gradient, in a group with
        ``ema_decay``. From then on each step updates it, with or without a gradient. A parameter
        that never had a gradient has no average.
        """
        return list_pairs(self._params(), self.state)

    @contextlib.contextmanager
    def swap_ema(self) -> Iterator[None]:
        """Set the parameters to their averages within this context.

        Copies of the parameters' own values are stored and restored at the exit; a value written to
        a parameter within the context is lost. ``state_dict()``, ``ema_parameters()`` and copies of
        the optimizer are the same inside and outside of the context.

        Raises:
            RuntimeError: the context is entered twice, or ``step()`` is called within it.
        """
        with self._swap.active_for(list(self._params()), self.state):
            yield


class EmaOfIdleParameters:
    """An updater of averages that the kernels do not update: without a gradient in a step.

    Attributes:
        saved: averages of parameters whose other states are created in this step, which would
            restart the average as well.
    """

    def __init__(self) -> None:
        self.saved: dict[Tensor, Tensor] = {}

    def keep(self, param: Tensor, state: dict[str, Any]) -> None:
        """Save the average of a parameter before a step that would restart it."""
        if "ema" in state:
            self.saved[param] = state["ema"].clone()

    @torch.no_grad()
    def update(
        self, groups: list[Group], state: State, skips: Callable[[Group], Tensor | None]
    ) -> None:
        """Update the averages that the step has not updated, by the same formula.

        Args:
            groups: parameter groups.
            state: state of the optimizer.
            skips: function that returns a tensor, not 0 if the step skipped the group, or None.
        """
        saved, self.saved = self.saved, {}
        for group in groups:
            if get_option(group, "ema_decay") is None:
                continue
            for param in dict.fromkeys(group["params"]):
                if param in saved:
                    state[param]["ema"].copy_(saved[param])
                elif param.grad is not None or "ema" not in state.get(param, {}):
                    continue
                entry = local_state(state[param], param)
                _update_average(
                    entry, to_local(param), get_option(group, "ema_decay"), skips(group)
                )


def _update_average(
    state: conversion.State, param: Tensor, decay: Any, skips: Tensor | None
) -> None:
    average, value = state["ema"], load_weight(state, param)
    if average.is_complex():
        average, value = torch.view_as_real(average), torch.view_as_real(value)
    compute = torch.promote_types(value.dtype, torch.float32)
    weight = 1.0 - torch.as_tensor(decay, dtype=torch.float64, device=param.device)
    new = ema_update(average.to(compute), value.to(compute), weight.to(compute))
    if skips is not None:
        new = torch.where(skips.to(param.device) != 0, average, new)
    average.copy_(new)
