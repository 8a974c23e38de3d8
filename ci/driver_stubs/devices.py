"""CPU tensors that report a device of a stub driver.

They let a library that routes launches by ``tensor.device`` run as on a machine with several GPUs,
its guards, streams and copies included.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from .driver import StubDriver

# functions that accept tensors of several devices
_ACROSS = (Tensor.copy_, Tensor.to)
CUDA = 1  # torch's number for this type of device


def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from _tensors(value)


class Pretended(TorchFunctionMode):
    """A context in which CPU tensors may report a device, "cuda:N" in torch.

    An operation on tensors of different devices raises RuntimeError, as torch's own do. The context
    is also the module that ``torch.get_device_module`` returns: ``device``, ``current_stream``.

    Attributes:
        recorded: by the handle of a stream, the addresses of the tensors that were passed to
            ``record_stream``.
    """

    def __init__(self, driver: StubDriver) -> None:
        super().__init__()
        self._driver = driver
        self.recorded: dict[int, set[int]] = {}

    def put(self, tensor: Tensor, device: int) -> Tensor:
        """Make ``tensor`` report ``device`` and return it."""
        if device not in self._driver.devices:
            raise RuntimeError(f"invalid device {device}: there are {self._driver.devices}")
        tensor._pretended = device
        return tensor

    def device(self, device: torch.device | int) -> contextlib.AbstractContextManager[None]:
        """Return a context in which ``device`` is current, as torch.cuda.device does."""
        return self._driver.on(device if isinstance(device, int) else self._index(device))

    def current_stream(self, device: torch.device) -> torch.Stream:
        """Return the current stream of ``device``; its ``stream_id`` is the driver's handle."""
        index = self._index(device)
        handle = self._driver.streams[index]
        return torch.Stream(stream_id=handle, device_index=index, device_type=CUDA)

    def _index(self, device: torch.device) -> int:
        return self._driver.get_current_device() if device.index is None else device.index

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        args, kwargs = list(args), dict(kwargs or {})
        if function == Tensor.device.__get__:
            found = getattr(args[0], "_pretended", None)
            return torch.device("cpu") if found is None else torch.device("cuda", found)
        if function is Tensor.record_stream:
            self.recorded.setdefault(args[1].stream_id, set()).add(args[0].data_ptr())
            return None
        if function is Tensor.pin_memory:  # a copy in memory that has no device
            return args[0].clone()
        return self._call(function, args, kwargs)

    def _call(self, function: Callable[..., Any], args: list[Any], kwargs: dict[str, Any]) -> Any:
        given = list(_tensors([*args, *kwargs.values()]))
        device = self._take_device(function, args, kwargs)
        # a zero-dimensional tensor on the CPU may be combined with any device
        devices = {getattr(x, "_pretended", None) for x in given if x.dim() or _is_put(x)}
        if device is None:
            if len(devices) > 1 and function not in _ACROSS:
                raise RuntimeError(f"tensors of different devices, {devices}, in {function}")
            index = next(iter(devices), None)
        else:
            index = None if device.type == "cpu" else self._index(device)
            if function is Tensor.to and devices != {index}:
                kwargs["copy"] = True
        result = function(*args, **kwargs)
        known = set(map(id, given))
        for tensor in _tensors([result]):
            if id(tensor) not in known and index is not None:
                self.put(tensor, index)
        return result

    def _take_device(
        self, function: Callable[..., Any], args: list[Any], kwargs: dict[str, Any]
    ) -> torch.device | None:
        """Return the requested device, after replacing it by the CPU in the arguments."""
        found = kwargs.get("device")
        if found is not None:
            kwargs["device"] = "cpu"
        elif function is Tensor.to and isinstance(args[1], (str, torch.device)):
            found, args[1] = args[1], "cpu"
        return None if found is None else torch.device(found)


def _is_put(tensor: Tensor) -> bool:
    return hasattr(tensor, "_pretended")


@contextlib.contextmanager
def pretended(driver: StubDriver) -> Iterator[Pretended]:
    """Return a context in which CPU tensors may report the devices of ``driver``."""
    modules, devices = torch.get_device_module, Pretended(driver)
    torch.get_device_module = lambda device=None: devices
    driver.torch_type = "cuda"
    try:
        with devices:
            yield devices
    finally:
        torch.get_device_module, driver.torch_type = modules, "cpu"
