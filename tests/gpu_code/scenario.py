"""One optimizer over every sort of tensor, whose every step has another complication.

All cases of an optimizer are groups of one instance, so a launch has rows of unlike options; and
one run of it costs little more than one case alone, for most of the time is compilation.
"""

import copy
from itertools import product
from typing import NamedTuple

import torch
from gpu_code.devices import TARGETS
from helpers.cases import CASES
from helpers.models import FORMATS, exact_values, state_of, values
from helpers.tolerances import assert_same_bits

import fused_optim

PLAIN = [(torch.float32, {}), (torch.bfloat16, {}), (torch.float16, {})]
KEPT = [(torch.bfloat16, options) for options in FORMATS[1:]]
STORAGES = [*PLAIN, *KEPT]
FAMILIES = {}
for _case in CASES:
    FAMILIES.setdefault(_case.fused, []).append(_case)

ALIGNED = {"whole": 2048, "tail": 1500, "empty": 0, "one": 1}
MISALIGNED = {"misaligned": 1025}
SORTS = {**ALIGNED, **MISALIGNED}
# formats with scales are for larger tensors
LARGER = {"whole": 4096, "tail": 4200, "empty": 0, "one": 1}
GUARD = 77.0
STEPS = ("missing gradients", "infinite gradient", "new lr")


class TensorCase(NamedTuple):
    """A parameter of a scenario: its size, its alignment and the gradients that it gets.

    Attributes:
        name: name of the optimizer's case and of the kind.
        kind: key of ``SORTS``.
    """

    name: str
    kind: str

    @property
    def aligned(self):
        return self.kind != "misaligned"

    @property
    def misses_a_gradient(self):
        """True if the parameter has no gradient in the first step: its count stays behind."""
        return self.kind in ("tail", "one")

    @property
    def gets_infinity(self):
        return self.kind == "tail"


class Run(NamedTuple):
    """What one test executes: an optimizer, a storage format, and where."""

    fused: type
    storage: tuple
    place: str
    sorts: dict = SORTS

    def __str__(self):
        words = self.fused.__name__, storage_name(self.storage), self.place
        return "-".join((*words, "misaligned")[: 3 + ("misaligned" in self.sorts)])


def covering():
    """Every optimizer once, every pair of dtype and target, and every format.

    What every rule computes in every dtype and format the native kernels show, in milliseconds;
    what only a GPU's code has, these show.
    """
    for i, fused in enumerate(FAMILIES):
        sorts = SORTS if i % 2 else ALIGNED  # what is misaligned is compiled anew
        place = TARGETS[i // len(PLAIN) % len(TARGETS)]
        yield Run(fused, PLAIN[i % len(PLAIN)], place, sorts)
    for k, storage in enumerate(KEPT):
        yield Run(fused_optim.AdamW, storage, TARGETS[k % len(TARGETS)], {**LARGER, **MISALIGNED})


def few():
    """Rows of every alignment, sums over each tensor, and states of 8 bits: for many versions."""
    yield Run(fused_optim.AdamW, PLAIN[0], "sm_90", SORTS)
    yield Run(fused_optim.LAMB, PLAIN[1], "sm_80", ALIGNED)
    int8 = next(storage for storage in KEPT if storage[1]["states"] == "int8")
    yield Run(fused_optim.RMSprop, int8, "sm_100", LARGER)


def everything(places=TARGETS):
    """Every optimizer in every storage in each place, with every sort of tensor."""
    for fused, storage, place in product(FAMILIES, STORAGES, places):
        sorts = {**LARGER, **MISALIGNED} if storage in KEPT else SORTS
        yield Run(fused, storage, place, sorts)


def storage_name(storage):
    dtype, options = storage
    words = [str(dtype), *(f"{name}={value}" for name, value in options.items())]
    return ",".join(words).replace("torch.", "")


def misaligned(tensor, device):
    """A view one element into its memory, between two guards."""
    memory = torch.full((tensor.numel() + 2,), GUARD, dtype=tensor.dtype, device=device)
    memory[1:-1] = tensor
    return memory[1:-1]


class Scenario:
    """The cases of one optimizer as groups, each with a tensor of every sort."""

    def __init__(self, run, device, backend):
        fused, (dtype, formats), _, sorts = run
        self.device, self.tensors, groups = device, [], []
        self.has_misaligned = "misaligned" in sorts
        # formats with scales leave small tensors alone
        more = 4096 if formats else 0
        sizes = [size + more if size > 1 else size for size in sorts.values()]
        chosen = FAMILIES[fused][: 1 if run.storage in KEPT else None]
        cases = [(case.name, {**case.options, **case.additions}) for case in chosen]
        cases.append(("limited", {"max_grad_value": 0.02, "l1": 0.01}))
        for i, (name, options) in enumerate(cases):
            options.pop("max_grad_norm", None)  # an option of the optimizer, not of a group
            params = []
            for sort, start in zip(sorts, values(sizes, dtype, i), strict=True):
                make = misaligned if sort == "misaligned" else torch.Tensor.to
                params.append(torch.nn.Parameter(make(start, device)))
                self.tensors.append(TensorCase(f"{name} {sort}", sort))
            groups.append({"params": params, **copy.deepcopy(options)})
        self.start = [p.detach().clone() for group in groups for p in group["params"]]
        self.optimizer = fused(
            groups, max_grad_norm=3.0, nonfinite="skip", backend=backend, **formats
        )

    @property
    def params(self):
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    def set_grads(self, step):
        """Gradients whose squares add up without rounding, in any order."""
        given = exact_values([p.shape for p in self.params], torch.float32, step)
        for tensor, param, value in zip(self.tensors, self.params, given, strict=True):
            grad = value.to(self.device, param.dtype)
            if STEPS[step] == "infinite gradient" and tensor.gets_infinity:
                grad[-1] = torch.inf
            if STEPS[step] == "missing gradients" and tensor.misses_a_gradient:
                param.grad = None
            elif STEPS[step] == "new lr" and tensor.kind == "tail" and self.has_misaligned:
                param.grad = misaligned(grad, self.device)  # as in a bucket of DDP
            else:
                param.grad = grad

    def step(self, step):
        self.set_grads(step)
        if STEPS[step] == "new lr":
            for group in self.optimizer.param_groups:
                group["lr"] = group["lr"] * 0.5
        given = [None if p.grad is None else p.grad.clone() for p in self.params]
        self.optimizer.step()
        for param, grad in zip(self.params, given, strict=True):
            assert grad is None or torch.equal(param.grad, grad), "a gradient is only read"

    def everything(self):
        """Name and value of all that a run leaves behind, on the CPU."""
        for (name, _), param in zip(self.tensors, self.params, strict=True):
            yield name, param.detach().cpu()
            for slot, value in state_of(self.optimizer, param).items():
                yield f"{name} {slot}", value.detach().cpu().clone()
        for name in ("grad_norm", "clip_factor", "skipped"):
            yield name, getattr(self.optimizer, name).cpu()

    def run(self):
        """All steps; that of the Inf must change nothing."""
        for step, event in enumerate(STEPS):
            before = [p.detach().clone() for p in self.params]
            self.step(step)
            assert bool(self.optimizer.skipped) == (event == "infinite gradient")
            if event == "infinite gradient":
                assert all(map(torch.equal, self.params, before))
            else:
                assert 0 < self.optimizer.clip_factor < 1
        return dict(self.everything())

    def check_that_it_moved(self):
        """A step that does nothing equals itself; one too wide hits the guards."""
        for tensor, param, start in zip(self.tensors, self.params, self.start, strict=True):
            # one element may round back to what it was
            assert param.numel() < 2 or not torch.equal(param, start), tensor.name
            if not tensor.aligned:
                memory = torch.as_strided(param.detach(), (param.numel() + 2,), (1,), 0)
                assert memory[0] == memory[-1] == GUARD, tensor.name


def assert_equals_reference(run, device):
    """The kernels on ``device`` and the reference on the CPU leave the same bits behind."""
    with device.on():
        kernel = Scenario(run, device.torch, "triton")
        ours = kernel.run()
    assert kernel.optimizer.backend_used == "triton"
    theirs = Scenario(run, "cpu", "reference").run()
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert_same_bits(name, ours[name], theirs[name])
    kernel.check_that_it_moved()
