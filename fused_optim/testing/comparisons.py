"""The comparisons of a backend: with the reference, with float64 at each step, and with torch."""

import copy
import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from fused_optim.optimizers.base import FusedOptimizer
from fused_optim.optimizers.schedule_free import ScheduleFree
from fused_optim.testing import closeness
from fused_optim.testing.cases import Case
from fused_optim.testing.closeness import Closeness, Spacing, join_flat
from fused_optim.testing.exact_runs import AlgorithmRun, default_dtype, start_run
from fused_optim.testing.inputs import parameters, set_grads, state_of

Gradients = Callable[[int], Sequence[Tensor]]
TORCH_FORMATS = ("plain", "param")  # weights and states as torch stores them
LOSSLESS_FORMATS = (("master", "fp32"), ("split", "fp32"))  # as torch with float32 parameters


@dataclass(frozen=True)
class Variant:
    """A case in one dtype and storage format, on one backend."""

    case: Case
    dtype: torch.dtype
    backend: str
    weights: str = "plain"
    states: str = "param"

    @property
    def formats(self) -> tuple[str, str]:
        """The formats of weights and states."""
        return self.weights, self.states

    @property
    def compute(self) -> torch.dtype:
        """The dtype of the arithmetic."""
        return torch.float64 if self.dtype is torch.float64 else torch.float32

    @property
    def torch_dtype(self) -> torch.dtype:
        """The dtype of torch's parameters that have as many bits as these weights."""
        return self.compute if self.formats in LOSSLESS_FORMATS else self.dtype

    @property
    def weights_spacing(self) -> Spacing | None:
        """The distance of neighbours among the weights; None for that of their dtype."""
        return closeness.SPACING.get(self.weights)

    @property
    def states_spacing(self) -> Spacing | None:
        """The distance of neighbours among the states; None for that of their dtype."""
        spacing = closeness.SPACING.get(self.states)
        if spacing is None and self.dtype.itemsize < 4:
            return Spacing.of(self.dtype)  # decoded: its own dtype is float32
        return spacing

    def make(self, params: list[Parameter], backend: str | None = None) -> FusedOptimizer:
        """Construct the optimizer."""
        options: dict[str, Any] = {**copy.deepcopy(self.case.options), **self.case.additions}
        formats: dict[str, Any] = {"weights": self.weights, "states": self.states}
        if self.case.matrices:
            formats["ns_dtype"] = self.compute  # by default products are rounded to fewer bits
        return self.case.fused(params, **options, **formats, backend=backend or self.backend)


class _Stepper:
    """Steps of an optimizer with new gradients, at other addresses than those of the last step."""

    def __init__(
        self, variant: Variant, start: Sequence[Tensor], backend: str | None = None
    ) -> None:
        self.params = parameters(start)
        self.optimizer = variant.make(self.params, backend)
        self.wide = variant.compute
        self.before: list[Any] = []

    def step(self, grads: Sequence[Tensor]) -> None:
        """Take a step."""
        before = [param.grad for param in self.params]
        set_grads(self.params, grads)
        # the former gradients keep their memory, which an address that is not updated still reads
        self.before = before
        with default_dtype(self.wide):
            self.optimizer.step()

    def list_values(self) -> list[tuple[str, Tensor]]:
        """Return parameters and states with their names."""
        result = []
        for param in self.params:
            result += [("param", param.detach()), *state_of(self.optimizer, param).items()]
        return result

    def unpack(self) -> tuple[list[Tensor], dict[str, Any]]:
        """Return copies of the weights with all their bits, and of the states in torch's format."""
        packed: dict[str, Any] = copy.deepcopy(self.optimizer.state_dict(format="torch"))
        weights = [
            packed["state"].get(i, {}).get("master", param.detach()).clone()
            for i, param in enumerate(self.params)
        ]
        return weights, packed

    @property
    def counters(self) -> tuple[str, ...]:
        """Names of the states of one number."""
        return self.optimizer.rule(self.optimizer.param_groups[0]).scalar_state


def _keep_worst(worst: dict[str, Closeness], name: str, found: Closeness) -> None:
    if name not in worst or rank(found) > rank(worst[name]):
        worst[name] = found


def rank(found: Closeness) -> tuple[float, float]:
    """Return a key that is larger the more of its budget an error takes."""
    if found.error <= 0:
        return 0.0, 0.0
    if math.isinf(found.error) or not found.budget:
        return math.inf, found.error
    return found.error / found.budget, found.error


def compare_with_reference(
    variant: Variant, start: Sequence[Tensor], grads: Gradients, steps: int
) -> tuple[dict[str, Closeness], str]:
    """Compare the bits of the reference after each step.

    Returns:
        The worst difference of each value, and a digest of the bits of the last.
    """
    ours, reference = _Stepper(variant, start), _Stepper(variant, start, "reference")
    options = ours.optimizer.param_groups[0]
    sums = variant.dtype is torch.float64 and ours.optimizer.rule(options).reduction is not None
    measure = closeness.measure_sums if sums else closeness.measure_bits
    worst: dict[str, Closeness] = {}
    for step in range(steps):
        given = grads(step)
        for run in (ours, reference):
            run.step(given)
        pairs = zip(ours.list_values(), reference.list_values(), strict=True)
        for (name, mine), (other_name, other) in pairs:
            if (name, mine.dtype, mine.shape) != (other_name, other.dtype, other.shape):
                raise AssertionError(f"{name} is not as {other_name} of the reference")
            _keep_worst(worst, name, measure(mine, other))
        for name in ("grad_norm", "clip_factor", "skipped"):
            results = getattr(ours.optimizer, name), getattr(reference.optimizer, name)
            _keep_worst(worst, name, closeness.measure_bits(*results))
    # what depends on the order of float64 sums is not the same everywhere
    return worst, "" if sums else digest([value for _, value in ours.list_values()])


def digest(tensors: Sequence[Tensor]) -> str:
    """Return a hash of the bits of all tensors."""
    result = hashlib.sha256()
    for tensor in tensors:
        flat = tensor.detach().contiguous().view(-1).view(torch.uint8)
        result.update(flat.cpu().numpy().tobytes())
    return result.hexdigest()[:16]


def compare_each_step(
    variant: Variant, start: Sequence[Tensor], grads: Gradients, steps: int
) -> dict[str, Closeness]:
    """Compare each step with the same step in float64, from the weights and states as stored.

    The budget is twice the error of the same step in float32, plus a rounding of the format. The
    error of one step may be that of one element, in which terms cancel; so it is at least what
    roundings of weights and gradients make in float64.
    """
    ours = _Stepper(variant, start)
    exact, baseline, rounded = (
        start_run(variant.case, start, dtype)
        for dtype in (torch.float64, variant.compute, torch.float64)
    )
    rounding = torch.finfo(variant.compute).eps / 2.0
    worst: dict[str, Closeness] = {}
    for step in range(steps):
        weights, packed = ours.unpack()
        given = grads(step)
        for run in (exact, baseline):
            run.load(weights, packed, step)
            run.step(given)
        rounded.load([(1.0 + rounding) * weight.double() for weight in weights], packed, step)
        rounded.step([(1.0 - rounding) * grad.double() for grad in given])
        ours.step(given)
        # a run that loads a step count need not be of an algorithm that counts
        omitted = frozenset({"master", "step"})
        measured = (
            _measure_all(variant, ours, other, exact, omitted) for other in (baseline, rounded)
        )
        for (name, found), (_, other) in zip(*measured, strict=True):
            _keep_worst(worst, name, max(found, other, key=lambda one: one.budget))
    return worst


def compare_all_steps(
    variant: Variant, start: Sequence[Tensor], grads: Gradients, steps: int
) -> dict[str, Closeness]:
    """Compare the result of all steps with torch.optim, both by their errors against float64.

    An oracle of its paper replaces torch.optim where that lacks the optimizer.
    """
    ours = _Stepper(variant, start)
    exact, baseline = (
        start_run(variant.case, start, dtype) for dtype in (torch.float64, variant.torch_dtype)
    )
    for step in range(steps):
        given = grads(step)
        for run in (ours, exact, baseline):
            run.step(given)
    if variant.case.torch_class is not None and variant.formats == TORCH_FORMATS:
        _check_names_and_dtypes(variant, ours, baseline)
    found = dict(_measure_all(variant, ours, baseline, exact))
    if "z" in found:  # schedule-free: the result is x, the parameter was y
        assert isinstance(ours.optimizer, ScheduleFree)
        ours.optimizer.eval()
        runs = [[state["x"] for state in run.states] for run in (baseline, exact)]
        found["x"] = _measure_joined((ours.unpack()[0], *runs), variant.weights_spacing)
    return found


def _check_names_and_dtypes(variant: Variant, ours: _Stepper, baseline: AlgorithmRun) -> None:
    """Check that the states are those of torch, which checkpoints rely on."""
    extra = {"step"} if variant.case.options.get("dampening") or variant.case.sparse else set()
    for param, theirs in zip(ours.params, baseline.states, strict=True):
        mine = state_of(ours.optimizer, param)
        if mine.keys() != theirs.keys() | extra:
            raise AssertionError(f"states {sorted(mine)}, but torch has {sorted(theirs)}")
        for name, value in theirs.items():
            if mine[name].dtype != value.dtype:
                raise AssertionError(f"{name} is {mine[name].dtype}, but {value.dtype} in torch")


def _measure_all(
    variant: Variant,
    ours: _Stepper,
    baseline: AlgorithmRun,
    exact: AlgorithmRun,
    omitted: frozenset[str] = frozenset({"master"}),  # which is the weight
) -> list[tuple[str, Closeness]]:
    """Measure weights, and the states that both have, each over all tensors."""
    weights, packed = ours.unpack()
    states = [packed["state"].get(i, {}) for i in range(len(weights))]
    found = _measure_joined((weights, baseline.weights, exact.weights), variant.weights_spacing)
    result = [("param", found)]
    others = baseline.states, exact.states
    for name in [name for name in states[0] if name not in omitted]:
        if all(name in state for run in others for state in run):
            runs = [[state[name] for state in run] for run in (states, *others)]
            spacing = None if name in ours.counters else variant.states_spacing
            result.append((name, _measure_joined(runs, spacing)))
    return result


def _measure_joined(runs: Sequence[Sequence[Tensor]], spacing: Spacing | None) -> Closeness:
    """Measure one value over all tensors: of ours, the baseline and the exact run."""
    actual, baseline, exact = map(join_flat, runs)
    return closeness.measure(actual, baseline, exact, spacing)
