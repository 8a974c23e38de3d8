"""Write docs/contract.md, which contract points each optimizer meets, from the tests' results.

python -m pytest tests/contract --junitxml=contract.xml; python ci/contract_table.py contract.xml
"""

import argparse
import sys
import xml.etree.ElementTree as ET
from collections import defaultdict
from pathlib import Path

PAGE = Path(__file__).parent.parent / "docs" / "contract.md"
INTRODUCTION = """# The contract with torch.optim

Each point is tested against `torch.optim` in the same process, in `tests/contract/`. This page is
written from the results of those tests:

```bash
python -m pytest tests/contract --junitxml=contract.xml; python ci/contract_table.py contract.xml
```

A number is how many tests passed; **bold** is how many of how many failed; a dash is a point that
torch does not have for this optimizer, either.

What differs from torch, and why:

- Groups and states have the entries that `fused_optim/options.py` lists in `ADDED_TO_GROUPS` and
  `ADDED_TO_STATE`. A checkpoint of torch does not have them: each group keeps its own.
- A loaded checkpoint leaves `backend` as it is here.
- A parameter twice in one group raises; torch only warns.
- `differentiable=True` raises: the step works in place, outside autograd.
- `GradScaler` leaves the gradient scaled for an optimizer that clips: its step unscales on the way.
- Loading shares the tensors of a parameter's state all or not at all: where torch casts some it
  shares the count.
- `max_grad_norm` is an entry of each group, one for all; a checkpoint without it leaves it.
- Counters beside `step` (`mu_product`, `eta`, `mu`) keep the dtype of `step` after loading, where
  torch casts them to the parameter's.
- After an Inf gradient a state is Inf, where torch's `lerp` turns it into NaN; the
  same elements are not finite. `NAdam` is finite up to larger gradients than torch's.
- Parts of a state that torch would miss with a KeyError start anew: `amsgrad` switched on in
  training, or `exp_avg` deleted.
- A subclass of FusedOptimizer is not turned into torch's, nor a subclass of torch's into ours.

"""
Counts = dict[tuple[str, str], list[bool]]


def results(path: Path) -> Counts:
    """Return the outcomes by point and optimizer, True for passed; skipped tests are left out.

    Args:
        path: JUnit XML file of pytest.

    Raises:
        ValueError: a test has no point, or no test has run.
    """
    found: Counts = defaultdict(list)
    for case in ET.parse(path).iter("testcase"):
        properties = {p.get("name"): p.get("value", "") for p in case.iter("property")}
        if case.find("skipped") is not None:
            continue
        if "point" not in properties:
            raise ValueError(f"the test {case.get('name')!r} has no point of the contract")
        passed = case.find("failure") is None and case.find("error") is None
        found[properties["point"], properties["optimizer"]].append(passed)
    if not found:
        raise ValueError(f"no test has run in {path}")
    return found


def cell(outcomes: list[bool]) -> str:
    """Return the number of passed tests, or in bold the number of failed ones."""
    if not outcomes:
        return "-"
    failed = outcomes.count(False)
    return f"**{failed} of {len(outcomes)} failed**" if failed else str(len(outcomes))


def names(found: Counts) -> list[str]:
    """Return the optimizers, sorted so that a parallel run does not change the order."""
    return sorted({name for _, name in found if name != "all"}, key=str.lower)


def table(found: Counts) -> str:
    """Return a Markdown table of points by optimizers; tests of no optimizer count for all."""
    points = sorted({point for point, _ in found}, key=str.lower)
    optimizers = names(found)
    lines = [["point", *(f"`{name}`" for name in optimizers)], ["---"] * (1 + len(optimizers))]
    for point in points:
        shared = found.get((point, "all"), [])
        own = [found.get((point, name), []) for name in optimizers]
        lines.append([point, *(cell(o + shared if o else o) for o in own)])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def summary(found: Counts) -> str:
    """Return the row for the README: optimizers, number of points and tests, failed points."""
    failed = sorted({point for (point, _), outcomes in found.items() if not all(outcomes)})
    optimizers = ", ".join(f"`{name}`" for name in names(found))
    points = len({point for point, _ in found})
    tests = sum(map(len, found.values()))
    met = f"not met: {', '.join(failed)}" if failed else "all met"
    return f"| {optimizers} | {points} points, {tests} tests | {met} | [table](docs/contract.md) |"


def main() -> int:
    """Write the page and print the README's row; return 1 if a point is not met."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", type=Path, help="JUnit XML file of pytest")
    parser.add_argument("--page", type=Path, default=PAGE)
    arguments = parser.parse_args()
    found = results(arguments.results)
    arguments.page.write_text(INTRODUCTION + table(found))
    print(summary(found))
    return 0 if all(map(all, found.values())) else 1


if __name__ == "__main__":
    sys.exit(main())
