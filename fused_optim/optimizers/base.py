"""The base class of every optimizer: construction, checks, the step and its results."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy
from torch.optim.optimizer import ParamsT
from typing_extensions import override

from fused_optim import options, tensor_checks, validation
from fused_optim.backends.base import AmpState, GroupOptions
from fused_optim.dtensors import local_state, to_local
from fused_optim.explain import Explanation, explain
from fused_optim.formats import checkpoint, registry
from fused_optim.formats.conversion import State
from fused_optim.formats.weights import load_weight, reset_extra_bits
from fused_optim.optimizers import ema
from fused_optim.optimizers.step_results import StepResults
from fused_optim.optimizers.to_torch import to_torch
from fused_optim.options import get_option
from fused_optim.private_api import disable_dynamo
from fused_optim.rules.common import Rule
from fused_optim.step import scalar_state
from fused_optim.step.engine import Shard, StepEngine
from fused_optim.step.read_options import make_group_options, read_common_options, read_hparams
from fused_optim.validation import Check

Group = dict[str, Any]


class FusedOptimizer(StepResults, ema.EmaMethods, torch.optim.Optimizer):
    """Base class of every optimizer; a subclass declares its rule, weight decay and bounds.

    ``step()`` is always both fused and capturable, whatever the values of ``foreach``, ``fused``
    and ``capturable``: step counts and bias corrections are on the device of the parameters, and
    there is no synchronization. ``p.grad`` is never written.

    Attributes:
        RULE: update rule; a subclass whose rule depends on options overrides :meth:`rule` instead.
        WEIGHT_DECAY: kind of weight decay: ``"l2"`` adds ``weight_decay * p`` to the gradient;
            ``"decoupled"`` passes it to the rule; ``"switch"`` is decoupled if the option
            ``decoupled_weight_decay`` is True, else L2.
        BOUNDS: check of each option that not every optimizer has, by name.
        REFUSAL: message of torch for a gradient of a layout that the rule does not support; ``{}``
            is the name of the class.
    """

    RULE: ClassVar[Rule]
    WEIGHT_DECAY: ClassVar[Literal["l2", "decoupled", "switch"]] = "l2"
    BOUNDS: ClassVar[Mapping[str, Check]] = {}
    REFUSAL: ClassVar[str] = "{} does not support sparse gradients"
    _keeps_float64_counts = False  # True if 0-dim states stay in float64 with states="param"

    def __init__(self, params: ParamsT, defaults: Group, additions: Mapping[str, Any]) -> None:
        """Create the optimizer from torch.optim's arguments, ``defaults``, and ``additions``.

        Raises:
            ValueError: an option is out of range, in the defaults or in a group; there are no
                parameters, or integer or self-overlapping ones, or one is in two groups.
            TypeError: an option is not a number, or a parameter is not a tensor.
        """
        validation.reject_unknown(additions)
        self._reset()
        group_options = {name: value for name, value in additions.items() if name != "norm_group"}
        self.norm_group = additions.get("norm_group")
        super().__init__(params, {**defaults, **options.GROUP_DEFAULTS, **group_options})

    def _reset(self) -> None:
        """Create the parts that a copy must not share: addresses, results, caches."""
        self._engine = StepEngine()
        self._swap = ema.ParameterSwap()
        self._idle_ema = ema.EmaOfIdleParameters()

    def rule(self, group: Group) -> Rule:
        """Return the rule that the options of ``group`` select."""
        return self.RULE

    def bounds(self, group: Group) -> Mapping[str, Check]:
        """Return the checks of the options of ``group`` that not every optimizer has."""
        return self.BOUNDS

    def check(self, group: Group) -> None:
        """Check combinations of options; :attr:`BOUNDS` has the checks of single options.

        Raises:
            ValueError: a combination of options is not supported.
        """

    def hparams(self, group: Group) -> Any:
        """Return the hyperparameters of the group's rule: see :func:`read_hparams`."""
        return read_hparams(self.rule(group), group, self._is_decoupled(group))

    def _is_decoupled(self, group: Group) -> bool:
        if self.WEIGHT_DECAY == "switch":
            return bool(group["decoupled_weight_decay"])
        return self.WEIGHT_DECAY == "decoupled"

    def new_state(self, param: Tensor, state: State, state_key: str, group: Group) -> Tensor | None:
        """Return the first value of a state of ``param``; None for zeros."""
        return load_weight(state, param) if state_key == "ema" else None

    def new_scalar_state(self, name: str, group: Group) -> float | Tensor:
        """Return the first value of a 0-dim state."""
        return 0.0

    def group_options(self, group: Group, any_skips: bool) -> GroupOptions:
        """Return the options of ``group`` as kernels need them."""
        validation.check_max_grad_norm(group, self.max_grad_norm)
        l2 = 0.0 if self._is_decoupled(group) else group["weight_decay"]
        common = read_common_options(group, self.max_grad_norm, l2, any_skips)
        return make_group_options(common, self.rule(group), self.hparams(group), group)

    def bucket_options(self, group: Group) -> tuple[Any, ...]:
        """Return the options of ``group`` that are part of the bucket keys of its rows."""
        names = ("backend", "weights", "states", "count_stalled", "cautious_decay")
        chosen = [get_option(group, name) for name in names]
        return (self.rule(group), *chosen, get_option(group, "ema_decay") is None)

    @property
    def _step_supports_amp_scaling(self) -> bool:
        """True if GradScaler leaves unscaling and skipping to the step.

        The step does both on the device if it clips or, as in torch, with ``fused=True``. It is
        False otherwise: trainers that clip between backward and step reject such an optimizer.
        """
        fused = any(
            bool(group.get("fused")) or get_option(group, "max_grad_value") is not None
            for group in self.param_groups
        )
        # with updates in backward the step refuses a scaler, in words of its own
        in_backward = bool(self._engine.updated_in_backward)
        return fused or in_backward or self.max_grad_norm is not None

    @property
    def max_grad_norm(self) -> Any:
        """Bound on the norm over all gradients; None neither clips nor computes the norm."""
        groups = self.param_groups
        return groups[0].get("max_grad_norm") if groups else self.defaults["max_grad_norm"]

    @max_grad_norm.setter
    def max_grad_norm(self, value: Any) -> None:
        validation.COMMON_BOUNDS["max_grad_norm"]("max_grad_norm", value)
        for group in (self.defaults, *self.param_groups):
            group["max_grad_norm"] = value
        for group in self.param_groups:
            options.drop_defaults(group)

    @property
    def norm_group(self) -> Any:
        """Process group over which the norm is summed as well, for what tensors do not tell."""
        return self._norm_group

    @norm_group.setter
    def norm_group(self, group: Any) -> None:
        validation.check_norm_group(group)
        self._norm_group = group
        self._engine.cache = None  # which has the sums over the former group

    def explain(self) -> Explanation:
        """Return how the next step updates each parameter; nothing is changed or compiled."""
        return explain(self, self._engine)

    def to_torch(self) -> torch.optim.Optimizer:
        """Return the counterpart in ``torch.optim``: see :func:`fused_optim.to_torch`."""
        return to_torch(self)

    @override
    def add_param_group(self, param_group: Group) -> None:
        """Add a group, as in torch; ``param_group`` may override every option of the defaults.

        Raises:
            ValueError: an option is out of range; integer or self-overlapping parameters, or one
                of another group. The optimizer is then unchanged.
            TypeError: an option is not a number, or a parameter is not a tensor.
        """
        groups = len(self.param_groups)
        if isinstance(param_group, dict) and isinstance(param_group.get("params"), Iterator):
            param_group["params"] = list(param_group["params"])
        super().add_param_group(param_group)
        options.drop_defaults(param_group)
        try:
            self._check_group(groups, param_group)
        except (ValueError, TypeError):
            del self.param_groups[groups:]
            raise

    def _check_group(self, index: int, group: Group) -> None:
        first = self.param_groups[0] if index else self.defaults
        validation.check_max_grad_norm(group, get_option(first, "max_grad_norm"))
        validation.check_norm_group_of(group, self.norm_group)
        validation.check_options(group, self.bounds(group))
        self.check(group)
        validation.check_cautious_decay(self.rule(group), self._is_decoupled(group), group)
        for param, name in tensor_checks.named_params(group):
            # a parameter that is frozen, or has no shape yet, is checked when it has a gradient
            if param.requires_grad and not is_lazy(param):
                self.check_param(param, name, index)
        validation.warn_of_frozen_states(self.rule(group), self.hparams(group), group)

    def check_param(self, param: Tensor, name: str | None, group_index: int) -> None:
        """Raise ValueError unless ``param`` can be updated with the options of its group."""
        group = self.param_groups[group_index]
        weights, states = get_option(group, "weights"), get_option(group, "states")
        tensor_checks.check_parameter(param, group_index, name, weights, states)

    def before_first_step(self, param: Tensor) -> None:
        """Save the average of a parameter whose other states start in this step."""
        self._idle_ema.keep(param, self.state[param])

    @torch.no_grad()
    @override
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update every parameter that has a gradient.

        Args:
            closure: function that re-evaluates the model and returns the loss.

        Returns:
            The value of ``closure()``, or None.

        Raises:
            RuntimeError: a sparse gradient is not supported, or a backend is not available.
            ValueError: a gradient or a state does not match the device or shape of its parameter.
                No tensor has been changed then.
        """
        if self._swap.active:
            raise RuntimeError("step() within swap_ema() would update the averages; leave it first")
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._update()
        return loss

    # a single graph break: torch.compile would trace addresses and tables for seconds; torch's own
    # optimizers use the same decorator, which unlike torch.compiler.disable imports nothing yet
    @disable_dynamo
    def _update(self) -> None:
        if torch.is_inference_mode_enabled():  # an inference tensor cannot be updated outside
            with torch.inference_mode(False), torch.no_grad():
                return self._update()
        # GradScaler sets these around a step
        found_inf = getattr(self, "found_inf", None)
        self._engine.run(self, AmpState(getattr(self, "grad_scale", None), found_inf))
        report = self._engine.report
        assert report is not None
        self._idle_ema.update(
            self.param_groups,
            self.state,
            lambda group: report[2] if get_option(group, "nonfinite") == "skip" else found_inf,
        )
        self._engine.warn_of_stalling()

    def shard(self, param: Tensor, *, index: int, offset: int, numel: int) -> None:
        """Declare that ``param`` is a slice of a larger parameter, in the order of memory.

        Stochastic rounding and the choice of formats are then those of the whole parameter. A
        checkpoint does not contain the declaration. A DTensor needs none.

        Args:
            param: parameter of this optimizer.
            index: index of the whole parameter among all parameters, counted over the groups.
            offset: index of the slice's first element in the whole parameter.
            numel: number of elements of the whole parameter.

        Raises:
            ValueError: the slice exceeds the parameter, or ``param`` is a DTensor; with states that
                have scales, ``offset`` is not a multiple of 64.
            KeyError: ``param`` is not a parameter of this optimizer.
        """
        self._check_own([param])
        group = next(g for g in self.param_groups if any(p is param for p in g["params"]))
        block = registry.scale_block(numel, get_option(group, "states"))
        self._engine.set_shard(param, Shard(index, offset, numel), block)

    def number_parameters(self, indices: Mapping[str, int] | Iterable[str]) -> None:
        """Set the index of each parameter in the whole model, where this rank has a part of it.

        The random bits of stochastic rounding depend on the index, so that with pipeline stages or
        ZeRO they are those of one process only if the parameters have the same indices there. By
        default parameters are counted over the groups of this optimizer.

        Args:
            indices: index of each parameter by name, or the names of all parameters of the model in
                order, as in ``[name for name, _ in model.named_parameters()]``. The optimizer must
                have been given ``named_parameters()``.

        Raises:
            ValueError: a parameter has no name, or its name is not in ``indices``.
        """
        for param, index in tensor_checks.match_indices(self.param_groups, indices):
            self._engine.set_index(param, index)

    @torch.no_grad()
    def weights_replaced(self, params: Iterable[Tensor] | None = None) -> None:
        """Declare that ``params`` have new values, to which their extra bits do not belong.

        A format with more bits than the parameter (every ``weights=`` except ``"plain"`` and
        ``"stochastic"``) cannot detect that the parameter was written from outside. By default the
        extra bits, at most half an ulp of the parameter, are preserved: a small edit, such as a
        constraint, must not discard updates that are smaller than that. Call this after loading the
        weights of another model or initializing again, to start from exactly the new values.

        Args:
            params: parameters of this optimizer; None for all.

        Raises:
            KeyError: one of ``params`` is not a parameter of this optimizer.
        """
        chosen = list(self._params() if params is None else params)
        self._check_own(chosen)
        for param in chosen:
            state = local_state(self.state.get(param, {}), param)
            reset_extra_bits(state, to_local(param), to_local(self._swap.own_value(param)))

    def _check_own(self, params: list[Tensor]) -> None:
        if not set(self._params()).issuperset(params):
            raise KeyError("every parameter must be one of this optimizer's")

    @override
    def state_dict(self, *, format: Literal["own", "torch"] = "own") -> dict[str, Any]:
        """Return the state dict, in the layout of torch.

        Args:
            format: ``"own"`` stores the states in their formats, and loading restores every bit
                (in a dtype that collectives can carry: the bits of int16 as bf16, those of float8
                as uint8);
                ``"torch"`` stores one float32 tensor for each state, as an optimizer of float32
                parameters in torch.optim, and a weight with more bits than its parameter as the
                state ``master``. An optimizer of any format loads either.
        """
        validation.one_of(("own", "torch"))("format", format)
        packed = super().state_dict()
        if format == "own":
            return checkpoint.make_portable(packed)
        rules = [self.rule(group) for group in self.param_groups]
        own_values = map(self._swap.own_value, self._params())
        return checkpoint.to_torch_state_dict(packed, own_values, rules)

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state dict, as in torch; the next step converts states to the format of the group.

        Extra bits of a weight belong to the parameter of the same checkpoint: load the model too,
        before that step. Within :meth:`swap_ema` the parameters are set to the new averages.
        """

        def save(_: torch.optim.Optimizer, given: dict[str, Any]) -> None:
            self._pending_state_dict = given

        handle = self.register_load_state_dict_pre_hook(save)  # runs after the hooks of the user
        try:
            suspension = self._swap.suspended(self._params, lambda: self.state)
            with suspension, torch.inference_mode(False), torch.no_grad():
                super().load_state_dict(state_dict)
        finally:
            handle.remove()
            self.__dict__.pop("_pending_state_dict", None)

    @override
    def __getstate__(self) -> dict[str, Any]:
        if self.norm_group is not None:
            raise TypeError(
                "an optimizer with a norm_group cannot be copied or pickled, as process groups "
                "cannot: set it to None before, and set it again, also in the copy"
            )
        swap = {"_swap": self._swap} if self._swap.active else {}
        return {**super().__getstate__(), **swap}

    @override
    def __setstate__(self, state: dict[str, Any]) -> None:
        before = self.__dict__.get("param_groups")
        super().__setstate__(state)
        engine, swap = self.__dict__.get("_engine"), self.__dict__.get("_swap")
        self._reset()
        self.__dict__.setdefault("_norm_group", None)
        if engine is not None:
            self._engine = StepEngine(engine.shards)
        if swap is not None:
            self._swap = swap.for_copy()
        for i, group in enumerate(self.param_groups):
            checkpoint.fill_group(group, None if before is None else before[i], self.defaults)
            for param in group["params"]:
                scalar_state.convert_numbers(param, self.state.get(param, {}))
            options.drop_defaults(group)
        self.max_grad_norm = self.max_grad_norm  # the same object in every group
        given = self.__dict__.pop("_pending_state_dict", None)
        if given is not None:
            as_torch = checkpoint.list_torch_states(
                self.param_groups, self.rule, self._keeps_float64_counts
            )
            rules = [self.rule(group) for group in self.param_groups]
            checkpoint.restore(self._params(), self.state, given, as_torch, rules)

    def _params(self) -> Iterator[Tensor]:
        return (param for group in self.param_groups for param in group["params"])
