"""Write the results of ``ci/gpu.sh`` to summary.json and summary.md: ``gpu_report.py DIR SECONDS``.

``gpu_report.py --check`` prints the GPU, or exits with status 1 and the reason why there is none.
"""

import importlib.metadata
import json
import platform
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import torch

PACKAGES = ("torch", "triton", "numpy", "pytest", "pytest-benchmark")


def why_no_gpu() -> str | None:
    """Return the reason why no GPU can be used, or None."""
    if torch.cuda.is_available():
        return None
    if torch.version.cuda is None and torch.version.hip is None:
        return f"torch {torch.__version__} is built without CUDA or ROCm"
    return f"torch {torch.__version__} (CUDA {torch.version.cuda}) finds no device"


def version(package: str) -> str | None:
    """Return the installed version of a package, or None."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def git(*arguments: str) -> str | None:
    """Return the output of a git command in this checkout, or None if it fails."""
    command = ["git", "-C", str(Path(__file__).parent), *arguments]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def machine() -> dict[str, Any]:
    """Return device, versions and commit by name."""
    found: dict[str, Any] = {"device": None, "why no device": why_no_gpu()}
    if found["why no device"] is None:
        device = torch.cuda.get_device_properties(0)
        found |= {
            "device": device.name,
            "capability": f"{device.major}.{device.minor}",
            "memory_gib": round(device.total_memory / 2**30, 1),
            "multiprocessors": device.multi_processor_count,
        }
    found |= {"cuda": torch.version.cuda, "python": platform.python_version()}
    found |= {package: version(package) for package in PACKAGES}
    # ROCm and CUDA wheels of torch bring triton under another name
    found["triton"] = found["triton"] or getattr(__import__("triton"), "__version__", None)
    found["commit"] = git("rev-parse", "HEAD")
    found["changed"] = bool(git("status", "--porcelain", "--untracked-files=no"))
    return found


def tests(folder: Path) -> dict[str, Any]:
    """Return the counts of all shards, and the names of failed and skipped tests."""
    counts: dict[str, Any] = {"passed": 0, "failed": [], "skipped": [], "seconds": 0.0}
    for path in sorted(folder.glob("tests-*.xml")):
        for case in ElementTree.parse(path).getroot().iter("testcase"):
            name = f"{case.get('classname', '').split('.')[-1]}::{case.get('name')}"
            counts["seconds"] += float(case.get("time", 0))
            kinds = {child.tag for child in case}
            if kinds & {"failure", "error"}:
                counts["failed"].append(name)
            elif "skipped" in kinds:
                counts["skipped"].append(name)
            else:
                counts["passed"] += 1
    counts["seconds"] = round(counts["seconds"], 1)
    # a shard that was stopped leaves its log and no results
    logs = {path.stem for path in folder.glob("tests-*.log")}
    counts["shards"] = len(logs)
    counts["unfinished_shards"] = sorted(logs - {p.stem for p in folder.glob("tests-*.xml")})
    return counts


def benchmarks(folder: Path) -> list[dict[str, Any]]:
    """Return median, quartile range and extra information of each benchmark."""
    path = folder / "benchmarks.json"
    if not path.exists() or not path.stat().st_size:
        return []
    return [
        {
            "name": item["fullname"].split("/")[-1],
            "median_ms": item["stats"]["median"] * 1e3,
            "iqr_ms": item["stats"]["iqr"] * 1e3,
            "rounds": item["stats"]["rounds"],
            **{k: v for k, v in item["extra_info"].items() if isinstance(v, (int, float, str))},
        }
        for item in json.loads(path.read_text())["benchmarks"]
    ]


def why_no_benchmarks() -> str:
    """Return the report's sentence about missing benchmark results."""
    missing = version("pytest-benchmark") is None
    return "No benchmarks" + (": pytest-benchmark is not installed." if missing else ".")


def table(rows: list[dict[str, Any]]) -> list[str]:
    """Return the lines of a Markdown table with a column per key; none for no rows."""
    if not rows:
        return []
    columns = list(dict.fromkeys(key for row in rows for key in row))
    lines = [columns, ["---"] * len(columns)]
    for row in rows:
        values = [row.get(column, "") for column in columns]
        lines.append([f"{v:.4g}" if isinstance(v, float) else str(v) for v in values])
    return [f"| {' | '.join(line)} |" for line in lines]


def write(folder: Path, seconds: float) -> bool:
    """Write both files; return True if no test failed and every shard finished."""
    found = {
        "machine": machine(),
        "seconds": seconds,
        "tests": tests(folder),
        "benchmarks": benchmarks(folder),
    }
    (folder / "summary.json").write_text(json.dumps(found, indent=1) + "\n")
    result, host = found["tests"], found["machine"]
    lines = [f"# {host['device'] or 'No GPU'}", ""]
    lines += [f"- {name}: {value}" for name, value in host.items() if value is not None]
    lines += [
        "",
        f"Tests: {result['passed']} passed, {len(result['failed'])} failed, "
        f"{len(result['skipped'])} skipped, {result['seconds']} s in {result['shards']} processes; "
        f"{seconds:.0f} s for everything.",
        "",
        *(f"- FAILED {name}" for name in result["failed"]),
        *(f"- UNFINISHED {name}" for name in result["unfinished_shards"]),
    ]
    lines += ["", *(table(found["benchmarks"]) or [why_no_benchmarks()])]
    (folder / "summary.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines[:2] + lines[len(host) + 3 :]))
    print(f"written: {folder}/summary.json, {folder}/summary.md")
    return not result["failed"] and not result["unfinished_shards"]


def main(arguments: list[str]) -> int:
    """Run the command; return its exit status."""
    if arguments == ["--check"]:
        reason = why_no_gpu()
        print(f"no GPU: {reason}" if reason else f"GPU: {torch.cuda.get_device_name(0)}")
        return reason is not None
    folder, seconds = arguments
    return not write(Path(folder), float(seconds))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
