"""Two reports of ``fused-optim check --json``, compared: for two machines, versions or commits."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple


class Difference(NamedTuple):
    """A check that differs between two reports.

    Attributes:
        name: identifier of the check.
        kind: ``"failed"``: passed in the old report only; ``"bits"``: other bits with the same
            seed and shapes; ``"missing"``: not in the new report; ``"fixed"`` and ``"added"``.
        text: what differs, for a table.
    """

    name: str
    kind: str
    text: str

    @property
    def is_worse(self) -> bool:
        """True if it is a reason to look."""
        return self.kind in ("failed", "bits", "missing")


def read_report(path: Path) -> dict[str, Any]:
    """Return a report.

    Raises:
        ValueError: the file cannot be read, or is no report.
    """
    try:
        report = json.loads(path.read_text())
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(report, dict) or not {"results", "settings"} <= report.keys():
        raise ValueError(f"{path} is not a report of: fused-optim check --json")
    return report


def compare_reports(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[Difference]:
    """Return what differs in ``new``.

    Raises:
        ValueError: they were made with other shapes or another seed.
    """
    for name in ("shapes", "seed"):
        values = old["settings"].get(name), new["settings"].get(name)
        if values[0] != values[1]:
            raise ValueError(f"the reports have different {name}: {values[0]!r} and {values[1]!r}")
    before, after = ({one["name"]: one for one in report["results"]} for report in (old, new))
    found = [Difference(name, "missing", "not in the new report") for name in before.keys() - after]
    found += [Difference(name, "added", "not in the old report") for name in after.keys() - before]
    for name in before.keys() & after.keys():
        found += _compare(before[name], after[name])
    return sorted(found)


def _compare(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[Difference]:
    name, statuses = new["name"], (old["status"], new["status"])
    if statuses[0] != statuses[1] and "failed" in statuses:
        kind = "failed" if statuses[1] == "failed" else "fixed"
        return [Difference(name, kind, new["message"] or f"{statuses[1]}, was {statuses[0]}")]
    if old["digest"] != new["digest"]:
        return [Difference(name, "bits", f"{old['digest']} became {new['digest']}")]
    return []
