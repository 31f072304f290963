"""Imports point downwards only, by reading every file's imports."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "distiller_ng"
LEVELS = [
    {"errors", "registry", "names"},
    {"ops", "graph", "core"},
    {
        "pruning",
        "regularization",
        "learning_rate",
        "quantization",
        "knowledge_distillation",
        "thinning",
        "data_loggers",
        "modules",
        "norms",
        "thresholding",
    },
    {"policies", "checkpoint"},
    {"config", "export", "reports"},
    {"automatic"},
    {
        "integrations",
        "models",
        "apputils",
        "cli",
        "utils",
        "directives",
        "early_exit",
        "policy",
        "scheduler",
        "model_summaries",
        "model_transforms",
        "summary_graph",
        "compat",
        "",
    },
]
LEVEL_OF = {name: level for level, names in enumerate(LEVELS) for name in names}
# Siblings of these levels never import each other, but for the pairs named here.
SEPARATE_LEVELS = {2}
ALLOWED_SIBLINGS = {
    ("pruning", "data_loggers"),
    ("quantization", "data_loggers"),
    ("quantization", "modules"),
    ("data_loggers", "modules"),
}
FILES = sorted(PACKAGE.rglob("*.py"))


def part_of(module: str) -> str:
    pieces = module.split(".")
    return pieces[1] if len(pieces) > 1 else ""


def imported(path: Path) -> list[str]:
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            if node.module == "distiller_ng":
                found += [f"distiller_ng.{alias.name}" for alias in node.names]
            elif node.module:
                found.append(node.module)
    return [name for name in found if name.split(".")[0] == "distiller_ng"]


def own_part(path: Path) -> str:
    relative = path.relative_to(PACKAGE)
    if len(relative.parts) > 1:
        return relative.parts[0]
    return "" if relative.stem == "__init__" else relative.stem


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_downwards(path):
    own = own_part(path)
    assert own in LEVEL_OF, f"{own!r} has no level: add it to LEVELS"
    for module in imported(path):
        part = part_of(module)
        if part == own:
            continue
        assert part in LEVEL_OF, f"{path}: imports {module}, which has no level"
        assert LEVEL_OF[part] <= LEVEL_OF[own], f"{path}: {own} may not import {part} above it"
        if LEVEL_OF[part] == LEVEL_OF[own] and LEVEL_OF[own] in SEPARATE_LEVELS:
            assert (own, part) in ALLOWED_SIBLINGS, f"{path}: siblings {own} and {part} must not know each other"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_pydantic_stays_in_config(path):
    if own_part(path) == "config":
        return
    source = path.read_text()
    names = {
        name.split(".")[0]
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in ([a.name for a in node.names] if isinstance(node, ast.Import) else [node.module or ""])
    }
    assert "pydantic" not in names


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_files_and_functions_stay_short(path):
    lines = path.read_text().splitlines()
    assert len(lines) <= 450, f"{path}: {len(lines)} lines"
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef):
            first = node.body[1] if ast.get_docstring(node) and len(node.body) > 1 else node.body[0]
            length = (node.end_lineno or 0) - first.lineno + 1
            assert length <= 45, f"{path}:{node.lineno}: {node.name} has {length} lines"
