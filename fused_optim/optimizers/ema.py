"""The average of the parameters, as every optimizer with ``ema_decay`` keeps it."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from fused_optim.formats.weights import Kept
from fused_optim.rules.common import ema_update


class Average(Kept):
    """Reads and shows the state ``ema``, which the step updates."""

    _late: dict[Tensor, Tensor]  # averages of parameters whose other states begin anew

    def ema_parameters(self) -> Iterator[Tensor]:
        """The averages, in the order of the parameters that have one: see :meth:`ema_pairs`."""
        return (average for _, average in self.ema_pairs())

    def ema_pairs(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Each parameter that has an average, with it.

        An average begins at the first step in which its parameter has a gradient, in a group with
        ``ema_decay``. From then on each step moves it, with or without a gradient. A parameter that
        never had one is its own average.
        """
        for param in self._params():
            if "ema" in self.state.get(param, {}):
                yield param, self.state[param]["ema"]

    @contextlib.contextmanager
    def swap_ema(self) -> Iterator[None]:
        """Within this context the parameters are their averages.

        Their own values are set aside, which takes the memory of the parameters once more, and
        come back at the exit; what was written to a parameter within is then lost. The state, and
        with it ``state_dict()`` and ``ema_parameters()``, is the same within and without.
        A copy of the optimizer (``deepcopy``, ``pickle``) has the own values.

        Raises:
            RuntimeError: entered twice, or ``step()`` is called within.
        """
        if self._aside.entered:
            raise RuntimeError("swap_ema() is entered already")
        self._aside.entered = True
        self._show_averages()
        try:
            yield
        finally:
            self._put_back()
            self._aside.entered = False

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """See the base class. Within :meth:`swap_ema` the parameters become the new averages."""
        if not self._aside.entered:
            return super().load_state_dict(state_dict)
        self._put_back()
        try:
            super().load_state_dict(state_dict)
        finally:
            self._show_averages()

    def _keep_average(self, param: Tensor) -> None:
        """Note the average of a parameter whose next step is its first, which begins an average."""
        if "ema" in self.state[param]:
            self._late[param] = self.state[param]["ema"].clone()

    @torch.no_grad()
    def _average_rest(self, report: Tensor | None, found_inf: Tensor | None) -> None:
        """Move the averages that the step has not moved, as it would have: see :meth:`ema_pairs`.

        Args:
            report: of the step, None if there was nothing to update.
            found_inf: of a GradScaler.
        """
        late, self._late = self._late, {}
        for group in self.param_groups:
            if group["ema_decay"] is None:
                continue
            skips = report[2] if report is not None and group["nonfinite"] == "skip" else found_inf
            for param in group["params"]:
                if param in late:
                    self.state[param]["ema"].copy_(late[param])
                elif param.grad is not None or "ema" not in self.state.get(param, {}):
                    continue
                self._average(param, group["ema_decay"], skips)

    def _average(self, param: Tensor, decay: Any, skips: Tensor | None) -> None:
        average, value = self.state[param]["ema"], self._weight(param)
        if average.is_complex():
            average, value = torch.view_as_real(average), torch.view_as_real(value)
        compute = torch.promote_types(value.dtype, torch.float32)
        share = 1.0 - torch.as_tensor(decay, dtype=torch.float64, device=param.device)
        new = ema_update(average.to(compute), value.to(compute), share.to(compute))
        if skips is not None:
            new = torch.where(skips.to(param.device) != 0, average, new)
        average.copy_(new)

    @torch.no_grad()
    def _show_averages(self) -> None:
        for param, average in self.ema_pairs():
            self._aside.values[param] = param.clone()
            param.copy_(average)

    @torch.no_grad()
    def _put_back(self) -> None:
        while self._aside.values:
            param, value = self._aside.values.popitem()
            param.copy_(value)
