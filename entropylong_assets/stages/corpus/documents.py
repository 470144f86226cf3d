"""Canonical documents of one shard: clean text, id from its hash, roots by hash.

Every row that is read ends as a document or as a dropped row with a reason, so that
`rows_read = documents + the drops of all reasons` in the summary of a shard.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import polars as pl

from entropylong_assets.settings.model import Settings
from entropylong_assets.stages.corpus.rows import Item, Row
from entropylong_assets.stages.corpus.shards import Shard, read_shard, source_of
from entropylong_assets.storage.tables import PartitionWriter

BATCH_ROWS = 1024
BATCH_CHARS = 4_000_000
"""A batch ends with the row that reaches either bound."""

# CR LF, CR, vertical tab, form feed, next line, line and paragraph separator.
_LINE_ENDS = r"\r\n|[\r\x0B\x0C\x{85}\x{2028}\x{2029}]"
# Control characters; soft hyphen; zero-width space, word joiner, byte order mark; and everything
# that overrides or marks direction: it orders the display, not the text, and can make a passage
# look like another one. Zero-width joiner and non-joiner stay: Persian, the scripts of India and
# emoji are spelled with them.
_OUT = (
    r"[\p{Cc}&&[^\n\t]]|[\x{AD}\x{200B}\x{2060}\x{FEFF}]"
    r"|[\x{61C}\x{200E}\x{200F}\x{202A}-\x{202E}\x{2066}-\x{2069}]"
)
# Texts of these characters alone are in normal form C already: none of them decomposes, orders
# itself behind others or joins the one before it. Normalising is what takes most of the time.
# Latin, basic Cyrillic, punctuation, currency, arrows, ideographs, Hangul syllables.
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
    """Texts in canonical form: the same text is the same string, whatever it was cut from.

    Lone surrogates go; line ends become `\\n`; control, direction and zero-width characters go
    (see `_OUT`); the rest is in Unicode normal form C, without white space around it. Polars
    does it, because Python's own normalisation takes quadratic time on long runs of combining
    marks, by which one hostile document could stop a pipeline for hours.
    """
    series = pl.Series([_without_surrogates(text) for text in texts], dtype=pl.String)
    clean = series.str.replace_all(_LINE_ENDS, "\n").str.replace_all(_OUT, "")
    doubtful = clean.str.contains(f"[^{_COMPOSED}]").arg_true()
    clean = clean.scatter(doubtful, clean.gather(doubtful).str.normalize("NFC"))
    return clean.str.strip_chars().to_list()


def document_id(text: str) -> str:
    """32 hex digits (128 bits of BLAKE2b) of a canonical text."""
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def is_drawn(doc_id: str, seed: int, fraction: float) -> bool:
    """Whether the draw of roots hits a document: by seed and id alone, for `fraction` of all."""
    digest = hashlib.blake2b(f"root:{seed}:{doc_id}".encode(), digest_size=8).digest()
    return int.from_bytes(digest) < fraction * 2**64


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


def _dropped(item: Item, reason: str, detail: str) -> dict[str, Any]:
    return {
        "file": item.file,
        "row": item.row,
        "external_id": item.external_id,
        "reason": reason,
        "detail": detail,
    }


def _length_fault(text: str, settings: Settings) -> tuple[str, str] | None:
    corpus = settings.corpus
    if not text:
        return "empty", "nothing is left of the text once it is clean"
    if len(text) < corpus.min_chars:
        return "too_short", f"{len(text)} characters, under corpus.min_chars {corpus.min_chars}"
    if len(text) > corpus.max_chars:
        return "too_long", f"{len(text)} characters, over corpus.max_chars {corpus.max_chars}"
    return None


def ingest_shard(
    shard: Shard,
    settings: Settings,
    count_tokens: Callable[[list[str]], list[int]],
    writer: PartitionWriter,
    on_progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Reads a shard and writes its tables `documents` and `dropped`, batch by batch.

    `count_tokens` gives the lengths of texts in tokens of the scoring model, without special
    ones. `on_progress` is told the rows read so far and those planned. Memory holds one batch
    and 16 bytes a document, by which a copy within the shard is known; of copies, the first in
    the shard counts. A document is a root where the draw hits it and its length in tokens lies
    within the settings' range.

    Returns the summary: `rows_read`, `documents`, `roots`, `chars`, `tokens` and `dropped`, the
    number by reason. Raises CorpusError at the first bad row unless `on_bad_row` is `skip`.
    """
    corpus, source = settings.corpus, source_of(shard, settings.corpus)
    fraction = corpus.root_fraction if source.root_fraction is None else source.root_fraction
    counts: Counter[str] = Counter()
    drops: Counter[str] = Counter()
    seen: set[bytes] = set()

    for batch in _batches(read_shard(shard, source)):
        rows, dropped = [], []
        for item in batch:
            if isinstance(item, Row):
                rows.append(item)
            elif corpus.on_bad_row == "fail":
                raise item.error()
            else:
                dropped.append(_dropped(item, item.reason, item.detail))
        documents: list[dict[str, Any]] = []
        for row, text in zip(rows, canonical_texts([r.text for r in rows]), strict=True):
            fault = _length_fault(text, settings)
            doc_id = document_id(text)
            if fault is None and (key := bytes.fromhex(doc_id)) in seen:
                fault = "duplicate_in_shard", f"same text as document {doc_id}"
            if fault:
                dropped.append(_dropped(row, *fault))
                continue
            seen.add(key)
            documents.append(
                {
                    "doc_id": doc_id,
                    "text": text,
                    "source": shard.source,
                    "file": row.file,
                    "row": row.row,
                    "external_id": row.external_id,
                    "license": source.license,
                    "n_chars": len(text),
                }
            )
        lengths = count_tokens([document["text"] for document in documents]) if documents else []
        for document, n_tokens in zip(documents, lengths, strict=True):
            in_range = corpus.root_min_tokens <= n_tokens <= corpus.root_max_tokens
            document["n_tokens"] = n_tokens
            document["is_root"] = in_range and is_drawn(document["doc_id"], settings.seed, fraction)
        writer.append("documents", documents)
        writer.append("dropped", sorted(dropped, key=lambda drop: (drop["file"], drop["row"])))
        drops.update(drop["reason"] for drop in dropped)
        counts["rows_read"] += len(batch)
        counts["documents"] += len(documents)
        counts["roots"] += sum(document["is_root"] for document in documents)
        counts["chars"] += sum(document["n_chars"] for document in documents)
        counts["tokens"] += sum(lengths)
        if on_progress:
            on_progress(counts["rows_read"], shard.n_rows)

    if counts["rows_read"] != counts["documents"] + drops.total():
        raise AssertionError(f"shard {shard.key}: rows don't reconcile: {counts}, {drops}")
    names = ("rows_read", "documents", "roots", "chars", "tokens")
    return {name: counts[name] for name in names} | {"dropped": dict(sorted(drops.items()))}
