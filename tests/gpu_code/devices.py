"""Devices of the tests: the interpreter of ci/ptxsim for three targets, or a GPU.

A test with the fixture ``device`` runs on both, so that it is executed without a GPU too. Streams
and graphs, which only a GPU has, are ordinary calls in the interpreter.
"""

import contextlib
import warnings

import pytest
import torch

from ci import ptxsim


class Simulated:
    """The interpreter: CPU tensors are device memory, and launches are synchronous."""

    torch = torch.device("cpu")

    def __init__(self, arch):
        self.arch = arch

    def on(self, **options):
        """Return a context in which ``backend="triton"`` runs in the interpreter."""
        return ptxsim.install(arch=self.arch, **options)

    def stream(self):
        return contextlib.nullcontext()

    def keep_busy(self):
        """Do nothing: launches are synchronous."""

    def is_busy(self):
        return True

    def forbid_waiting(self):
        return contextlib.nullcontext()

    def capture(self, function):
        """Return ``function`` itself."""
        return function


class Cuda:
    """The current GPU."""

    def __init__(self):
        self.torch = torch.device("cuda", torch.cuda.current_device())

    def on(self, **options):
        """Return a context without effect: the interpreter's options have no counterpart."""
        return contextlib.nullcontext()

    @contextlib.contextmanager
    def stream(self):
        """Run the body on a new stream, after the current stream and before its later work."""
        before, stream = torch.cuda.current_stream(), torch.cuda.Stream()
        stream.wait_stream(before)
        with torch.cuda.stream(stream):
            yield
        before.wait_stream(stream)

    def keep_busy(self):
        """Keep the current stream busy for about a tenth of a second."""
        torch.cuda._sleep(200_000_000)

    def is_busy(self):
        return not torch.cuda.current_stream().query()

    @contextlib.contextmanager
    def forbid_waiting(self):
        """Raise an error if the body waits for the device."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns that the mode is a prototype
            torch.cuda.set_sync_debug_mode("error")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode("default")

    def capture(self, function):
        """Capture a graph of ``function``, without running it, and return its replay."""
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
