"""The average of the parameters, as every optimizer with ``ema_decay`` keeps it."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from fused_optim.optimizers.kept import Kept


class Average(Kept):
    """Reads and shows the state ``ema``, which the step updates."""

    def ema_parameters(self) -> Iterator[Tensor]:
        """The average of each parameter of a group with ``ema_decay`` that has been updated."""
        return (average for _, average in self._averages())

    def _averages(self) -> Iterator[tuple[Tensor, Tensor]]:
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

    @torch.no_grad()
    def _show_averages(self) -> None:
        for param, average in self._averages():
            self._aside.values[param] = param.clone()
            self._overwrite(param, average)

    @torch.no_grad()
    def _put_back(self) -> None:
        while self._aside.values:
            param, value = self._aside.values.popitem()
            self._overwrite(param, value)

    def _overwrite(self, param: Tensor, value: Tensor) -> None:
        ours = self._written.get(param) == param._version
        param.copy_(value)
        if ours:  # then what stands beside the parameter stays true
            self._written[param] = param._version
