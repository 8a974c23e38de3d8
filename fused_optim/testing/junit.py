"""Results of checks as JUnit XML, which CI systems show test by test."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree


def write_junit(
    path: Path, results: Sequence[Mapping[str, Any]], environment: Mapping[str, str]
) -> None:
    """Write one test case for each check.

    Args:
        path: file to write.
        results: results as :func:`fused_optim.testing.checks.describe_result` returns them.
        environment: versions and devices, which become properties.

    Raises:
        OSError: the file cannot be written.
    """
    counts = {"tests": len(results), "errors": 0}
    counts["failures"] = sum(result["status"] == "failed" for result in results)
    counts["skipped"] = sum(result["status"] == "skipped" for result in results)
    attributes = {name: str(count) for name, count in counts.items()}
    attributes["time"] = f"{sum(result['seconds'] for result in results):.3f}"
    suites = ElementTree.Element("testsuites", attributes)
    suite = ElementTree.SubElement(suites, "testsuite", {"name": "fused-optim check", **attributes})
    properties = ElementTree.SubElement(suite, "properties")
    for name, value in environment.items():
        ElementTree.SubElement(properties, "property", {"name": name, "value": value})
    for result in results:
        _add_case(suite, result)
    ElementTree.indent(suites)
    ElementTree.ElementTree(suites).write(path, encoding="utf-8", xml_declaration=True)


def _add_case(suite: ElementTree.Element, result: Mapping[str, Any]) -> None:
    attributes = {
        "classname": f"fused_optim.{result['optimizer']}",
        "name": result["name"],
        "time": f"{result['seconds']:.3f}",
    }
    case = ElementTree.SubElement(suite, "testcase", attributes)
    if result["status"] == "failed":
        failure = ElementTree.SubElement(case, "failure", {"message": result["message"]})
        failure.text = f"{result['message']}\n{result['command']}"
    elif result["status"] == "skipped":
        ElementTree.SubElement(case, "skipped", {"message": result["message"]})
