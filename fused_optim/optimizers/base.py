"""The one step loop."""

import itertools
import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy
from torch.optim.optimizer import ParamsT

from fused_optim import formats, options, tensors
from fused_optim.backends.base import CompileError, BucketKey, Options, AmpState, resolve
from fused_optim.step.rows import NoiseKey, Row, make_row
from fused_optim.optimizers import scalar_state
from fused_optim.step.cache import StepCache
from fused_optim.optimizers.ema import Average
from fused_optim.optimizers.decay import warn_of_decay
from fused_optim.formats.weights import Aside, Shard, completed
from fused_optim.formats.weights import Group as Group
from fused_optim.step.plan import Plan, make_bucket_key
from fused_optim.private_api import disable_dynamo
from fused_optim.rules.common import Rule


class FusedOptimizer(Average):
    """Base of every optimizer; a subclass says what its options mean, and nothing else.

    ``step()`` is always both fused and capturable, whatever ``foreach``, ``fused`` and
    ``capturable`` say: counts and bias corrections live on the parameters' device and nothing
    waits for it. ``p.grad`` is never written.
    """

    def __init__(self, params: ParamsT, defaults: Group, additions: Mapping[str, Any]) -> None:
        """Take torch.optim's arguments as ``defaults``, :class:`~options.Additions` beside them.

        Raises:
            ValueError: an option is out of range, in the defaults or in a group; there are no
                parameters, or duplicate, integer or self-overlapping ones.
            TypeError: an option is no number, or a parameter no tensor.
        """
        options.known(additions)
        self._reset_caches()
        super().__init__(params, {**defaults, **options.GROUP_DEFAULTS, **additions})

    def _reset_caches(self) -> None:
        """Drop what must not travel with a copy: addresses, results, resolved backends."""
        self._plan = Plan()
        self._last = None
        self._report: Tensor | None = None
        self._aside = Aside()
        self._late = {}
        self._shards: dict[Tensor, Shard] = {}
        self._counted = 0
        self._has_warned = False
        self._resolved: dict[tuple[str, torch.device], str] = {}

    # ---- what a subclass says, by the entries of the group alone: it is asked when one changes

    def hparams(self, group: Group) -> tuple[Any, ...]:
        """The options of the rule, in the order of ``rule(group).hyper``."""
        raise NotImplementedError

    def l2(self, group: Group) -> Any:
        """The weight of the L2 term in the gradient."""
        raise NotImplementedError

    def check(self, group: Group) -> None:
        """Raise ValueError or TypeError if an option of ``group`` cannot be had."""
        raise NotImplementedError

    def new_counter(self, name: str, group: Group) -> float | Tensor:
        """The counter called ``name`` before the first step."""
        return 0.0

    @property
    def _step_supports_amp_scaling(self) -> bool:
        """Whether GradScaler leaves unscaling and skipping to the step.

        The step does both on the device. It asks for them where it clips, or where ``fused=True``
        asks, as in torch: others may then not clip between backward and step, and trainers that do
        refuse an optimizer that says so.
        """
        groups = self.param_groups
        clips = self.max_grad_norm is not None or any(
            group["max_grad_value"] is not None for group in groups
        )
        return clips or any(bool(group.get("fused")) for group in groups)

    # ---- results of the last step

    @property
    def max_grad_norm(self) -> Any:
        """The bound on the norm over all gradients; None neither clips nor measures."""
        groups = self.param_groups
        return groups[0].get("max_grad_norm") if groups else self.defaults["max_grad_norm"]

    @max_grad_norm.setter
    def max_grad_norm(self, value: Any) -> None:
        if value is not None:
            options.at_least(0, max_grad_norm=value)
        for group in (self.defaults, *self.param_groups):
            group["max_grad_norm"] = value

    @property
    def grad_norm(self) -> Tensor | None:
        """Norm of all gradients in the last step, before clipping: 0-dim float64 on the device.

        NaN if nothing needed it, for it costs another read of the gradients: ``max_grad_norm``
        None and every group with ``nonfinite="propagate"``. 0 without gradients. None before the
        first step.
        """
        return None if self._report is None else self._report[0]

    @property
    def clip_factor(self) -> Tensor | None:
        """What the last step multiplied the gradients by: 0-dim float64 on the device."""
        return None if self._report is None else self._report[1]

    @property
    def skipped(self) -> Tensor | None:
        """Whether an Inf or NaN left groups unchanged: 0-dim bool on the device."""
        return None if self._report is None else self._report[2].bool()

    @property
    def stalled(self) -> Tensor | None:
        """Which share of the elements the last step changed, but not as they are kept.

        0-dim float64 on the device. With ``count_stalled`` only, else None. What counts is the
        value with all that stands beside the parameter. Where nothing is rounded stochastically,
        more than half is a reason for another format: on the CPU the step then warns, once.
        """
        counts = self._plan.stalled
        if not counts:
            asked = any(group["count_stalled"] for group in self.param_groups)
            return torch.zeros_like(self._report[0]) if asked and self._report is not None else None
        device = counts[0].device
        lost = torch.stack([count.sum().to(device) for count in counts]).sum().double()
        return lost / max(self._counted, 1)

    @property
    def backend_used(self) -> str | None:
        """The backends of the last step, as in ``"reference, triton"``; None before the first."""
        return ", ".join(sorted({key.backend for key in self._plan.launches})) or None

    # ---- torch.optim.Optimizer

    def to_torch(self) -> torch.optim.Optimizer:
        """The namesake in ``torch.optim``, which goes on where this stands.

        As with :func:`fused_optim.from_torch` the parameters and the state are shared, and hooks
        and schedulers stay behind.

        Raises:
            TypeError: there is no namesake, or this is a subclass.
            ValueError: an option is in use that torch does not have.
        """
        from fused_optim.optimizers import convert

        return convert.to_torch(self)

    def add_param_group(self, param_group: Group) -> None:
        """Add a group, as in torch; ``param_group`` may override every option of the defaults.

        Raises:
            ValueError: an option is out of range; duplicate, integer or self-overlapping
                parameters. The optimizer is then as it was.
            TypeError: an option is no number, or a parameter no tensor.
        """
        groups = len(self.param_groups)
        if isinstance(param_group, dict) and isinstance(param_group.get("params"), Iterator):
            param_group["params"] = list(param_group["params"])
        tensors.check_unique(param_group, groups)
        super().add_param_group(param_group)
        try:
            self._check_group(groups, param_group)
        except (ValueError, TypeError):
            del self.param_groups[groups:]
            raise

    def _check_group(self, index: int, group: Group) -> None:
        first = self.param_groups[0] if index else self.defaults
        options.check_bound(group, first["max_grad_norm"])
        options.check_common(group)
        self.check(group)
        for param, name in tensors.with_names(group):
            # what is frozen, or has no shape yet, is looked at when it has a gradient
            if param.requires_grad and not is_lazy(param):
                self._check_param(param, name, index)
        rule = self.rule(group)
        warn_of_decay(rule, rule.hparams._make(self.hparams(group)), group)

    def _check_param(self, param: Tensor, name: str | None, index: int) -> None:
        group = self.param_groups[index]
        reason = formats.why_not(param, group["weights"], group["states"])
        tensors.check_parameter(param, index, name, reason)

    def __getstate__(self) -> dict[str, Any]:
        aside = {"_aside": self._aside} if self._aside.entered else {}
        return {**super().__getstate__(), **aside}

    def __setstate__(self, state: dict[str, Any]) -> None:
        before = self.__dict__.get("param_groups")
        super().__setstate__(state)
        shards = self.__dict__.get("_shards", {})
        aside = self.__dict__.get("_aside") or Aside()
        self._reset_caches()
        self._shards, self._aside = shards, aside.arrive()
        for i, group in enumerate(self.param_groups):
            own = {} if before is None else {n: before[i][n] for n in options.GROUP_DEFAULTS}
            if before is not None:
                group.update({name: own[name] for name in options.OWN})
                if group.get("max_grad_norm") is None:  # nothing turns off a clipping silently
                    group["max_grad_norm"] = own["max_grad_norm"]
            for name, value in {**self.defaults, **options.LEGACY_DEFAULTS, **own}.items():
                if name in self.defaults:
                    group.setdefault(name, value)
            for param in group["params"]:
                scalar_state.as_tensors(param, self.state.get(param, {}))
        self.max_grad_norm = self.max_grad_norm  # one object again
        self._take_back()

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update every parameter that has a gradient.

        Args:
            closure: re-evaluates the model and returns the loss.

        Returns:
            What ``closure`` returned.

        Raises:
            RuntimeError: a gradient is sparse, or a backend cannot be used, with the reason.
            ValueError: a gradient or a state is on another device or of another shape than its
                parameter. Nothing has been changed then.
        """
        if self._aside.entered:
            raise RuntimeError("step() within swap_ema() would update the averages")
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._update()
        return loss

    # one break for torch.compile, which would trace addresses and tables for seconds; torch's own
    # optimizers use the same decorator, which unlike torch.compiler.disable imports nothing yet
    @disable_dynamo
    def _update(self) -> None:
        if torch.is_inference_mode_enabled():  # what is made there cannot be updated elsewhere
            with torch.inference_mode(False), torch.no_grad():
                return self._update()
        # GradScaler sets these around a step
        scaler = AmpState(getattr(self, "grad_scale", None), getattr(self, "found_inf", None))
        # a step that fails leaves nothing to go on from
        last, self._last = self._last, None
        if last is None or not self._try_cached_step(last, scaler):
            last = self._full_step(scaler)
        self._last = last
        if self._report is None:
            device = next((param.device for param in self._params()), None)
            # as clip_grad_norm_ of nothing
            self._report = torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64, device=device)
        self._average_rest(self._report, scaler.found_inf)
        self._warn_of_stalling()

    def _try_cached_step(self, last: StepCache, scaler: AmpState) -> bool:
        """A step with what was made for the last one; False, and nothing done, if it cannot be."""
        same = last.check(self)
        if same is None:
            return False
        try:
            self._report = self._plan.again(same, last.options, last.measures, scaler)
        except CompileError:
            return False
        return True

    def _full_step(self, scaler: AmpState) -> StepCache | None:
        """A step that looks at everything; what the next one may go on from."""
        skips = any(group["nonfinite"] == "skip" for group in self.param_groups)
        values = [self._options(group, skips) for group in self.param_groups]
        rows = self.prepared()
        self._counted = sum(
            row.columns[0].numel() for key, row in rows if key.counts
        )  # what self.stalled is a share of
        try:
            self._report = self._plan.step(rows, values, self.measures(), scaler)
        except CompileError as reason:  # and nothing has been changed
            self._fall_back_to_reference(reason)
            rows = self.prepared()
            self._report = self._plan.step(rows, values, self.measures(), scaler)
        return StepCache.build(self, rows, values)

    def _fall_back_to_reference(self, reason: CompileError) -> None:
        """Leave the CPU to the reference, unless the user asked for the native backend."""
        if any(name == "native" for name, _ in self._resolved):
            raise reason
        warnings.warn(f"backend='auto' is 'reference' from now on: {reason}", stacklevel=5)
        self._resolved[("auto", torch.device("cpu"))] = "reference"

    def measures(self) -> bool:
        """Whether a step needs the norm, and so reads the gradients once more."""
        skips = any(group["nonfinite"] == "skip" for group in self.param_groups)
        return self.max_grad_norm is not None or skips

    def prepared(self) -> list[tuple[BucketKey, Row]]:
        """What the next step updates; states are created here, and brought into their formats."""
        # all checks come before the first change
        return [self._row(*entry) for entry in self._collect_grads()]

    def _warn_of_stalling(self) -> None:
        share = self.stalled
        if share is None or share.device.type != "cpu" or self._has_warned or share <= 0.5:
            return
        if any(key.counts and key.codecs[0].stochastic for key in self._plan.launches):
            return  # these stand still or jump, and move in the mean
        self._has_warned = True
        warnings.warn(
            f"{share:.0%} of the elements did not move in this step: their updates are less than "
            "half an ulp of the parameter; another format of weights keeps them",
            stacklevel=4,
        )

    def _collect_grads(self) -> list[tuple[int, Rule, str, Tensor, int]]:
        """Group, rule, backend, parameter and its index wherever there is a gradient: checked."""
        found = []
        number = itertools.count()
        for index, group in enumerate(self.param_groups):
            rule = completed(self.rule(group), group)
            for param, name in tensors.with_names(group):
                place = next(number)
                if param.grad is None:
                    continue
                self._check_param(param, name, index)
                tensors.check_gradient(param, index, name)
                tensors.check_states(param, self.state.get(param, {}), rule, index, name)
                backend = self._backend(group["backend"], param.device)
                found.append((index, rule, backend, param, place))
        return found

    def _backend(self, name: str, device: torch.device) -> str:
        key = (name, device)
        if key not in self._resolved:
            self._resolved[key] = resolve(name, device)
        return self._resolved[key]

    def _options(self, group: Group, any_skips: bool) -> Options:
        """The options of ``group`` in the order of ``COMMON_OPTIONS``, then those of its rule."""
        bound, limit = self.max_grad_norm, group["max_grad_value"]
        options.check_bound(group, bound)
        values = (
            -1.0 if group.get("maximize") else 1.0,
            math.inf if bound is None else bound,
            math.inf if limit is None else limit,
            self.l2(group),
            group["l1"],
            group["nonfinite"] == "skip",
            any_skips,
            0.0 if group["ema_decay"] is None else group["ema_decay"],
            group["seed"],
            *self.hparams(group),
        )
        # a tensor on an accelerator is read there: to read it here would wait for the device
        return tuple(
            value
            if isinstance(value, Tensor) and value.device.type != "cpu"
            else options.number("an option", value)
            for value in values
        )

    def _row(
        self, index: int, rule: Rule, backend: str, param: Tensor, number: int
    ) -> tuple[BucketKey, Row]:
        """The row of a parameter; its state is created here, at its first step."""
        group = self.param_groups[index]
        if group["ema_decay"] is not None and scalar_state.begins(self.state[param], rule):
            self._keep_average(param)
        counts = tuple(self._counter(param, rule, name, group) for name in rule.scalar_state)
        shard = self._shards.get(param, Shard(number, 0, param.numel()))
        codecs = formats.formats(
            rule, param.dtype, shard.numel < formats.SMALL, group["weights"], group["states"]
        )
        columns = self._columns(param, codecs, rule.state_keys, group)
        stalls = bool(group["count_stalled"])
        place = NoiseKey(shard.number, shard.offset)
        row = make_row(columns, counts, index, place, grad=len(codecs[0].columns))
        return make_bucket_key(row, rule, codecs, backend, group["ema_decay"] is not None, stalls), row

    def _counter(self, param: Tensor, rule: Rule, name: str, group: Group) -> Tensor:
        start = partial(self.new_counter, name, group)
        return scalar_state.fitted(self.state[param], name, rule, param, start)
