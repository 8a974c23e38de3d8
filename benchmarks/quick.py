"""The quick suite without pytest, for the command ``fused-optim bench``: the code of test_steps.py.

Each comparison gives rows as those of ``benchmarks.report.read``.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import product
from typing import Any, NamedTuple

from benchmarks.candidates import Candidates, Case
from benchmarks.interleaved import Roofline, Stopwatch, rows_of
from benchmarks.report import Row
from benchmarks.shapes import MODELS
from benchmarks.steps import KIND, LISTS, SMALL_MODELS, NotMeasured, time_step
from benchmarks.third_party import THIRD_PARTY
from benchmarks.variants import SHARED, TORCH

DEFAULT_MODELS = (*LISTS[KIND], *SMALL_MODELS)
RIVALS = tuple(dict.fromkeys([*TORCH, *(library.name for library in THIRD_PARTY)]))


class Comparison(NamedTuple):
    """Results of one comparison, or the reason why there are none.

    Attributes:
        model: key of :data:`benchmarks.shapes.MODELS`.
        threads: number of threads.
        rows: one for each candidate and roofline.
        absent: reasons by name for each candidate that cannot run here.
        why_not: why there are no rows; "" if there are.
    """

    model: str
    threads: int
    rows: list[Row]
    absent: dict[str, str]
    why_not: str = ""


class Suite:
    """Comparisons of clipped steps in fp32.

    Args:
        optimizer: one of those that torch has too.
        models: keys of :data:`benchmarks.shapes.MODELS`.
        rivals: names in :data:`RIVALS`, without regard to case; empty for all that are installed.
        threads: numbers of threads.
        smoke: True for tiny tensors and one run, which measures nothing.

    Attributes:
        baseline: torch's step that the ratios are relative to: the fused one, if there is one.

    Raises:
        ValueError: a name is unknown, or a rival cannot run here.
    """

    def __init__(
        self,
        optimizer: str,
        models: Sequence[str],
        rivals: Sequence[str],
        threads: Sequence[int],
        smoke: bool,
    ) -> None:
        self.case = Case(find("--optimizer", optimizer, tuple(SHARED)), "fp32", clip=True)
        names = models or DEFAULT_MODELS
        self.models = [find("--model", name, tuple(MODELS)) for name in names]
        self.rivals = [find("--rival", name, RIVALS) for name in rivals]
        self.threads, self.smoke = threads, smoke
        known = Candidates(self.case)
        for rival in self.rivals:
            if rival not in known.builders:
                reason = known.absent.get(rival, f"it has no {self.case.optimizer} in fp32")
                raise ValueError(f"--rival {rival} cannot be timed: {reason}")
        self.baseline = next((name for name in reversed(TORCH) if name in known.builders), "")

    def __len__(self) -> int:
        return len(self.models) * len(self.threads)

    def run(self, on_run: Callable[[str, int, int], object]) -> Iterator[Comparison]:
        """Yield each comparison when it has been made.

        Args:
            on_run: called after each run with the comparison, the number of runs done, and of all.
        """
        roofline = Roofline(self.smoke)
        for threads, model in product(self.threads, self.models):
            name = f"{model}, {threads} thread{'s' if threads != 1 else ''}"
            candidates = Candidates(self.case)
            if self.rivals:
                candidates.keep((self.baseline, *self.rivals))
            timer = Stopwatch(lambda done, runs, name=name: on_run(name, done, runs))
            try:
                time_step(timer, roofline, candidates, model, threads, self.smoke)
            except NotMeasured as reason:
                yield Comparison(model, threads, [], candidates.absent, str(reason))
                continue
            yield Comparison(model, threads, read_rows(name, timer), candidates.absent)


def find(option: str, name: str, known: Sequence[str]) -> str:
    """Return the name in ``known`` that is ``name`` but for the case of its letters.

    Raises:
        ValueError: there is none.
    """
    for candidate in known:
        if candidate.lower() == name.lower():
            return candidate
    raise ValueError(f"{option} must be one of {', '.join(known)}, got {name!r}")


def read_rows(name: str, timer: Stopwatch) -> list[Row]:
    """Return the facts of each variant with its statistics."""
    facts = {key: value for key, value in timer.extra_info.items() if key != "absent"}
    entry: dict[str, Any] = {"name": name, "fullname": name, "extra_info": facts, "stats": {}}
    rows = []
    for row in rows_of(entry):
        row["stats"].pop("data", None)
        rows.append({**row["extra_info"], **row["stats"], "name": row["name"], "group": name})
    return rows
