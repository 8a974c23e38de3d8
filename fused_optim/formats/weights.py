"""Parameters and states in their formats, and checkpoints of them."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from fused_optim import formats, options, storage
from fused_optim.formats.codecs import BLOCK, Codec
from fused_optim.optimizers import checkpoint
from fused_optim.step.cache import StepCache
from fused_optim.rules.common import Rule

Group = dict[str, Any]


class Shard(NamedTuple):
    """A parameter as the slice of a larger one.

    Attributes:
        number: of the whole parameter, where the optimizer has all.
        offset: of the first element in the whole.
        numel: elements of the whole.
    """

    number: int
    offset: int
    numel: int


class Aside:
    """The parameters' own values within ``swap_ema()``, where the parameters are averages.

    Attributes:
        entered: whether the context is entered.
        values: of each parameter that has an average.
        travelled: whether this is a copy, of copies of the parameters: by deepcopy or pickle. A
            shallow copy of an optimizer has its parameters, and shares this.
    """

    def __init__(self) -> None:
        self.entered = False
        self.values: dict[Tensor, Tensor] = {}
        self.travelled = False

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, travelled=True)

    @torch.no_grad()
    def arrive(self) -> "Aside":
        """What a new optimizer has: a copy's parameters take their own values."""
        if not self.travelled:
            return self
        for param, value in self.values.items():
            param.copy_(value)
        return Aside()


def completed(rule: Rule, group: Group) -> Rule:
    """``rule`` with the slot of the average, and a count of steps where something asks for it."""
    if group["ema_decay"] is not None:
        rule = rule._replace(state_keys=(*rule.state_keys, "ema"))
    stochastic = formats.is_stochastic(group["weights"], group["states"])
    # the first value of an average is the parameter, and noise differs from step to step
    if group["ema_decay"] is not None or stochastic:
        rule = rule._replace(scalar_state=rule.scalar_state or ("step",))
    return rule


def _resolved(gradient: Any) -> Tensor:
    """Return the gradient as it is in memory: a copy where torch negates or conjugates on reading.

    Autograd leaves that to the reader of imaginary parts and of complex gradients.
    """
    resolved: Tensor = gradient.resolve_neg().resolve_conj()
    return resolved


class Kept(torch.optim.Optimizer):
    """What knows how values are kept.

    Attributes:
        _shards: see :meth:`shard`.
        _aside: see :class:`Aside`.
        _last: what the last step was made from, if the next can go on from it.
    """

    _wide_counters = False  # whether a checkpoint of torch's kind keeps their float64
    _shards: dict[Tensor, Shard]
    _aside: Aside
    _last: StepCache | None

    def rule(self, group: Group) -> Rule:
        """The rule that the options of ``group`` select."""
        raise NotImplementedError

    def _bucket_options(self, group: Group) -> tuple[Any, ...]:
        """What selects the kinds of the group's rows."""
        names = ("backend", "weights", "states", "count_stalled")
        chosen = [group[name] for name in names]
        return (self.rule(group), *chosen, group["ema_decay"] is None)

    def new_state(self, param: Tensor, state_key: str, group: Group) -> Tensor | None:
        """The state called ``slot`` before the first step of ``param``; None is zeros."""
        return None

    def shard(self, param: Tensor, *, index: int, offset: int, numel: int) -> None:
        """Say that ``param`` is a slice of a larger parameter, in the order of memory.

        It then gets the stochastic rounding, and the format, that it would get in one piece. For
        formats with scales ``offset`` must be a multiple of 64. Not part of a checkpoint.

        Args:
            param: one of this optimizer's.
            index: of the whole parameter among all parameters, counted over the groups.
            offset: of the first element in the whole.
            numel: elements of the whole.

        Raises:
            ValueError: the slice does not lie in the whole, or not on a multiple of 64.
            KeyError: ``param`` is not one of this optimizer's.
        """
        if not any(param is own for own in self._params()):
            raise KeyError("param must be one of this optimizer's")
        if index < 0 or offset % BLOCK or not 0 <= offset <= numel - param.numel():
            bounds = f"a multiple of {BLOCK} in [0, {numel - param.numel()}]"
            raise ValueError(f"offset must be {bounds}, and index >= 0, got {offset}, {index}")
        self._shards[param] = Shard(index, offset, numel)
        self._last = None  # which has the places of before

    def _params(self) -> Iterator[Tensor]:
        return (param for group in self.param_groups for param in group["params"])

    @torch.no_grad()
    def weights_replaced(self, params: Iterable[Tensor] | None = None) -> None:
        """Say that ``params`` have new values, which nothing that is kept beside them belongs to.

        A format that keeps more than the parameter (``weights=`` all but ``"plain"`` and
        ``"stochastic"``) cannot see whether 16 bits were written from outside. What it keeps is at
        most half an ulp of the parameter, and stays: an edit that changes little, such as a
        constraint, must not stop a training whose steps are smaller than that. Call this after the
        weights of another model were loaded, or initialised anew, to start at exactly these.

        Args:
            params: of this optimizer; None for all.

        Raises:
            KeyError: one of ``params`` is not one of this optimizer's.
        """
        own = set(self._params())
        for param in own if params is None else list(params):
            if param not in own:
                raise KeyError("params must be of this optimizer's")
            state, value = self.state.get(param, {}), self._own_value(param)
            codec = storage.detect_weight_format(state, param)
            beside = storage.extras(codec)
            # of a value that the parameter has exactly, these are what it would start with
            new = storage.encoded(codec, value.float(), param)[1:] if beside else []
            for name, tensor in zip(beside, new, strict=True):
                state[name].copy_(tensor)

    def state_dict(self, *, format: Literal["own", "torch"] = "own") -> dict[str, Any]:
        """See torch.

        Args:
            format: ``"own"`` has the states as they are kept, and comes back bit for bit;
                ``"torch"`` has one float32 for each, as an optimizer of float32 parameters in
                torch.optim, and what a weight has beyond its parameter as the state ``master``.
                An optimizer of any format loads either.
        """
        options.one_of(("own", "torch"), format=format)
        packed = super().state_dict()
        if format == "own":
            return packed
        rules = [self.rule(group) for group in self.param_groups]
        return checkpoint.to_torch_state_dict(packed, map(self._own_value, self._params()), rules)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """See torch. States come in any format and take that of their group at the next step.

        What a weight has beyond its parameter belongs to the parameter of the same checkpoint: load
        the model too, before that step.
        """

        def keep(_: torch.optim.Optimizer, given: dict[str, Any]) -> None:
            self._given = given

        handle = self.register_load_state_dict_pre_hook(keep)  # after those of the user
        try:
            with torch.inference_mode(False), torch.no_grad():
                super().load_state_dict(state_dict)
        finally:
            handle.remove()
            self.__dict__.pop("_given", None)

    def _as_torch(self) -> dict[Tensor, tuple[str, ...]]:
        """The states of each parameter that are to be in its dtype."""
        found = {}
        for group in self.param_groups:
            own = formats.WEIGHTS[group["weights"]].codec is formats.PLAIN
            rule = self.rule(group)
            scalar_state = () if self._wide_counters else rule.scalar_state
            as_torch = group["states"] == "param" and own
            names = (*rule.state_keys, *scalar_state, "ema") if as_torch else ()
            found.update(dict.fromkeys(group["params"], names))
        return found

    def _columns(
        self, param: Tensor, codecs: tuple[Codec, ...], state_keys: tuple[str, ...], group: Group
    ) -> list[Tensor]:
        """Parameter, gradient and states in their formats, one tensor a column."""
        kept = state_keys or storage.extras(codecs[0])
        state = self.state[param] if kept else self.state.get(param, {})
        storage.convert_weight(state, codecs[0], param)
        extras = map(state.get, storage.extras(codecs[0]))
        columns: list[Any] = [param, *extras, _resolved(param.grad)]
        for state_key, codec in zip(state_keys, codecs[2:], strict=True):
            storage.convert_state(state, state_key, codec, param, self._start(param, state_key, group))
            columns += map(state.get, storage.names(state_key, codec))
        return columns

    def _start(self, param: Tensor, state_key: str, group: Group) -> Callable[[], Tensor | None]:
        if state_key == "ema":
            return lambda: self._weight(param)
        return lambda: self.new_state(param, state_key, group)

    def _set_weight(self, param: Tensor, value: Tensor) -> None:
        """Write ``value`` to the parameter and to what stands beside it."""
        state = self.state.get(param, {})
        codec = storage.detect_weight_format(state, param)
        tensors = storage.encoded(codec, value, param)
        for old, new in zip([param, *map(state.get, storage.extras(codec))], tensors, strict=True):
            old.copy_(new)

    def _weight(self, param: Tensor) -> Tensor:
        """The parameter with all that stands beside it: float32, or its own dtype."""
        state = self.state.get(param, {})
        codec = storage.detect_weight_format(state, param)
        own = self._own_value(param)
        if not storage.extras(codec):
            return own.clone()
        rest = [state[name] for name in storage.extras(codec)]
        return storage.decoded(codec, [own, *rest], torch.float32)

    def _own_value(self, param: Tensor) -> Tensor:
        """The parameter, or what it was before ``swap_ema()``."""
        return self._aside.values.get(param, param).detach()

    def _take_back(self) -> None:
        """After torch has loaded a checkpoint: see :func:`checkpoint.restore`."""
        given = self.__dict__.pop("_given", None)
        if given is not None:
            checkpoint.restore(self._params(), self.state, given, self._as_torch())
