"""Groups of one optimizer on tensors of every kind, through steps with different events.

All cases of an optimizer are groups of one instance, so a launch has rows of unlike options, and
the kernels, whose compilation takes most of the time, are shared.
"""

import copy
from itertools import product
from typing import NamedTuple

import torch
from gpu_code.devices import TARGETS
from helpers.models import exact_values, state_of, values

import fused_optim
from ci.codegen.rules import FORMAT_PAIRS
from fused_optim.formats.registry import MIN_SCALED_NUMEL
from fused_optim.testing.cases import CASES
from fused_optim.testing.closeness import assert_same_bits

DTYPES = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "fp64": torch.float64,
}
PLAIN = ["fp32", "bf16", "fp16"]
KEPT = {"-".join(pair.values()): pair for pair in FORMAT_PAIRS[1:]}
FORMATS = [*PLAIN, *KEPT]
FAMILIES = {}
for _case in CASES:
    FAMILIES.setdefault(_case.fused, []).append(_case)

# number of elements by kind; a program of the kernels processes a chunk of 1024
SIZES = {"whole": 1024, "tail": 1060, "empty": 0, "one": 1, "misaligned": 1025}
# the second and later cases of an optimizer have other options, and other rules at most: one tensor
# has a full and a masked chunk, and all gradients
LATER_SIZES = {"whole": 1060, "misaligned": 1025}
# tensors with fewer elements have no block-scaled states; the training test has such tensors
SCALED_SIZES = {
    "whole": MIN_SCALED_NUMEL,
    "tail": MIN_SCALED_NUMEL + 100,
    "misaligned": MIN_SCALED_NUMEL + 1025,
}
LATER_SCALED_SIZES = {"whole": SCALED_SIZES["tail"], "misaligned": SCALED_SIZES["misaligned"]}
GUARD = 77.0
STEPS = ("missing gradients", "infinite gradient", "new lr")


class TensorCase(NamedTuple):
    """A parameter of a scenario: its name, its size, its alignment and its gradients.

    Attributes:
        name: name of the optimizer's case and of the kind.
        kind: key of ``SIZES``.
    """

    name: str
    kind: str

    @property
    def aligned(self):
        return self.kind != "misaligned"

    @property
    def misses_a_gradient(self):
        """Return True if the first step has no gradient: the parameter's step count lags."""
        return self.kind in ("tail", "one")

    @property
    def gets_infinity(self):
        return self.kind == "tail"


class Run(NamedTuple):
    """One test: an optimizer in a storage format on a target.

    Attributes:
        optimizer: name of the optimizer's class.
        format: element of ``FORMATS``, or "fp64".
        target: element of ``TARGETS``, or "cuda" for the GPU.
        misaligned: True if some tensors are only element-aligned, which compiles other kernels.
    """

    optimizer: str
    format: str
    target: str
    misaligned: bool = False

    def __str__(self):
        return "-".join((*self[:3], "misaligned")[: 3 + self.misaligned])


# the native kernels are tested with each rule in each format, so each rule is executed here once
# (Adam has the rules of AdamW), and each format with one rule
SELECTED = [
    Run("ScheduleFreeSGD", "fp32", "sm_80"),
    Run("LAMB", "fp32", "sm_90", misaligned=True),
    Run("RMSprop", "fp32", "sm_90"),
    Run("Adan", "fp32", "sm_100"),
    Run("RAdam", "fp32", "sm_100"),
    Run("Adam", "bf16", "sm_80"),
    Run("Lion", "bf16", "sm_80", misaligned=True),
    Run("Adagrad", "bf16", "sm_90"),
    Run("LARS", "bf16", "sm_90"),
    Run("AdEMAMix", "bf16", "sm_100"),
    Run("Adamax", "bf16", "sm_100"),
    Run("ASGD", "fp16", "sm_80"),
    Run("SGD", "fp16", "sm_80"),
    Run("NAdam", "fp16", "sm_90"),
    Run("StableAdamW", "fp16", "sm_90"),
    Run("Adadelta", "fp16", "sm_100", misaligned=True),
    Run("ScheduleFreeAdamW", "fp16", "sm_100"),
    Run("AdamW", "master-fp32", "sm_90", misaligned=True),
    Run("AdamW", "split-bf16", "sm_90", misaligned=True),
    Run("AdamW", "split24-int8", "sm_90", misaligned=True),
    Run("AdamW", "kahan-fp8", "sm_80", misaligned=True),
    Run("AdamW", "stochastic-param", "sm_90", misaligned=True),
    Run("AdamW", "fp64", "sm_90", misaligned=True),
]
# for many versions of Triton: every alignment, sums over each tensor, states of 8 bits
FEW = [
    Run("AdamW", "fp32", "sm_90", misaligned=True),
    Run("LAMB", "bf16", "sm_80"),
    Run("RMSprop", "split24-int8", "sm_100"),
    Run("AdamW", "fp64", "sm_90", misaligned=True),
]


def every_run(targets=TARGETS):
    """Return every optimizer in every format on each target, with misaligned tensors."""
    names = [fused.__name__ for fused in FAMILIES]
    found = [Run(*one, misaligned=True) for one in product(names, FORMATS, targets)]
    if targets == TARGETS:
        found.append(Run("AdamW", "fp64", "sm_90", misaligned=True))
    return found


def storage(name):
    """Return the dtype of the parameters and the optimizer's options of a format."""
    return DTYPES.get(name, torch.bfloat16), KEPT.get(name, {})


def misaligned(tensor, device):
    """Return a copy of ``tensor`` one element into its memory, between two guards."""
    memory = torch.full((tensor.numel() + 2,), GUARD, dtype=tensor.dtype, device=device)
    memory[1:-1] = tensor
    return memory[1:-1]


class Scenario:
    """The cases of one optimizer as groups, each with tensors of several kinds.

    Args:
        run: the test.
        device: torch device of the tensors.
        backend: name of the backend.
    """

    def __init__(self, run, device, backend):
        fused = getattr(fused_optim, run.optimizer)
        dtype, formats = storage(run.format)
        self.device, self.tensors, groups = device, [], []
        self.has_misaligned = run.misaligned
        # the other formats change loads and stores, which do not depend on the rule
        chosen = FAMILIES[fused][: None if run.format in PLAIN else 1]
        cases = [(case.name, {**case.options, **case.additions}) for case in chosen]
        cases.append(("limited", {"max_grad_value": 0.02, "l1": 0.01}))
        for i, (name, options) in enumerate(cases):
            options.pop("max_grad_norm", None)  # an option of the optimizer, not of a group
            scaled = formats.get("states") in ("int8", "fp8")
            first, later = (SCALED_SIZES, LATER_SCALED_SIZES) if scaled else (SIZES, LATER_SIZES)
            sizes = dict(later if i else first)
            if not run.misaligned:
                del sizes["misaligned"]
            params = []
            for kind, start in zip(sizes, values(sizes.values(), dtype, i), strict=True):
                make = misaligned if kind == "misaligned" else torch.Tensor.to
                params.append(torch.nn.Parameter(make(start, device)))
                self.tensors.append(TensorCase(f"{name} {kind}", kind))
            groups.append({"params": params, **copy.deepcopy(options)})
        self.start = [p.detach().clone() for group in groups for p in group["params"]]
        # the average is one more column of the formats
        more = {**formats, "ema_decay": 0.9} if formats else {}
        self.optimizer = fused(groups, max_grad_norm=3.0, nonfinite="skip", backend=backend, **more)

    @property
    def params(self):
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    def set_grads(self, step):
        """Set the gradients of a step; their squares add up without rounding, in any order."""
        given = exact_values([p.shape for p in self.params], torch.float32, step)
        for tensor, param, value in zip(self.tensors, self.params, given, strict=True):
            grad = value.to(self.device, param.dtype)
            if STEPS[step] == "infinite gradient" and tensor.gets_infinity:
                grad[-1] = torch.inf
            if STEPS[step] == "missing gradients" and tensor.misses_a_gradient:
                param.grad = None
            elif STEPS[step] == "new lr" and tensor.kind == "tail" and self.has_misaligned:
                param.grad = misaligned(grad, self.device)  # like a gradient in a bucket of DDP
            else:
                param.grad = grad

    def step(self, step):
        """Take one step, and assert that it only reads the gradients."""
        self.set_grads(step)
        if STEPS[step] == "new lr":
            for group in self.optimizer.param_groups:
                group["lr"] = group["lr"] * 0.5
        given = [None if p.grad is None else p.grad.clone() for p in self.params]
        self.optimizer.step()
        for param, grad in zip(self.params, given, strict=True):
            assert grad is None or torch.equal(param.grad, grad), "a gradient is only read"

    def everything(self):
        """Yield name and value of parameters, states and results of the optimizer, on the CPU."""
        for (name, _), param in zip(self.tensors, self.params, strict=True):
            yield name, param.detach().cpu()
            for slot, value in state_of(self.optimizer, param).items():
                yield f"{name} {slot}", value.detach().cpu().clone()
        for name in ("grad_norm", "clip_factor", "skipped"):
            yield name, getattr(self.optimizer, name).cpu()

    def run(self):
        """Take all steps, and assert that the infinite gradient changes nothing."""
        for step, event in enumerate(STEPS):
            before = [p.detach().clone() for p in self.params]
            self.step(step)
            assert bool(self.optimizer.skipped) == (event == "infinite gradient")
            if event == "infinite gradient":
                assert all(map(torch.equal, self.params, before))
            else:
                assert 0 < self.optimizer.clip_factor < 1
        return dict(self.everything())

    def assert_changed(self):
        """Assert that every parameter changed, and that no guard did."""
        for tensor, param, start in zip(self.tensors, self.params, self.start, strict=True):
            # one element may round back to what it was
            assert param.numel() < 2 or not torch.equal(param, start), tensor.name
            if not tensor.aligned:
                memory = torch.as_strided(param.detach(), (param.numel() + 2,), (1,), 0)
                assert memory[0] == memory[-1] == GUARD, tensor.name


def assert_equals_reference(run, device):
    """Assert that kernels on ``device`` and the reference on the CPU give the same bits."""
    with device.on():
        kernel = Scenario(run, device.torch, "triton")
        ours = kernel.run()
    assert kernel.optimizer.backend_used == "triton"
    theirs = Scenario(run, "cpu", "reference").run()
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert_same_bits(name, ours[name], theirs[name])
    kernel.assert_changed()
