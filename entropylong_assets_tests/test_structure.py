"""Rules of the package's structure, read from its source."""

from __future__ import annotations

import ast
import re
import statistics
from collections.abc import Iterator
from pathlib import Path

import pytest

import entropylong_assets
from entropylong_assets.pipeline import STAGES

PACKAGE = Path(entropylong_assets.__file__).parent
MODULES = sorted(PACKAGE.rglob("*.py"))
MAX_PARAMETERS, MAX_LINES, MEDIAN_LINES = 8, 350, 150


def name_of(path: Path) -> str:
    return str(path.relative_to(PACKAGE))


def trees() -> Iterator[tuple[Path, ast.Module]]:
    for path in MODULES:
        yield path, ast.parse(path.read_text(encoding="utf-8"))


def folder_of_stage(name: str) -> Path:
    """The folder that declares a stage: that of the module with its `TableSet`."""
    declaring = [
        path.parent
        for path in PACKAGE.rglob("tables.py")
        if re.search(rf'TableSet\(\s*name="{name}"', path.read_text(encoding="utf-8"))
    ]
    assert len(declaring) == 1, name
    return declaring[0]


def test_dagster_is_imported_by_orchestration_alone() -> None:
    seen = 0
    for path in MODULES:
        if re.search(r"^\s*(import dagster|from dagster)", path.read_text(), re.MULTILINE):
            top = path.relative_to(PACKAGE).parts[0]
            assert top in ("orchestration", "cli", "component.py", "definitions.py"), path
            seen += 1
    assert seen > 10


def test_private_parts_of_dagster_are_used_by_two_modules_alone() -> None:
    using = {
        name_of(path)
        for path in MODULES
        if re.search(r"dagster(_\w+)?\._|dagster_internal_init|\bdg\._", path.read_text())
    }
    assert using == {"orchestration/launcher.py", "orchestration/run_origin.py"}


def docstrings(tree: ast.Module) -> set[int]:
    """Ids of the constants that are docstrings, of attributes too."""
    ids = set()
    for node in ast.walk(tree):
        for body in (getattr(node, "body", None), getattr(node, "orelse", None)):
            for statement in body if isinstance(body, list) else []:
                if isinstance(statement, ast.Expr):
                    ids.add(id(statement.value))
    return ids


@pytest.mark.parametrize("name", [stage.name for stage in STAGES])
def test_name_of_a_stage_is_written_in_its_folder_alone(name: str) -> None:
    """Everywhere else it comes from the declaration, so that no second list of stages exists."""
    own = folder_of_stage(name)
    others = []
    for path, tree in trees():
        if own in path.parents:
            continue
        skipped = docstrings(tree)
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and node.value == name and id(node) not in skipped:
                others.append(f"{name_of(path)}:{node.lineno}")
            # A field or attribute of this name would be a second list as well.
            if isinstance(node, ast.Attribute) and node.attr == name and name != "report":
                others.append(f"{name_of(path)}:{node.lineno}")
    assert others == []


def test_the_list_of_stages_is_in_the_order_of_the_data() -> None:
    for number, stage in enumerate(STAGES):
        assert set(stage.inputs) <= set(STAGES[:number]), stage.name
    assert len({stage.name for stage in STAGES}) == len(STAGES)


def test_functions_have_few_parameters() -> None:
    many = []
    for path, tree in trees():
        for node in ast.walk(tree):
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
                continue
            if any("triton.jit" in ast.unparse(d) for d in getattr(node, "decorator_list", ())):
                continue  # a kernel takes pointers and sizes one by one
            arguments = node.args
            given = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
            names = [a.arg for a in given if a.arg not in ("self", "cls")]
            if len(names) > MAX_PARAMETERS:
                many.append(f"{name_of(path)}:{node.lineno} {getattr(node, 'name', 'lambda')}")
    assert many == []


def test_modules_are_short() -> None:
    lines = {name_of(path): len(path.read_text().splitlines()) for path in MODULES}
    assert {name: n for name, n in lines.items() if n > MAX_LINES} == {}
    assert statistics.median(n for n in lines.values() if n) < MEDIAN_LINES
