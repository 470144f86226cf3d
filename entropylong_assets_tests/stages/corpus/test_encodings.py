"""Encodings and compressions: known ones are read in every format, others are named."""

from __future__ import annotations

import bz2
import gzip
import lzma
import zlib
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from entropylong_assets.stages.corpus.readers import count_rows, read_rows
from entropylong_assets.stages.corpus.registry import kind_of
from entropylong_assets.stages.corpus.rows import REMEDIES, BadRow, Item, Row
from entropylong_assets.stages.corpus.settings import SourceSettings

TEXT = "Zwölf Boxkämpfer, Привет мир, 你好世界, שלום, 🙂"
CONTENT = {
    ".txt": TEXT,
    ".md": TEXT,
    ".jsonl": f'{{"text": "{TEXT}"}}\n{{"text": "b"}}\n',
    ".json": f'[{{"text": "{TEXT}"}}, {{"text": "b"}}]',
    ".csv": f'text\n"{TEXT}"\nb\n',
    ".tsv": f"text\n{TEXT}\nb\n",
}
COMPRESS = {
    "": lambda content: content,
    ".gz": lambda content: gzip.compress(content, mtime=0),
    ".zst": lambda content: zstandard.ZstdCompressor().compress(content),
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
}
MARKED = ["utf-8", "utf-8-sig", "utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"]


def encoded(text: str, encoding: str) -> bytes:
    """The text in UTF-8 as it is, in other encodings with a byte order mark."""
    with_mark = encoding.startswith(("utf-16", "utf-32"))
    return (("\ufeff" if with_mark else "") + text).encode(encoding)


def read(path: Path, content: bytes) -> list[Item]:
    path.write_bytes(content)
    kind = kind_of(path.name)
    assert kind
    items = list(read_rows(str(path), kind, SourceSettings(name="s", uri=str(path))))
    count = count_rows(str(path), kind)
    assert all(item.row < count for item in items)
    assert all(item.reason in REMEDIES for item in items if isinstance(item, BadRow))
    return items


def texts(items: list[Item]) -> list[str]:
    return [item.text for item in items if isinstance(item, Row)]


def problems(items: list[Item]) -> list[str]:
    return [item.detail for item in items if isinstance(item, BadRow)]


@pytest.mark.parametrize("compression", COMPRESS)
@pytest.mark.parametrize("encoding", MARKED)
@pytest.mark.parametrize("ending", CONTENT)
def test_marked_encodings_are_read_in_every_format_and_compression(
    tmp_path: Path, ending: str, encoding: str, compression: str
) -> None:
    content = COMPRESS[compression](encoded(CONTENT[ending], encoding))
    items = read(tmp_path / f"a{ending}{compression}", content)
    assert texts(items) == ([TEXT] if ending in (".txt", ".md") else [TEXT, "b"])
    assert problems(items) == []


@pytest.mark.parametrize("compression", ["", ".gz"])
@pytest.mark.parametrize("ending", CONTENT)
@pytest.mark.parametrize(
    "text", ["plain English text", "Привет, мир", "Γειά σου, κόσμε", "你好，世界"]
)
@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"])
def test_utf_16_without_a_mark_is_never_text(
    tmp_path: Path, encoding: str, text: str, ending: str, compression: str
) -> None:
    content = CONTENT[ending].replace(TEXT, text).encode(encoding)
    items = read(tmp_path / f"a{ending}{compression}", COMPRESS[compression](content))
    assert texts(items) == []
    assert problems(items)
    # A Chinese text of one line has no zero byte, but bytes that are not UTF-8.
    known = ("UTF-16 or UTF-32 without a byte order mark", "is not UTF-8")
    assert any(name in problems(items)[0] for name in known)


def test_utf_16_without_zero_bytes_is_found_by_its_control_characters(tmp_path: Path) -> None:
    items = read(tmp_path / "a.txt", "ПриветМир".encode("utf-16-le"))
    (problem,) = problems(items)
    assert problem == (
        "11 of 18 bytes are control characters: UTF-16 or UTF-32 without a byte order mark, or no "
        "text"
    )


@pytest.mark.parametrize("ending", CONTENT)
@pytest.mark.parametrize(
    ("encoding", "text", "byte"),
    [
        ("latin-1", "café", "0xe9) is not UTF-8"),
        ("cp1252", "the “quoted” word", "0x93) is not UTF-8"),
        ("shift_jis", "日本", "0x93) is not UTF-8"),
        ("gb18030", "你好", "0xc4) is not UTF-8"),
        ("iso2022_jp", "日本", "is ESC: ISO-2022, not UTF-8"),
    ],
)
def test_other_encodings_are_bad_rows_by_name(
    tmp_path: Path, ending: str, encoding: str, text: str, byte: str
) -> None:
    content = CONTENT[ending].replace(TEXT, text).encode(encoding)
    if encoding == "iso2022_jp" and ending in (".json", ".jsonl", ".csv"):
        content = CONTENT[ending].replace(TEXT, "%").encode().replace(b"%", text.encode(encoding))
    items = read(tmp_path / f"a{ending}", content)
    # Only the row with the text is lost.
    assert texts(items) == ([] if ending in (".txt", ".md") else ["b"])
    (problem,) = problems(items)
    assert byte in problem


def test_a_lone_surrogate_of_utf_16_costs_its_own_row(tmp_path: Path) -> None:
    content = encoded("text\na\nb%c\nc\n", "utf-16-le").replace(b"%\0", b"\x00\xd8")
    items = read(tmp_path / "a.csv", content)
    assert texts(items) == ["a", "c"]
    assert problems(items) == ["byte 1 (0xed) is not UTF-8"]


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-32-le"])
def test_a_text_that_ends_within_a_character_is_damaged(tmp_path: Path, encoding: str) -> None:
    items = read(tmp_path / "a.jsonl", encoded(CONTENT[".jsonl"], encoding)[:-1])
    assert texts(items) == [TEXT]
    name = encoding[:6].upper()
    assert problems(items) == [f"the file is damaged here: not {name} (truncated data)"]


def test_files_that_were_appended_to_each_other_have_marks_within(tmp_path: Path) -> None:
    part = b'\xef\xbb\xbf{"text": "a"}\n'
    assert texts(read(tmp_path / "a.jsonl", part * 3)) == ["a", "a", "a"]


@pytest.mark.parametrize("compression", [c for c in COMPRESS if c])
def test_members_and_streams_that_follow_each_other_are_one_file(
    tmp_path: Path, compression: str
) -> None:
    parts = [b'{"text": "a"}\n{"te', b'xt": "b"}\n', b"", b'{"text": "c"}\n']
    content = b"".join(COMPRESS[compression](part) for part in parts)
    path = tmp_path / f"a.jsonl{compression}"
    assert texts(read(path, content)) == ["a", "b", "c"]
    if compression in (".gz", ".xz"):  # tapes and disks pad with zero bytes
        items = read(path, content + bytes(512))
        assert (texts(items), problems(items)) == (["a", "b", "c"], [])
    for garbage in (b"\x01garbage" * 99, b"x"):
        items = read(path, content + garbage)
        assert texts(items) == ["a", "b", "c"]
        (problem,) = problems(items)
        assert problem.startswith("the file is damaged here")


@pytest.mark.parametrize("compression", [c for c in COMPRESS if c])
@pytest.mark.parametrize("ending", CONTENT)
def test_a_truncated_file_is_damaged_in_every_format(
    tmp_path: Path, ending: str, compression: str
) -> None:
    whole = COMPRESS[compression](CONTENT[ending].encode())
    for size in (len(whole) - 1, len(whole) // 2, 7):
        items = read(tmp_path / f"a{ending}{compression}", whole[:size])
        assert "the file is damaged here" in problems(items)[-1]
        assert set(texts(items)) <= {TEXT, "b"}


@pytest.mark.parametrize("ending", CONTENT)
def test_an_empty_file_has_no_rows_in_any_compression(tmp_path: Path, ending: str) -> None:
    for compression, compress in COMPRESS.items():
        for content in (b"", compress(b""), compress(b"\xef\xbb\xbf"), compress(b"\xff\xfe")):
            path = tmp_path / f"a{ending}{compression}"
            assert read(path, content) == []
            assert count_rows(str(path), kind_of(path.name) or "") == (ending in (".txt", ".md"))


@pytest.mark.parametrize("ending", [ending for ending in CONTENT if ending not in (".txt", ".md")])
@pytest.mark.parametrize("blank", ["\n", " \n\t\n", "\r\n\r\n", "   "])
def test_a_file_of_white_space_has_no_rows(tmp_path: Path, ending: str, blank: str) -> None:
    path = tmp_path / f"a{ending}"
    assert read(path, blank.encode()) == []
    assert count_rows(str(path), kind_of(path.name) or "") == 0


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", b"text,n\n"),
        ("a.csv", b"text,n"),
        ("a.csv", b"other,n\r\n\r\n"),
        ("a.tsv.gz", gzip.compress(b"text\tn\n", mtime=0)),
        ("a.json", b"[]"),
        ("a.json", b" [ \n ] \n"),
    ],
)
def test_a_header_or_an_empty_list_has_no_rows(tmp_path: Path, name: str, content: bytes) -> None:
    path = tmp_path / name
    assert read(path, content) == []
    assert count_rows(str(path), kind_of(name) or "") == 0


PLAIN = CONTENT[".jsonl"].encode()
PARQUET = pa.BufferOutputStream()
pq.write_table(pa.table({"text": ["a"]}), PARQUET)


@pytest.mark.parametrize(
    ("name", "content", "found"),
    [
        ("a.jsonl.gz", PLAIN, "the name ends in .gz, but the content is not gzip"),
        ("a.jsonl.zst", PLAIN, "the name ends in .zst, but the content is not zstd"),
        ("a.jsonl.bz2", PLAIN, "the name ends in .bz2, but the content is not bzip2"),
        ("a.jsonl.xz", PLAIN, "the name ends in .xz, but the content is not xz"),
        ("a.jsonl.gz", COMPRESS[".zst"](PLAIN), "but the content is zstd (.zst)"),
        ("a.jsonl.zst", COMPRESS[".gz"](PLAIN), "but the content is gzip (.gz)"),
        ("a.jsonl.xz", COMPRESS[".bz2"](PLAIN), "but the content is bzip2 (.bz2)"),
        ("a.jsonl", COMPRESS[".gz"](PLAIN), "the content is gzip (.gz), not text"),
        ("a.json", COMPRESS[".zst"](PLAIN), "the content is zstd (.zst), not text"),
        ("a.csv", COMPRESS[".xz"](PLAIN), "the content is xz (.xz), not text"),
        ("a.txt", COMPRESS[".bz2"](PLAIN), "the content is bzip2 (.bz2), not text"),
        (
            "a.jsonl.gz",
            COMPRESS[".gz"](COMPRESS[".gz"](PLAIN)),
            "the content is gzip (.gz), not text",
        ),
        ("a.tsv", b"PK\x03\x04" + bytes(99), "the content is a ZIP archive (.zip), not text"),
        ("a.txt", PARQUET.getvalue().to_pybytes(), "the content is Parquet (.parquet), not text"),
        ("a.parquet", COMPRESS[".gz"](PLAIN), "the content is gzip (.gz), not Parquet"),
    ],
)
def test_content_that_contradicts_the_name_is_named(
    tmp_path: Path, name: str, content: bytes, found: str
) -> None:
    (item,) = read(tmp_path / name, content)
    assert isinstance(item, BadRow)
    assert item.reason == "misnamed"
    assert found in item.detail


def test_zstandard_windows_up_to_31_bits_are_read(tmp_path: Path) -> None:
    """`zstd --long=31`; by default the library reads at most 27 bits."""
    for bits in (27, 28, 31):
        parameters = zstandard.ZstdCompressionParameters(window_log=bits, write_content_size=False)
        compressor = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
        content = compressor.compress(PLAIN) + compressor.flush()
        assert zstandard.get_frame_parameters(content).window_size == 2**bits
        assert texts(read(tmp_path / "a.jsonl.zst", content)) == [TEXT, "b"]


def test_what_a_frame_needs_is_named_and_is_no_damage(tmp_path: Path) -> None:
    wide = b"\x28\xb5\x2f\xfd" + bytes([0x00, 22 << 3]) + b"\x01\x00\x00"  # a window of 32 bits
    (problem,) = problems(read(tmp_path / "a.jsonl.zst", wide))
    assert "a window of more than 2 GiB" in problem
    samples = [b'{"text": "row %d of some rows"}' % i * 3 for i in range(2000)]
    dictionary = zstandard.train_dictionary(4096, samples)
    content = zstandard.ZstdCompressor(dict_data=dictionary).compress(PLAIN)
    (problem,) = problems(read(tmp_path / "a.jsonl.zst", content))
    assert "needs a dictionary; compress it again without one" in problem
    assert "damaged" not in problem


def test_a_wrong_checksum_costs_no_row_before_it(tmp_path: Path) -> None:
    rows = "".join(f'{{"text": "row {i}"}}\n' for i in range(5000)).encode()
    raw = zlib.compressobj(wbits=31)
    content = raw.compress(rows) + raw.flush()
    items = read(tmp_path / "a.jsonl.gz", content[:-8] + bytes(8))
    assert len(texts(items)) == 5000
    assert problems(items) == ["the file is damaged here: not gzip data (CRC check failed)"]
