"""The text of a sample's segments, and the characters of their tokens.

The text of roots is read from the documents, that of contexts from the candidates, and that of
other passages from the table `passages`. It counts as original only if its tokens are those of the
sample; otherwise the segment's tokens are decoded.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, islice, pairwise
from typing import TYPE_CHECKING, Any

import duckdb
import numpy as np
import polars as pl
from numpy.typing import NDArray

from entropylong_assets.stages.corpus.tables import CORPUS_DOCUMENTS
from entropylong_assets.stages.retrieval.tables import CANDIDATE_CONTEXTS
from entropylong_assets.stages.samples.tables import LONG_CONTEXT_SAMPLES
from entropylong_assets.storage import duck
from entropylong_assets.storage.tables import TableStore

if TYPE_CHECKING:
    from entropylong_assets.stages.entropy.model import Tokenizer
    from entropylong_assets.stages.training_data.samples import Sample

_SAMPLES_PER_QUERY = 16
_WITHOUT_TEXT = ("bos", "padding")

_OF_DOCUMENTS = ("natural", "short")
"""Roles of segments that belong to no root: parts of a mixture."""

_TEXTS = """
SELECT chunk_id AS key, text FROM chunks SEMI JOIN wanted ON chunk_id = key
UNION ALL SELECT chunk_id, text FROM passages SEMI JOIN wanted ON chunk_id = key
UNION ALL SELECT doc_id, text FROM documents SEMI JOIN wanted ON doc_id = key
"""

Span = tuple[int, int]


@dataclass(frozen=True, eq=False)
class SegmentText:
    """The text of one segment."""

    segment: int
    """Number of the segment in the sample."""
    text: str
    """Without the separator."""
    is_original: bool
    """Whether it is the corpus' own text, whose tokens are those of the segment. Otherwise it was
    decoded from them, and may differ in what the tokenizer does not preserve."""
    has_separator: bool
    """Whether the separator follows: no, if a root or a filler continues or is cut here."""
    spans: Sequence[Span]
    """Characters of `text` (start, end) that each token stands for, without the separator's."""


@dataclass(frozen=True, eq=False)
class _Encoded:
    """A whole text of the corpus with its tokens."""

    text: str
    ids: NDArray[np.int64]
    spans: Sequence[Span]


def add_texts(
    store: TableStore, tokenizer: Tokenizer, samples: Iterable[Sample]
) -> Iterator[Sample]:
    """The same samples with `texts`. They must be ordered by shard. Memory is bounded."""
    for shard, of_shard in groupby(samples, key=lambda sample: sample.shard):
        with duck.querying(store, _views(store, shard)) as session:
            while batch := list(islice(of_shard, _SAMPLES_PER_QUERY)):
                texts = _read_texts(session, batch)
                for sample in batch:
                    yield replace(sample, texts=_segment_texts(sample, texts, tokenizer))


def _views(store: TableStore, shard: str) -> dict[str, duck.View]:
    views: dict[str, duck.View] = {
        "documents": (CORPUS_DOCUMENTS, [shard], "documents"),
        "chunks": (CANDIDATE_CONTEXTS, [shard], "chunks"),
        "passages": (LONG_CONTEXT_SAMPLES, [shard], "passages"),
    }
    if "passages" not in store.require(LONG_CONTEXT_SAMPLES, shard).tables:
        views["passages"] = store.read(LONG_CONTEXT_SAMPLES, shard, "passages")
    return views


def segment_rows(sample: Sample) -> list[dict[str, Any]]:
    """Return the segments of a sample as rows."""
    columns: dict[str, list[Any]] = sample.details["segments"][0]
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _key(segment: Mapping[str, Any]) -> str:
    """Id of the passage or document that a segment's text comes from; empty if it has none."""
    of_document = segment["doc_id"] if segment["role"] in _OF_DOCUMENTS else None
    return segment["chunk_id"] or segment["root_id"] or of_document or ""


def _read_texts(session: duckdb.DuckDBPyConnection, samples: Sequence[Sample]) -> dict[str, str]:
    keys = {_key(segment) for sample in samples for segment in segment_rows(sample)}
    wanted = pl.DataFrame({"key": sorted(keys)}, schema={"key": pl.String})
    session.register("wanted", wanted.to_arrow())
    return dict(session.sql(_TEXTS).fetchall())


def _segment_texts(
    sample: Sample, texts: Mapping[str, str], tokenizer: Tokenizer
) -> list[SegmentText]:
    segments = [s for s in segment_rows(sample) if s["role"] not in _WITHOUT_TEXT]
    keys = sorted({key for s in segments if (key := _key(s)) in texts})
    encoded = _encode({key: texts[key] for key in keys}, tokenizer)
    done: dict[str, int] = {}  # tokens of a root in the pieces before
    texts_of_segments = []
    for segment in segments:
        key = _key(segment)
        ids = sample.token_ids_T[segment["start"] : segment["end"]].astype(np.int64)
        skipped = done.get(key, 0) if segment["role"] == "root" else 0
        done[key] = skipped + len(ids)
        whole = encoded.get(key)
        if whole and segment["role"] in _OF_DOCUMENTS:
            skipped = _find(whole.ids, ids)
        text = whole and _piece(whole, ids, skipped, tokenizer.separator_ids, segment["segment"])
        texts_of_segments.append(text or _decoded(ids, tokenizer, segment["segment"]))
    return texts_of_segments


def _encode(texts: Mapping[str, str], tokenizer: Tokenizer) -> dict[str, _Encoded]:
    """The texts with their tokens; empty if the tokenizer can't return the characters of tokens."""
    encoded = tokenizer.encode_with_spans(list(texts.values())) if texts else None
    return {
        key: _Encoded(texts[key], np.asarray(ids, np.int64), spans)
        for key, (ids, spans) in zip(texts, encoded or [], strict=False)
    }


def _find(whole_T: NDArray[np.int64], ids: NDArray[np.int64]) -> int:
    """Where these tokens begin in a document; 0 if they are not in it as a whole."""
    for start in np.flatnonzero(whole_T == ids[0]).tolist():
        if np.array_equal(whole_T[start : start + len(ids)], ids):
            return start
    return 0


def _piece(
    whole: _Encoded, ids: NDArray[np.int64], skipped: int, separator: Sequence[int], segment: int
) -> SegmentText | None:
    """The text of a segment that has these ids, after `skipped` tokens of the whole text; None if
    they are not the tokens of that text."""
    ending = np.concatenate([whole.ids[skipped:], np.asarray(separator, np.int64)])
    if len(ids) > len(ending) or not np.array_equal(ids, ending[: len(ids)]):
        return None
    last = min(len(whole.ids), skipped + len(ids))
    # Characters without a token, e.g. a space, belong to the token after them.
    start = whole.spans[skipped - 1][1] if skipped else 0
    end = len(whole.text) if last == len(whole.ids) else whole.spans[last - 1][1]
    return SegmentText(
        segment=segment,
        text=whole.text[start:end],
        is_original=True,
        has_separator=len(ids) == len(ending),
        spans=[(max(0, a - start), b - start) for a, b in whole.spans[skipped:last]],
    )


def _decoded(ids: NDArray[np.int64], tokenizer: Tokenizer, segment: int) -> SegmentText:
    """The text that a segment's tokens decode to."""
    separator = list(tokenizer.separator_ids)
    has_separator = not separator or ids[-len(separator) :].tolist() == separator
    if has_separator and separator:
        ids = ids[: -len(separator)]
    tokens = ids.tolist()
    ends = [0, *(len(tokenizer.decode(tokens[: i + 1])) for i in range(len(tokens)))]
    return SegmentText(
        segment=segment,
        text=tokenizer.decode(tokens),
        is_original=False,
        has_separator=has_separator,
        spans=list(pairwise(ends)),
    )
