"""The house itself: imports run in one direction, nobody reads the config below assembly, files stay short."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import adpm
from adpm.run.families import PACKAGES, house

ROOT = Path(__file__).parent.parent
ORDER = (
    "errors families reading ranks whole provenance pickles progress moving process kernel noise parametrisation "
    "denoiser classes guidance energies egsde ideal derivative draws gaussian_score mixture_fit moments target ms_eps "
    "basis transforms bases shrinkage scale coordinates coordinate_draws gaussian observations variance shortest_path "
    "prices costs planning published_split shortened solver inverse exponential multistep published_multistep start "
    "sampler reference fitting fitted trajectory ems ems_integrals dpm_solver_v3 neighbours likelihood cost_table "
    "objective members ems_measure drawing translation bound data_term paths jump explained plots conventions "
    "measured subject model completion diffusers nn formats run"
).split()
FOLDERS = ("adpm", "sde", "covariance")
SOURCES = {str(p.relative_to(ROOT)): p for folder in FOLDERS for p in sorted((ROOT / folder).rglob("*.py"))}
MODES = ("sde/mode.py", "sde/members.py")  # what a package adds to the modes; all else in it is mathematics
MATHEMATICS = [name for name in SOURCES if not name.startswith("adpm/run/") and name not in MODES]
MOST_LINES, MOST_OF_A_FUNCTION = 320, 45


def syntax(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def names_of(node: ast.AST) -> set[str]:
    """Modules that a statement imports, dotted; and what is imported from one, as if it were a module."""
    if isinstance(node, ast.Import):
        return {alias.name for alias in node.names}
    if isinstance(node, ast.ImportFrom) and node.module:
        return {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return set()


def imported(path: Path) -> set[str]:
    """Modules that a file imports anywhere."""
    return set().union(*(names_of(node) for node in ast.walk(syntax(path))))


def at_import(path: Path) -> set[str]:
    """Modules that are imported when this one is: not those that its functions import."""
    out, todo = set(), [*syntax(path).body]
    while todo:
        node = todo.pop()
        out |= names_of(node)
        if isinstance(node, (ast.If, ast.Try, ast.With)):
            todo += [child for child in ast.iter_child_nodes(node) if isinstance(child, ast.stmt)]
    return out


def module_of(name: str) -> str:
    return name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def functions(path: Path) -> Iterator[tuple[str, int]]:
    """Names of functions and their lines, docstrings left out."""
    for node in ast.walk(syntax(path)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            first = node.body[0]
            told = first.end_lineno - first.lineno + 1 if ast.get_docstring(node) is not None else 0
            yield node.name, node.end_lineno - node.lineno + 1 - told


@pytest.mark.parametrize("name", SOURCES)
def test_imports_run_down_the_list(name: str) -> None:
    parts, modules = Path(name).with_suffix("").parts, imported(SOURCES[name])
    forbidden = {"adpm": ("sde", "covariance"), "sde": ("covariance",), "covariance": ("sde",)}[parts[0]]
    assert not [m for m in modules if m.split(".")[0] in (*forbidden, "configs", "tests", "benchmarks", "main")]
    if parts[0] == "adpm" and parts[1] != "__init__":
        rank = ORDER.index(parts[1])
        later = {m.split(".")[1] for m in modules if m.startswith("adpm.")} & set(ORDER[rank + 1 :])
        assert not later, f"{name} imports {later}, which stand further down"
    if parts[0] != "adpm" and name not in MODES:
        assert not [m for m in modules if m.startswith("adpm.run")]


def test_every_module_has_its_place() -> None:
    """In the list, and in the one that the package shows its readers."""
    assert {p.stem for p in (ROOT / "adpm").glob("*.py")} - {"__init__"} == set(ORDER) - {
        "diffusers",
        "nn",
        "formats",
        "run",
    }
    told = re.search(r"run down this list: ([^.]*)\.", adpm.__doc__ or "")
    assert told is not None and told.group(1).replace("\n", " ").split(", ") == ORDER


def test_what_runs_the_mathematics_has_no_circle() -> None:
    """Of adpm/run, and of what the packages beside adpm/ add to it."""
    files = {module_of(name): path for name, path in SOURCES.items()}
    graph = {module: (at_import(path) & files.keys()) - {module} for module, path in files.items() if module != "adpm"}
    for module in PACKAGES:  # imported by name
        graph["adpm.run.families"].add(module)
        assert graph[module], f"{module} has members of its package"
    try:
        order = list(TopologicalSorter(graph).static_order())
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))
    assert order.index("adpm.run.assembly") < order.index("adpm.run.commands")


@pytest.mark.parametrize("name", MATHEMATICS)
def test_mathematics_neither_reads_configs_nor_talks(name: str) -> None:
    """Nor do its messages know of config fields: they name parameters, and the border translates."""
    tree, forbidden = syntax(SOURCES[name]), {"ml_collections", "absl", "logging", "tqdm", "tensorboard"}
    if name == "adpm/progress.py":
        forbidden.remove("tqdm")  # the one bar that all long work shows
    assert not {m.split(".")[0] for m in imported(SOURCES[name])} & forbidden
    calls = {n.func.id for n in ast.walk(tree) if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)}
    assert "print" not in calls
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef)
    told = {id(n.body[0].value) for n in ast.walk(tree) if isinstance(n, documented) and ast.get_docstring(n)}
    strings = [n for n in ast.walk(tree) if isinstance(n, ast.Constant) and isinstance(n.value, str)]
    fields = re.compile(r"\bconfig\.(?!json\b)")  # diffusers has files of that name
    assert not [f"line {n.lineno}" for n in strings if id(n) not in told and fields.search(n.value)]


@pytest.mark.parametrize("name", [*SOURCES, *(f"configs/{p.name}" for p in sorted((ROOT / "configs").glob("*.py")))])
def test_files_and_functions_are_short(name: str) -> None:
    path = ROOT / name
    assert len(path.read_text().splitlines()) < MOST_LINES
    assert not {function: lines for function, lines in functions(path) if lines >= MOST_OF_A_FUNCTION}


@pytest.mark.parametrize("name", sorted(SOURCES.keys() - {"adpm/run/fields.py", "adpm/run/compare/fields.py"}))
def test_nobody_keeps_a_list_of_config_fields(name: str) -> None:
    """What a field is part of stands with the field, what a member reads with the member; nobody lists them again."""
    fields, found = {field for field in house().table.names if "." in field}, []
    todo: list[ast.AST] = [n for n in syntax(SOURCES[name]).body if isinstance(n, (ast.Assign, ast.AnnAssign))]
    while todo:
        node = todo.pop()
        if isinstance(node, ast.keyword) and node.arg == "reads":
            continue
        inside = list(ast.iter_child_nodes(node))
        if isinstance(node, (ast.Tuple, ast.List, ast.Set, ast.Dict)):
            told = {n.value for n in inside if isinstance(n, ast.Constant)} & fields
            found += [f"line {node.lineno}: {sorted(told)}"] if len(told) >= 3 else []
        todo += inside
    assert not found


@pytest.mark.parametrize("name", SOURCES)
def test_no_name_is_compared_with_a_string(name: str) -> None:
    """Choices are made by looking up tables, not by comparing names."""
    found = [
        f"line {node.lineno}"
        for node in ast.walk(syntax(SOURCES[name]))
        if isinstance(node, ast.Compare)
        for side in (node.left, *node.comparators)
        if isinstance(side, ast.Constant)
        and isinstance(side.value, str)
        and not side.value.startswith(".")
        and any(isinstance(op, (ast.Eq, ast.NotEq)) for op in node.ops)
    ]
    allowed = {"cli.py"}  # argument spelling
    assert Path(name).name in allowed or not found, found


def test_every_package_is_installed() -> None:
    """`pip install` copies what pyproject names."""
    text = (ROOT / "pyproject.toml").read_text()
    named = re.search(r"\[tool\.setuptools\]\npackages = \[(.*?)\]", text, re.S)
    assert named is not None
    there = {
        ".".join(p.parent.relative_to(ROOT).parts)
        for d in (*FOLDERS, "configs")
        for p in (ROOT / d).rglob("__init__.py")
    }
    assert {name.strip().strip('"') for name in named[1].split(",")} == there
