"""JSON in its layouts: a list, objects, JSON Lines; broken ones lose no row silently."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from entropylong_assets.stages.corpus.json_scanner import JsonScanner
from entropylong_assets.stages.corpus.readers import count_rows, read_rows
from entropylong_assets.stages.corpus.rows import REMEDIES, BadRow, Item, Row
from entropylong_assets.stages.corpus.settings import SourceSettings

ROWS: list[dict[str, Any]] = [
    {"text": 'a, "b" } ] {\\', "meta": {"tags": [{"x": 1}, {"x": [2, {}]}], "n": None}},
    {"text": "two\nlines\té 🙂", "meta": {}},
    {"text": "", "meta": {"}": "{"}},
    {"text": "last", "other": [[], [[]], {"a": {"b": {}}}]},
]


def read(folder: Path, content: str | bytes, name: str = "a.json", **values: Any) -> list[Item]:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    kind = name.partition(".")[2]
    source = SourceSettings(name="s", uri=str(path), **values)
    items = list(read_rows(str(path), kind, source))
    count = count_rows(str(path), kind)
    pieces = [i for at in range(count) for i in read_rows(str(path), kind, source, at, at + 1)]
    assert pieces == items
    assert all(item.reason in REMEDIES for item in items if isinstance(item, BadRow))
    return items


def texts(items: list[Item]) -> list[str]:
    return [item.text for item in items if isinstance(item, Row)]


def reasons(items: list[Item]) -> list[str]:
    return [item.reason for item in items if isinstance(item, BadRow)]


LAYOUTS = {
    "list": json.dumps,
    "indented list": lambda rows: json.dumps(rows, indent=2, ensure_ascii=False),
    "list, an element per line": lambda rows: "[" + ",\n".join(map(json.dumps, rows)) + "\n]\n",
    "lines": lambda rows: "\n".join(map(json.dumps, rows)),
    "lines with CR LF": lambda rows: "".join(json.dumps(row) + "\r\n" for row in rows),
    "objects over several lines": lambda rows: "\n".join(json.dumps(r, indent=1) for r in rows),
    "objects after each other": lambda rows: "".join(map(json.dumps, rows)),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_of_json_is_read(tmp_path: Path, layout: str) -> None:
    content = LAYOUTS[layout](ROWS)
    expected = [row["text"] for row in ROWS]
    assert texts(read(tmp_path, content)) == expected
    assert texts(read(tmp_path, b"\xef\xbb\xbf" + content.encode())) == expected
    assert texts(read(tmp_path, LAYOUTS[layout](ROWS[:1]))) == expected[:1]


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=8,
)


@settings(max_examples=150, deadline=None)
@given(
    rows=st.lists(st.dictionaries(st.text(max_size=3), VALUES, min_size=1), max_size=5),
    layout=st.sampled_from(sorted(LAYOUTS)),
    cuts=st.lists(st.integers(1, 20), min_size=1),
)
def test_pieces_of_any_size_give_the_same_elements(
    rows: list[dict[str, Any]], layout: str, cuts: list[int]
) -> None:
    content = LAYOUTS[layout](rows).encode()
    scanner, elements, at = JsonScanner(), [], 0
    while at < len(content):
        cut = cuts[at % len(cuts)]
        elements += list(scanner.feed(content[at : at + cut]))
        at += cut
    elements += list(scanner.finish())
    assert [element.problem for element in elements] == [None] * len(rows)
    assert [json.loads(element.content) for element in elements] == rows


BROKEN: dict[str, tuple[str, list[str], list[str]]] = {
    "an element that is none": ('[{"text": "a"}, 5, "x", [1], null, {"text": "b"}]', ["a", "b"],
                                ["broken_json"] * 4),
    "an element that is no JSON": ('[{"text": "a"}, {oops}, {"text": "b"}]', ["a", "b"],
                                   ["broken_json"]),
    "an element without text": ('[{"text": "a"}, {"txt": "b"}]', ["a"], ["missing_field"]),
    "a comma too many": ('[{"text": "a"},, {"text": "b"},]', ["a", "b"], ["broken_json"] * 2),
    "commas only": ("[,]", [], ["broken_json"] * 2),
    "no closing bracket": ('[{"text": "a"}, {"text": "b"}', ["a", "b"], ["broken_json"]),
    "cut within an element": ('[{"text": "a"}, {"text": "b', ["a"], ["broken_json"]),
    "cut within a key": ('[{"text": "a"},\n {"te', ["a"], ["broken_json"]),
    "a bracket that is never closed": (
        '[{"text": "a"}, {"n": [1, {"text": "b"}, {"text": "c"}, {"text": "d"}]', ["a"],
        ["broken_json", "swallowed_json", "swallowed_json"]),
    "a quote that is never closed": (
        '[\n{"text": "a},\n{"text": "b"},\n{"text": "c"}\n]', [],
        ["broken_json", "broken_json", "swallowed_json"]),
    "more after the list": ('[{"text": "a"}]\n[{"text": "b"}, {"text": "c"}]', ["a"],
                            ["broken_json", "swallowed_json"]),
    "a bracket too many": ('[{"text": "a"}}, {"text": "b"}, {"text": "c"}]', ["a"],
                           ["broken_json", "swallowed_json"]),
    "objects with commas": ('{"text": "a"},\n{"text": "b"},\n{"text": "c"}', ["c"],
                            ["broken_json"] * 2),
    "lines, the first broken": ('{"text": "a"\n{"text": "b"}\n{"text": "c"}\n', ["b", "c"],
                                ["broken_json"]),
    "indented objects, the last cut": ('{\n "text": "a"\n}\n{\n "text": "b"\n', ["a"],
                                       ["broken_json"]),
    "no JSON": ("some text", [], ["broken_json"]),
    "a value that is no object": ("5", [], ["broken_json"]),
    "an object without text": ("{}", [], ["missing_field"]),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_broken_json_is_reported_row_by_row(tmp_path: Path, case: str) -> None:
    content, good, bad = BROKEN[case]
    items = read(tmp_path, content)
    assert texts(items) == good
    assert reasons(items) == bad


def test_a_list_in_json_lines_names_the_right_kind(tmp_path: Path) -> None:
    items = read(tmp_path, '[\n{"text": "a"},\n{"text": "b"}\n]\n', "a.jsonl")
    assert isinstance(items[0], BadRow)
    assert "if the file holds a list, set the source's kind to 'json'" in items[0].detail


# One row of JSON Lines, and the text or the details of the problem.
VALUES_OF_TEXT: list[tuple[str, str]] = [
    ('{"text": ["a", "b"]}', "the text is a list, not a string"),
    ('{"text": 5}', "the text is a number, not a string"),
    ('{"text": NaN}', "the text is a number, not a string"),
    ('{"text": null}', "the text is null"),
    ('{"text": "a", "score": NaN, "n": Infinity}', "a"),
    ('{"text": "a", "n": ' + "1" * 5000 + "}", "a"),
    ('{"text": "a\\ud800b"}', "a\ud800b"),  # removed when the text is put in canonical form
    ('{"text": "\\ud83d\\ude42"}', "🙂"),
    ('{"text": "a\\u0000b"}', "a\0b"),
    ('{"text": "a", "text": "b"}', "there are two fields 'text'"),
    ('{"text": "a", "n": 1, "n": 2}', "a"),
    ('{"text": "a", "n": ' + "[" * 100_000 + "]" * 100_000 + "}", "not JSON: maximum recursion"),
    ('{"text": "a", "n": ' + '{"a":' * 99_999 + "1" + "}" * 100_000, "not JSON: maximum recursion"),
    ('{"text": "a"}\r{"text": "b"}', "not JSON: Extra data"),
    ('{"text": "a\tb"}', "not JSON: Invalid control character"),
]  # fmt: skip


@pytest.mark.parametrize("layout", [".jsonl", ".json"])
@pytest.mark.parametrize(("row", "found"), VALUES_OF_TEXT, ids=range(len(VALUES_OF_TEXT)))
def test_values_that_json_allows_and_python_stumbles_over(
    tmp_path: Path, row: str, found: str, layout: str
) -> None:
    content = row if layout == ".jsonl" else f"[{row}]"
    items = read(tmp_path, content, f"a{layout}")
    (item,) = items[:1]
    assert (item.text if isinstance(item, Row) else item.detail).startswith(found)
    assert len(items) == 1


def test_a_large_list_is_read_in_bounded_memory(tmp_path: Path) -> None:
    row = json.dumps({"text": "x" * 20_000, "tags": ["a"]})
    (tmp_path / "a.json").write_text("[" + ",".join([row] * 2000) + "]")
    path = str(tmp_path / "a.json")
    tracemalloc.start()
    n_rows = sum(1 for _ in read_rows(path, "json", SourceSettings(name="s", uri=path)))
    assert n_rows == count_rows(path, "json") == 2000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8_000_000 < Path(path).stat().st_size
