"""Where compiled kernels run: the stand-in of ci/ptxsim for three targets, or a GPU.

A test that takes the fixture ``device`` runs on both, so that what is written for a GPU is executed
where there is none; what only a GPU has (streams, graphs) is the plain thing here.
"""

import contextlib
import warnings

import ptxsim
import pytest
import torch


class Simulated:
    """CPU tensors are device memory, and a launch has run when it returns."""

    torch = torch.device("cpu")

    def __init__(self, arch):
        self.arch = arch

    def on(self, **options):
        """Within this context ``backend="triton"`` runs here."""
        return ptxsim.install(arch=self.arch, **options)

    def stream(self):
        return contextlib.nullcontext()

    def keep_busy(self):
        """There is nothing to wait for."""

    def is_busy(self):
        return True

    def forbid_waiting(self):
        return contextlib.nullcontext()

    def capture(self, function):
        """What runs ``function`` again."""
        return function


class Cuda:
    """The current GPU."""

    def __init__(self):
        self.torch = torch.device("cuda", torch.cuda.current_device())

    def on(self, **options):
        """The options of the stand-in have no counterpart."""
        return contextlib.nullcontext()

    @contextlib.contextmanager
    def stream(self):
        """A new stream, ordered after the current one and before what follows."""
        before, stream = torch.cuda.current_stream(), torch.cuda.Stream()
        stream.wait_stream(before)
        with torch.cuda.stream(stream):
            yield
        before.wait_stream(stream)

    def keep_busy(self):
        """Let the current stream work for about a tenth of a second."""
        torch.cuda._sleep(200_000_000)

    def is_busy(self):
        return not torch.cuda.current_stream().query()

    @contextlib.contextmanager
    def forbid_waiting(self):
        """Within this context it is an error to wait for the device."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that the mode is a prototype
            torch.cuda.set_sync_debug_mode("error")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode("default")

    def capture(self, function):
        """What replays the graph of ``function``, which is not run here."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            function()
        return graph.replay


TARGETS = ["sm_80", "sm_90", "sm_100"]
GPU = pytest.param("cuda", marks=pytest.mark.gpu)


def device_named(name):
    if name != "cuda":
        return Simulated(int(name[3:]))
    if not torch.cuda.is_available():
        pytest.skip("no GPU")
    return Cuda()
