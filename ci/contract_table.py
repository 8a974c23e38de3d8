"""Write docs/contract.md, the features of torch.optim that each optimizer has, from test results.

python -m pytest tests/contract --junitxml=contract.xml; python ci/contract_table.py contract.xml
"""

import argparse
import sys
import xml.etree.ElementTree as ET
from collections import defaultdict
from pathlib import Path

TABLE_FILE = Path(__file__).parent.parent / "docs" / "contract.md"
INTRODUCTION = """# The contract with torch.optim

Each feature is compared with `torch.optim` in the same process, in `tests/contract/`. This file is
written from the results of those tests:

```bash
python -m pytest tests/contract --junitxml=contract.xml; python ci/contract_table.py contract.xml
```

A number is the number of tests that passed; **bold** is the number that failed; a dash is a feature
that torch does not have for this optimizer, either.

What differs from torch, and why:

- A group lists the options that `fused_optim/options.py` adds (`GROUP_DEFAULTS`) only where they
  differ from their defaults. Further entries of a state are in `EXTRA_STATE_KEYS` there. An option
  that a checkpoint does not list stays as it is here.
- A loaded checkpoint leaves `backend` as it is here.
- A parameter twice in one group is updated twice, as by torch's for-loop; with `max_grad_norm` or
  `nonfinite="skip"`, whose norm would count its gradient twice, the step raises.
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
- torch wrong: `torch.optim.Muon` with `nesterov=False` divides the momentum of bf16 parameters by
  its norm, in place (pytorch/pytorch#190597). Ours keeps it: `tests/test_muon_torch_bug.py`.

"""
Counts = dict[tuple[str, str], list[bool]]


def results(path: Path) -> Counts:
    """Return whether each test passed, by feature and optimizer; skipped tests are left out.

    Raises:
        ValueError: a test names no feature, or none has run.
    """
    found: Counts = defaultdict(list)
    for case in ET.parse(path).iter("testcase"):
        properties = {p.get("name"): p.get("value", "") for p in case.iter("property")}
        if case.find("skipped") is not None:
            continue
        if "feature" not in properties:
            raise ValueError(f"the test {case.get('name')!r} names no feature")
        passed = case.find("failure") is None and case.find("error") is None
        found[properties["feature"], properties["optimizer"]].append(passed)
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
    """Return a row for each feature and a column for each optimizer."""
    # a test without an optimizer counts for all of them
    features = sorted({feature for feature, _ in found}, key=str.lower)
    optimizers = names(found)
    lines = [["feature", *(f"`{name}`" for name in optimizers)], ["---"] * (1 + len(optimizers))]
    for feature in features:
        shared = found.get((feature, "all"), [])
        own = [found.get((feature, name), []) for name in optimizers]
        lines.append([feature, *(cell(o + shared if o else o) for o in own)])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def summary(found: Counts) -> str:
    """Return the row for docs/compatibility.md: optimizers, features and tests, failures."""
    failed = sorted({feature for (feature, _), outcomes in found.items() if not all(outcomes)})
    optimizers = ", ".join(f"`{name}`" for name in names(found))
    features = len({feature for feature, _ in found})
    tests = sum(map(len, found.values()))
    met = f"not met: {', '.join(failed)}" if failed else "all met"
    return f"| {optimizers} | {features} features, {tests} tests | {met} | [table](contract.md) |"


def main() -> int:
    """Write the table and print the row of docs/compatibility.md; return 1 if a feature differs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", type=Path, help="what pytest --junitxml wrote")
    parser.add_argument("--output", type=Path, default=TABLE_FILE)
    arguments = parser.parse_args()
    found = results(arguments.results)
    arguments.output.write_text(INTRODUCTION + table(found))
    print(summary(found))
    return 0 if all(map(all, found.values())) else 1


if __name__ == "__main__":
    sys.exit(main())
