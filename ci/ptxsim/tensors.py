"""The memory of the CPU tensors in this process."""

import gc
import weakref
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any

import torch

_TENSORS = (torch.Tensor, torch.nn.Parameter)


class LiveTensors:
    """Finds tensors through the garbage collector, and remembers them while they live.

    Only plain tensors and parameters count, not those of other subclasses.
    """

    def __init__(self) -> None:
        self._known: dict[int, weakref.ref[torch.Tensor]] = {}

    def recent(self) -> Iterator[tuple[int, int]]:
        """Yield address and bytes of the storages of known and new tensors; may miss some."""
        # chained, not concatenated: a list of all objects would keep them alive
        return self._storages(chain(gc.get_objects(generation=0), gc.get_objects(generation=1)))

    def every(self) -> Iterator[tuple[int, int]]:
        """Yield address and bytes of the storages of all tensors: slow, checks every object."""
        return self._storages(gc.get_objects())

    def _storages(self, objects: Iterable[Any]) -> Iterator[tuple[int, int]]:
        # by type, because some objects answer isinstance with a warning or an error
        found = [item for item in objects if type(item) in _TENSORS]
        self._known |= {id(tensor): weakref.ref(tensor) for tensor in found}
        for key, reference in list(self._known.items()):
            tensor = reference()
            if tensor is None:
                del self._known[key]
                continue
            yield from _storage(tensor)
            if tensor.is_leaf and tensor.grad is not None:
                yield from _storage(tensor.grad)


def _storage(tensor: torch.Tensor) -> Iterator[tuple[int, int]]:
    if tensor.device.type == "cpu" and tensor.layout == torch.strided:
        storage = tensor.untyped_storage()
        yield storage.data_ptr(), storage.nbytes()
