"""Tests of ci/contract_table.py, and of docs/contract.md against the tests in contract/."""

import ast
import re
from pathlib import Path

import pytest
from helpers.torch_pair import CLASSES

from ci import contract_table

ROOT = Path(__file__).parent.parent
TEST = '<testcase name="{name}"><properties>{properties}</properties>{outcome}</testcase>'


def junit(tmp_path, *tests):
    cases = ""
    for feature, optimizer, outcome in tests:
        given = {"feature": feature, "optimizer": optimizer}
        properties = "".join(
            f'<property name="{name}" value="{value}"/>' for name, value in given.items() if value
        )
        cases += TEST.format(name="test", properties=properties, outcome=outcome)
    path = tmp_path / "results.xml"
    path.write_text(f"<testsuites><testsuite>{cases}</testsuite></testsuites>")
    return path


def test_rows_and_columns(tmp_path):
    path = junit(
        tmp_path,
        ("hooks", "Adam", ""),
        ("hooks", "Adam", ""),
        ("hooks", "SGD", "<failure/>"),
        ("hooks", "all", ""),
        ("lr", "SGD", "<error/>"),
        ("lr", "SGD", "<skipped/>"),
    )
    result = contract_table.results(path)
    assert contract_table.table(result).splitlines() == [
        "| feature | `Adam` | `SGD` |",
        "| --- | --- | --- |",
        "| hooks | 3 | **1 of 2 failed** |",
        "| lr | - | **1 of 1 failed** |",
    ]
    assert "not met: hooks, lr" in contract_table.summary(result)


def test_main(tmp_path, monkeypatch, capsys):
    table = tmp_path / "contract.md"
    for outcome, code in (("", 0), ("<failure/>", 1)):
        path = junit(tmp_path, ("hooks", "Adam", outcome))
        monkeypatch.setattr("sys.argv", ["contract_table", str(path), "--output", str(table)])
        assert contract_table.main() == code
        assert ("all met" in capsys.readouterr().out) == (code == 0)
        assert table.read_text().startswith("# The contract with torch.optim")


def test_what_cannot_be_read(tmp_path):
    with pytest.raises(ValueError, match="the test 'test' names no feature"):
        contract_table.results(junit(tmp_path, ("", "Adam", "")))
    with pytest.raises(ValueError, match="no test has run"):
        contract_table.results(junit(tmp_path))


def test_the_table_has_every_feature_and_optimizer():
    """Guard against a new feature or optimizer that the committed table lacks."""
    features = set()
    for path in sorted((ROOT / "tests" / "contract").glob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "pytest.mark.feature":
                features.add(node.args[0].value)
    rows = (ROOT / "docs" / "contract.md").read_text().splitlines()
    table = [line.split(" | ") for line in rows if line.startswith("| ")]
    assert {line[0].removeprefix("| ") for line in table[2:]} == features
    assert set(re.findall(r"`(\w+)`", " ".join(table[0]))) == {c.fused.__name__ for c in CLASSES}
