"""Who takes part in a race of optimizers, and why others do not."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch

from benchmarks import variants
from benchmarks.race import DEVICE, Variant
from benchmarks.rivals import RIVALS, Rival
from benchmarks.traffic import held, moved, step_bytes
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


class Race(NamedTuple):
    """What is raced.

    Attributes:
        optimizer: one of :data:`benchmarks.variants.OPTIMIZERS`.
        format: one of :data:`benchmarks.variants.FORMATS`.
        clip: by the norm over all gradients.
    """

    optimizer: str
    format: str
    clip: bool


class Field:
    """Those who take part in a race.

    Args:
        race: what is raced.
        compiled: torch's step through torch.compile as well, which may take minutes.

    Attributes:
        entrants: name to what makes an optimizer of its own, and takes its first step.
        absent: reasons why others do not take part.
    """

    def __init__(self, race: Race, compiled: bool) -> None:
        self.race = race
        self.entrants: dict[str, Callable[[Groups], Variant]] = {}
        self.absent: dict[str, str] = {}
        self.enter_ours()
        if self.entrants:
            self.enter_torch(compiled)
            self.enter_rivals()

    def enter(self, name: str, refusal: str | None, build: Callable[..., Variant]) -> None:
        """Let ``name`` take part unless there is a refusal."""
        if refusal is None:
            self.entrants[name] = partial(build, name)
            self.absent.pop(name, None)
        elif name not in self.entrants:  # a library may have several, not all of them for here
            self.absent[name] = refusal

    def enter_ours(self) -> None:
        """Each backend that is for speed here."""
        for backend, devices in BACKENDS.items():
            if DEVICE.type in devices:
                asked = (self.race.optimizer, self.race.format, backend, DEVICE.type)
                build = partial(self.one_of_ours, backend)
                self.enter(f"fused_optim {backend}", variants.why_not_ours(*asked), build)

    def one_of_ours(self, backend: str, name: str, groups: Groups) -> Variant:
        """One of ours, with the bytes of the columns that reach the backend."""
        made = variants.ours(self.race.optimizer, self.race.format, backend, self.race.clip, groups)
        # the norm is another read of the gradients; clipping happens in the update
        facts = {"bytes": step_bytes(made), "memory": sum(held(made))}
        return Variant(name, "ours", made.step, facts)

    def enter_torch(self, compiled: bool) -> None:
        """Each way that torch has of keeping this format; else its fused step in plain bf16."""
        known = self.race.format in TORCH_FORMATS
        for kind in TORCH if known else ["torch fused"]:
            refusal = variants.why_not_torch(
                self.race.optimizer, kind, self.race.format, DEVICE.type
            )
            self.enter(
                kind if known else f"{kind}, bf16", refusal, partial(self.one_of_torch, kind)
            )
        if compiled and "torch foreach" in self.entrants:
            self.enter("torch compiled", None, self.compiled)

    def one_of_torch(self, kind: str, name: str, groups: Groups) -> Variant:
        """One of torch's ways."""
        # a step that can be captured is no other for torch's fused kernels
        graph = {"capturable": True} if kind == "torch fused" and DEVICE.type == "cuda" else {}
        peer = theirs(self.race.optimizer, {**TORCH[kind], **graph}, groups)
        run = clipped(peer, self.race.clip, foreach=kind != "torch for-loop")
        return self.peer(name, peer, run)

    def compiled(self, name: str, groups: Groups) -> Variant:
        """Clipping and torch's step in one compiled function."""
        peer = theirs(self.race.optimizer, TORCH["torch foreach"], groups)
        run = torch.compile(clipped(peer, self.race.clip, foreach=True))
        return self.peer(name, peer, run)

    def enter_rivals(self) -> None:
        """Other libraries."""
        for index, rival in enumerate(RIVALS):
            if (rival.optimizer, rival.format) == self.race[:2]:
                refusal = variants.why_not_rival(index, DEVICE.type)
                self.enter(rival.name, refusal, partial(self.one_of_others, rival))

    def one_of_others(self, rival: Rival, name: str, groups: Groups) -> Variant:
        """One of another library."""
        peer = variants.loaded(rival, groups)
        return self.peer(name, peer, clipped(peer, self.race.clip, foreach=True))

    def peer(self, name: str, peer: torch.optim.Optimizer, run: Step) -> Variant:
        """A rival with the least that it can move; temporaries come on top of it."""
        run()
        columns = held(peer)
        # clip_grad_norm_ reads the gradient for the norm, and reads and writes it to scale it
        total = moved(columns, 3, 1) if self.race.clip else moved(columns, 1)
        return Variant(name, "rival", run, {"bytes": total, "memory": sum(columns)})

    def racers(self, groups: Groups) -> list[Variant]:
        """All who take part, each with copies of the parameters, and as replayed graphs."""
        found = []
        for build in self.entrants.values():
            variant = build(copied(groups))
            found.append(variant)
            graphs = variant.role == "ours" or variant.name.startswith("torch fused")
            if DEVICE.type == "cuda" and graphs:
                found += self.replayed(variant)
        return found

    def replayed(self, variant: Variant) -> list[Variant]:
        """The same step as a CUDA graph, if it can be captured."""
        name = f"{variant.name}, graph"
        try:
            return [Variant(name, variant.role, captured(variant.run), variant.facts)]
        except variants.REFUSALS as error:
            self.absent[name] = variants.first_line(error)
            return []


def captured(run: Step) -> Step:
    """The replay of a CUDA graph of ``run``."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # what the first steps make must not be made in the graph
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    replay: Step = graph.replay
    return replay
