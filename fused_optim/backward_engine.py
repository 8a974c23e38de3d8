"""The engines of a step in backward: one for each parameter, and one that completes the step.

Each parameter has an engine of its own, with its own tables, so that the second step of a parameter
takes the fast path; states, options and indices are those of the optimizer, read at each update.
"""

import math
from collections.abc import Callable, Collection
from typing import Any, NamedTuple

import torch
from torch import Tensor
from typing_extensions import override

from fused_optim import tensor_checks
from fused_optim.backends.base import AmpState, BucketKey, GroupOptions
from fused_optim.backends.sums import total
from fused_optim.optimizer_view import OptimizerView
from fused_optim.optimizers.base import FusedOptimizer
from fused_optim.optimizers.ema import EmaOfIdleParameters, State
from fused_optim.options import get_option
from fused_optim.rules.common import sqrt_rn
from fused_optim.step.collectives import RankSums
from fused_optim.step.engine import Shard, StepEngine, SteppedOptimizer, with_ema_and_step
from fused_optim.step.guards import Group
from fused_optim.step.plan import Plan, StepSums
from fused_optim.step.read_options import read_option


class LastNorm:
    """The sum of the squares of all gradients in the last step, and the parts of this step's.

    Attributes:
        is_used: True if steps clip by it.
        squares: sum of squares in the last step, 0-dim float64; None before the first step.
    """

    def __init__(self, is_used: bool) -> None:
        self.is_used = is_used
        self.squares: Tensor | None = None
        self._parts: dict[int, Tensor] = {}

    def bound(self, max_grad_norm: Any) -> Any:
        """Return the bound of this step: infinite in the first step, which does not clip."""
        if self.is_used and max_grad_norm is not None and self.squares is None:
            return math.inf
        return max_grad_norm

    def exchange(self, index: int, own: dict[torch.device, Tensor]) -> dict[torch.device, Tensor]:
        """Keep the partial sums of this step; return those by which it clips, on the same devices.

        Args:
            index: number of the part, in the order in which parts are added.
            own: partial sums by device, float64 [n, 2] as of ``BucketRunner.norm``.

        Returns:
            float64 [n + 1, 2] by device: the squares of the last step; Inf and NaN of this one.
        """
        result = {}
        for device, partials in own.items():
            used = partials.new_zeros(len(partials) + 1, 2)
            used[1:, 1] = partials[:, 1]
            if self.squares is not None:
                used[0, 0] = self.squares.to(device, non_blocking=device.type != "cpu")
            result[device] = used
        self._parts[index] = next(iter(own.values()))  # every device has all of them
        return result

    def finish(self, keeps: bool) -> Tensor | None:
        """Begin the next step; return the norm of this one, 0-dim float64, None if it is unknown.

        Args:
            keeps: True to keep the squares of the last step if this one has an Inf or NaN.
        """
        if not self._parts:
            return None
        device = next(iter(self._parts.values())).device
        parts = [self._parts[index].to(device) for index in sorted(self._parts)]
        self._parts = {}
        squares, bad = total(torch.cat(parts)).unbind()
        before = torch.zeros_like(squares) if self.squares is None else self.squares.to(device)
        self.squares = torch.where((bad != 0) & keeps, before, squares)
        return sqrt_rn(squares)


class PlanByLastNorm(Plan):
    """A plan whose rows are clipped by the norm of the last step."""

    def __init__(self, norm: LastNorm, index: int) -> None:
        super().__init__()
        self.last_norm, self.index = norm, index

    @override
    def _reduce_norm(self) -> dict[torch.device, Tensor]:
        return self.last_norm.exchange(self.index, super()._reduce_norm())

    @override
    def _sum_over_ranks(
        self, sums: StepSums, ranks: RankSums, amp_state: AmpState
    ) -> tuple[dict[torch.device, Tensor], AmpState]:
        own, amp_state = super()._sum_over_ranks(sums, ranks, amp_state)
        return (self.last_norm.exchange(self.index, own) if own else own), amp_state


class ViewByLastNorm(OptimizerView):
    """A view of an optimizer that clips by the norm of the last step, if it clips.

    Attributes:
        first_group: index of the first group of the view among those of the optimizer.
        last_norm: norm by which it clips.
    """

    first_group = 0
    last_norm = LastNorm(is_used=False)

    @property
    @override
    def max_grad_norm(self) -> Any:
        return self.last_norm.bound(self.optimizer.max_grad_norm)

    @override
    def group_options(self, group: Group, any_skips: bool) -> GroupOptions:
        options = super().group_options(group, any_skips)
        bound = self.max_grad_norm
        if bound is None:
            return options
        common = options.common._replace(max_grad_norm=read_option(bound))
        return options._replace(common=common)

    @override
    def check_param(self, param: Tensor, name: str | None, group_index: int) -> None:
        index, group = self.first_group + group_index, self.param_groups[group_index]
        super().check_param(param, name, index)
        # here too, for messages with the index of the group
        rule = with_ema_and_step(self.rule(group), group)
        tensor_checks.check_states(param, self.state.get(param, {}), rule, index, name)


class Place(NamedTuple):
    """The position of a parameter in an optimizer.

    Attributes:
        group: index of its group.
        position: index in the group.
        param_index: index among all parameters.
    """

    group: int
    position: int
    param_index: int


class ParameterEngine(StepEngine):
    """The engine of one parameter in backward.

    Attributes:
        place: position of the parameter in the optimizer.
    """

    def __init__(self, optimizer: FusedOptimizer, whole: "BackwardEngine", place: Place) -> None:
        super().__init__()
        self.place, self.optimizer = place, optimizer
        self.view: ViewByLastNorm = ViewByLastNorm.of(optimizer)
        self.view.last_norm = whole.last_norm
        self.plan = whole.make_plan(place.param_index)
        self.resolved = whole.resolved  # one choice for all parameters

    def update(self, param: Tensor, place: Place, declared: Shard | None) -> None:
        """Update ``param`` at ``place`` by its gradient.

        Args:
            param: parameter with a gradient.
            place: its position in the optimizer.
            declared: position in a larger parameter, if one was declared.
        """
        optimizer, view = self.optimizer, self.view
        self.place = place
        if isinstance(self.plan, PlanByLastNorm):
            self.plan.index = place.param_index
        # the view has one parameter, whose index there is 0
        shard = declared or Shard(place.param_index, 0, param.numel())
        if shard != self.shards.get(param) or optimizer.norm_group is not view.norm_group:
            self.shards, self.cache = {param: shard}, None  # it has the old noise key and sums
            view.norm_group = optimizer.norm_group
        group = optimizer.param_groups[place.group]
        names = group.get("param_names")
        own = {**group, "params": [param]}
        if names is not None:
            own["param_names"] = names[place.position : place.position + 1]
        view.param_groups, view.first_group = [own], place.group
        entry = optimizer.state[param]
        view.state = {param: entry}
        try:
            self.run(view, AmpState())
        finally:
            if not entry:  # a rule without states creates no entry
                del optimizer.state[param]


class BackwardEngine(StepEngine):
    """The engine of an optimizer whose parameters are updated in backward.

    :meth:`update` updates a parameter; :meth:`run`, in ``optimizer.step()``, updates those that
    still have a gradient and completes the step.

    Attributes:
        last_norm: norm by which steps clip.
        updated: parameters that were updated since the last :meth:`run`.
        completed: parameters that were updated in backward before the last :meth:`run`.
    """

    def __init__(
        self, optimizer: FusedOptimizer, params: Collection[Tensor], last_norm: LastNorm
    ) -> None:
        before = optimizer._engine
        super().__init__(before.shards)
        self.report = before.report
        self.updated_in_backward, self.last_norm = params, last_norm
        self.updated: set[Tensor] = set()
        self.completed: set[Tensor] = set()
        self.plan = self.make_plan(-1)
        self._optimizer = optimizer
        self._view: ViewByLastNorm = ViewByLastNorm.of(optimizer)
        self._view.last_norm = last_norm
        self._engines: dict[Tensor, ParameterEngine] = {}
        self._places: dict[Tensor, Place] = {}
        self._sizes: list[int] = []

    def make_plan(self, index: int) -> Plan:
        """Return the plan of an engine, whose part of the norm has this number."""
        return PlanByLastNorm(self.last_norm, index) if self.last_norm.is_used else Plan()

    @property
    @override
    def bucket_keys(self) -> list[BucketKey]:
        engines = [self._engines[param] for param in self._in_order(self.completed)]
        plans = [*(engine.plan for engine in engines), self.plan]
        return list(dict.fromkeys(key for plan in plans for key in plan.buckets))

    def find(self, param: Tensor) -> Place:
        """Return the position of ``param`` in the optimizer.

        Raises:
            RuntimeError: it is not a parameter of the optimizer any more.
        """
        groups = self._optimizer.param_groups
        sizes = [len(group["params"]) for group in groups]
        place = self._places.get(param)
        if (
            place is None
            or sizes != self._sizes
            or groups[place.group]["params"][place.position] is not param
        ):
            pairs = [(i, j) for i, size in enumerate(sizes) for j in range(size)]
            self._places = {
                groups[i]["params"][j]: Place(i, j, index) for index, (i, j) in enumerate(pairs)
            }
            self._sizes = sizes
            place = self._places.get(param)
        if place is None:
            raise RuntimeError(
                f"a parameter of shape {tuple(param.shape)} is updated in backward and not in the "
                "optimizer any more: remove() the handle of step_in_backward, and make another"
            )
        return place

    def update(self, param: Tensor) -> None:
        """Update ``param`` by its gradient."""
        place = self.find(param)
        engine = self._engines.get(param)
        if engine is None:
            engine = self._engines[param] = ParameterEngine(self._optimizer, self, place)
        engine.update(param, place, self.shards.get(param))
        self.updated.add(param)

    @override
    def run(self, optimizer: SteppedOptimizer, amp_state: AmpState) -> None:
        if amp_state.grad_scale is not None or amp_state.found_inf is not None:
            raise RuntimeError(
                "torch.amp.GradScaler cannot be used with step_in_backward: an Inf or NaN in a "
                "gradient is known only after others were used, and the updates were made with "
                "the scaled gradients; use bfloat16, or optimizer.step() without step_in_backward"
            )
        self._view.param_groups, self._view.state = optimizer.param_groups, optimizer.state
        self._view.norm_group = optimizer.norm_group
        super().run(self._view, amp_state)
        self.cache = None  # rows left for this step are rows of it alone
        self.completed, self.updated = self.updated, set()
        engines = [self._engines[param] for param in self._in_order(self.completed)]
        self._counted += sum(engine._counted for engine in engines)
        self.plan.stalled += [count for engine in engines for count in engine.plan.stalled]
        reports = [engine.report for engine in engines if engine.report is not None]
        if self.plan.buckets and self.report is not None:
            reports.append(self.report)
        if reports and not self.last_norm.is_used:
            self.report = reports[0]  # all are equal: nothing is clipped or skipped
        elif reports:
            skips = any(
                get_option(group, "nonfinite") == "skip" for group in optimizer.param_groups
            )
            self.report = _join_reports(reports, self.last_norm.finish(skips))

    def _in_order(self, params: set[Tensor]) -> list[Tensor]:
        return sorted(params, key=lambda param: self._engines[param].place.param_index)


def _join_reports(reports: list[Tensor], norm: Tensor | None) -> Tensor:
    """Return the report of a step, float64 [3], from those of its parts and the norm if known."""
    first = reports[0]
    skips = [report[2].to(first.device, non_blocking=True) for report in reports]
    unknown = torch.full_like(first[0], torch.nan)
    here = unknown if norm is None else norm.to(first.device)
    return torch.stack([here, first[1], torch.stack(skips).amax()])


class EmaAfterBackward(EmaOfIdleParameters):
    """An updater of averages that knows the parameters that were updated in backward."""

    def __init__(self, engine: BackwardEngine) -> None:
        super().__init__()
        self.engine = engine

    @override
    def update(
        self, groups: list[Group], state: State, skips: Callable[[Group], Tensor | None]
    ) -> None:
        done = self.engine.completed - self.saved.keys()
        idle = [
            {**group, "params": [param for param in group["params"] if param not in done]}
            for group in groups
        ]
        super().update(idle, state, skips)
