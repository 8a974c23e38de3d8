"""Updates within backward: each parameter as soon as its gradient has been accumulated."""

import contextlib
from collections import Counter
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module
from torch.nn.parallel import DistributedDataParallel
from torch.nn.parameter import is_lazy

from fused_optim.backward_engine import BackwardEngine, EmaAfterBackward, LastNorm
from fused_optim.optimizers import ema
from fused_optim.optimizers.base import FusedOptimizer
from fused_optim.options import get_option
from fused_optim.private_api import disable_dynamo, is_fsdp1_flat
from fused_optim.rules.common import sqrt_rn
from fused_optim.step.engine import StepEngine


def step_in_backward(
    model_or_params: Module | Iterable[Tensor],
    optimizer: FusedOptimizer,
    *,
    clip_by_last_norm: bool = False,
) -> "StepInBackward":
    """Update each parameter within backward, and free its gradient (``param.grad = None``).

    The values are those of ``optimizer.step()`` after backward, bit for bit. The training loop
    stays as it is: ``optimizer.step()`` then updates what is left, such as parameters added later,
    and completes the step; it must be called after each backward.

    A backward outside of ``with handle.accumulate():`` updates every parameter that it reaches, so
    all micro-batches but the last belong into that context. An error in backward leaves the
    parameters updated that it has reached before.

    Args:
        model_or_params: module, whose parameters are updated if they are the optimizer's, or
            parameters of the optimizer. Frozen ones are left to ``optimizer.step()``.
        optimizer: optimizer of the parameters.
        clip_by_last_norm: True to allow ``max_grad_norm`` and ``nonfinite="skip"``. Each step then
            clips by the norm of all gradients in the step before it, and the first step does not
            clip; an Inf or NaN skips only the parameters whose own gradients have it, and such a
            step leaves the norm for the next one as it was.

    Returns:
        A handle with ``remove()`` and ``accumulate()``; as a context manager it removes itself.

    Raises:
        TypeError: ``optimizer`` is not an optimizer of this library.
        ValueError: the norm of all gradients is needed and ``clip_by_last_norm`` is False; a
            parameter is not the optimizer's, is twice in it, or has no shape yet; there are no
            parameters to update; the model is a DistributedDataParallel or the first version of
            FullyShardedDataParallel, which reduce gradients only after they are accumulated.
        RuntimeError: the optimizer already has such a handle.

    Within backward: RuntimeError if a parameter was updated since the last ``optimizer.step()``, in
    ``swap_ema()``, or in eval mode of a schedule-free optimizer; ValueError as above for options
    that were changed later. ``torch.amp.GradScaler`` is not supported, because an Inf or NaN in a
    gradient is known only after others were used.

    Source: Lv et al. 2023, https://arxiv.org/abs/2306.09782, and
    https://docs.pytorch.org/tutorials/intermediate/optimizer_step_in_backward_tutorial.html
    """
    if not isinstance(optimizer, FusedOptimizer):
        raise TypeError(
            "optimizer must be an optimizer of fused_optim, got "
            f"{type(optimizer).__name__}: convert it with fused_optim.from_torch()"
        )
    if isinstance(optimizer._engine, BackwardEngine):
        raise RuntimeError("optimizer already has a handle of step_in_backward: remove() it first")
    _check_options(optimizer, clip_by_last_norm)
    return StepInBackward(_choose_params(model_or_params, optimizer), optimizer, clip_by_last_norm)


def _check_options(optimizer: FusedOptimizer, clip_by_last_norm: bool) -> None:
    """Raise ValueError if a step needs the norm of all gradients before its first update."""
    if clip_by_last_norm:
        return
    skips = any(get_option(group, "nonfinite") == "skip" for group in optimizer.param_groups)
    bound = optimizer.max_grad_norm
    if not skips and bound is None:
        return
    option = "nonfinite='skip'" if bound is None else f"max_grad_norm={bound!r}"
    raise ValueError(
        f"{option} needs the norm of all gradients, which is not known when step_in_backward "
        "updates the first parameter: pass clip_by_last_norm=True to clip by the norm of the "
        "step before, or max_grad_norm=None and nonfinite='propagate'"
    )


def _choose_params(
    model_or_params: Module | Iterable[Tensor], optimizer: FusedOptimizer
) -> list[Tensor]:
    """Return the parameters to update in backward; see :func:`step_in_backward` for the errors."""
    own = Counter(param for group in optimizer.param_groups for param in group["params"])
    given: list[Tensor]
    if isinstance(model_or_params, Module):
        given = [param for param in model_or_params.parameters() if param in own]
    else:
        given = list(dict.fromkeys(model_or_params))
        foreign = [tuple(param.shape) for param in given if param not in own]
        if foreign:
            raise ValueError(
                "model_or_params must be parameters of the optimizer, got others of shapes "
                f"{foreign}: add them to the optimizer, or leave them out"
            )
    params = [param for param in given if param.requires_grad]
    if not params:
        raise ValueError(
            "model_or_params must have parameters of the optimizer that require a gradient, got "
            f"{len(given)} parameters of it, all of them frozen"
        )
    _check_wrappers(model_or_params, params)
    if any(map(is_lazy, params)):
        raise ValueError("model_or_params has lazy parameters: run a forward pass first")
    if any(own[param] > 1 for param in params):
        raise ValueError(
            "model_or_params has a parameter that is more than once in its group: remove the "
            "duplicates, each of which would be an update"
        )
    return params


def _check_wrappers(model_or_params: Any, params: list[Tensor]) -> None:
    """Raise ValueError if gradients are reduced only after the hooks of step_in_backward."""
    wrapper = "FullyShardedDataParallel (FSDP1)" if any(map(is_fsdp1_flat, params)) else None
    modules = model_or_params.modules() if isinstance(model_or_params, Module) else ()
    if any(isinstance(module, DistributedDataParallel) for module in modules):
        wrapper = "DistributedDataParallel"
    if wrapper is not None:
        raise ValueError(
            f"model_or_params must not be a {wrapper}, which reduces gradients after "
            "step_in_backward has used them: use torch.distributed.fsdp.fully_shard"
        )


class StepInBackward:
    """A handle of :func:`step_in_backward`; as a context manager it calls ``remove()`` at the exit.

    Attributes:
        optimizer: optimizer whose parameters are updated.
        params: parameters that are updated in backward.
    """

    def __init__(
        self, params: list[Tensor], optimizer: FusedOptimizer, clip_by_last_norm: bool
    ) -> None:
        self.optimizer, self.params = optimizer, params
        self._clip_by_last_norm = clip_by_last_norm
        self._norm = LastNorm(clip_by_last_norm)
        self._is_accumulating = False
        self._install()
        untyped: list[Any] = params  # torch has no type for this method
        self._hooks = [p.register_post_accumulate_grad_hook(self._update) for p in untyped]

    @property
    def last_norm(self) -> Tensor | None:
        """Norm by which the next step clips, 0-dim float64; None if it does not clip."""
        return None if self._norm.squares is None else sqrt_rn(self._norm.squares)

    @contextlib.contextmanager
    def accumulate(self) -> Iterator[None]:
        """Keep gradients within this context, for all micro-batches of a step but the last."""
        before, self._is_accumulating = self._is_accumulating, True
        try:
            yield
        finally:
            self._is_accumulating = before

    def _install(self) -> BackwardEngine:
        """Return the engine; give it to the optimizer, whose own load_state_dict() replaces."""
        engine = self.optimizer._engine
        if not isinstance(engine, BackwardEngine):
            engine = BackwardEngine(self.optimizer, set(self.params), self._norm)
            self.optimizer._engine = engine
            self.optimizer._idle_ema = EmaAfterBackward(engine)
        return engine

    @disable_dynamo
    @torch.no_grad()
    def _update(self, param: Tensor) -> None:
        """Update ``param`` and free its gradient; autograd calls this with each gradient."""
        if self._is_accumulating or param.grad is None:
            return
        engine = self._install()
        self._check_state(param, engine)
        engine.update(param)
        param.grad = None

    def _check_state(self, param: Tensor, engine: BackwardEngine) -> None:
        """Raise RuntimeError or ValueError unless ``param`` can be updated now."""
        _check_options(self.optimizer, self._clip_by_last_norm)
        what = f"the parameter of shape {tuple(param.shape)}"
        if param in engine.updated:
            raise RuntimeError(
                f"{what} was already updated in this step: call optimizer.step() after each "
                "backward(), and wrap the backward() of all micro-batches but the last in handle."
                "accumulate(); a parameter shared by reentrant checkpoints is not supported"
            )
        if self.optimizer._swap.active:
            raise RuntimeError(f"backward() within swap_ema() would update {what}; leave it first")
        if not self.optimizer.param_groups[engine.find(param).group].get("train_mode", True):
            raise RuntimeError(
                f"backward() in eval mode would update {what} at the average; call "
                "optimizer.train() before the forward pass"
            )

    def remove(self) -> None:
        """Leave all updates to ``optimizer.step()`` again; call it between steps."""
        for hook in self._hooks:
            hook.remove()
        engine = self.optimizer._engine
        if isinstance(engine, BackwardEngine):
            self.optimizer._engine = StepEngine(engine.shards)
            self.optimizer._engine.report = engine.report
            self.optimizer._idle_ema = ema.EmaOfIdleParameters()

    def __enter__(self) -> "StepInBackward":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.remove()
