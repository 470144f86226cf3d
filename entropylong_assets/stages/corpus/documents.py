"""Canonical documents of one shard: clean text with an id from its hash.

Every row that is read becomes a document or is dropped with a reason, so that
`rows_read = documents + the sum of dropped` in the summary of a shard. Rows that do not meet the
`where` of their source are not read; they are counted beside it.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any

import polars as pl

from entropylong_assets.settings.section import Settings
from entropylong_assets.stages.corpus.cleaning import Cleaning, Fault
from entropylong_assets.stages.corpus.rows import BadRow, Item, NotSelected, Row
from entropylong_assets.stages.corpus.shards import Shard, read_shard, source_of
from entropylong_assets.stages.corpus.tables import CorpusDocumentsSummary
from entropylong_assets.storage.partition_writer import PartitionWriter

BATCH_ROWS = 1024
BATCH_CHARS = 4_000_000
"""A batch ends with the row that reaches either limit."""

# CR LF, CR, vertical tab, form feed, next line, line and paragraph separator.
_LINE_ENDS = r"\r\n|[\r\x0B\x0C\x{85}\x{2028}\x{2029}]"
# Control characters; soft hyphen; zero-width space, word joiner, byte order mark; and all marks and
# overrides of direction, which change the display and not the text, and can make a text look like
# another one. Zero-width joiner and non-joiner are kept: Persian, the scripts of India and emoji
# are spelled with them.
_REMOVED = (
    r"[\p{Cc}&&[^\n\t]]|[\x{AD}\x{200B}\x{2060}\x{FEFF}]"
    r"|[\x{61C}\x{200E}\x{200F}\x{202A}-\x{202E}\x{2066}-\x{2069}]"
)
# Texts of only these characters are in normal form C, so they skip the normalization, which takes
# most of the time: none of them decomposes, is reordered or composes with the one before it. Latin,
# basic Cyrillic, punctuation, currency, arrows, ideographs, Hangul syllables.
_COMPOSED = (
    r"\x{0}-\x{2FF}\x{400}-\x{482}\x{2010}-\x{2027}\x{2030}-\x{205E}\x{20A0}-\x{20BF}"
    r"\x{2190}-\x{219A}\x{4E00}-\x{9FFF}\x{AC00}-\x{D7A3}"
)


def _without_surrogates(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-8", "ignore").decode()
    return text


def canonical_texts(texts: list[str]) -> list[str]:
    """Return texts in canonical form, so that equal texts are equal strings.

    Lone surrogates and control, direction and zero-width characters (see `_REMOVED`) are removed;
    line ends become `\\n`; the result is in Unicode normal form C, without white space around it.
    Polars normalizes, since Python's own function takes quadratic time on long runs of combining
    marks: one hostile document could stop a run for hours.
    """
    series = pl.Series([_without_surrogates(text) for text in texts], dtype=pl.String)
    clean = series.str.replace_all(_LINE_ENDS, "\n").str.replace_all(_REMOVED, "")
    doubtful = clean.str.contains(f"[^{_COMPOSED}]").arg_true()
    clean = clean.scatter(doubtful, clean.gather(doubtful).str.normalize("NFC"))
    return clean.str.strip_chars().to_list()


def document_id(text: str) -> str:
    """Return 32 hex digits (128 bits of BLAKE2b) of a canonical text."""
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _batches(items: Iterable[Item]) -> Iterator[list[Item]]:
    batch: list[Item] = []
    chars = 0
    for item in items:
        batch.append(item)
        chars += len(item.text) if isinstance(item, Row) else 0
        if len(batch) >= BATCH_ROWS or chars >= BATCH_CHARS:
            yield batch
            batch, chars = [], 0
    if batch:
        yield batch


def _place(document: Mapping[str, Any]) -> dict[str, Any]:
    return {name: document[name] for name in ("file", "row", "external_id")}


def _dropped(item: Row | BadRow, reason: str, detail: str) -> dict[str, Any]:
    return {
        "file": item.file,
        "row": item.row,
        "external_id": item.external_id,
        "reason": reason,
        "detail": detail,
    }


def _length_fault(text: str, settings: Settings) -> Fault | None:
    low, high = settings.min_chars, settings.max_chars
    if not text:
        return Fault("empty", "no text is left once it is in canonical form")
    if len(text) < low:
        return Fault("too_short", f"{len(text)} characters, under corpus.min_chars {low}")
    if len(text) > high:
        return Fault("too_long", f"{len(text)} characters, over corpus.max_chars {high}")
    return None


def _documents(
    rows: list[Row], settings: Settings, seen: set[bytes], taken_down: Collection[str]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the documents of these rows, and the dropped ones.

    seen: ids of the shard's documents so far; those of new documents are added.
    """
    documents, dropped = [], []
    for row, text in zip(rows, canonical_texts([row.text for row in rows]), strict=True):
        fault = _length_fault(text, settings)
        doc_id = document_id(text)
        if fault is None and doc_id in taken_down:
            fault = Fault("taken_down", f"document {doc_id} was taken down")
        if fault is None and (key := bytes.fromhex(doc_id)) in seen:
            fault = Fault("duplicate_in_shard", f"same text as document {doc_id}")
        if fault:
            dropped.append(_dropped(row, *fault))
            continue
        seen.add(key)
        documents.append(
            {
                "doc_id": doc_id,
                "text": text,
                "file": row.file,
                "row": row.row,
                "external_id": row.external_id,
                "n_chars": len(text),
                "metadata": row.metadata,
            }
        )
    return documents, dropped


def ingest_shard(
    shard: Shard,
    settings: Settings,
    writer: PartitionWriter,
    on_progress: Callable[[int], None] = lambda _: None,
    taken_down: Collection[str] = (),
) -> CorpusDocumentsSummary:
    """Read a shard and write its tables `documents` and `dropped`, batch by batch.

    settings: of the corpus. on_progress: called with numbers of rows just finished.
    taken_down: ids of documents that are refused. Memory holds one batch, and 16 bytes per document
    to recognize duplicates within the shard, of which the first is kept.

    Raises CorpusError at the first bad row unless `on_bad_row` is `skip`, and if a filter or an
    evaluation set can't be used.
    """
    source = source_of(shard, settings)
    counts: Counter[str] = Counter()
    drops: Counter[str] = Counter()
    seen: set[bytes] = set()
    # Only the shard at the start of a file can find that the file has no rows.
    without_rows = set(shard.files) if shard.first_row == 0 else set()
    cleaning = Cleaning(settings)

    for batch in _batches(read_shard(shard, source)):
        bad = [item for item in batch if isinstance(item, BadRow)]
        if bad and settings.on_bad_row == "fail":
            raise bad[0].error()
        rows = [item for item in batch if isinstance(item, Row)]
        documents, dropped = _documents(rows, settings, seen, taken_down)
        dropped += [_dropped(item, item.reason, item.detail) for item in bad]
        for document in documents:
            document.update(source=shard.source, license=source.license)
        documents, faulty, contaminated = cleaning.clean(documents)
        dropped += [_place(document) | fault._asdict() for document, fault in faulty]
        writer.append("documents", documents)
        writer.append("contaminated", contaminated)
        writer.append("metadata", [d for d in documents if d["metadata"] is not None])
        writer.append("dropped", sorted(dropped, key=lambda drop: (drop["file"], drop["row"])))
        drops.update(drop["reason"] for drop in dropped)
        skipped = [item for item in batch if isinstance(item, NotSelected)]
        n_skipped = sum(item.n_rows for item in skipped)
        counts["rows_read"] += len(batch) - len(skipped)
        counts["not_selected"] += n_skipped
        without_rows.difference_update(item.file for item in batch)
        counts["documents"] += len(documents)
        counts["chars"] += sum(document["n_chars"] for document in documents)
        on_progress(len(batch) - len(skipped) + n_skipped)

    if counts["rows_read"] != counts["documents"] + drops.total():
        raise AssertionError(f"shard {shard.key}: rows don't reconcile: {counts}, {drops}")
    return CorpusDocumentsSummary(
        rows_read=counts["rows_read"],
        documents=counts["documents"],
        chars=counts["chars"],
        dropped=dict(sorted(drops.items())),
        files_without_rows=len(without_rows),
        not_selected=counts["not_selected"],
        evaluation_sets=cleaning.figures(),
    )
