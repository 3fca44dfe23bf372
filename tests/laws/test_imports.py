"""Imports point one way; this draws the arrows."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "pipeline" / "afterfit"
JOBS = PACKAGE.parents[1] / "jobs"
ROOTS = [PACKAGE, JOBS, PACKAGE.parents[1] / "tests"]

BASE = {"algebra", "arithmetic", "errors", "frozen", "layout", "lazy", "precision", "resources", "seeds"}
"""Files beside the folders, which all may import; they import each other only."""

MAY_IMPORT: dict[str, set[str]] = {
    "base": set(),
    "linalg": {"base"},
    "network": {"base"},
    "store": {"base"},
    "rows": {"base", "network"},
    "posterior": {"base", "linalg"},
    "training": {"base", "network", "posterior"},
    "methods": {"base", "linalg", "network", "rows", "posterior", "training"},
    "predict": {"base", "linalg", "network", "rows", "posterior", "training"},
    "data": {"base", "store"},
    "engine": {"base", "store"},
    "report": {"base", "store"},
    "plan": {
        *("base", "linalg", "network", "store", "rows", "posterior", "training"),
        *("methods", "predict", "data", "engine", "report"),
    },
    "cli": {"plan", "base"},
    "jobs": {"plan", "base", "cli", "__init__"},
    "__init__": {"plan", "base", "methods"},
}
"""Layer -> the layers it may import besides its own. The same table stands in CONTRIBUTING.md."""

MAX_LINES = 400

MODULES = sorted(path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py"))


def layer_of(parts: tuple[str, ...]) -> str:
    """Of a module's path, or dotted name, below the package."""
    first = parts[0].removesuffix(".py") if parts else "__init__"
    return "base" if first in BASE else first


def imported(source: str, package: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """Absolute dotted names that a file imports, wherever in the file; `package` is the folder it lies in."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield tuple(alias.name.split("."))
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = (*base, *(node.module or "").split(".")) if node.module else base
            for alias in node.names:
                yield (*module, alias.name)


def layers_in(names: set[tuple[str, ...]]) -> set[str]:
    """The layers of this package among imported names; what the root gives is `__init__`."""
    ours = {layer_of(name[1:]) for name in names if name[0] == "afterfit"}
    return {layer if layer in MAY_IMPORT else "__init__" for layer in ours}


def imports_of(module: Path) -> set[tuple[str, ...]]:
    return set(imported((PACKAGE / module).read_text(), ("afterfit", *module.parent.parts)))


def test_every_layer_is_in_the_table():
    layers = {layer_of(module.parts) for module in MODULES}
    assert layers <= set(MAY_IMPORT), f"not in the table: {layers - set(MAY_IMPORT)}"


def test_the_table_has_no_circle():
    settled: set[str] = set()
    while ready := {layer for layer, below in MAY_IMPORT.items() if below <= settled} - settled:
        settled |= ready
    assert settled == set(MAY_IMPORT)


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_imports_only_point_down(module):
    layer = layer_of(module.parts)
    wrong = layers_in(imports_of(module)) - {layer} - MAY_IMPORT[layer]
    assert not wrong, f"{module} is in {layer}, which may not import {', '.join(sorted(wrong))}"


def test_jobs_stand_on_the_plan_alone():
    for page in sorted(JOBS.glob("*.py")):  # benchmarks and reproductions, in folders below, may look inside
        names = set(imported(page.read_text(), ()))
        assert layers_in(names) <= MAY_IMPORT["jobs"], page
        assert not [name for name in names if name[0] in {"ray", "torch"}], page


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_only_the_engine_imports_ray(module):
    if layer_of(module.parts) != "engine":
        assert not [name for name in imports_of(module) if name[0] == "ray"]


def test_reading_the_imports_sees_every_form_of_them():
    source = (
        "import ray.data\nimport os, json as j\nfrom afterfit.plan import config\nfrom . import tree\n"
        "from ..store.keys import key\ndef late():\n    from afterfit.rows import row_backend\n"
    )
    assert set(imported(source, ("afterfit", "engine"))) == {
        ("ray", "data"),
        ("os",),
        ("json",),
        ("afterfit", "plan", "config"),
        ("afterfit", "engine", "tree"),
        ("afterfit", "store", "keys", "key"),
        ("afterfit", "rows", "row_backend"),
    }


def test_reading_a_configuration_does_not_load_torch():
    code = (
        "import sys, afterfit.plan.config\n"
        "loaded = {'torch', 'ray', 'transformers'} & set(sys.modules)\n"
        "assert not loaded, loaded"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=PACKAGE.parent)
    assert done.returncode == 0, done.stderr


def test_no_file_is_too_long():
    lengths = {path: len(path.read_text().splitlines()) for root in ROOTS for path in root.rglob("*.py")}
    assert len(lengths) > len(MODULES)
    assert not {str(path): length for path, length in lengths.items() if length > MAX_LINES}
