"""The house itself: imports run in one direction, nobody reads the config below assembly, files stay short."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ORDER = (
    "errors pickles process kernel noise denoiser ideal moments ms_eps gaussian variance shortest_path planning "
    "trajectory solver sampler likelihood cost_table objective nn run"
).split()
SOURCES = sorted(p for folder in ("adpm", "sde", "covariance") for p in (ROOT / folder).rglob("*.py"))


def imported(path: Path) -> set[str]:
    """Modules that a file imports, dotted."""
    out: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            out |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            out |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return out


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_run_down_the_list(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    forbidden = {"adpm": ("sde", "covariance"), "sde": ("covariance",), "covariance": ("sde",)}[parts[0]]
    modules = imported(path)
    assert not [m for m in modules if m.split(".")[0] in (*forbidden, "configs", "tests", "benchmarks", "main")]
    if parts[0] == "adpm" and len(parts) > 1 and parts[1] != "__init__":
        rank = ORDER.index(parts[1])
        later = {m.split(".")[1] for m in modules if m.startswith("adpm.")} & set(ORDER[rank + 1 :])
        assert not later, f"{path.name} imports {later}, which stand further down"


def test_every_module_has_its_place():
    assert {p.stem for p in (ROOT / "adpm").glob("*.py")} - {"__init__"} == set(ORDER) - {"nn", "run"}


@pytest.mark.parametrize("path", [p for p in SOURCES if "run" not in p.parts], ids=lambda p: str(p.relative_to(ROOT)))
def test_mathematics_neither_reads_configs_nor_talks(path):
    modules = imported(path)
    assert not [m for m in modules if m.split(".")[0] in ("ml_collections", "absl", "logging", "tqdm", "tensorboard")]
    calls = {
        node.func.id
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    }
    assert "print" not in calls


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_no_name_is_compared_with_a_string(path):
    """Choices are made by looking up tables, not by comparing names."""
    found = [
        f"line {node.lineno}"
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Compare)
        for side in (node.left, *node.comparators)
        if isinstance(side, ast.Constant)
        and isinstance(side.value, str)
        and not side.value.startswith(".")
        and any(isinstance(op, (ast.Eq, ast.NotEq)) for op in node.ops)
    ]
    allowed = {"cli.py"}  # argument spelling
    assert path.name in allowed or not found, found
