"""The average of the parameters, as every optimizer with ``ema_decay`` keeps it."""

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor

from fused_optim.optimizers.kept import Kept
from fused_optim.private_api import version


class Average(Kept):
    """Reads and swaps the state ``ema``, which the step updates."""

    _swapped: dict[Tensor, Tensor] | None  # within swap_ema(), the parameters that it set aside

    def ema_parameters(self) -> Iterator[Tensor]:
        """The average of each parameter of a group with ``ema_decay`` that has been updated."""
        return (average for _, average in self._averages())

    def _averages(self) -> Iterator[tuple[Tensor, Tensor]]:
        for group in self.param_groups:
            for param in group["params"]:
                if "ema" in self.state.get(param, {}):
                    yield param, self.state[param]["ema"]

    @contextlib.contextmanager
    def swap_ema(self) -> Iterator[None]:
        """Within this context the parameters are their averages.

        An average of the parameter's dtype changes place with it; one of float32 stays where it is,
        and the parameter is set aside.

        Raises:
            RuntimeError: entered twice, or ``step()`` is called within.
        """
        if self._swapped is not None:
            raise RuntimeError("swap_ema() is entered already")
        self._swapped = {}
        self._swap()
        try:
            yield
        finally:
            self._swap()
            self._swapped = None

    @torch.no_grad()
    def _swap(self) -> None:
        assert self._swapped is not None
        for param, average in self._averages():
            ours = self._written.get(param) == version(param)
            kept = self._swapped.pop(param, None)
            if kept is not None:
                param.copy_(kept)
            else:
                kept = param.clone()
                param.copy_(average)
                if average.dtype is param.dtype:
                    average.copy_(kept)
                else:
                    self._swapped[param] = kept
            if ours:  # then what stands beside the parameter stays true
                self._written[param] = version(param)
