"""Muon of other libraries, for :mod:`benchmarks.test_muon`, each timed only if installed.

All take five steps of a Newton-Schulz iteration, as ours, with coefficients of their own. The
products are in bf16 (pytorch_optimizer, heavyball, dion), fp16 (gram-newton-schulz) or float32
(Emerging-Optimizers). On a CPU nothing is compiled by torch: that takes minutes.
"""

import platform
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch.optim import Optimizer

from benchmarks.interleaved import DEVICE

Group = dict[str, Any]
ON_CPU = DEVICE.type == "cpu"


class MuonLibrary(NamedTuple):
    """Muon of another library.

    Attributes:
        name: label in the results.
        package: name of the distribution whose version is reported.
        create: function from the groups of hidden matrices and of the rest, and the learning rate,
            to the optimizers that step one after the other.
        slow_on_cpu: reason to time it on a CPU with ``--full`` only, or "".
    """

    name: str
    package: str
    create: Callable[[Group, Group, float], list[Optimizer]]
    slow_on_cpu: str = ""

    def create_step(self, hidden: Group, rest: Group, lr: float) -> Callable[[], None]:
        """Create the optimizers; return the step of all of them."""
        optimizers = self.create(hidden, rest, lr)

        def step() -> None:
            for optimizer in optimizers:
                optimizer.step()

        return torch.compiler.set_stance("force_eager")(step) if ON_CPU else step


def create_adamw(rest: Group, lr: float) -> Optimizer:
    """Create torch's optimizer of the rest, for libraries without one or with a slower one."""
    return torch.optim.AdamW([rest], lr=lr, fused=True)


def create_pytorch_optimizer(hidden: Group, rest: Group, lr: float) -> list[Optimizer]:
    """Create the optimizer of pytorch_optimizer, which has both rules."""
    from pytorch_optimizer import Muon

    return [Muon([{**hidden, "use_muon": True}, {**rest, "use_muon": False}], lr=lr)]


def create_heavyball(hidden: Group, rest: Group, lr: float) -> list[Optimizer]:
    """Create the Muon of heavyball, with AdamW for the rest."""
    import heavyball

    if ON_CPU:
        heavyball.utils.compile_mode = None
    # by default it takes the gradients away, which all candidates share
    muon = heavyball.Muon([hidden], lr=lr, compile_step=False, consume_grad=False)
    return [muon, create_adamw(rest, lr)]


def create_gram_newton_schulz(hidden: Group, rest: Group, lr: float) -> list[Optimizer]:
    """Create the Muon of gram-newton-schulz, with AdamW for the rest.

    Its kernels are for GPUs; the restart is the one that its search finds for these coefficients.
    """
    from gram_newton_schulz import Muon

    options = {"ns_use_kernels": not ON_CPU, "gram_newton_schulz_restart_iterations": [2]}
    return [Muon([hidden], lr=lr, **options), create_adamw(rest, lr)]


def create_dion(hidden: Group, rest: Group, lr: float) -> list[Optimizer]:
    """Create the Muon of dion, which has both rules."""
    from dion import Muon

    return [Muon([hidden, {**rest, "algorithm": "adamw"}], lr=lr, nesterov=True)]


def create_emerging(hidden: Group, rest: Group, lr: float) -> list[Optimizer]:
    """Create the Muon of NVIDIA's Emerging-Optimizers, with AdamW for the rest."""
    if sys.version_info < (3, 12):
        raise ImportError(f"needs Python 3.12, this is {platform.python_version()}")
    from emerging_optimizers.orthogonalized_optimizers import Muon

    return [Muon([hidden], lr=lr, nesterov=True), create_adamw(rest, lr)]


SLOW_HALF = "products in fp16, on a CPU 12 times torch's step: timed with --full only"
LIBRARIES = (
    MuonLibrary("pytorch_optimizer", "pytorch_optimizer", create_pytorch_optimizer),
    MuonLibrary("heavyball", "heavyball", create_heavyball),
    MuonLibrary("gram-newton-schulz", "gram-newton-schulz", create_gram_newton_schulz, SLOW_HALF),
    MuonLibrary("dion", "dion", create_dion),
    MuonLibrary("Emerging-Optimizers", "emerging-optimizers", create_emerging),
)
