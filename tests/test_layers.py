"""Packages are layers: each imports only from those that docs/architecture.md lists before it."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
LAYERS = [*re.findall(r"^### `(\w+)`:", PAGE, flags=re.MULTILINE), "__main__"]
BELOW = {"errors": -2, "remarks": -1, "fusion": LAYERS.index("reasons") + 0.5}
"""Where modules stand that are in no package."""

SOURCES = sorted((ROOT / "repfuse").rglob("*.py"))


def layer(path: Path) -> float:
    """How high a module stands."""
    name = path.relative_to(ROOT / "repfuse").with_suffix("").parts[0]
    return BELOW[name] if name in BELOW else LAYERS.index(name)


def imports(tree: ast.AST) -> Iterator[ast.ImportFrom]:
    """What a module imports from repfuse when it runs: not what only its annotations name."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "repfuse":
            yield node
        yield from imports(node)


def targets(node: ast.ImportFrom) -> Iterator[float]:
    """The layers of what an import names."""
    parts = (node.module or "").split(".")[1:]
    for name in [parts[0]] if parts else [alias.name for alias in node.names]:
        if name in BELOW or name in LAYERS:
            yield BELOW[name] if name in BELOW else LAYERS.index(name)


@pytest.mark.parametrize(
    "path",
    [path for path in SOURCES if path != ROOT / "repfuse" / "__init__.py"],
    ids=lambda path: path.relative_to(ROOT / "repfuse").as_posix(),
)
def test_a_module_imports_from_lower_layers_only(path: Path) -> None:
    for node in imports(ast.parse(path.read_text(encoding="utf-8"))):
        assert all(each <= layer(path) for each in targets(node)), ast.unparse(node)
