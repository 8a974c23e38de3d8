"""The results of the last step, which stay on the device until they are read."""

from typing import Any

from torch import Tensor

from fused_optim.options import get_option
from fused_optim.step.engine import StepEngine


class StepResults:
    """The results of the last step of an optimizer."""

    param_groups: list[dict[str, Any]]
    _engine: StepEngine

    @property
    def grad_norm(self) -> Tensor | None:
        """Norm of all gradients in the last step, before clipping: 0-dim float64 on the device.

        NaN if the step did not compute it: ``max_grad_norm`` is None and every group has
        ``nonfinite="propagate"``; computing it costs another read of the gradients. 0 without
        gradients. None before the first step.
        """
        return None if self._engine.report is None else self._engine.report[0]

    @property
    def clip_factor(self) -> Tensor | None:
        """Factor by which the last step clipped the gradients: 0-dim float64 on the device."""
        return None if self._engine.report is None else self._engine.report[1]

    @property
    def skipped(self) -> Tensor | None:
        """True if an Inf or NaN left groups unchanged: 0-dim bool tensor on the device."""
        return None if self._engine.report is None else self._engine.report[2].bool()

    @property
    def stalled(self) -> Tensor | None:
        """Fraction of the elements whose stored weight the update of the last step did not change.

        0-dim float64 on the device; None without ``count_stalled``. The weight is the parameter
        with all its extra bits. Without stochastic rounding, a fraction above one half is a reason
        to choose another format: on the CPU the step then warns, once.
        """
        asked = any(get_option(group, "count_stalled") for group in self.param_groups)
        return self._engine.stalled_fraction() if asked else None

    @property
    def backend_used(self) -> str | None:
        """Backends of the last step, as in ``"reference, triton"``; None before the first."""
        return ", ".join(sorted({key.backend for key in self._engine.bucket_keys})) or None
