"""The engine that runs a step: the fast path by the cache of the last step, or a full step."""

import itertools
from collections.abc import Callable, Collection, Iterator, Mapping
from functools import partial
from typing import ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor

from fused_optim import dtensors, tensor_checks
from fused_optim.backends.base import AmpState, BucketKey, CompileError
from fused_optim.backends.rows import NoiseKey, Row, make_row
from fused_optim.backends.select import resolve
from fused_optim.formats import registry
from fused_optim.formats.checkpoint import undo_portable
from fused_optim.formats.codecs import Codec
from fused_optim.formats.conversion import State
from fused_optim.formats.weights import make_columns
from fused_optim.options import get_option
from fused_optim.private_api import has_data
from fused_optim.rules.common import Rule
from fused_optim.step import duplicates, scalar_state, sparse
from fused_optim.step.cache import GroupReader, StepCache
from fused_optim.step.collectives import RankSums
from fused_optim.step.guards import Group
from fused_optim.step.matrix_exchange import MatrixExchange, find_shared, is_exchanged
from fused_optim.step.plan import Plan, StepSums, bump_version_counters, make_bucket_key
from fused_optim.step.row_states import get_row_states
from fused_optim.user_warnings import warn_user


class Shard(NamedTuple):
    """The position of a parameter that is a slice of a larger one.

    Attributes:
        param_index: index of the whole parameter among all parameters of the optimizer.
        offset: index of the slice's first element in the whole parameter.
        global_numel: number of elements of the whole parameter.
        run: number of consecutive elements there; 0 if all are.
        stride: distance between the first elements of two runs.
    """

    param_index: int
    offset: int
    global_numel: int
    run: int = 0
    stride: int = 0


class SteppedOptimizer(GroupReader, Protocol):
    """The members of an optimizer that the engine uses.

    Attributes:
        REFUSAL: message for a gradient of a layout that the rule does not support; ``{}`` is the
            name of the class.
    """

    REFUSAL: ClassVar[str]

    def rule(self, group: Group) -> Rule:
        """Return the rule that the options of ``group`` select."""

    def new_state(self, param: Tensor, state: State, state_key: str, group: Group) -> Tensor | None:
        """Return the first value of a state; None for zeros."""

    def new_scalar_state(self, name: str, group: Group) -> float | Tensor:
        """Return the first value of a 0-dim state."""

    def before_first_step(self, param: Tensor) -> None:
        """Prepare for the creation of the states of ``param`` in this step."""

    def check_param(self, param: Tensor, name: str | None, group_index: int) -> None:
        """Raise ValueError unless ``param`` can be updated."""


class GradientOf(NamedTuple):
    """A parameter that has a gradient in this step.

    Attributes:
        group_index: index of its parameter group.
        rule: rule of the group, with EMA and step count.
        backend: resolved name of the backend, not ``"auto"``.
        param: parameter with a gradient.
        param_index: index of ``param`` among all parameters of the optimizer.
        local: ``param``, or its local tensor.
        grad: its gradient, or the local tensor of it.
    """

    group_index: int
    rule: Rule
    backend: str
    param: Tensor
    param_index: int
    local: Tensor
    grad: Tensor


def with_ema_and_step(rule: Rule, group: Group) -> Rule:
    """Return ``rule`` with the EMA as a state, and with a step count if one is needed."""
    if get_option(group, "ema_decay") is not None:
        rule = rule._replace(state_keys=(*rule.state_keys, "ema"))
    stochastic = registry.is_stochastic(get_option(group, "weights"), get_option(group, "states"))
    # the EMA starts at step 1, and the random bits depend on the step
    if get_option(group, "ema_decay") is not None or stochastic:
        rule = rule._replace(scalar_state=rule.scalar_state or ("step",))
    return rule


def _check_offset(offset: int, scale_block: int) -> None:
    """Raise ValueError if elements that share a scale would be in two shards."""
    if offset % scale_block:
        raise ValueError(
            f"offset must be a multiple of {scale_block} for states with scales, got {offset}: "
            "shard there, or pass states='fp32'"
        )


def _undo_portable(state: State, param: Tensor, rule: Rule, group: Group) -> None:
    """Give states that were assigned from a state dict, not loaded, the dtypes of the optimizer.

    ``ZeroRedundancyOptimizer.load_state_dict`` assigns them.
    """
    nonnegative = [key for key, _ in rule.nonnegative]
    state.update(undo_portable(state, param, get_option(group, "states"), nonnegative))


def needs_grad_norm(optimizer: GroupReader) -> bool:
    """Return True if a step needs the norm, which reads the gradients once more."""
    skips = any(get_option(group, "nonfinite") == "skip" for group in optimizer.param_groups)
    return optimizer.max_grad_norm is not None or skips


class StepEngine:
    """The engine that runs the steps of one optimizer.

    On a GPU the host never waits for the device, so a CUDA graph can capture a step.

    Attributes:
        report: float64 [3]: norm, clip factor and skip (0 or 1) of the last step; None before the
            first step.
        shards: position of each parameter that is a slice of a larger one.
        plan: buckets of the last step.
        cache: inputs of the last full step, if the next may reuse them.
        resolved: backend by the option, the device, and whether tensors have data.
        updated_in_backward: parameters that are updated in backward, not in a step.
    """

    updated_in_backward: Collection[Tensor] = ()

    def __init__(self, shards: Mapping[Tensor, Shard] | None = None) -> None:
        self.report: Tensor | None = None
        self._counted = 0
        self._has_warned = False
        self.shards: dict[Tensor, Shard] = dict(shards or {})
        self.plan = Plan()
        self._later_passes = Plan()
        self._ranks: RankSums | None = None
        self._exchange: MatrixExchange | None = None
        self._report_device = torch.device("cpu")
        self.cache: StepCache | None = None
        self.resolved: dict[tuple[str, torch.device, bool], str] = {}

    @property
    def bucket_keys(self) -> list[BucketKey]:
        """Keys of the buckets of the last step."""
        return list(self.plan.buckets)

    def stalled_fraction(self) -> Tensor | None:
        """Return the fraction of stalled elements, 0-dim float64; None before the first step."""
        counts = self.plan.stalled
        if not counts:
            return None if self.report is None else torch.zeros_like(self.report[0])
        device = counts[0].device
        stalled = torch.stack([count.sum().to(device) for count in counts]).sum().double()
        return stalled / max(self._counted, 1)

    def warn_of_stalling(self) -> None:
        """Warn, once and only on the CPU, if most elements stalled in the last step."""
        fraction = self.stalled_fraction() if self.plan.stalled else None
        if self._has_warned or fraction is None or fraction.device.type != "cpu":
            return
        if not has_data(fraction) or fraction <= 0.5:
            return
        if any(key.count_stalled and key.codecs[0].stochastic for key in self.bucket_keys):
            return  # stochastic rounding moves an element by a whole ulp or not at all
        self._has_warned = True
        warn_user(
            f"{fraction:.0%} of the elements did not move in this step: their updates are less "
            "than half an ulp of the parameter; pass weights='split' (bf16) or 'master' to keep "
            "them"
        )

    def set_index(self, param: Tensor, param_index: int) -> None:
        """Set the index of ``param`` in the whole model, on which its random bits depend."""
        shard = self.shards.get(param, Shard(param_index, 0, param.numel()))
        self.shards[param] = shard._replace(param_index=param_index)
        self.cache = None  # it has the old noise keys

    def set_shard(self, param: Tensor, shard: Shard, scale_block: int) -> None:
        """Declare that ``param`` is a slice of a larger parameter.

        Args:
            param: the slice.
            shard: its position.
            scale_block: number of elements that share a scale in the formats of its group.

        Raises:
            ValueError: the slice exceeds the whole parameter, or ``param`` is a DTensor.
        """
        if dtensors.is_dtensor(param):
            raise ValueError(
                "param must be a plain tensor, got a DTensor, whose placements tell its position: "
                "for its index, call number_parameters()"
            )
        last = shard.global_numel - param.numel()
        if shard.param_index < 0 or not 0 <= shard.offset <= last:
            raise ValueError(
                f"offset must be in [0, {last}], and index >= 0, got {shard.offset}, "
                f"{shard.param_index}"
            )
        _check_offset(shard.offset, scale_block)
        self.shards[param] = shard
        self.cache = None  # it has the old noise keys

    def run(self, optimizer: SteppedOptimizer, amp_state: AmpState) -> None:
        """Update every parameter that has a gradient; see :meth:`FusedOptimizer.step`."""
        # after a step that raises, the next one must be a full step
        cache, self.cache = self.cache, None
        if cache is None or not self._try_cached_step(optimizer, cache, amp_state):
            cache = self._full_step(optimizer, amp_state)
        self.cache = cache
        if self.report is None:
            params = itertools.chain.from_iterable(g["params"] for g in optimizer.param_groups)
            device = next((param.device for param in params), None)
            # without gradients: norm 0 and factor 1, as clip_grad_norm_ of an empty list
            self.report = torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64, device=device)

    def _try_cached_step(
        self, optimizer: SteppedOptimizer, cache: StepCache, amp_state: AmpState
    ) -> bool:
        """Run the fast path; return False and change nothing if a full step is needed."""
        inputs = cache.check(optimizer)
        if inputs is None:
            return False
        try:
            sums = self._join_sums(cache.needs_norm)
            self.report = self.plan.run_cached(inputs, cache.options, sums, amp_state)
        except CompileError:
            return False
        return True

    def _full_step(self, optimizer: SteppedOptimizer, amp_state: AmpState) -> StepCache | None:
        """Run a step that checks everything; return the cache for the next one."""
        skips = any(get_option(group, "nonfinite") == "skip" for group in optimizer.param_groups)
        options = [optimizer.group_options(group, skips) for group in optimizer.param_groups]
        needs_norm = needs_grad_norm(optimizer)
        passes = duplicates.split_passes(self._collect_grads(optimizer), needs_norm)
        unstarted = duplicates.list_unstarted(passes[1:], optimizer.state)
        rows = self._make_rows(optimizer, passes[0])
        self._counted = sum(row.columns[0].numel() for key, row in rows if key.count_stalled)
        sums = self._make_sums(optimizer, needs_norm)
        places = [(one.param_index, one.param.numel()) for one in passes[0]]
        try:
            self.report = self.plan.run(rows, options, sums, amp_state, places)
        except CompileError as reason:  # raised before any tensor is changed
            self._fall_back_to_reference(reason)
            passes = duplicates.split_passes(self._collect_grads(optimizer), needs_norm)
            rows = self._make_rows(optimizer, passes[0])
            self.report = self.plan.run(rows, options, sums, amp_state, places)
        bump_version_counters([g.param for g in passes[0] if g.local is not g.param])
        for later in passes[1:]:
            duplicates.restart(later, unstarted, optimizer.state)
            # made only now: columns that are copies must have the values of the pass before
            repeated = self._make_rows(optimizer, later)
            places = [(one.param_index, one.param.numel()) for one in later]
            sums = StepSums(needs_norm, exchange=self._exchange)
            self._later_passes.run(repeated, options, sums, amp_state, places)
        return None if len(passes) > 1 else StepCache.build(optimizer, passes[0], rows, options)

    def _make_sums(self, optimizer: SteppedOptimizer, needs_norm: bool) -> StepSums:
        """Return the sums of a step, over the ranks that share any parameter of the optimizer."""
        groups = optimizer.param_groups
        numbers = ((group, optimizer.rule(group).reduction) for group in groups)
        params = [
            (param, 0 if reduction is None else reduction.num_sums)
            for group, reduction in numbers
            for param in group["params"]
        ]
        tensor_checks.check_sums_are_known(params, needs_norm and optimizer.norm_group is None)
        ranks = RankSums(params, optimizer.norm_group)
        self._ranks = ranks if ranks.needed else None
        indices = {param: shard.param_index for param, shard in self.shards.items()}
        shared = find_shared(groups, optimizer.rule, indices, self.updated_in_backward)
        self._exchange = MatrixExchange(shared)
        if params:
            self._report_device = params[0][0].device
        return self._join_sums(needs_norm)

    def _join_sums(self, needs_norm: bool) -> StepSums:
        return StepSums(needs_norm, self._ranks, self._exchange, self._report_device)

    def _fall_back_to_reference(self, reason: CompileError) -> None:
        """Use the reference on the CPU from now on; raise ``reason`` if the user chose native."""
        if any(name == "native" for name, *_ in self.resolved):
            raise reason
        warn_user(f"backend='auto' is 'reference' from now on: {reason}")
        self.resolved[("auto", torch.device("cpu"), True)] = "reference"

    def prepare_rows(self, optimizer: SteppedOptimizer) -> list[tuple[BucketKey, Row]]:
        """Return a row for each parameter with a gradient; create missing states."""
        # all checks come before the first change
        return self._make_rows(optimizer, list(self._collect_grads(optimizer)))

    def _make_rows(
        self, optimizer: SteppedOptimizer, given: list[GradientOf]
    ) -> list[tuple[BucketKey, Row]]:
        return [self._make_row(optimizer, one) for one in given]

    def _collect_grads(self, optimizer: SteppedOptimizer) -> Iterator[GradientOf]:
        """Check and yield every parameter that has a gradient."""
        index = itertools.count()
        for group_index, group in enumerate(optimizer.param_groups):
            rule = with_ema_and_step(optimizer.rule(group), group)
            for param, name in tensor_checks.named_params(group):
                param_index = next(index)
                if param.grad is None:
                    continue
                optimizer.check_param(param, name, group_index)
                local, grad = tensor_checks.check_gradient(param, group_index, name)
                codecs = self._codecs(param, rule, group)
                if grad.layout is not torch.strided or rule.sparse == "required":
                    described = tensor_checks.describe_param(param, group_index, name)
                    refusal = optimizer.REFUSAL.format(type(optimizer).__name__)
                    sparse.check_layout(grad, rule, codecs, group, described, refusal)
                state = optimizer.state.get(param, {})
                _undo_portable(state, param, rule, group)
                tensor_checks.check_states(param, state, rule, group_index, name)
                if param in self.shards:
                    blocks = (column.block for codec in codecs for column in codec.columns)
                    _check_offset(self.shards[param].offset, max(blocks))
                backend = self._resolve(get_option(group, "backend"), local)
                yield GradientOf(group_index, rule, backend, param, param_index, local, grad)

    def _codecs(self, param: Tensor, rule: Rule, group: Group) -> tuple[Codec, ...]:
        """Return the formats of parameter, gradient and states."""
        shard = self.shards.get(param)
        numel = param.numel() if shard is None else shard.global_numel
        small = numel < registry.MIN_SCALED_NUMEL
        return registry.formats_for(
            rule, param.dtype, small, get_option(group, "weights"), get_option(group, "states")
        )

    def _resolve(self, name: str, param: Tensor) -> str:
        key = (name, param.device, has_data(param))
        if key not in self.resolved:
            self.resolved[key] = resolve(*key)
        return self.resolved[key]

    def _make_row(self, optimizer: SteppedOptimizer, one: GradientOf) -> tuple[BucketKey, Row]:
        """Return the row of a parameter; create its states at its first step."""
        param, rule, group = one.param, one.rule, optimizer.param_groups[one.group_index]
        codecs = self._codecs(param, rule, group)
        has_state = rule.state_keys or rule.scalar_state or codecs[0].extra_keys
        # a rule without states creates no entry, as in torch
        entry = optimizer.state[param] if has_state else optimizer.state.get(param, {})
        state = dtensors.local_state(entry, param)
        if get_option(group, "ema_decay") is not None and scalar_state.starts(state, rule):
            optimizer.before_first_step(param)
        scalars = tuple(
            scalar_state.get(
                state, name, rule, one.local, partial(optimizer.new_scalar_state, name, group)
            )
            for name in rule.scalar_state
        )
        start = partial(optimizer.new_state, one.local, state, group=group)
        columns = make_columns(state, one.local, one.grad, codecs, rule.state_keys, start)
        noise_key = self._make_noise_key(one, codecs)
        grad = len(codecs[0].columns)
        make: Callable[..., Row] = make_row
        if columns[grad].layout is not torch.strided:
            make = partial(sparse.make_sparse_row, every_row=rule.sparse == "dense")
        row = make(columns, scalars, one.group_index, noise_key, grad=grad)
        row = row._replace(row_states=get_row_states(state, rule, param))
        ema = get_option(group, "ema_decay") is not None
        counts = bool(get_option(group, "count_stalled"))
        cautious = bool(get_option(group, "cautious_decay"))
        groups = dtensors.sharding_groups(param)
        names = tuple(sorted(process_group.group_name for process_group in groups))
        key = make_bucket_key(row, rule, codecs, one.backend, ema, counts, names)
        return key._replace(cautious=cautious, exchanged=is_exchanged(param, rule)), row

    def _make_noise_key(self, one: GradientOf, codecs: tuple[Codec, ...]) -> NoiseKey:
        """Return the key of the row, whose elements may be a shard of the whole parameter."""
        shard = self.shards.get(one.param, Shard(one.param_index, 0, one.param.numel()))
        if one.local is one.param or not any(codec.stochastic for codec in codecs):
            return NoiseKey(shard.param_index, shard.offset, shard.run, shard.stride)
        return NoiseKey(shard.param_index, *dtensors.find_position(one.param))
