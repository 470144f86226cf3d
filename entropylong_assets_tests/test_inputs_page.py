"""docs/inputs.md: every row names its tests, and the tests that it names exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

TESTS = Path(__file__).parent
PAGE = TESTS.parent / "docs" / "inputs.md"
TEXT = PAGE.read_text(encoding="utf-8")
COMMENT = re.compile(r"<!--(.*?)-->", re.DOTALL)


def known_names() -> set[str]:
    names: set[str] = set()
    for path in TESTS.rglob("test_*.py"):
        names.add(path.stem)
        tree = ast.parse(path.read_text(encoding="utf-8"))
        names |= {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    return names


def test_tests_that_the_page_names_exist() -> None:
    named = {name for c in COMMENT.findall(TEXT) for name in re.findall(r"\btest_\w+", c)}
    assert len(named) > 50
    assert named - known_names() == set()


def test_every_row_names_its_tests() -> None:
    """A comment names them in the row, or for a whole table in the same section above or below."""
    missing = []
    for section in re.split(r"^#+ ", TEXT, flags=re.MULTILINE):
        lines = section.splitlines()
        rows = [line for line in lines if line.startswith("|")]
        prose = "\n".join(line for line in lines if not line.startswith("|"))
        if not COMMENT.search(prose):
            heads = {i - 1 for i, line in enumerate(lines) if re.match(r"\|[ :-]+\|", line)}
            body = [lines[i] for i in range(len(lines)) if lines[i] in rows and i not in heads]
            missing += [r for r in body if not COMMENT.search(r) and not re.match(r"\|[ :-]+\|", r)]
    assert missing == []
