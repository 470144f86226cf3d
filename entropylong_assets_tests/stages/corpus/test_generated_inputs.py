"""Generated inputs: documents written in all variants of the formats, whole and damaged.

The environment variable ENTROPYLONG_INPUTS is the number of cases (`make test-inputs` runs 10,000).
Each case follows from its number. Every second case writes documents in one of the variants, and
reading must give exactly their ids. The other cases damage the files in a known way:

- every error is a CorpusError of one line;
- every document that is not read has a bad row, and no document is read twice;
- if the damage is in one row, each row is a document or a bad row, and no other text is changed;
- no text contains two documents.
"""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from entropylong_assets.stages.corpus.documents import canonical_texts, document_id
from entropylong_assets.stages.corpus.errors import CorpusError
from entropylong_assets.stages.corpus.rows import REMEDIES, BadRow, Row
from entropylong_assets.stages.corpus.shards import plan_shards, read_shard
from entropylong_assets.storage.tables import TableStore
from entropylong_assets_tests.stages.corpus.files_for_tests import ingest, settings_for
from entropylong_assets_tests.stages.corpus.source_variants import (
    COMPRESSIONS,
    FORMATS,
    WHOLE_FILES,
    Document,
    Table,
    Variant,
    can_hold,
    encode,
    files_of,
    make_documents,
    parquet_of,
    place,
    settings_of,
    table_of,
    variants,
)

N_CASES = int(os.environ.get("ENTROPYLONG_INPUTS", "300"))
VARIANTS = sorted(variants())
N_GROUPS = 10


class Outcome(NamedTuple):
    """What was read from a source."""

    rows: list[Row]
    bad: list[BadRow]
    error: str = ""

    def ids(self) -> list[str]:
        texts = canonical_texts([row.text for row in self.rows])
        return sorted(document_id(text) for text in texts)


def read(uri: str, values: Mapping[str, Any], shard_rows: int) -> Outcome:
    """Read all shards of a source. Any error except a CorpusError fails the test."""
    settings = settings_for(uri, shard_rows=shard_rows, **values)
    items = []
    try:
        for shard in plan_shards(settings).shards:
            items += list(read_shard(shard, settings.sources[0]))
    except CorpusError as error:
        return Outcome([], [], str(error))
    rows = [item for item in items if isinstance(item, Row)]
    bad = [item for item in items if isinstance(item, BadRow)]
    for item in bad:
        message = str(item.error())
        assert item.reason in REMEDIES, message
        assert message.isprintable(), message
    places = Counter((row.file, row.row) for row in rows)
    assert not places or max(places.values()) == 1, "a row was read twice"
    return Outcome(rows, bad)


def _check_same(folder: Path, draw: random.Random) -> None:
    variant = draw.choice(VARIANTS)
    documents = make_documents(draw, draw.randint(1, 9))
    documents = [d for d in documents if can_hold(d, variant)] or [Document("d0", "⟦0⟧")]
    uri = place(folder, files_of(documents, variant), variant.layout)
    outcome = read(uri, settings_of(variant), draw.choice([1, 3, 1000]))
    assert (outcome.bad, outcome.error) == ([], ""), variant
    assert outcome.ids() == sorted(d.doc_id for d in documents), variant
    if variant.format not in WHOLE_FILES:
        assert sorted(str(row.external_id) for row in outcome.rows) == [d.name for d in documents]


class Damage(NamedTuple):
    """A way to damage a file of documents.

    promise: `same`: all documents are read, and no row is bad; `row`: only the damaged row changes,
    and each row is a document or a bad row; `subset`: documents may be missing if there is a bad
    row; `any`: texts may also be changed if there is a bad row; `none`: nothing is read.
    """

    promise: str
    applies: Callable[[Variant], bool]
    table: Callable[[random.Random, Table, int], None] = lambda *_: None
    encoded: Callable[[bytes], bytes] = lambda content: content
    raw: Callable[[random.Random, bytes, str], bytes] = lambda _, content, __: content
    name: Callable[[str], str] = lambda name: name
    mark: bool = True


def _is_csv(variant: Variant) -> bool:
    return variant.format in ("csv", "tsv")


def _is_json(variant: Variant) -> bool:
    return variant.format.startswith(("json", "ndjson"))


def _is_quoted(variant: Variant) -> bool:
    return _is_csv(variant) and variant.quoting in ("if needed", "all")


def _is_lines(variant: Variant) -> bool:
    return variant.format in ("jsonl", "ndjson", "json lines")


def _is_utf8(variant: Variant) -> bool:
    return variant.encoding == "utf-8"


def _is_compressed(variant: Variant) -> bool:
    return bool(variant.compression)


def _always(_: Variant) -> bool:
    return True


def _edit(edit: Callable[[random.Random, str], str]) -> Callable[[random.Random, Table, int], None]:
    """Damage the text of a row."""

    def damage(draw: random.Random, table: Table, at: int) -> None:
        row = table.rows[at]
        row[table.column] = edit(draw, row[table.column])

    return damage


def _insert(*rows: list[str]) -> Callable[[random.Random, Table, int], None]:
    def damage(_: random.Random, table: Table, at: int) -> None:
        table.rows[at:at] = [list(row) or table.header for row in rows]

    return damage


def _add_piece(draw: random.Random, table: Table, at: int) -> None:
    table.rows[at].insert(draw.randint(0, 3), "x")


def _drop_piece(draw: random.Random, table: Table, at: int) -> None:
    table.rows[at].pop(draw.randrange(3))


def _windows(_: random.Random, table: Table, __: int) -> None:
    table.between = table.between.replace("\n", "\r\n")
    table.after = table.after.replace("\n", "\r\n")


def _insert_at(draw: random.Random, text: str, what: str) -> str:
    """Insert a string at a random place, but not inside the text's marker unless it is escaped."""
    if "⟦" not in text:
        text = f"⟦⟧{text}"
        return _insert_at(draw, text, what).replace("⟦⟧", "")
    before, mark, after = text.partition(text[text.index("⟦") : text.index("⟧") + 1])
    at = draw.randint(0, len(before) + len(after))
    if at > len(before):
        at -= len(before)
        return before + mark + after[:at] + what + after[at:]
    return before[:at] + what + before[at:] + mark + after


def _without_last_brace(text: str) -> str:
    before, _, after = text.rpartition("}")
    return before + after


def _flip(draw: random.Random, content: bytes) -> bytes:
    at = draw.randrange(len(content))
    return content[:at] + bytes([content[at] ^ 1 << draw.randrange(8)]) + content[at + 1 :]


def _flip_page(draw: random.Random, content: bytes, marker: str) -> bytes:
    """Turn a bit of a text in a Parquet file, which has checksums only for its pages."""
    at = content.index(marker.encode()) + draw.randrange(len(marker))
    return content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]


def _scramble(draw: random.Random, content: bytes, _: str) -> bytes:
    result = bytearray(content)
    for _ in range(draw.randint(1, 4)):
        at = draw.randint(0, len(result))
        match draw.choice(("change", "remove", "insert", "cut", "double")):
            case "change":
                result[at : at + 1] = draw.randbytes(1)
            case "remove":
                del result[at : at + draw.randint(1, 30)]
            case "insert":
                result[at:at] = draw.choice([draw.randbytes(5), b'"', b"\n", b"{", b"]", b"\0"])
            case "cut":
                del result[at:]
            case "double":
                result[at:at] = result[at : at + 50]
    return bytes(result)


DAMAGES: Mapping[str, Damage] = {
    # Quotes and fields of CSV.
    "quote before": Damage("row", _is_quoted, _edit(lambda _, t: f'"{t}')),
    "quote after": Damage("row", _is_quoted, _edit(lambda _, t: f'{t}"')),
    "quote within": Damage("row", _is_quoted, _edit(lambda draw, t: _insert_at(draw, t, '"'))),
    "quote lost": Damage("row", _is_quoted, _edit(lambda _, t: t.removesuffix('"'))),
    "first quote lost": Damage("row", _is_quoted, _edit(lambda _, t: t.removeprefix('"'))),
    "field added": Damage("row", _is_csv, _add_piece),
    "field lost": Damage("row", _is_csv, _drop_piece),
    "header again": Damage("row", _is_csv, _insert([])),
    "quote alone": Damage("row", _is_quoted, _insert(['"'])),
    # Rows of JSON.
    "brace lost": Damage("row", _is_lines, _edit(lambda _, t: _without_last_brace(t))),
    "bracket more": Damage("row", _is_lines, _edit(lambda draw, t: _insert_at(draw, t, "["))),
    "comma lost": Damage("row", _is_lines, _edit(lambda _, t: t.replace(",", "", 1))),
    "brace lost in JSON": Damage("subset", _is_json, _edit(lambda _, t: _without_last_brace(t))),
    "brace more in JSON": Damage("subset", _is_json, _edit(lambda _, t: t + "}")),
    "quote lost in JSON": Damage("subset", _is_json, _edit(lambda _, t: t.replace('"', "", 1))),
    "no object": Damage("row", _is_json, _edit(lambda draw, _: draw.choice(["5", '"x"', "null"]))),
    "no text": Damage("row", _is_json, _edit(lambda _, __: '{"id": "x"}')),
    "row of nothing": Damage("row", _is_json, _insert(["{}"])),
    # Line ends and blank lines.
    "blank lines": Damage("same", _is_csv, _insert([""], [""], ["  "])),
    "blank lines in JSON": Damage("same", _is_lines, _insert([""], ["  "])),
    "CR LF": Damage("same", lambda v: _is_csv(v) or _is_json(v), _windows),
    # Encodings.
    "no mark": Damage("none", lambda v: v.encoding[:6] in ("utf-16", "utf-32"), mark=False),
    "Latin-1": Damage(
        "row", _is_utf8, _edit(lambda draw, t: _insert_at(draw, t, "\ue000")),
        encoded=lambda content: content.replace("\ue000".encode(), b"\xe9"),
    ),
    "zero byte": Damage("row", _always, _edit(lambda draw, t: _insert_at(draw, t, "\0"))),
    # Compressed files.
    "cut": Damage("subset", _is_compressed, raw=lambda draw, c, _: c[: draw.randrange(1, len(c))]),
    "garbage": Damage("subset", _is_compressed, raw=lambda draw, c, _: c + draw.randbytes(30)),
    "flipped": Damage("any", _is_compressed, raw=lambda draw, c, _: _flip(draw, c)),
    "no suffix": Damage("none", _is_compressed, name=lambda name: name.rpartition(".")[0]),
    "wrong suffix": Damage("none", _is_utf8, name=lambda name: name + ".gz"),
}  # fmt: skip
SCRAMBLED = Damage("nothing", _always, raw=_scramble)


def _keep_uncompressed(name: str, variant: Variant) -> bool:
    """Renaming to another compression is a fault only if the content is not compressed."""
    return name == "wrong suffix" and bool(variant.compression)


def _check_damaged(folder: Path, draw: random.Random) -> str:
    """Damage a file of rows in one way. Returns the name of the damage."""
    name = draw.choice([*DAMAGES, "scrambled", "scrambled"])
    damage = DAMAGES.get(name, SCRAMBLED)
    fitting = [
        v for v in VARIANTS
        if v.layout == "file" and not v.format.startswith("parquet") and damage.applies(v)
        and not _keep_uncompressed(name, v)
    ]  # fmt: skip
    variant = draw.choice(fitting)
    documents = make_documents(draw, draw.randint(2, 9))
    documents = [d for d in documents if can_hold(d, variant)] or [Document("d0", "⟦0⟧")]
    table, at = table_of(documents, variant), draw.randrange(len(documents))
    damage.table(draw, table, at)
    content = damage.encoded(encode(table.content(), variant.encoding, mark=damage.mark))
    content = COMPRESSIONS[variant.compression](content)
    content = damage.raw(draw, content, documents[at].marker)
    files = {damage.name(f"a{variant.suffix}"): content}
    outcome = read(place(folder, files, "file"), settings_of(variant), draw.choice([2, 1000]))
    _check_promise(damage.promise, documents, at, outcome)
    return name


def _check_parquet(folder: Path, draw: random.Random) -> str:
    variant = Variant(draw.choice([name for name in FORMATS if name.startswith("parquet")]))
    documents = make_documents(draw, draw.randint(2, 9))
    at = draw.randrange(len(documents))
    content = parquet_of(documents, variant)
    name = draw.choice(["page", "cut", "scrambled"])
    promise = {"page": "subset", "cut": "none", "scrambled": "nothing"}[name]
    match name:
        case "page":
            content = _flip_page(draw, content, documents[at].marker)
        case "cut":
            content = content[: draw.randrange(len(content))]
        case "scrambled":
            content = _scramble(draw, content, "")
    files = {"a.parquet": content}
    outcome = read(place(folder, files, "file"), settings_of(variant), draw.choice([2, 1000]))
    _check_promise(promise, documents, at, outcome)
    return f"parquet {name}"


def _letters(text: str) -> str:
    """The text without the characters that a missing or additional quote can change."""
    return "".join(char for char in text if char.isalnum() or char in "⟦⟧")


def _check_promise(promise: str, documents: list[Document], at: int, outcome: Outcome) -> None:
    ids, expected = Counter(outcome.ids()), Counter(d.doc_id for d in documents)
    lost, extra = expected - ids, ids - expected
    is_reported = bool(outcome.bad or outcome.error)
    merged = [row.text for row in outcome.rows if sum(d.marker in row.text for d in documents) > 1]
    assert promise == "nothing" or not merged, merged
    assert "\n" not in outcome.error
    match promise:
        case "same":
            assert (lost, extra, outcome.bad, outcome.error) == ({}, {}, [], "")
        case "row":
            assert not outcome.error
            assert len(outcome.rows) + len(outcome.bad) >= len(documents)
            assert not lost or is_reported or lost == {documents[at].doc_id: 1}
            known = {_letters(d.text) for d in documents}
            changed = [text for row in outcome.rows if (text := _letters(row.text)) not in known]
            # Lines of a text whose first quote is lost are rows, and may have the right fields.
            allowed = _letters(documents[at].text)
            assert all(documents[at].marker in t or t in allowed for t in changed), changed
        case "subset":
            assert not extra
            assert not lost or is_reported
        case "any":
            assert not (lost or extra) or is_reported
        case "none":
            assert not outcome.rows
            assert is_reported


@pytest.mark.parametrize("group", range(N_GROUPS))
def test_generated_inputs(tmp_path: Path, group: int) -> None:
    seen: Counter[str] = Counter()
    for case in range(group, N_CASES, N_GROUPS):
        folder, draw = tmp_path / str(case), random.Random(case)
        try:
            if draw.random() < 0.4:
                _check_same(folder, draw)
                seen["same"] += 1
            elif draw.random() < 0.1:
                seen[_check_parquet(folder, draw)] += 1
            else:
                seen[_check_damaged(folder, draw)] += 1
        except BaseException as error:
            error.add_note(f"case {case}: {sorted(map(str, folder.rglob('*')))}")
            raise
    assert seen["same"] > N_CASES // N_GROUPS // 5
    assert len(seen) > min(20, N_CASES // N_GROUPS // 3)


@pytest.mark.parametrize("format_", sorted(FORMATS))
def test_each_format_gives_the_same_tables(tmp_path: Path, format_: str) -> None:
    """The whole stage, with its tables: ids, counts and summaries."""
    draw = random.Random(format_)
    documents = make_documents(draw, 12)
    variant = next(v for v in VARIANTS if v.format == format_ and v.layout == "folder")
    documents = [d for d in documents if can_hold(d, variant)]
    uri = place(tmp_path / "in", files_of(documents, variant), variant.layout)
    settings = settings_for(uri, shard_rows=5, **settings_of(variant))
    tables, dropped, summaries = ingest(settings, TableStore(str(tmp_path / "data")))
    assert sorted(d["doc_id"] for d in tables) == sorted(d.doc_id for d in documents)
    assert dropped == []
    assert sum(s.rows_read for s in summaries) == len(documents)
