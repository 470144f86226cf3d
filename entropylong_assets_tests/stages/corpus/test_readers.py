"""Every format and compression; row ranges lose and double nothing at their borders."""

from __future__ import annotations

import errno
import gzip
import io
import itertools
import json
import os
import tarfile
import tempfile
import tracemalloc
from contextlib import suppress
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import example, given, settings
from hypothesis import strategies as st

from entropylong_assets.stages.corpus.errors import CorpusError
from entropylong_assets.stages.corpus.listing import file_version, list_files
from entropylong_assets.stages.corpus.readers import count_rows, read_rows
from entropylong_assets.stages.corpus.registry import kind_of
from entropylong_assets.stages.corpus.rows import BadRow, Row
from entropylong_assets.stages.corpus.settings import SourceSettings
from entropylong_assets.stages.corpus.shards import plan_shards, read_shard
from entropylong_assets_tests.stages.corpus.files_for_tests import (
    TABLE_ENDINGS,
    compress,
    settings_for,
    write_rows,
)

ROWS = [{"id": f"d{i}", "text": f'text {i}\nwith "quotes", é, 🙂 and\r\nlines'} for i in range(23)]
LINES_PER_ROW = 3  # of CSV, where a row is numbered by the line on which it begins


def source(uri: object, **values: str) -> SourceSettings:
    return SourceSettings(name="s", uri=str(uri), **values)  # type: ignore[arg-type]


@pytest.mark.parametrize("ending", TABLE_ENDINGS)
def test_every_table_format_gives_back_its_rows(tmp_path: Path, ending: str) -> None:
    path = write_rows(tmp_path / f"a{ending}", ROWS)
    spec = source(path, id_field="id")
    kind = kind_of(path.name)
    assert kind is not None
    got = list(read_rows(str(path), kind, spec))
    lines = LINES_PER_ROW if kind == "csv" else 1
    expected = [Row(str(path), i * lines, row["id"], row["text"]) for i, row in enumerate(ROWS)]
    assert got == expected
    assert count_rows(str(path), kind) == len(ROWS) * lines


@pytest.mark.parametrize("ending", TABLE_ENDINGS)
@pytest.mark.parametrize("shard_rows", [1, 4, 22, 23, 24])
def test_ranges_tile_the_file(tmp_path: Path, ending: str, shard_rows: int) -> None:
    path = write_rows(tmp_path / f"a{ending}", ROWS)
    corpus = settings_for(path, shard_rows=shard_rows)
    shards = plan_shards(corpus).shards
    lines = LINES_PER_ROW if shards[0].kind == "csv" else 1
    assert len(shards) == -(-len(ROWS) * lines // shard_rows)
    read = [list(read_shard(shard, corpus.sources[0])) for shard in shards]
    for shard, items in zip(shards, read, strict=True):
        numbers = range(shard.first_row, shard.first_row + shard.n_rows)
        assert [item.row for item in items] == [n for n in numbers if n % lines == 0]
    assert len(list(itertools.chain(*read))) == len(ROWS)
    assert [item.text for items in read for item in items if isinstance(item, Row)] == [
        row["text"] for row in ROWS
    ]


JUNK = st.sampled_from(
    [b"", b"  ", b"{", b"[1]", b'{"text": 5}', b'{"text": null}', b"\xff\xfd", b'{"other": 1}']
)
LINE = st.one_of(st.text(max_size=8).map(lambda t: json.dumps({"text": t}).encode()), JUNK)


@settings(max_examples=80, deadline=None)
@given(
    lines=st.lists(LINE, min_size=1, max_size=12),
    last_end=st.booleans(),
    cut=st.integers(1, 6),
    ending=st.sampled_from([".jsonl", ".jsonl.gz", ".jsonl.zst"]),
)
@example(lines=[b"", b""], last_end=True, cut=1, ending=".jsonl")
@example(lines=[b"{", b'{"text": "a"}'], last_end=False, cut=1, ending=".jsonl.gz")
def test_any_jsonl_reads_the_same_in_one_piece_and_in_ranges(
    lines: list[bytes], last_end: bool, cut: int, ending: str
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        content = b"\n".join(lines) + (b"\n" if last_end else b"")
        path = str(compress(Path(folder) / f"a{ending}", content))
        spec = source(path)
        whole = list(read_rows(path, "jsonl", spec))
        count = count_rows(path, "jsonl")
        pieces = [
            item
            for start in range(0, count, cut)
            for item in read_rows(path, "jsonl", spec, start, start + cut)
        ]
        assert pieces == whole
        # Independent oracle: Python's own parsing of the lines.
        expected = [i for i, line in enumerate(content.split(b"\n")) if line.strip()]
        assert [item.row for item in whole] == expected
        good = [item.text for item in whole if isinstance(item, Row)]
        assert good == [
            json.loads(line)["text"] for line in lines if line.startswith(b'{"text": "')
        ]


# Bytes of CSV files, with many quotes and separators. Any file must be read to its end.
CSV_BYTES = st.lists(
    st.sampled_from([b'"', b",", b"\n", b"\r\n", b"a", b"bc", b"\xff", b"\x00", b'""', b",x\n"]),
    max_size=40,
).map(b"".join)


@settings(max_examples=150, deadline=None)
@given(body=CSV_BYTES, cut=st.integers(1, 5))
def test_any_csv_reads_the_same_in_one_piece_and_in_ranges(body: bytes, cut: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.csv"
        path.write_bytes(b"text,n\n" + body)
        spec = source(path, id_field="n")
        whole = list(read_rows(str(path), "csv", spec))
        count = count_rows(str(path), "csv")
        pieces = [
            item
            for start in range(0, count, cut)
            for item in read_rows(str(path), "csv", spec, start, start + cut)
        ]
        assert pieces == whole
        rows = [item.row for item in whole]
        assert rows == sorted(set(rows))
        assert set(rows) <= set(range(count))
        # Independent oracle: a line without an item of its own is blank or within a quoted field.
        for number, line in enumerate(body.split(b"\n")):
            if line.strip() and number not in rows:
                before = max((item for item in whole if item.row < number), key=lambda i: i.row)
                if isinstance(before, Row):
                    assert "\n" in before.text or "\\n" in (before.external_id or "")
                else:
                    assert before.reason == "invalid_utf8"


def test_csv_continues_after_a_broken_record(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b'text,id\n"a\nb",1\n"x"y,2\nc,3\nd\ne,4,5\n\xffz,6\n\nf,7\n"open,8\ng,9\n')
    items = list(read_rows(str(path), "csv", source(path, id_field="id")))
    assert [(i.row, i.text if isinstance(i, Row) else i.reason) for i in items] == [
        (0, "a\nb"),
        (2, "broken_csv"),
        (3, "c"),
        (4, "broken_csv"),
        (5, "broken_csv"),
        (6, "invalid_utf8"),
        (8, "f"),
        (9, "broken_csv"),  # the quote that never closes: no rows swallowed silently
        (10, "swallowed_row"),
    ]
    assert isinstance(items[-2], BadRow)
    assert "lines 11 to 12: a quote at the start of a field is never closed" in items[-2].detail


def test_folder_of_text_and_markdown(tmp_path: Path) -> None:
    names = ["b.md", "a/x.txt", "a/y.md.gz", "c.rst", ".hidden.txt", ".git/d.txt", "e.png"]
    for name in names:
        compress(tmp_path / name, f"text of {name}".encode())
    corpus = settings_for(tmp_path, shard_rows=3)
    shards = plan_shards(corpus).shards
    assert [shard.n_rows for shard in shards] == [3, 1]
    assert {shard.kind for shard in shards} == {"text"}
    texts = [item.text for s in shards for item in read_shard(s, corpus.sources[0])]  # type: ignore[union-attr]
    assert texts == [f"text of {name}" for name in ["a/x.txt", "a/y.md.gz", "b.md", "c.rst"]]


def test_glob_with_two_stars_and_formats_by_name(tmp_path: Path) -> None:
    for name in ["a.jsonl", "x/b.jsonl", "x/y/c.jsonl"]:
        write_rows(tmp_path / name, ROWS[:2])
    write_rows(tmp_path / "x/d.csv", ROWS[:2])
    files = list_files(source(tmp_path / "**/*.jsonl"))
    assert [Path(file.uri).relative_to(tmp_path).as_posix() for file in files] == [
        "a.jsonl",
        "x/b.jsonl",
        "x/y/c.jsonl",
    ]
    assert {file.kind for file in list_files(source(tmp_path / "x/*.*"))} == {"jsonl", "csv"}


def test_names_with_glob_characters_dots_and_colons(tmp_path: Path, monkeypatch) -> None:
    """A file is opened by its own name: no second globbing, no chain of file systems."""
    names = ["a[1].jsonl", "b*.jsonl", "c::d.jsonl", "e é.jsonl", "f..jsonl"]
    for name in names:
        write_rows(tmp_path / "in" / name, [{"text": name}])
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    spec = source("../in/*.jsonl")
    files = list_files(spec)
    # A relative source keeps relative names.
    assert sorted(file.uri for file in files) == sorted(f"../in/{name}" for name in names)
    texts = [item.text for f in files for item in read_rows(f.uri, f.kind, spec)]  # type: ignore[union-attr]
    assert [f"../in/{text}" for text in texts] == [file.uri for file in files]
    assert [f.uri for f in list_files(source(tmp_path / "in/a[1].jsonl"))] == [
        str(tmp_path / "in/a[1].jsonl")
    ]


def test_remote_file_systems_and_chains(tmp_path: Path) -> None:
    memory = fsspec.filesystem("memory")
    memory.pipe("/remote/x/a.jsonl", b'{"text": "far"}\n')
    for uri in ("memory://remote/**/*.jsonl", "simplecache::memory://remote/x/*.jsonl"):
        spec = source(uri)
        (file,) = list_files(spec)
        assert [item.text for item in read_rows(file.uri, "jsonl", spec)] == ["far"]  # type: ignore[union-attr]
        before = file_version(file.uri, "jsonl")
        assert before == file.version
    memory.pipe("/remote/x/a.jsonl", b'{"text": "farther"}\n')
    assert file_version("memory://remote/x/a.jsonl", "jsonl") != before
    memory.rm("/remote", recursive=True)
    assert file_version("memory://remote/x/a.jsonl", "jsonl") is None


def test_archive_members_stay_inside_the_archive(tmp_path: Path) -> None:
    """A member named `../evil.jsonl` is read as bytes and written nowhere."""
    import zipfile

    archive = tmp_path / "in" / "z.zip"
    archive.parent.mkdir()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("../evil.jsonl", '{"text": "evil"}')
        file.writestr("good/a.jsonl", '{"text": "good"}')
    spec = source(f"zip://**/*.jsonl::{archive}")
    files = list_files(spec)
    texts = [item.text for f in files for item in read_rows(f.uri, f.kind, spec)]  # type: ignore[union-attr]
    assert texts == ["evil", "good"]
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["in", "z.zip"]


def test_members_of_a_tar_stay_inside_it(tmp_path: Path) -> None:
    """`..`, absolute names and links out of the archive: nothing is written or read outside."""
    (tmp_path / "secret.jsonl").write_text('{"text": "secret"}')
    archive = tmp_path / "in" / "t.tar"
    archive.parent.mkdir()
    with tarfile.open(archive, "w") as file:
        for name in ("../evil.jsonl", "/abs.jsonl", "good/a.jsonl"):
            member = tarfile.TarInfo(name)
            content = json.dumps({"text": name}).encode()
            member.size = len(content)
            file.addfile(member, io.BytesIO(content))
        link = tarfile.TarInfo("link.jsonl")
        link.type, link.linkname = tarfile.SYMTYPE, "../../secret.jsonl"
        file.addfile(link)
    spec = source(f"tar://**/*.jsonl::{archive}")
    texts = []
    for member_file in list_files(spec):
        with suppress(CorpusError, OSError, KeyError):
            texts += [
                i.text
                for i in read_rows(member_file.uri, member_file.kind, spec)
                if isinstance(i, Row)
            ]
    assert "good/a.jsonl" in texts
    assert "secret" not in texts
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["in", "secret.jsonl", "t.tar"]


def test_parquet_text_of_every_string_type(tmp_path: Path) -> None:
    texts = ["é", None, "b", "é"]
    array = pa.array(texts)
    kinds = [
        pa.string(),
        pa.large_string(),
        pa.string_view(),
        pa.dictionary(pa.int8(), pa.string()),
    ]
    for kind in [*kinds, pa.binary(), pa.large_binary()]:
        path = tmp_path / "a.parquet"
        column = array.dictionary_encode().cast(kind) if "dict" in str(kind) else array.cast(kind)
        ids = pa.array([1.5, None, 2, 3]).cast(pa.decimal128(5, 1))
        pq.write_table(pa.table({"te.xt": column, "id": ids}), path)
        items = list(
            read_rows(str(path), "parquet", source(path, text_field="te.xt", id_field="id"))
        )
        assert [i.text if isinstance(i, Row) else i.reason for i in items] == [
            "é", "null_text", "b", "é",
        ]  # fmt: skip
        assert [i.external_id for i in items] == ["1.5", None, "2.0", "3.0"]


def test_several_frames_and_members_are_one_file(tmp_path: Path) -> None:
    parts = [b'{"text": "a"}\n{"te', b'xt": "b"}\n', b'{"text": "c"}']
    (tmp_path / "a.jsonl.gz").write_bytes(b"".join(gzip.compress(part) for part in parts))
    zst = b"".join(zstandard.ZstdCompressor().compress(part) for part in parts)
    skippable = b"\x50\x2a\x4d\x18" + (3).to_bytes(4, "little") + b"abc"
    (tmp_path / "a.jsonl.zst").write_bytes(skippable + zst)
    for name in ("a.jsonl.gz", "a.jsonl.zst"):
        path = tmp_path / name
        items = list(read_rows(str(path), "jsonl", source(path)))
        assert [item.text for item in items] == ["a", "b", "c"], items  # type: ignore[union-attr]


def test_a_line_of_50_mb_is_read_whole(tmp_path: Path) -> None:
    text = "0123456789" * 5_000_000
    path = tmp_path / "a.jsonl.zst"
    compress(path, f'{{"text": "a"}}\n{{"text": "{text}"}}\n{{"text": "b"}}\n'.encode())
    items = list(read_rows(str(path), "jsonl", source(path)))
    assert [len(item.text) for item in items] == [1, 50_000_000, 1]  # type: ignore[union-attr]


def test_a_row_over_the_bound_is_reported_and_not_held(tmp_path: Path, monkeypatch) -> None:
    for module in ("streams", "csv_records", "json_scanner", "formats.text"):
        name = f"entropylong_assets.stages.corpus.{module}.MAX_ROW_BYTES"
        monkeypatch.setattr(name, 2**21)
    big = b"x" * 2**26
    for name, content, good in [
        ("a.jsonl.zst", b'{"text": "a"}\n' + big + b'\n{"text": "b"}\n', ["a", "b"]),
        ("a.csv.gz", b"text,n\na,1\n" + big + b",2\nb,3\n", ["a", "b"]),
        ("a.csv", b'text,n\na,1\n"' + big + b'",2\nb,3\n', ["a", "b"]),
        ("a.json", b'[{"text": "a"}, {"text": "' + big + b'"}, {"text": "b"}]', ["a", "b"]),
        ("a.json", b'[{"text": "a"}, ' + big + b', {"text": "b"}]', ["a", "b"]),
        ("a.txt.gz", big, []),
    ]:
        path = compress(tmp_path / name, content)
        kind = kind_of(name)
        assert kind
        tracemalloc.start()
        items = list(read_rows(str(path), kind, source(path)))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert [i.text for i in items if isinstance(i, Row)] == good
        assert [i.reason for i in items if isinstance(i, BadRow)] == ["row_too_large"]
        assert peak < 2**26, (name, peak)


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    """Guards against a reader that keeps the rows that it skips."""
    peaks = {}
    for n_rows in (20_000, 32_000):
        rows = [{"id": str(i), "text": f"{i} " * 40} for i in range(n_rows)]
        for ending in (".jsonl.gz", ".csv", ".parquet"):
            path = write_rows(tmp_path / f"a{ending}", rows, row_group_size=1000)
            kind = kind_of(path.name)
            assert kind
            tracemalloc.start()
            assert sum(1 for _ in read_rows(str(path), kind, source(path))) == n_rows
            assert count_rows(str(path), kind) == n_rows
            peaks[ending, n_rows] = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
    for ending in (".jsonl.gz", ".csv", ".parquet"):
        assert peaks[ending, 32_000] < peaks[ending, 20_000] + 1_000_000, peaks


@pytest.mark.parametrize("pattern", ["in", "in/*/*.jsonl", "in/**"])
@pytest.mark.parametrize("code", [errno.EACCES, errno.ESTALE, errno.ENOENT])
def test_a_folder_that_cannot_be_listed_is_no_empty_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pattern: str, code: int
) -> None:
    """Otherwise its files would silently count as missing from the source."""
    for name in ("a", "b"):
        write_rows(tmp_path / f"in/{name}/x.jsonl", [{"text": "t"}])
    spec = source(tmp_path / pattern)
    assert len(list_files(spec)) == 2
    scan = os.scandir

    def refuse(path: Any) -> Any:
        if str(path).endswith("/b"):
            raise OSError(code, os.strerror(code), str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    if code == errno.ENOENT:  # removed since its parent was listed
        assert len(list_files(spec)) == 1
        return
    with pytest.raises((CorpusError, OSError), match="/b") as caught:
        list_files(spec)
    assert isinstance(caught.value, CorpusError) == (code == errno.EACCES)
