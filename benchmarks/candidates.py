"""Candidates of one comparison of optimizers, and the reason for each that is absent."""

from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import NamedTuple

import torch

from benchmarks import variants
from benchmarks.bytes_moved import Columns, held, moved, step_bytes
from benchmarks.interleaved import DEVICE, Variant
from benchmarks.third_party import THIRD_PARTY, Library
from benchmarks.variants import (
    BACKENDS,
    TORCH,
    TORCH_FORMATS,
    Groups,
    Step,
    clipped,
    copied,
    theirs,
)


class Case(NamedTuple):
    """Optimizer, storage format and clipping that all candidates of a comparison share.

    Attributes:
        optimizer: one of :data:`benchmarks.variants.OPTIMIZERS`.
        format: one of :data:`benchmarks.variants.FORMATS`.
        clip: True to clip by the norm over all gradients.
    """

    optimizer: str
    format: str
    clip: bool


class Candidates:
    """Optimizers of one comparison.

    Args:
        case: optimizer, format and clipping of the comparison.
        backends: names in :data:`benchmarks.variants.BACKENDS`; backends for other devices are
            left out.
        kinds: names in :data:`benchmarks.variants.TORCH`.
        compiled: True to add torch's step under torch.compile, which may take minutes.

    Attributes:
        builders: functions by name, each creates an optimizer and takes its first step.
        absent: reasons by name for each optimizer that cannot run here.
    """

    def __init__(
        self,
        case: Case,
        backends: Sequence[str] = tuple(BACKENDS),
        kinds: Sequence[str] = tuple(TORCH),
        compiled: bool = False,
    ) -> None:
        self.case = case
        self.builders: dict[str, Callable[[Groups], Variant]] = {}
        self.absent: dict[str, str] = {}
        self.add_ours(backends)
        if self.builders:
            self.add_torch(kinds, compiled)
            self.add_third_party()

    def add(self, name: str, refusal: str | None, build: Callable[..., Variant]) -> None:
        """Add the candidate ``name``, or its reason under ``absent`` if there is a refusal."""
        if refusal is None:
            self.builders[name] = partial(build, name)
            self.absent.pop(name, None)
        elif name not in self.builders:  # a library may have several, some for other devices
            self.absent[name] = refusal

    def keep(self, names: Collection[str]) -> None:
        """Remove the candidates of torch and of other libraries that are not in ``names``."""
        for name in list(self.builders):
            if not name.startswith("fused_optim ") and name not in names:
                del self.builders[name]
        self.absent = {name: why for name, why in self.absent.items() if name in names}

    def add_ours(self, backends: Sequence[str]) -> None:
        """Add a candidate for each of our backends that supports this device."""
        for backend in backends:
            if DEVICE.type in BACKENDS[backend]:
                asked = (self.case.optimizer, self.case.format, backend, DEVICE.type)
                build = partial(self.build_ours, backend)
                self.add(f"fused_optim {backend}", variants.why_not_ours(*asked), build)

    def build_ours(self, backend: str, name: str, groups: Groups) -> Variant:
        """Create our optimizer and count the bytes of the columns that reach the backend."""
        made = variants.ours(self.case.optimizer, self.case.format, backend, self.case.clip, groups)
        # the norm is another read of the gradients; clipping happens in the update
        return Variant(name, "ours", made.step, facts_of(step_bytes(made), held(made)))

    def add_torch(self, kinds: Sequence[str], compiled: bool) -> None:
        """Add torch's implementations of this format; without one, its fused step in plain bf16."""
        known = self.case.format in TORCH_FORMATS
        for kind in kinds if known else [k for k in kinds if k == "torch fused"]:
            refusal = variants.why_not_torch(
                self.case.optimizer, kind, self.case.format, DEVICE.type
            )
            self.add(kind if known else f"{kind}, bf16", refusal, partial(self.build_torch, kind))
        if compiled and "torch foreach" in self.builders:
            self.add("torch compiled", None, self.build_compiled)

    def build_torch(self, kind: str, name: str, groups: Groups) -> Variant:
        """Create torch's optimizer."""
        # torch's fused kernels are the same with capturable=True
        graph = {"capturable": True} if kind == "torch fused" and DEVICE.type == "cuda" else {}
        other = theirs(self.case.optimizer, {**TORCH[kind], **graph}, groups)
        run = clipped(other, self.case.clip, foreach=kind != "torch for-loop")
        return self.variant(name, other, run)

    def build_compiled(self, name: str, groups: Groups) -> Variant:
        """Compile clipping and torch's step as one function."""
        other = theirs(self.case.optimizer, TORCH["torch foreach"], groups)
        run = torch.compile(clipped(other, self.case.clip, foreach=True))
        return self.variant(name, other, run)

    def add_third_party(self) -> None:
        """Add the optimizers of other libraries."""
        for index, library in enumerate(THIRD_PARTY):
            if (library.optimizer, library.format) == self.case[:2]:
                refusal = variants.why_not_third_party(index, DEVICE.type)
                self.add(library.name, refusal, partial(self.build_third_party, library))

    def build_third_party(self, library: Library, name: str, groups: Groups) -> Variant:
        """Create an optimizer of another library."""
        other = variants.third_party(library, groups)
        return self.variant(name, other, clipped(other, self.case.clip, foreach=True))

    def variant(self, name: str, other: torch.optim.Optimizer, run: Step) -> Variant:
        """Take the first step; count the minimum of bytes a step moves, without temporaries."""
        run()
        columns = held(other)
        # clip_grad_norm_ reads the gradient for the norm, and reads and writes it to scale it
        total = moved(columns, 3, 1) if self.case.clip else moved(columns, 1)
        return Variant(name, "other", run, facts_of(total, columns))

    def build(self, groups: Groups) -> list[Variant]:
        """Create all candidates, each with copies of the parameters; on CUDA also as graphs."""
        found = []
        for build in self.builders.values():
            variant = build(copied(groups))
            found.append(variant)
            graphs = variant.role == "ours" or variant.name.startswith("torch fused")
            if DEVICE.type == "cuda" and graphs:
                found += self.replayed(variant)
        return found

    def replayed(self, variant: Variant) -> list[Variant]:
        """Return the same step as a CUDA graph, if it can be captured."""
        name = f"{variant.name}, graph"
        try:
            return [Variant(name, variant.role, captured(variant.run), variant.facts)]
        except variants.REFUSALS as error:
            self.absent[name] = variants.first_line(error)
            return []


def facts_of(total: int, columns: Columns) -> dict[str, int]:
    """Return the bytes that a step moves, and the bytes allocated between steps by part."""
    kept = {f"{part}_bytes": size for part, size in columns._asdict().items()}
    return {"bytes": total, **kept}


def captured(run: Step) -> Step:
    """Return the replay of a CUDA graph of ``run``."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # what the first steps allocate must not be in the graph
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    replay: Step = graph.replay
    return replay
