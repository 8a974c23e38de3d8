"""What a training loop does to a step beside calling it: streams, graphs, scalers, reused memory.

On the stand-in these are the plain thing, so that the tests run everywhere; on a GPU they are real.
The reference takes the same steps on the CPU, and its bits are asked for.
"""

import pytest
import torch
from helpers.models import exact_values, parameters, set_grads, state_of, values
from helpers.tolerances import assert_same_bits

import fused_optim

SHAPES = [(1500,), (3, 700), (), (0,), (1025,)]
OPTIONS = {"lr": 0.1, "max_grad_norm": 3.0, "nonfinite": "skip"}


class Twins:
    """An optimizer on the device and one on the CPU; gradients reach both as equal bits."""

    def __init__(self, device, **options):
        self.device, start = device, values(SHAPES, torch.float32)
        self.params = parameters([v.to(device.torch) for v in start])
        self.others = parameters(start)
        options = {**OPTIONS, **options}
        self.kernel = fused_optim.AdamW(self.params, backend="triton", **options)
        self.reference = fused_optim.AdamW(self.others, backend="reference", **options)

    def gradients(self, steps):
        """For each step those of the device and those of the CPU, made before they are needed."""
        found = [
            exact_values([v.shape for v in self.others], torch.float32, i) for i in range(steps)
        ]
        return [([g.to(self.device.torch) for g in grads], grads) for grads in found]

    def check(self):
        for i, (param, other) in enumerate(zip(self.params, self.others, strict=True)):
            ours, theirs = (
                {"param": p.detach(), **state_of(optimizer, p)}
                for optimizer, p in ((self.kernel, param), (self.reference, other))
            )
            for name in theirs:
                assert_same_bits(f"{name} {i}", ours[name].cpu(), theirs[name])


def test_streams_and_a_host_that_runs_ahead(device):
    """Each step on a stream of its own, while the device is busy with what came before.

    New options and gradients every step: what the host uploads, and what it frees and allocates
    anew, must not change under a kernel that has not run yet.
    """
    twins = Twins(device)
    for step, (ours, theirs) in enumerate(twins.gradients(6)):
        set_grads(twins.others, theirs)
        for optimizer in (twins.kernel, twins.reference):
            optimizer.param_groups[0]["lr"] = 0.1 / (1 + step)
        twins.reference.step()
        with device.on(), device.stream():
            device.keep_busy()
            set_grads(twins.params, ours)
            twins.kernel.step()
            twins.kernel.zero_grad()
            # takes the memory that was freed: of gradients, partial sums and tables
            for tensor in [*ours, torch.empty(1024, 2), torch.empty(5, 13), torch.empty(5, 5)]:
                torch.full_like(tensor, torch.nan, device=device.torch)
    twins.check()


def test_nothing_waits_for_the_device(device):
    """Norm, clip factor, skip decision, counts: all stay there; also with a schedule."""
    twins = Twins(device, lr=torch.tensor(0.1))
    lr = torch.tensor(0.1, device=device.torch)
    twins.kernel.param_groups[0]["lr"] = lr
    rates = [torch.tensor(0.1 / (1 + i), device=device.torch) for i in range(4)]
    for step, (ours, theirs) in enumerate(twins.gradients(4)):
        set_grads(twins.others, theirs)
        twins.reference.param_groups[0].update(lr=rates[step].cpu(), weight_decay=0.01 * step)
        twins.kernel.param_groups[0]["weight_decay"] = 0.01 * step  # each has to be uploaded
        twins.reference.step()
        with device.on():
            if step == 0:  # which compiles and loads
                set_grads(twins.params, ours)
                twins.kernel.step()
                continue
            device.keep_busy()
            with device.forbid_waiting():
                set_grads(twins.params, ours)
                lr.copy_(rates[step])
                twins.kernel.step()
                _ = twins.kernel.grad_norm, twins.kernel.clip_factor, twins.kernel.skipped
            assert device.is_busy()
    twins.check()


def test_a_graph_of_the_step(device):
    """Captured once, replayed with new gradients and rates, counts going on."""
    twins = Twins(device, lr=torch.tensor(0.1))
    lr = torch.tensor(0.1, device=device.torch)
    twins.kernel.param_groups[0]["lr"] = lr
    fixed = [torch.zeros_like(p) for p in twins.params]
    for param, grad in zip(twins.params, fixed, strict=True):
        param.grad = grad
    replay = None
    for step, (ours, theirs) in enumerate(twins.gradients(6)):
        set_grads(twins.others, theirs)
        twins.reference.param_groups[0]["lr"] = torch.tensor(0.1 / (1 + step))
        twins.reference.step()
        for grad, value in zip(fixed, ours, strict=True):
            grad.copy_(value)
        lr.fill_(0.1 / (1 + step))
        with device.on():
            if step < 2:  # tables are uploaded, states created
                with device.stream():
                    twins.kernel.step()
                continue
            replay = replay or device.capture(twins.kernel.step)
            replay()
    twins.check()
    assert twins.kernel.state[twins.params[0]]["step"] == 6


def test_grad_scaler(device):
    """It leaves unscaling and skipping to the step, and lowers its scale after an Inf."""
    # a bound between the norms of the scaled and of the unscaled gradients
    twins = Twins(device, nonfinite="propagate", max_grad_norm=1000.0)
    pairs = [
        (torch.amp.GradScaler(place, init_scale=1024.0, growth_interval=2), optimizer)
        for place, optimizer in ((device.torch.type, twins.kernel), ("cpu", twins.reference))
    ]
    for step, grads in enumerate(twins.gradients(4)):
        sides = zip(pairs, (twins.params, twins.others), grads, strict=True)
        with device.on():
            for (scaler, optimizer), params, given in sides:
                scaled = [scaler.scale(g) for g in given]
                if step == 1:
                    scaled[0][7] = torch.inf
                set_grads(params, scaled)
                scaler.step(optimizer)
                scaler.update()
    assert pairs[0][0].get_scale() == pairs[1][0].get_scale() == 1024.0
    assert twins.kernel.state[twins.params[0]]["step"] == 3
    twins.check()


@pytest.mark.parametrize("size", [1, 31, 1023, 1024, 1025])
@pytest.mark.parametrize("offset", [4, 1])
def test_guards_around_each_tensor(device, size, offset):
    """What is one element too wide hits its neighbour, and no bound of an allocation."""
    memory = {name: torch.full((size + offset + 1,), 77.0, device=device.torch) for name in "pgmv"}
    views = {name: tensor[offset:-1] for name, tensor in memory.items()}
    for name, view in views.items():
        view.fill_(0.25 if name == "g" else 0.5)
    param = torch.nn.Parameter(views["p"])
    param.grad = views["g"]
    optimizer = fused_optim.AdamW([param], lr=0.1, backend="triton", max_grad_norm=1.0)
    step = torch.tensor(3.0, device=device.torch)
    optimizer.state[param] = {"step": step, "exp_avg": views["m"], "exp_avg_sq": views["v"]}
    with device.on():
        optimizer.step()
    for name, tensor in memory.items():
        assert (tensor[:offset] == 77.0).all(), name
        assert tensor[-1] == 77.0, name
        assert name == "g" or (views[name] != 0.5).all(), name


@pytest.mark.gpu
def test_the_gpu_of_the_parameters():
    """A launch goes to the current device, which is another one here."""
    if torch.cuda.device_count() < 2:
        pytest.skip(f"needs two GPUs, has {torch.cuda.device_count()}")
    found = []
    for place in ("cuda:1", "cpu"):
        params = parameters([v.to(place) for v in values(SHAPES, torch.float32)])
        optimizer = fused_optim.AdamW(params, **OPTIONS)
        set_grads(params, [v.to(place) for v in exact_values(SHAPES, torch.float32, 1)])
        optimizer.step()
        found.append(params)
    assert torch.cuda.current_device() == 0
    for ours, theirs in zip(*found, strict=True):
        assert_same_bits("param", ours.detach().cpu(), theirs.detach())
