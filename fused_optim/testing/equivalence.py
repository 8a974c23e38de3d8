"""The comparison of two optimizers on the user's own parameters, options and gradients."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer

from fused_optim.testing.closeness import FLOAT64_TOLERANCE, Spacing
from fused_optim.testing.exact_runs import default_dtype

Make = Callable[[Any], Optimizer]
Step = Callable[[Optimizer], Any]
Gradients = int | Callable[[int, str, Tensor], Tensor | None]


class Named(NamedTuple):
    """A parameter and its name."""

    name: str
    param: Tensor


class _Copies:
    """Copies of parameters, in the structure in which an optimizer takes them."""

    def __init__(self, params: Sequence[Any], dtype: torch.dtype | None = None) -> None:
        self.named: list[Named] = []
        self.dtype = dtype
        self.argument = [self._copy(item) for item in params]

    def _copy(self, item: Any) -> Any:
        if isinstance(item, Tensor):
            return self._copy_tensor(f"params[{len(self.named)}]", item)
        if isinstance(item, Mapping):
            return {**item, "params": [self._copy(one) for one in item["params"]]}
        name, tensor = item
        return name, self._copy_tensor(name, tensor)

    def _copy_tensor(self, name: str, tensor: Tensor) -> Parameter:
        wide = self.dtype if tensor.is_floating_point() else None
        copy = Parameter(tensor.detach().clone().to(wide or tensor.dtype), tensor.requires_grad)
        self.named.append(Named(name, copy))
        return copy

    def set_grads(self, grads: Iterable[Tensor | None]) -> None:
        """Set new gradients in the dtype of each parameter."""
        for (_, param), grad in zip(self.named, grads, strict=True):
            param.grad = None if grad is None else grad.detach().to(param.dtype, copy=True)


def _list_params(params: Any) -> list[Any]:
    """Return the parameters as lists, for they may be iterators; in groups too."""
    items = [params] if isinstance(params, Tensor) else list(params)
    return [
        {**item, "params": _list_params(item["params"])} if isinstance(item, Mapping) else item
        for item in items
    ]


class _Budget:
    """The budget of each dtype, in ulps of the largest value of each parameter so far."""

    def __init__(self, exact: Sequence[Named], dtypes: Sequence[torch.dtype]) -> None:
        self.dtypes = dtypes
        self.budgets = dict.fromkeys(dtypes, 2.0)
        # the exact run has roundings of its own
        self.budgets[torch.float64] = FLOAT64_TOLERANCE / Spacing.of(torch.float64).relative
        self.largest = [0.0] * len(exact)
        self._follow(exact)

    def _follow(self, exact: Sequence[Named]) -> None:
        """Update the largest values: where a value shrinks, its errors are those of before."""
        for i, (_, param) in enumerate(exact):
            if param.numel():
                self.largest[i] = max(self.largest[i], param.detach().abs().max().item())

    def _measure(self, found: Sequence[Named], exact: Sequence[Named]) -> list[float]:
        """Return the worst error of each parameter; infinite if an element is not finite."""
        result = []
        for i, ((_, param), (_, wide)) in enumerate(zip(found, exact, strict=True)):
            spacing = Spacing.of(self.dtypes[i])
            ulp = max(spacing.relative * self.largest[i], spacing.smallest)
            error = (param.detach().double() - wide.detach()).abs()
            worst = error.max().item() if error.numel() else 0.0
            result.append(math.inf if math.isnan(worst) else worst / ulp)
        return result

    def check(
        self,
        step: int,
        ours: Sequence[Named],
        theirs: Sequence[Named],
        exact: Sequence[Named],
    ) -> None:
        """Check each parameter of ours after a step.

        Raises:
            AssertionError: one exceeds its budget.
        """
        self._follow(exact)
        for dtype, error in zip(self.dtypes, self._measure(theirs, exact), strict=True):
            self.budgets[dtype] = max(self.budgets[dtype], 2.0 * (error + 1.0))
        found = self._measure(ours, exact)
        budgets = [self.budgets[dtype] for dtype in self.dtypes]
        ratios = [error / budget for error, budget in zip(found, budgets, strict=True)]
        worst = max(range(len(ratios)), key=ratios.__getitem__)
        if ratios[worst] > 1.0:
            name, param = ours[worst]
            wrong = sum(ratio > 1.0 for ratio in ratios)
            raise AssertionError(
                f"{name} {tuple(param.shape)} differs after step {step}: worst error "
                f"{found[worst]:.4g} ulps, budget {budgets[worst]:.4g} ulps of {param.dtype} "
                f"({wrong} of {len(ratios)} parameters exceed theirs)"
            )


def take_step(optimizer: Optimizer) -> None:
    """Take a step and nothing else."""
    optimizer.step()


def assert_equivalent(
    make_ours: Make,
    make_theirs: Make,
    params: Iterable[Any],
    *,
    steps: int = 20,
    gradients: Gradients = 0,
    step_ours: Step = take_step,
    step_theirs: Step = take_step,
) -> None:
    """Check that two optimizers make the same of the same parameters and gradients.

    A third run, of ``make_theirs`` in float64, is exact. After every step the error of ours against
    it may be twice the largest error that theirs has had so far, plus one rounding, in ulps of the
    largest value of each parameter; so a rounding passes, and another algorithm does not.

    Args:
        make_ours: function from parameters to the optimizer under test.
        make_theirs: function from parameters to the optimizer to compare with.
        params: what an optimizer takes: tensors, ``(name, tensor)`` pairs such as
            ``model.named_parameters()``, or parameter groups. Both functions get copies of them, in
            the same structure; the parameters themselves are not changed.
        steps: number of steps.
        gradients: seed of normally distributed gradients, or a function
            ``(step, name, parameter) -> gradient`` or None, called once for each step and
            parameter, the parameter being that of ours.
        step_ours: function that takes a step of ours, such as one that clips before.
        step_theirs: the same for theirs.

    Raises:
        AssertionError: a parameter exceeds its budget; the message has its name, the step, the
            worst error and the budget.
        ValueError: no parameter requires a gradient, ``steps`` < 1, or a parameter is not
            floating-point.
    """
    given = _list_params(params)
    ours, theirs, exact = _Copies(given), _Copies(given), _Copies(given, torch.float64)
    _check_arguments(ours.named, steps)
    optimizers = make_ours(ours.argument), make_theirs(theirs.argument)
    with default_dtype(torch.float64):  # in which torch creates counters
        oracle = make_theirs(exact.argument)
    make_gradients = _random_gradients(gradients) if isinstance(gradients, int) else gradients
    budget = _Budget(exact.named, [param.dtype for _, param in ours.named])
    for step in range(1, steps + 1):
        grads = [
            make_gradients(step, name, param) if param.requires_grad else None
            for name, param in ours.named
        ]
        for copies in (ours, theirs, exact):
            copies.set_grads(grads)
        step_ours(optimizers[0])
        step_theirs(optimizers[1])
        with default_dtype(torch.float64):
            step_theirs(oracle)
        budget.check(step, ours.named, theirs.named, exact.named)


def _check_arguments(named: Sequence[Named], steps: int) -> None:
    if not any(param.requires_grad for _, param in named):
        raise ValueError(
            "params must have a parameter that requires a gradient, or nothing would be compared: "
            f"got {len(named)} tensors without"
        )
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    for name, param in named:
        if not param.is_floating_point():
            raise ValueError(f"params must be floating-point tensors, {name} is {param.dtype}")


def _random_gradients(seed: int) -> Callable[[int, str, Tensor], Tensor]:
    """Return the function that draws gradients, in the order of steps and parameters."""
    generator = torch.Generator().manual_seed(seed)

    def draw(step: int, name: str, param: Tensor) -> Tensor:
        drawn = torch.randn(param.shape, generator=generator, dtype=torch.float32)
        return drawn.to(param.device, param.dtype)

    return draw
