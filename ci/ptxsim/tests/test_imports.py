"""Imports of the simulator, which run one way."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

FOLDER = Path(__file__).parents[1]


def imported_modules(path):
    """Return the names of the simulator's modules that a file imports, for types or at run time."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level == 1:
            names |= {node.module} if node.module else {alias.name for alias in node.names}
    return names


def test_no_import_circle():
    """Guard against modules whose import depends on the order of imports."""
    graph = {path.stem: imported_modules(path) for path in FOLDER.glob("*.py")}
    assert "state" in graph["decode"]
    assert "decode" in graph["program"]
    TopologicalSorter(graph).prepare()  # raises CycleError, with the circle
