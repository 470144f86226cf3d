"""CSV and TSV: quotes that swallow rows are found, texts of several lines are read."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from entropylong_assets.settings.section import SettingsError
from entropylong_assets.stages.corpus.errors import CorpusError
from entropylong_assets.stages.corpus.readers import count_rows, read_rows
from entropylong_assets.stages.corpus.rows import REMEDIES, BadRow, Item, Row
from entropylong_assets.stages.corpus.settings import SourceSettings
from entropylong_assets.stages.corpus.shards import current_shard, load_plan, plan_shards, save_plan
from entropylong_assets.storage.tables import TableStore
from entropylong_assets_tests.stages.corpus.files_for_tests import ingest, settings_for


def read(folder: Path, content: str | bytes, name: str = "a.csv", **values: Any) -> list[Item]:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    source = SourceSettings(name="s", uri=str(path), **values)
    items = list(read_rows(str(path), "csv", source))
    count = count_rows(str(path), "csv")
    # For any file: pieces give the same items as the whole, in order, and within the count.
    pieces = [i for at in range(count) for i in read_rows(str(path), "csv", source, at, at + 1)]
    assert [i for i in pieces if isinstance(i, Row)] == [i for i in items if isinstance(i, Row)]
    assert [i.row for i in items] == sorted({i.row for i in items})
    assert all(item.row < count for item in items)
    return items


def texts(items: list[Item]) -> list[str]:
    return [item.text for item in items if isinstance(item, Row)]


def bad_lines(items: list[Item]) -> list[int]:
    """Numbers of the bad rows' lines, as an editor counts them."""
    bad = [item for item in items if isinstance(item, BadRow)]
    assert all(item.reason in REMEDIES for item in bad)
    return [item.row + 2 for item in bad]


MILLER_1533 = (
    'col1\tcol2\tcol3\n1\tabc\ttsvb\n2\t"efg\tcsv\n3\thij\tfdfd\n4\t"klm"\tsss\n5\toh"\tsss\n'
)

# Name of the file, content, texts that are read, lines that are bad.
SWALLOWED: dict[str, tuple[str, str, list[str], list[int]]] = {
    "text last": ("a.csv", 'id,text\n1,one\n2,"two\n3,three\n4,four"\n5,five\n',
                  ["one", "five"], [3, 4, 5]),
    "two rows": ("a.csv", 'id,text\n1,"one\n2,two"\n3,three\n', ["three"], [2, 3]),
    "text first": ("a.csv", 'text,id\none,1\n"two,2\nthree",3\nfour,4\n', ["one", "four"], [3, 4]),
    "text between": ("a.csv", 'id,text,n\n1,"one,5\n2,two",6\n3,three,7\n', ["three"], [2, 3]),
    "tabs": ("a.tsv", 'id\ttext\n1\t"one, and\n2\ttwo, and"\n3\tthree\n', ["three"], [2, 3]),
    "ids of letters": ("a.csv", 'id,text\nab,one\ncd,"two\nef,three"\ngh,four\n',
                       ["one", "four"], [3, 4]),
    "ids of both, in the first rows": ("a.csv", 'id,text\n07,"one\n3f,two"\na1,three\n', ["three"],
                                       [2, 3]),
    "a ragged row among them": ("a.csv", 'id,text\n1,"one\n2,two\n3,x,y\n4,four\n5,z"\n6,six\n',
                                ["six"], [2, 3, 4, 5, 6]),
    "blank lines among them": ("a.csv", 'id,text\n1,"one\n\n2,two\n\n3,three"\n4,four\n',
                               ["four"], [2, 4, 6]),
    "carriage returns": ("a.csv", 'id,text\r\n1,"one\r\n2,two"\r\n3,three\r\n', ["three"], [2, 3]),
    "text after the closing quote": ("a.csv", 'id,text\n1,"one\n2,two\n3,"three" and\n4,four\n',
                                     ["four"], [2, 3, 4]),
    "never closed": ("a.csv", 'id,text\n1,one\n2,"two\n3,three\n\n4,four\n', ["one"], [3, 4, 6]),
    "another number of fields": ("a.csv", 'id,text\n1,"one\n2,two",x\n3,three\n', ["three"],
                                 [2, 3]),
    "a quote alone": ("a.csv", 'id,text\n1,one\n"\n2,two\n"\n3,three\n', ["one", "three"],
                      [3, 4, 5]),
    "one column, with plain quotes later": (
        "a.csv", 'text\none\n"two\nthree"\nfour "4" four\n', ["one", 'four "4" four'], [3, 4]),
    "every field in quotes": ("a.csv", '"id","text"\n"1","one\n"2","two"\n"3","three"\n',
                              ["three"], [2, 3]),
    "in the header": ("a.csv", 'id,text,"note\n1,one,x\n2,two,y"\n3,three,z\n', [], [2]),
}  # fmt: skip


@pytest.mark.parametrize("case", SWALLOWED)
def test_rows_swallowed_by_a_quote_are_bad_rows(tmp_path: Path, case: str) -> None:
    name, content, expected, lines = SWALLOWED[case]
    items = read(tmp_path, content, name)
    assert texts(items) == expected
    assert bad_lines(items) == lines


def test_the_file_of_miller_1533_loses_no_row(tmp_path: Path) -> None:
    items = read(tmp_path, MILLER_1533, "a.tsv", text_field="col2", id_field="col1")
    assert texts(items) == ["abc", 'oh"']
    assert bad_lines(items) == [3, 4, 5]
    plain = read(tmp_path, MILLER_1533, "a.tsv", text_field="col2", id_field="col1", quote="")
    assert texts(plain) == ["abc", '"efg', "hij", '"klm"', 'oh"']


def test_swallowed_rows_are_named_with_file_row_and_line(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('id,text\n1,one\n2,"two\n3,three"\n')
    with pytest.raises(CorpusError) as caught:
        ingest(settings_for(path), TableStore(str(tmp_path / "data")))
    assert str(caught.value) == (
        f"{path}, row 1: lines 3 to 4: a quote at the start of a field is closed on another line, "
        "and the lines between look like rows; if they are one text, set the source's "
        "newlines_in_values to true; correct the record or the source's delimiter, quote or "
        "escape, or set corpus.on_bad_row to 'skip'"
    )
    settings = settings_for(path, on_bad_row="skip")
    documents, dropped, (summary,) = ingest(settings, TableStore(str(tmp_path / "data")))
    assert [d["text"] for d in documents] == ["one"]
    assert [(d["row"], d["reason"]) for d in dropped] == [(1, "broken_csv"), (2, "swallowed_row")]
    assert "line 4: swallowed by the record that begins on line 3" in dropped[1]["detail"]
    # The check `few_bad_rows` sees all of them: 2 of 3.
    assert (summary.rows_read, summary.dropped) == (3, {"broken_csv": 1, "swallowed_row": 1})


# Header, fields of one row with a text of several lines.
LEGITIMATE: dict[str, tuple[list[str], list[str]]] = {
    "prose": (["id", "text"], ["1", "Dear John,\nhow are you, and your wife?\nBest, Ann\n"]),
    "two lines": (["id", "text"], ["1", "To be\nor not, to be"]),
    "two lines, text first": (["text", "id"], ["To be\nor not to be", "1"]),
    "ends with a line end, text first": (["text", "id"], ["To be, or not\n", "1"]),
    "ends with a line end": (["id", "text"], ["1", "To be, or not\n"]),
    "text between": (["id", "text", "n"], ["1", "To be\nDear John, bye", "5"]),
    "paragraphs": (["id", "text"], ["1", "One, two.\n\nThree, four.\n\nFive, six."]),
    "code": (["id", "text"], ["1", "def f(a,b):\n    return g(a,b)\n\nf(1,2)"]),
    "a table of other columns": (["id", "text"], ["1", "a,b,c\n1,2,3\n4,5,6"]),
    "a short table in prose": (["id", "text"], ["1", "Numbers\n1,2\nand more\nof them, too\n"]),
    "thousands": (["id", "text"], ["17", "There were\n1,000 people"]),
    "a list, ends with commas": (["id", "text"], ["1", "apples,\npears,\nplums"]),
    "title and text": (["title", "text"], ["A Tale", "It was the best, it was\nthe worst, too"]),
    "two texts": (["a", "text"], ["one\ntwo, three", "four\nfive, six"]),
    "one column": (["text"], ["one\ntwo\nthree, four"]),
    "quotes": (["id", "text"], ["1", '"To be",\n""or"" not, "to be"\n"']),
    "Chinese": (["id", "text"], ["1", "你好,世界\n再见，世界\n"]),
    "carriage returns": (["id", "text"], ["1", "one, two\r\nthree, four\r\n"]),
    "blank lines only": (["id", "text"], ["1", "\n\n\n"]),
}  # fmt: skip


@pytest.mark.parametrize("quoting", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC])
@pytest.mark.parametrize("delimiter", [",", "\t", ";", "|"])
@pytest.mark.parametrize("case", LEGITIMATE)
def test_texts_of_several_lines_are_read(
    tmp_path: Path, case: str, delimiter: str, quoting: Any
) -> None:
    header, row = LEGITIMATE[case]
    file = io.StringIO(newline="")
    writer = csv.writer(file, delimiter=delimiter, quoting=quoting, lineterminator="\n")
    plain = [field.replace("\n", " ").replace("\r", "") for field in row]
    writer.writerows([header, plain, row, plain])
    items = read(tmp_path, file.getvalue(), delimiter=delimiter)
    column = header.index("text")
    assert texts(items) == [plain[column], row[column], plain[column]]


WORDS = st.lists(
    st.sampled_from(["To", "be,", "or", "not", '"to', 'be",', "-", "f(a,b)", "1,000", "é", "世"]),
    min_size=1,
    max_size=8,
).map(" ".join)  # fmt: skip
TEXTS = st.lists(st.one_of(WORDS, st.just("")), min_size=1, max_size=6).map("\n".join)


@settings(max_examples=200, deadline=None)
@given(
    rows=st.lists(st.tuples(TEXTS, st.integers(0, 10**6)), min_size=1, max_size=6),
    delimiter=st.sampled_from(",\t;|"),
    quoting=st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
    line_end=st.sampled_from(["\n", "\r\n"]),
    trusted=st.sampled_from([None, True]),
)
def test_what_a_proper_writer_wrote_is_read_as_it_was(
    tmp_path_factory: pytest.TempPathFactory,
    rows: list[tuple[str, int]],
    delimiter: str,
    quoting: Any,
    line_end: str,
    trusted: bool | None,
) -> None:
    file = io.StringIO(newline="")
    writer = csv.writer(file, delimiter=delimiter, quoting=quoting, lineterminator=line_end)
    writer.writerows([("n", "text", "license"), *((n, text, "mit") for text, n in rows)])
    items = read(
        tmp_path_factory.getbasetemp(), file.getvalue(), delimiter=delimiter,
        newlines_in_values=trusted, id_field="n",
    )  # fmt: skip
    assert [(i.external_id, i.text) for i in items if isinstance(i, Row)] == [
        (str(n), text) for text, n in rows
    ]


@settings(max_examples=200, deadline=None)
@given(
    rows=st.lists(st.sampled_from(['"to', 'be"', 'o"r', "not", '"to be"', '"', '""']), min_size=1),
    delimiter=st.sampled_from(",\t;|"),
    text_first=st.booleans(),
)
def test_no_row_with_plain_quotes_vanishes(
    tmp_path_factory: pytest.TempPathFactory, rows: list[str], delimiter: str, text_first: bool
) -> None:
    """Rows of one line, written without any quoting: never more of them in one text."""
    order = slice(None, None, -1 if text_first else 1)
    lines = [delimiter.join((str(i), text)[order]) for i, text in enumerate(rows)]
    content = "\n".join([delimiter.join(("id", "text")[order]), *lines, ""])
    folder = tmp_path_factory.getbasetemp()
    items = read(folder, content, delimiter=delimiter, id_field="id")
    # Only a field that is a single quote can be read as the closing quote of the line before.
    sure = [i for i, text in enumerate(rows) if text not in ('"', '""')]
    inside = {i.row + n for i in items if isinstance(i, Row) for n in range(1 + i.text.count("\n"))}
    assert inside | {i.row for i in items} == set(range(len(rows)))
    if len(sure) == len(rows):
        assert [item.row for item in items] == list(range(len(rows)))
    plain = read(folder, content, delimiter=delimiter, id_field="id", quote="")
    assert texts(plain) == rows


def test_the_settings_of_quoting_are_those_of_the_file(tmp_path: Path) -> None:
    content = "id;text\n1;'one; ''1'''\n2;\"two\n3;three\n"
    items = read(tmp_path, content, delimiter=";", quote="'", id_field="id")
    assert texts(items) == ["one; '1'", '"two', "three"]
    content = 'id,text\n1,"say \\"one\\", two"\n2,three\n'
    assert texts(read(tmp_path, content, escape="\\")) == ['say "one", two', "three"]
    content = "id,text\n1,one\\, two\n2,three\n"
    assert texts(read(tmp_path, content, quote=None, escape="\\")) == ["one, two", "three"]
    assert texts(read(tmp_path, "id|text\n1|one\n", "a.tsv", delimiter="|")) == ["one"]
    assert texts(read(tmp_path, "id\ttext\n1\tone\n", delimiter=r"\t")) == ["one"]


def test_newlines_in_values_decides_where_a_text_looks_like_rows(tmp_path: Path) -> None:
    content = 'id,text\n1,"one\n2,two"\n3,"three\n4,four\n'
    trusted = read(tmp_path, content, newlines_in_values=True)
    assert texts(trusted) == ["one\n2,two"]
    assert bad_lines(trusted) == [4, 5]
    # Each line is read for itself: only those with an open quote are bad.
    never = read(tmp_path, content, newlines_in_values=False)
    assert texts(never) == ['two"', "four"]
    assert bad_lines(never) == [2, 4]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"delimiter": ",,"}, "delimiter: must be one character"),
        ({"delimiter": "\n"}, "delimiter: must be one character"),
        ({"quote": "''"}, "quote: must be one character"),
        ({"escape": "\0"}, "escape: must be one character"),
        ({"delimiter": '"'}, "delimiter, quote and escape must be different characters"),
        ({"escape": '"'}, "leave escape out if quotes are written twice"),
        ({"newlines_in_values": "maybe"}, "newlines_in_values"),
    ],
)
def test_wrong_settings_of_quoting_are_named(values: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        settings_for("a.csv", **values)


@pytest.mark.parametrize(
    ("content", "expected", "lines"),
    [
        ("text,n\r\na,1\r\nb,2\r\n", ["a", "b"], []),
        ("text,n\ra,1\rb,2\r", ["a", "b"], []),
        ("text,n\na,1\r\nb,2\n", ["a", "b"], []),
        ("text,n\na\rb,1\nc,2\n", ["c"], [2]),  # a carriage return in an unquoted field
        ('text,n\n"a\rb",1\nc,2\n', ["a\rb", "c"], []),
        ("text,n\ra,1\nb,2\rc,3\r", ["c"], [2]),
        ("\n\ntext,n\n\na,1\n \n\nb,2\n\n", ["a", "b"], []),
        ("\ufefftext,n\na,1\n", ["a"], []),
        ("text,n,n\na,1,2\n", ["a"], []),  # a doubled name that nobody asks for
        ("text,n\na,1\nb\nc,3,4\nd,5\n", ["a", "d"], [3, 4]),
        ("text,n\na\0,1\nb,2\n", ["b"], [2]),
        ("text,n\na,\0\nb,2\n", ["a", "b"], []),
        ("text,n\na,1\ntext,n\nb,2\n", ["a", "b"], [3]),  # two files in one
        ('text\n""\na\n', ["", "a"], []),
        ("text\n   \na\n", ["a"], []),
        ("text\tn\n\t\na\t1\n", ["", "a"], []),
        ("text,n\n" + "x" * 500_000 + ",1\nb,2\n", ["x" * 500_000, "b"], []),
        ('text,n\n"' + "x,\n" * 200_000 + '",1\nb,2\n', ["x,\n" * 200_000, "b"], []),
    ],
)  # fmt: skip
def test_line_ends_blank_lines_and_odd_rows(
    tmp_path: Path, content: str, expected: list[str], lines: list[int]
) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(content.encode())
    source = SourceSettings(name="s", uri=str(path), delimiter="\t" if "\t" in content else None)
    items = list(read_rows(str(path), "csv", source))
    assert texts(items) == expected
    assert bad_lines(items) == lines


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("some text,1\nmore,2\n", r"no field 'text' (the fields: some text, 1)"),
        ("id;text\n1;a\n", r"no field 'text' (the fields: id;text)"),
        ("text,text\na,1\n", "there are two fields 'text'"),
        ('"text,n', "a quote at the start of a field is never closed"),
        ("t\0e\0x\0t\0\n\0a\0\n\0", "the header has a byte 0x00: UTF-16 or UTF-32 without"),
    ],
)
def test_a_file_without_a_usable_header_is_named(
    tmp_path: Path, content: str, message: str
) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(content.encode())
    (item,) = read_rows(str(path), "csv", SourceSettings(name="s", uri=str(path)))
    assert isinstance(item, BadRow)
    assert message in item.detail
    assert count_rows(str(path), "csv") >= 1


def test_a_row_lost_in_the_middle_of_a_record_does_not_end_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("streams", "csv_records"):
        name = f"entropylong_assets.stages.corpus.{module}.MAX_ROW_BYTES"
        monkeypatch.setattr(name, 1000)
    content = 'text,n\na,1\n"b\n' + "x" * 2000 + '\nc,3\n"d\n' + "y\n" * 1200 + "e,5\n"
    items = read(tmp_path, content)
    assert texts(items) == ["a", "c", "e"]
    assert len(bad_lines(items)) == 2 + 1201
    reasons = {item.reason for item in items if isinstance(item, BadRow)}
    assert reasons == {"broken_csv", "row_too_large", "swallowed_row"}


def test_lines_of_a_broken_text_are_no_rows(tmp_path: Path) -> None:
    """Its first quote is lost, and a line of it has the right number of fields."""
    content = 'id,text,n\n1,one,5\n2,two\nand, so, on\nx,y",5\n3,three,5\n4,"four,5\n'
    items = read(tmp_path, content)
    assert texts(items) == ["one", "three"]
    assert bad_lines(items) == [3, 4, 5, 7]
    # Also if it is the first row that is broken.
    items = read(tmp_path, 'id,text,n\n1,"one" x,5\n2,"two\nand, so, on\nx,y",5\n3,three,5\n')
    assert texts(items) == ["two\nand, so, on\nx,y", "three"]
    items = read(tmp_path, 'id,text,n\n1,"one,5\n2,"two\nand, so, on\nx,y",5\n3,three,5\n')
    assert texts(items) == ["three"]
    # If many rows in a row are unlike the first ones, the rows of the file have changed.
    rows = "".join(f"n{i},text {i}\n" for i in range(300))
    items = read(tmp_path, f"id,text\n1,one\n2\n{rows}")
    assert texts(items) == ["one", *(f"text {i}" for i in range(100, 300))]
    assert len(bad_lines(items)) == 101


def test_a_plan_of_an_older_version_gets_the_rows_of_this_one(tmp_path: Path) -> None:
    """The older version counted records and not lines, so that the last rows would be lost."""
    path = tmp_path / "a.csv"
    path.write_text('text\n"a\nb"\n"c\nd"\ne\n')
    corpus = settings_for(path)
    store = TableStore(str(tmp_path / "data"))
    (shard,) = plan_shards(corpus).shards
    old = shard.model_copy(update={"n_rows": 3, "versions": ("0123456789abcdef",)})
    save_plan(store, plan_shards(corpus).model_copy(update={"shards": (old,)}))
    assert current_shard(corpus, load_plan(store), shard.key).n_rows == 5
    documents, _, _ = ingest(corpus, store)
    assert [d["text"] for d in documents] == ["a\nb", "c\nd", "e"]
