"""Fields within fields by their path, the same in JSON and Parquet; columns of every type."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from entropylong_assets.stages.corpus.readers import count_rows, read_rows
from entropylong_assets.stages.corpus.rows import BadRow, Item, Row
from entropylong_assets.stages.corpus.settings import SourceSettings

ENDINGS = (".jsonl", ".json", ".parquet")


def read(
    folder: Path, rows: list[dict[str, Any]] | pa.Table, ending: str, **values: Any
) -> list[Item]:
    path = folder / f"a{ending}"
    match ending:
        case ".parquet":
            table = rows if isinstance(rows, pa.Table) else pa.Table.from_pylist(rows)
            # Arrow cannot cut views within a struct into row groups.
            pq.write_table(table, path, row_group_size=None if table is rows else 2)
        case ".jsonl":
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        case ".json":
            path.write_text(json.dumps(rows))
    return list(read_rows(str(path), ending[1:], SourceSettings(name="s", uri=str(path), **values)))


def texts(items: list[Item]) -> list[str]:
    return [item.text if isinstance(item, Row) else item.reason for item in items]


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_path_leads_into_objects(tmp_path: Path, ending: str) -> None:
    rows = [
        {"meta": {"text": "one", "source": {"id": 1}}, "n": 1},
        {"meta": {"text": "two", "source": {"id": 2}}, "n": 2},
        {"meta": {"text": None, "source": None}, "n": 3},
        {"meta": None, "n": 4},
    ]
    items = read(tmp_path, rows, ending, text_field="meta.text", id_field="meta.source.id")
    assert texts(items) == ["one", "two", "null_text", "null_text"]
    assert [item.external_id for item in items] == ["1", "2", None, None]


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize(
    ("row", "found"),
    [
        ({"meta.text": "name", "meta": {"text": "path"}}, "name"),
        ({"meta": {"text": "path"}, "meta.text": "name"}, "name"),
        ({"meta.text": "name", "meta": "x"}, "name"),
        ({"meta.text": "name"}, "name"),
        ({"meta": {"text": "path"}, "text": "x"}, "path"),
    ],
)
def test_a_field_of_the_very_name_comes_first(
    tmp_path: Path, ending: str, row: dict[str, Any], found: str
) -> None:
    assert texts(read(tmp_path, [row, row, row], ending, text_field="meta.text")) == [found] * 3


@pytest.mark.parametrize("ending", ENDINGS)
def test_of_several_readings_the_longest_key_wins(tmp_path: Path, ending: str) -> None:
    row = {"a": {"b.c": "1", "b": {"c": "2"}}, "a.b": {"c": "3"}}
    assert texts(read(tmp_path, [row], ending, text_field="a.b.c")) == ["3"]
    del row["a.b"]
    assert texts(read(tmp_path, [row], ending, text_field="a.b.c")) == ["1"]
    row = {"a": {"b": {"c": "2"}}, "a.b": {"d": "3"}}
    assert texts(read(tmp_path, [row], ending, text_field="a.b.c")) == ["2"]


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize(
    ("row", "part"),
    [
        ({"meta": {"txt": "a"}}, "there is no field 'text' in 'meta' (the fields: txt)"),
        ({"other": "a"}, "there is no field 'meta.text' (the fields: other)"),
        ({"meta": "a"}, "so that it has no field 'text'"),
        ({"meta": [{"text": "a"}]}, "so that it has no field 'text'"),
        ({"meta": 5}, "so that it has no field 'text'"),
    ],
)
def test_a_path_that_leads_nowhere_is_named(
    tmp_path: Path, ending: str, row: dict[str, Any], part: str
) -> None:
    (item,) = read(tmp_path, [row], ending, text_field="meta.text")
    assert isinstance(item, BadRow)
    assert item.reason == "missing_field"
    assert part in item.detail


def test_each_row_of_json_is_looked_up_for_itself(tmp_path: Path) -> None:
    rows = [{"meta": {"text": "path"}}, {"meta.text": "name"}, {"meta": {}}]
    items = read(tmp_path, rows, ".jsonl", text_field="meta.text")
    assert texts(items) == ["path", "name", "missing_field"]


def test_a_column_of_a_table_may_have_dots(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("meta.text,n\na,1\n")
    source = SourceSettings(name="s", uri=str(path), text_field="meta.text")
    assert texts(list(read_rows(str(path), "csv", source))) == ["a"]


def test_parquet_columns_of_only_nulls_and_empty_parts(tmp_path: Path) -> None:
    nulls = pa.table({"text": pa.nulls(3), "n": [1, 2, 3]})
    assert texts(read(tmp_path, nulls, ".parquet")) == ["null_text"] * 3
    for schema in ({"text": pa.string()}, {"text": pa.null()}, {"other": pa.int64()}, {}):
        empty = pa.table({name: pa.array([], kind) for name, kind in schema.items()})
        assert read(tmp_path, empty, ".parquet") == []
        assert count_rows(str(tmp_path / "a.parquet"), "parquet") == 0
    no_groups = pq.ParquetWriter(tmp_path / "b.parquet", pa.schema([("text", pa.string())]))
    no_groups.close()
    path = str(tmp_path / "b.parquet")
    assert pq.ParquetFile(path).num_row_groups == 0
    assert list(read_rows(path, "parquet", SourceSettings(name="s", uri=path))) == []
    assert count_rows(path, "parquet") == 0


STRINGS = [
    pa.string(),
    pa.large_string(),
    pa.string_view(),
    pa.binary(),
    pa.large_binary(),
    pa.dictionary(pa.int32(), pa.string()),
]


@pytest.mark.parametrize("kind", STRINGS, ids=str)
def test_text_of_every_string_type_within_a_struct(tmp_path: Path, kind: pa.DataType) -> None:
    column = pa.array(["é", None, "é", "b"])
    column = column.dictionary_encode().cast(kind) if "dict" in str(kind) else column.cast(kind)
    struct = pa.StructArray.from_arrays([column, pa.array([1, 2, 3, 4])], ["text", "n"])
    items = read(tmp_path, pa.table({"meta": struct}), ".parquet", text_field="meta.text")
    assert texts(items) == ["é", "null_text", "é", "b"]


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (pa.list_(pa.string()), ["a"]),
        (pa.large_list(pa.string()), ["a"]),
        (pa.map_(pa.string(), pa.string()), [("a", "b")]),
        (pa.struct([("text", pa.string())]), {"text": "a"}),
        (pa.int64(), 5),
        (pa.binary(2), b"ab"),
        (pa.bool_(), True),
        (pa.timestamp("s"), 0),
    ],
    ids=str,
)
def test_columns_that_are_no_text_are_named_with_their_type(
    tmp_path: Path, kind: pa.DataType, value: Any
) -> None:
    table = pa.table({"text": pa.array([value], kind)})
    (item,) = read(tmp_path, table, ".parquet")
    assert isinstance(item, BadRow)
    assert item.reason == "not_text"
    assert item.detail.startswith(f"field 'text' is {str(kind)[:5]}")


def test_binary_columns_are_held_to_be_utf_8(tmp_path: Path) -> None:
    values = [b"a", "café".encode("latin-1"), "text".encode("utf-16-le")]
    items = read(tmp_path, pa.table({"text": pa.array(values)}), ".parquet")
    assert texts(items) == ["a", "invalid_utf8", "invalid_utf8"]
    # A string that contains U+0000 says itself that it is text.
    items = read(tmp_path, pa.table({"text": ["a\0b"]}), ".parquet")
    assert texts(items) == ["a\0b"]


def test_an_encrypted_parquet_file_is_named(tmp_path: Path) -> None:
    from pyarrow.parquet import encryption as pe

    class Kms(pe.KmsClient):
        """Returns keys unchanged, since only the encrypted file matters."""

        def wrap_key(self, key_bytes: bytes, master_key_identifier: str) -> bytes:
            return key_bytes

        def unwrap_key(self, wrapped_key: bytes, master_key_identifier: str) -> bytes:
            return wrapped_key

    factory = pe.CryptoFactory(lambda _: Kms())
    for plaintext_footer in (False, True):
        keys = pe.EncryptionConfiguration(
            footer_key="f", column_keys={"c": ["text"]}, plaintext_footer=plaintext_footer
        )
        properties = factory.file_encryption_properties(pe.KmsConnectionConfig(), keys)
        table = pa.table({"text": ["a", "b"]})
        pq.write_table(table, tmp_path / "a.parquet", encryption_properties=properties)
        path = str(tmp_path / "a.parquet")
        items = list(read_rows(path, "parquet", SourceSettings(name="s", uri=path)))
        assert count_rows(path, "parquet") >= 1
        (item,) = items
        assert isinstance(item, BadRow)
        assert item.detail == "the Parquet file is encrypted; write it without encryption"
