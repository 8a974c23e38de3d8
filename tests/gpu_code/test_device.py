"""Steps in a training loop with streams, CUDA graphs, gradient scalers and reused memory.

In the interpreter streams and graphs are ordinary calls, so that the tests run everywhere. The
results must have the bits of the reference, which takes the same steps on the CPU.
"""

import pytest
import torch
from helpers.models import exact_values, parameters, set_grads, state_of, values

import fused_optim
from fused_optim.testing.closeness import assert_same_bits

SHAPES = [(1500,), (3, 700), (), (0,), (1025,)]
OPTIONS = {"lr": 0.1, "max_grad_norm": 3.0, "nonfinite": "skip"}


class DevicePair:
    """An optimizer on the device and one on the CPU, with gradients of equal bits."""

    def __init__(self, device, **options):
        self.device, start = device, values(SHAPES, torch.float32)
        self.params = parameters([v.to(device.torch) for v in start])
        self.others = parameters(start)
        options = {**OPTIONS, **options}
        self.kernel = fused_optim.AdamW(self.params, backend="triton", **options)
        self.reference = fused_optim.AdamW(self.others, backend="reference", **options)

    def gradients(self, steps):
        """Return the gradients of each step, on the device and on the CPU."""
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
    """Guard against uploads and reused memory that change under a kernel that has not run yet.

    Each step has its own stream, options and gradients, while the device is busy with earlier work.
    """
    pair = DevicePair(device)
    for step, (ours, theirs) in enumerate(pair.gradients(6)):
        set_grads(pair.others, theirs)
        for optimizer in (pair.kernel, pair.reference):
            optimizer.param_groups[0]["lr"] = 0.1 / (1 + step)
        pair.reference.step()
        with device.on(), device.stream():
            device.keep_busy()
            set_grads(pair.params, ours)
            pair.kernel.step()
            pair.kernel.zero_grad()
            # reuse the freed memory of gradients, partial sums and tables
            for tensor in [*ours, torch.empty(1024, 2), torch.empty(5, 13), torch.empty(5, 5)]:
                torch.full_like(tensor, torch.nan, device=device.torch)
    pair.check()


def test_nothing_waits_for_the_device(device):
    """Check that norm, clip factor, skip decision and counts stay on the device."""
    pair = DevicePair(device, lr=torch.tensor(0.1))
    lr = torch.tensor(0.1, device=device.torch)
    pair.kernel.param_groups[0]["lr"] = lr
    rates = [torch.tensor(0.1 / (1 + i), device=device.torch) for i in range(4)]
    for step, (ours, theirs) in enumerate(pair.gradients(4)):
        set_grads(pair.others, theirs)
        pair.reference.param_groups[0].update(lr=rates[step].cpu(), weight_decay=0.01 * step)
        pair.kernel.param_groups[0]["weight_decay"] = 0.01 * step  # each has to be uploaded
        pair.reference.step()
        with device.on():
            if step == 0:  # which compiles and loads
                set_grads(pair.params, ours)
                pair.kernel.step()
                continue
            device.keep_busy()
            with device.forbid_waiting():
                set_grads(pair.params, ours)
                lr.copy_(rates[step])
                pair.kernel.step()
                _ = pair.kernel.grad_norm, pair.kernel.clip_factor, pair.kernel.skipped
            assert device.is_busy()
    pair.check()


def test_a_graph_of_the_step(device):
    """Capture the step once, and replay it with new gradients and learning rates."""
    pair = DevicePair(device, lr=torch.tensor(0.1))
    lr = torch.tensor(0.1, device=device.torch)
    pair.kernel.param_groups[0]["lr"] = lr
    fixed = [torch.zeros_like(p) for p in pair.params]
    for param, grad in zip(pair.params, fixed, strict=True):
        param.grad = grad
    replay = None
    for step, (ours, theirs) in enumerate(pair.gradients(6)):
        set_grads(pair.others, theirs)
        pair.reference.param_groups[0]["lr"] = torch.tensor(0.1 / (1 + step))
        pair.reference.step()
        for grad, value in zip(fixed, ours, strict=True):
            grad.copy_(value)
        lr.fill_(0.1 / (1 + step))
        with device.on():
            if step < 2:  # tables are uploaded, states created
                with device.stream():
                    pair.kernel.step()
                continue
            replay = replay or device.capture(pair.kernel.step)
            replay()
    pair.check()
    assert pair.kernel.state[pair.params[0]]["step"] == 6


def test_grad_scaler(device):
    """Check that the step unscales and skips, and that the scale decreases after an Inf."""
    # a bound between the norms of the scaled and of the unscaled gradients
    pair = DevicePair(device, nonfinite="propagate", max_grad_norm=1000.0)
    pairs = [
        (torch.amp.GradScaler(place, init_scale=1024.0, growth_interval=2), optimizer)
        for place, optimizer in ((device.torch.type, pair.kernel), ("cpu", pair.reference))
    ]
    for step, grads in enumerate(pair.gradients(4)):
        sides = zip(pairs, (pair.params, pair.others), grads, strict=True)
        with device.on():
            for (scaler, optimizer), params, given in sides:
                scaled = [scaler.scale(g) for g in given]
                if step == 1:
                    scaled[0][7] = torch.inf
                set_grads(params, scaled)
                scaler.step(optimizer)
                scaler.update()
    assert pairs[0][0].get_scale() == pairs[1][0].get_scale() == 1024.0
    assert pair.kernel.state[pair.params[0]]["step"] == 3
    pair.check()


@pytest.mark.parametrize("size", [1, 31, 1023, 1024, 1025])
@pytest.mark.parametrize("offset", [4, 1])
def test_guards_around_each_tensor(device, size, offset):
    """Guard against accesses one element too wide, which stay within the allocation."""
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
    """Guard against launches on the current device instead of that of the parameters."""
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
