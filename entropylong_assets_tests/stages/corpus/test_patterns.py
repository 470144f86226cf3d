"""Patterns match the same names as in a shell, applied to one name of a path after the other."""

from __future__ import annotations

import glob
import re
import subprocess
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from entropylong_assets.stages.corpus.errors import CorpusError
from entropylong_assets.stages.corpus.patterns import Pattern, expand_alternatives, is_hidden


def matches(pattern: str, path: str) -> bool:
    compiled = Pattern(f"[r]oot/{pattern}")
    states = compiled.step(compiled.start(), "root")
    for name in path.split("/"):
        states = compiled.step(states, name)
    return compiled.accepts(states)


def joined(parts: list[str]) -> str:
    return "".join(parts)


# Braces with at least two alternatives, also nested. bash treats other braces differently.
BRACES = st.recursive(
    st.text("ab/*,", max_size=3).map(lambda text: text.replace(",", "")),
    lambda inner: st.lists(
        inner | st.lists(inner, min_size=2, max_size=3).map(lambda o: "{" + ",".join(o) + "}"),
        max_size=3,
    ).map(joined),
    max_leaves=8,
)


@settings(max_examples=60, deadline=None)
@given(pattern=BRACES)
def test_expand_alternatives_agrees_with_bash(pattern: str) -> None:
    shown = subprocess.run(
        ["bash", "-c", f"set -f; printf '%s\\n' x{pattern}y"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert expand_alternatives(f"x{pattern}y") == list(dict.fromkeys(shown.stdout.split()))


@pytest.mark.parametrize("pattern", ["a{b}c", "a{b", "a}b", "{}", "a{1.jsonl", "{a,b"])
def test_braces_without_alternatives_stand_for_themselves(pattern: str) -> None:
    assert expand_alternatives(pattern) == [pattern]


def test_expand_alternatives_are_bounded() -> None:
    assert len(expand_alternatives("{a,b}" * 9)) == 512
    with pytest.raises(CorpusError, match="stand for more than 1,000 patterns"):
        expand_alternatives("{a,b}" * 40)


NAMES = st.sampled_from(["a", "ab", "b.x", "[a]", "a b", "é", "%20", "#", "q?"])
PARTS = st.sampled_from(["**", "*", "a*", "?", "[ab]*", "[!a]*", "a", "*.x", "[[]a]", "%*"])


@settings(max_examples=150, deadline=None)
@given(
    paths=st.sets(st.lists(NAMES, min_size=1, max_size=3).map("/".join), min_size=1, max_size=8),
    parts=st.lists(PARTS, min_size=1, max_size=4),
)
def test_patterns_match_what_python_globs(paths: set[str], parts: list[str]) -> None:
    """The oracle is Python's own glob over real files; it reads a last `**` as folders, too."""
    pattern = "/".join(parts)
    with tempfile.TemporaryDirectory() as folder:
        # Files end with ~, so that no name is a file and a folder.
        for path in paths:
            (Path(folder) / f"{path}~").parent.mkdir(parents=True, exist_ok=True)
            (Path(folder) / f"{path}~").touch()
        tail = "" if parts[-1] in ("**", "*", "a*", "[ab]*", "[!a]*", "%*") else "~"
        globbed = glob.glob(f"{pattern}{tail}", root_dir=folder, recursive=True)
        expected = {path for path in globbed if (Path(folder) / path).is_file()}
        assert {p for p in (f"{p}~" for p in paths) if matches(pattern + tail, p)} == expected


@pytest.mark.parametrize(
    ("pattern", "path", "is_match"),
    [
        ("*", ".a", False),
        ("*", "_a", False),
        (".*", ".a", True),
        ("_*", "_a", True),
        ("[._]*", "_a", False),
        ("_x/*", "_x/a", True),
        ("**", "_x/a", False),
        ("**", "a/.x/b", False),
        ("**/_x/*", "a/_x/b", True),
        ("**", "_year=2024/a", True),
        ("[^a]", "b", True),
        ("[^a]", "a", False),
        ("a[", "a[", True),
        ("A*", "a", False),
    ],
)
def test_hidden_names_match_only_what_is_written(pattern: str, path: str, is_match: bool) -> None:
    assert matches(pattern, path) == is_match


def test_is_hidden_follows_spark() -> None:
    # Of Spark's HadoopFSUtils.shouldFilterOutPathName.
    hidden = [
        name for name in (".a", "_SUCCESS", "_a=1", "a_", "a.b", "..", "_=") if is_hidden(name)
    ]
    assert hidden == [".a", "_SUCCESS"]


@pytest.mark.parametrize(
    ("pattern", "root", "is_bare", "ending"),
    [
        ("x/y/*", "x/y", True, ""),
        ("x/**", "x", True, ""),
        ("x/*/", "x", True, ""),
        ("x/**/*.*", "x", True, ""),
        ("x/*.json.gz", "x", False, ".json.gz"),
        ("x/part-[0-9]*", "x", False, ""),
        ("x/a[0-9].dat", "x", False, ".dat"),
        ("*/b/README.md", "", False, "README.md"),
    ],
)
def test_pattern_knows_its_root_and_what_it_asks_for(
    pattern: str, root: str, is_bare: bool, ending: str
) -> None:
    compiled = Pattern(pattern)
    assert (compiled.root, compiled.is_bare, compiled.ending) == (root, is_bare, ending)


def test_question_marks_of_urls_are_no_wildcards() -> None:
    url = "https://host/a.jsonl?download=1"
    assert Pattern(url, question_marks=False).is_literal
    assert not Pattern(url).is_literal
    assert re.fullmatch("x[?]", "x?")
