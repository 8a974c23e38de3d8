"""What a step of Muon costs: launches, and the bytes that its elementwise passes move.

Faults tried by hand: one more launch of prepare, the directions in float32 where bf16 was
asked for, the second pass counted with the states.
"""

import pytest
import torch
from helpers.models import KERNELS, parameters, set_grads, values

from benchmarks.allocation import peak, tensor_allocations
from benchmarks.bytes_moved import step_bytes
from fused_optim import AdamW, Muon, memory
from fused_optim.backends import kernel_runner


def two_rules(backend, **options):
    """Return Muon with six matrices in two groups and three vectors by AdamW, in one more."""
    matrices = parameters(values([(4, 6)] * 3 + [(8, 5)] * 3, torch.float32))
    vectors = parameters(values([(3,)] * 3, torch.float32))
    groups = [
        {"params": matrices[:3]},
        {"params": matrices[3:], "lr": 0.1},
        {"params": vectors, "algorithm": "adamw"},
    ]
    set_grads([*matrices, *vectors], [torch.ones_like(p) for p in [*matrices, *vectors]])
    return Muon(groups, backend=backend, **options)


@pytest.mark.interpreted
def test_launches_do_not_grow_with_tensors_or_groups(monkeypatch):
    """Guard against more than the norm, two prepares and two updates for all of Muon."""
    calls = []
    run = kernel_runner.KernelRunner._run

    def spy(self, name, programs, *arguments):
        if programs:
            calls.append(name)
        run(self, name, programs, *arguments)

    monkeypatch.setattr(kernel_runner.KernelRunner, "_run", spy)
    two_rules(KERNELS).step()
    assert sorted(calls) == ["prepare"] * 3 + ["update"] * 3
    calls.clear()
    two_rules(KERNELS, max_grad_norm=1.0).step()
    assert sorted(calls) == ["norm"] * 2 + ["prepare"] * 3 + ["update"] * 3


@pytest.mark.parametrize(
    ("options", "moved"),
    [
        # gradient 4, momentum 8, parameter 4 and 8, directions 2 and 2
        ({"ns_dtype": torch.bfloat16}, 28),
        ({"ns_dtype": torch.bfloat16, "max_grad_norm": 1.0}, 32),
        ({"ns_dtype": torch.float32}, 32),
        ({"ns_dtype": torch.bfloat16, "ema_decay": 0.9}, 36),
        ({"ns_dtype": torch.bfloat16, "states": "int8"}, 22 + 2 / 64),
    ],
    ids=str,
)
def test_bytes_of_the_elementwise_passes(options, moved, capsys):
    """The bytes of the columns that reach the backend are the known floor, and memory()'s."""
    (param,) = parameters(values([(64, 100)], torch.float32))
    set_grads([param], [torch.ones_like(param)])
    assert step_bytes(Muon([param], backend="reference", **options)) == moved * 6400
    assert memory([param], Muon, **options).moved == moved * 6400


@pytest.mark.parametrize("algorithm", ["standard", "gram"])
@pytest.mark.parametrize("most", [None, 2])
def test_the_workspace_is_what_a_step_allocates(algorithm, most, capsys):
    """Guard against temporary tensors that ``memory()`` does not count, and against all at once."""
    params = parameters(values([(96, 256)] * 6 + [(64, 64)], torch.bfloat16))
    options = {"ns_algorithm": algorithm, "ns_max_batch": most, "ns_dtype": torch.float32}
    optimizer = Muon(params, **options)
    set_grads(params, values([(96, 256)] * 6 + [(64, 64)], torch.bfloat16))
    optimizer.step()  # with its states and tables
    sizes = tensor_allocations(optimizer.step)
    estimate = memory(params, Muon, **options)
    assert 0.6 * estimate.workspace < peak(sizes) < 1.1 * estimate.workspace
    assert "workspace" in capsys.readouterr().out
    bounded = memory(params, Muon, **{**options, "ns_max_batch": 1}).workspace
    assert bounded < estimate.workspace
    assert memory(params[:1], AdamW).workspace == 0
    assert "workspace" not in capsys.readouterr().out.split("moved")[-1]
