"""The table of engines and features in docs/distributed.md, from the checks that passed.

cd tests; PYTHONPATH=.:.. python -m distributed.features
"""

from collections import defaultdict
from pathlib import Path

from distributed.processes import COVERED, MODULES, load_checks, run_checks

DOCS = Path(__file__).parent.parent.parent / "docs" / "distributed.md"
ENGINES = ("FSDP2", "HSDP", "TP", "FSDP x TP", "DDP", "pipeline", "ZeRO", "FSDP1")
FEATURES = (
    "same as torch.optim",
    "every optimizer",
    "storage formats",
    "8-bit states",
    "stochastic rounding of one process",
    "clipping by one norm",
    "skip on all ranks",
    "LAMB, LARS, StableAdamW",
    "Muon as one process",
    "checkpoints",
    "checkpoints of torch.optim",
    "`step_in_backward`",
)
START, END = "<!-- features -->", "<!-- end of features -->"


def make_table(errors: dict[tuple[str, str], str]) -> str:
    """Return the Markdown table: how many checks passed for each engine and feature.

    Args:
        errors: error of each check that failed, by module and name.
    """
    load_checks(MODULES)
    passed: dict[tuple[str, str], int] = defaultdict(int)
    for check, covered in COVERED.items():
        for pair in covered:
            if pair[0] not in ENGINES or pair[1] not in FEATURES:
                raise ValueError(f"{check} names {pair}, which is not in the table")
            passed[pair] += not errors.get(check)
    lines = ["| | " + " | ".join(ENGINES) + " |", "|---|" + "---|" * len(ENGINES)]
    for feature in FEATURES:
        cells = [str(passed[engine, feature] or "-") for engine in ENGINES]
        lines.append(f"| {feature} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Run all checks and write the table."""
    errors = run_checks()
    text = DOCS.read_text()
    before, rest = text.split(START)
    after = rest.split(END)[1]
    DOCS.write_text(f"{before}{START}\n{make_table(errors)}\n{END}{after}")


if __name__ == "__main__":
    main()
