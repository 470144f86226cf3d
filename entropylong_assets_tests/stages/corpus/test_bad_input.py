"""Bad input ends in one line with file, row and remedy, or is listed while good rows are read."""

from __future__ import annotations

import gzip
import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from entropylong_assets.stages.corpus.errors import CorpusError, one_line
from entropylong_assets.stages.corpus.readers import read_rows
from entropylong_assets.stages.corpus.rows import REMEDIES
from entropylong_assets.stages.corpus.shards import plan_shards
from entropylong_assets.stages.corpus.tables import CORPUS_DOCUMENTS
from entropylong_assets.storage.tables import TableStore
from entropylong_assets_tests.stages.corpus.files_for_tests import ingest, settings_for, write_rows

GOOD = '{"text": "good"}'


def parquet_bytes(column: pa.Array, name: str = "text") -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({name: column, "n": range(len(column))}), sink, row_group_size=2)
    return sink.getvalue().to_pybytes()


def invalid_utf8_parquet() -> bytes:
    raw = pa.array([b"good", b"b\xffd", b"good too"])
    column = pa.Array.from_buffers(pa.string(), 3, raw.buffers())
    return parquet_bytes(column)


def flipped(content: bytes, needle: bytes) -> bytes:
    """The content with one bit turned in the page that holds `needle`."""
    at = content.index(needle)
    return content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]


def checked_parquet() -> bytes:
    sink = pa.BufferOutputStream()
    table = pa.table({"text": ["one", "two", "three", "four", "five", "six"]})
    pq.write_table(
        table, sink, row_group_size=2, compression="none", use_dictionary=False,
        write_page_checksum=True, write_statistics=False,
    )  # fmt: skip
    return flipped(sink.getvalue().to_pybytes(), b"three")


RANDOM_LINES = "".join(
    f'{{"text": "line {i} {hash((i, 1)) % 10**12}"}}\n' for i in range(2000)
).encode()
# Zstandard comes in blocks of up to 128 KiB, so that only a longer text has good rows before a cut.
LONG_LINES = RANDOM_LINES * 10
ZST = zstandard.ZstdCompressor().compress(LONG_LINES)
GZ = gzip.compress(RANDOM_LINES, mtime=0)
NINE_ROWS_GZ = gzip.compress(b"text\n" + b"row\n" * 9, mtime=0)
PARQUET = parquet_bytes(pa.array(["a", "b", "c"]))

# file name, content, row, part of the message, reason, rows that are good all the same
CASES: list[tuple[str, bytes, int, str, str, int]] = [
    ("a.jsonl", f"{GOOD}\n{{broken\n{GOOD}\n".encode(), 1, "not JSON", "broken_json", 2),
    ("a.jsonl", f"{GOOD}\n[1, 2]\n".encode(), 1, "not an object", "broken_json", 1),
    ("a.jsonl", b"[" * 100_000, 0, "not JSON", "broken_json", 0),
    ("a.jsonl", b'{"text": ' + b"1" * 9_999 + b"}", 0, "is a number", "not_text", 0),
    ("a.jsonl", f'{GOOD}\n\n{{"txt": "x", "id": 1}}'.encode(), 2,
     "no field 'text' (the fields: txt, id)", "missing_field", 1),
    ("a.jsonl", f'{GOOD}\n{{"text": 5}}\n{GOOD}'.encode(), 1, "is a number", "not_text", 2),
    ("a.jsonl", b'{"text": {"a": "b"}}', 0, "is an object", "not_text", 0),
    ("a.jsonl", b'{"text": ["a"]}', 0, "is a list", "not_text", 0),
    ("a.jsonl", b'{"text": true}', 0, "is true or false", "not_text", 0),
    ("a.jsonl", b'{"text": null}', 0, "is null", "null_text", 0),
    ("a.jsonl", GOOD.encode() + b'\n{"text": "\xff"}', 1, "0xff) is not UTF-8", "invalid_utf8", 1),
    ("a.jsonl.gz", GZ[:-20], -1, "the file is damaged here", "unreadable", -1),
    ("a.jsonl.gz", GZ[: len(GZ) // 2], -1, "the file is damaged here", "unreadable", -1),
    ("a.jsonl.gz", b"no gzip at all", 0, "the content is not gzip", "misnamed", 0),
    ("a.jsonl.gz", GZ[:-8] + b"\0" * 8, 2000, "CRC check failed", "unreadable", 2000),
    ("a.jsonl.zst", ZST[:-20], -1, "the middle of its zstd data", "unreadable", -1),
    ("a.jsonl.zst", b"no zstd at all", 0, "the content is not zstd", "misnamed", 0),
    ("a.csv", b"text,n\na,1\nb\n", 1, "has 1 fields, the header 2", "broken_csv", 1),
    ("a.csv", b"body,n\na,1\n", 0, "no field 'text' (the fields: body, n)", "missing_field", 0),
    ("a.csv", b"text,text\na,1\n", 0, "two fields 'text'", "missing_field", 0),
    ("a.csv", b"text,n\na,1\n\xe9,2\nc,3\n", 1, "0xe9) is not UTF-8", "invalid_utf8", 2),
    ("a.csv.gz", NINE_ROWS_GZ[:-8], 9, "damaged here", "unreadable", 9),
    ("a.md", b"caf\xe9", 0, "byte 3 (0xe9) is not UTF-8", "invalid_utf8", 0),
    ("a.txt.gz", GZ[:-20], 0, "the file is damaged", "unreadable", 0),
    ("a.parquet", PARQUET[:-9], 0, "not a whole Parquet file", "unreadable", 0),
    ("a.parquet", PARQUET[:40], 0, "not a whole Parquet file", "unreadable", 0),
    ("a.parquet", b"PAR1", 0, "not a whole Parquet file", "unreadable", 0),
    ("a.parquet", b"", 0, "not a whole Parquet file", "unreadable", 0),
    ("a.parquet", b"PAR1" + b"\xff" * 99 + b"\x40\0\0\0PAR1", 0, "not a whole", "unreadable", 0),
    ("a.parquet", checked_parquet(), 2, "rows 2 to 3 cannot be read", "unreadable", 4),
    ("a.parquet", parquet_bytes(pa.array(["a"]), "body"), 0,
     "no field 'text' (the fields: body, n)", "missing_field", 0),
    ("a.parquet", parquet_bytes(pa.array([Decimal("1.5"), None])), 0,
     "field 'text' is decimal128(2, 1), not text", "not_text", 0),
    ("a.parquet", parquet_bytes(pa.array([{"a": "b"}])), 0, "is struct<a: string>", "not_text", 0),
    ("a.parquet", parquet_bytes(pa.array([["a"], []])), 0, "is list<", "not_text", 0),
    ("a.parquet", parquet_bytes(pa.array([1, 2])), 0, "is int64, not text", "not_text", 0),
    ("a.parquet", parquet_bytes(pa.array(["a", None, "c"])), 1, "is null", "null_text", 2),
    ("a.parquet", invalid_utf8_parquet(), 1, "byte 1 (0xff) is not UTF-8", "invalid_utf8", 2),
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "content", "row", "part", "reason", "n_good"),
    CASES,
    ids=[f"{i}-{case[0]}-{case[4]}" for i, case in enumerate(CASES)],
)
def test_bad_input(
    tmp_path: Path, name: str, content: bytes, row: int, part: str, reason: str, n_good: int
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    store = TableStore(str(tmp_path / "data"))

    # Planning ignores the fault: the shard reports it, and no other shard is stopped.
    assert len(plan_shards(settings_for(path)).shards) == 1

    with pytest.raises(CorpusError) as caught:
        ingest(settings_for(path), store)
    message = str(caught.value)
    assert part in message
    assert "\n" not in message
    assert REMEDIES[reason] in message
    assert message.endswith("or set corpus.on_bad_row to 'skip'")
    # Nothing half-done is visible.
    assert store.shards(CORPUS_DOCUMENTS) == []

    config = settings_for(path, on_bad_row="skip", shard_rows=50_000)
    documents, dropped, (summary,) = ingest(config, store)
    (bad,) = [drop for drop in dropped if drop["reason"] in REMEDIES]
    assert (bad["file"], bad["reason"]) == (str(path), reason)
    assert part in bad["detail"]
    if row < 0:  # a damaged stream: its good rows, then one fault where they end
        lines = LONG_LINES.splitlines()
        assert 0 < bad["row"] < len(lines)
        row = n_good = bad["row"]
        texts = dict.fromkeys(json.loads(line)["text"] for line in lines[:n_good])
        assert [d["text"] for d in documents] == list(texts)
    assert bad["row"] == row
    assert f"{path}, row {row}: {bad['detail']}; " in message
    copies = summary.dropped.get("duplicate_in_shard", 0)
    assert len(documents) + copies == n_good
    assert summary.rows_read == len(documents) + sum(summary.dropped.values())


def test_a_damaged_file_gives_its_faults_once_over_many_shards(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(GZ[: len(GZ) // 2])
    config = settings_for(path, on_bad_row="skip", shard_rows=100)
    documents, dropped, summaries = ingest(config, TableStore(str(tmp_path / "data")))
    assert [d["reason"] for d in dropped] == ["unreadable"]
    assert sum(s.rows_read for s in summaries) == len(documents) + 1
    assert len(summaries) > 5
    texts = [json.loads(line)["text"] for line in RANDOM_LINES.splitlines()]
    assert [d["text"] for d in documents] == texts[: len(documents)]


def test_a_missing_column_is_reported_once_per_shard(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "a.parquet", [{"id": str(i), "text": "t"} for i in range(10)])
    config = settings_for(path, text_field="txt", on_bad_row="skip", shard_rows=4)
    _, dropped, summaries = ingest(config, TableStore(str(tmp_path / "data")))
    assert [d["row"] for d in dropped] == [0, 4, 8]
    assert [s.rows_read for s in summaries] == [1, 1, 1]
    wrong_id = settings_for(path, id_field="uid")
    with pytest.raises(CorpusError, match=r"row 0: there is no field 'uid' \(the fields: id, text"):
        ingest(wrong_id, TableStore(str(tmp_path / "data2")))


@pytest.mark.parametrize(
    ("uri", "values", "message"),
    [
        ("nothing.jsonl", {}, "source 's': no file at nothing.jsonl; put files there"),
        ("none/**/*.parquet", {}, "; put files there or correct the source's uri"),
        ("folder", {}, "source 's': no file at folder; put files there"),
        ("what.xyz", {}, "source 's': the format of what.xyz is not known by its name; set the"),
        ("a.parquet.gz", {}, "source 's': the format of a.parquet.gz is not known by its name"),
        ("foo://x/*.jsonl", {}, "source 's': can't open foo://x/*.jsonl: Protocol not known: foo"),
        (", ,", {"kind": "python_docs"}, "source 's': its uri names no package"),
        ("numpy,nope", {"kind": "python_docs"}, "no Python sources of 'nope' in this environment"),
        ("../x", {"kind": "python_docs"}, "no Python sources of '../x' in this environment"),
    ],
)
def test_sources_that_cannot_be_planned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uri: str, values: dict[str, Any], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder/inner").mkdir(parents=True)
    (tmp_path / "what.xyz").write_text("x")
    (tmp_path / "a.parquet.gz").write_text("x")
    with pytest.raises(CorpusError) as caught:
        plan_shards(settings_for(uri, **values))
    assert str(caught.value).startswith("source 's'")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "secret" not in str(caught.value)


def test_file_names_that_no_table_takes_are_refused(tmp_path: Path) -> None:
    for name in ("a\nb.jsonl", "c\udcff.jsonl"):
        folder = tmp_path / name[0]
        folder.mkdir()
        (folder / name).write_text(GOOD)
        with pytest.raises(CorpusError, match=r"the file name .* rename it") as caught:
            plan_shards(settings_for(folder / "*.jsonl"))
        assert str(caught.value).isprintable()


def test_messages_cannot_be_forged_by_the_corpus(tmp_path: Path) -> None:
    """Line ends, terminal escapes and direction marks of a text come as escapes."""
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"\x1b[2J\nERROR \u202e": 1, "id": "x\ny"}))
    config = settings_for(path, id_field="id")
    (item,) = read_rows(str(path), "jsonl", config.sources[0])
    assert item.external_id == "x\\ny"
    with pytest.raises(CorpusError) as caught:
        ingest(config, TableStore(str(tmp_path / "data")))
    assert str(caught.value).isprintable()
    assert one_line("a" * 1000, 10) == "aaaaaaaaa…"


def test_a_fault_of_the_store_is_no_bad_row(tmp_path: Path, monkeypatch) -> None:
    """A temporary network error must not drop rows permanently."""
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(GZ)

    def fail(*_args: object) -> bytes:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("fsspec.implementations.local.LocalFileOpener.read", fail)
    monkeypatch.setattr(
        "fsspec.implementations.local.LocalFileOpener.readinto", fail, raising=False
    )
    monkeypatch.setattr("fsspec.implementations.local.LocalFileOpener.__getattr__", fail)
    with pytest.raises(OSError, match="Input/output"):
        list(read_rows(str(path), "jsonl", settings_for(path).sources[0]))
