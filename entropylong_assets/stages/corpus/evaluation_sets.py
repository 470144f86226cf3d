"""Decontamination: documents that quote the texts of evaluation sets.

Texts are compared as n-grams of words or of a model's tokens (`compared_texts`).

The overlap of a document with an evaluation text is the share of the text's n-grams that occur in
the document. Long texts are rarely quoted as a whole: `PASSAGE` n-grams of a text with more of them
are enough for an overlap of 1.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from entropylong_assets.settings.section import Settings
from entropylong_assets.stages.corpus.compared_texts import Compared, compare, tokenizer_version
from entropylong_assets.stages.corpus.errors import CorpusError, one_line
from entropylong_assets.stages.corpus.evaluation_layouts import layout_of
from entropylong_assets.stages.corpus.listing import list_files
from entropylong_assets.stages.corpus.readers import read_rows
from entropylong_assets.stages.corpus.rows import BadRow, Row
from entropylong_assets.stages.corpus.settings import EvaluationSet, SourceSettings
from entropylong_assets.stages.ngrams import distinct

PASSAGE = 40
"""n-grams of a long evaluation text that count as all of it."""

FEWEST = 5
"""Minimum number of n-grams of a text that is compared: a shorter one may be a common phrase."""


class Overlap(NamedTuple):
    """A quotation of an evaluation text in a document."""

    evaluation_set: str
    text: int
    """Number of the text in its set, from 0."""
    start: int
    """First character of the quotation in the document."""
    end: int
    overlap: float
    """Share of the text's n-grams that occur, from 0 to 1."""


@dataclass(frozen=True, eq=False)
class EvaluationIndex:
    """The n-grams of one evaluation set.

    Legend: N distinct pairs of n-gram and text, T texts.
    """

    settings: EvaluationSet
    ngrams_N: NDArray[np.uint64]
    """Sorted."""
    texts_N: NDArray[np.int32]
    needed_T: NDArray[np.int32]
    """n-grams for an overlap of 1; 0: too short to be compared."""
    content: str
    """Hash of all texts."""

    @property
    def figures(self) -> dict[str, Any]:
        """Name, hash and counts of the set, as JSON values."""
        return {
            "name": self.settings.name,
            "content": self.content,
            "texts": len(self.needed_T),
            "too_short": int((self.needed_T == 0).sum()),
            "ngram": self.settings.units,
            "tokenizer": self.settings.tokenizer,
            "overlap": self.settings.overlap,
            "action": self.settings.action,
        }

    def find(self, document: Compared) -> Overlap | None:
        """Return the largest overlap that reaches the threshold, or None."""
        hashes = document.ngrams_N
        first = np.searchsorted(self.ngrams_N, hashes)
        inside = first < len(self.ngrams_N)
        hits = np.flatnonzero(inside)[self.ngrams_N[first[inside]] == hashes[inside]]
        if not len(hits):
            return None
        found = distinct(hashes[hits])
        low = np.searchsorted(self.ngrams_N, found)
        high = np.searchsorted(self.ngrams_N, found, side="right")
        texts = np.concatenate([self.texts_N[a:b] for a, b in zip(low, high, strict=True)])
        candidates, counts = np.unique(texts, return_counts=True)
        shares = np.minimum(1, counts / self.needed_T[candidates])
        best = int(np.argmax(shares))
        if shares[best] < self.settings.overlap:
            return None
        own = self.ngrams_N[self.texts_N == candidates[best]]
        places = np.flatnonzero(np.isin(hashes, own))
        return Overlap(
            self.settings.name,
            int(candidates[best]),
            *document.place(int(places[0]), int(places[-1])),
            float(shares[best]),
        )


def _texts(evaluation: EvaluationSet, data_uri: str) -> Iterator[str]:
    for source in _sources(evaluation):
        for file in list_files(source, data_uri):
            for item in read_rows(file.uri, file.kind, source):
                if isinstance(item, BadRow):
                    if item.reason == "null_text":
                        continue
                    raise CorpusError(
                        f"corpus.decontaminate, set '{evaluation.name}': {one_line(item.file)}, "
                        f"row {item.row}: {item.detail}; correct the row, or the set's fields"
                    )
                assert isinstance(item, Row), "a set has no condition"
                yield item.text


def _sources(evaluation: EvaluationSet) -> list[SourceSettings]:
    """The files and fields of a set: a source for every field."""
    known = layout_of(evaluation.uri)
    if known is None:
        parts = [(evaluation.uri, evaluation.fields)]
    else:
        layout, folder = known
        parts = [(f"{folder.rstrip('/')}/{pattern}", fields) for pattern, fields in layout.files]
    return [
        SourceSettings(name=evaluation.name, uri=uri, kind=evaluation.kind, text_field=field)
        for uri, fields in parts
        for field in fields
    ]


def versions(evaluation: EvaluationSet, data_uri: str) -> dict[str, str]:
    """Version of each file of a set, without reading it. Raises CorpusError if there is none."""
    by_uri = {source.uri: source for source in _sources(evaluation)}  # one listing for all fields
    found = {
        file.uri: file.version
        for source in by_uri.values()
        for file in list_files(source, data_uri)
    }
    known = layout_of(evaluation.uri)
    if known is not None and not found:
        layout, folder = known
        raise CorpusError(
            f"corpus.decontaminate, set '{evaluation.name}': {folder} has no file "
            f"{' or '.join(pattern for pattern, _ in layout.files)}. The texts don't come with "
            f"this package: {layout.how}"
        )
    return found


def identify_sets(settings: Settings) -> dict[str, Any]:
    """What determines the content of a corpus' evaluation sets; empty if it has none."""
    if not settings.decontaminate:
        return {}
    file_versions = {e.name: versions(e, settings.data_uri) for e in settings.decontaminate}
    tokenizers = {e.tokenizer for e in settings.decontaminate if e.tokenizer is not None}
    identity: dict[str, Any] = {"evaluation_sets": file_versions}
    if tokenizers:
        identity["tokenizers"] = {name: tokenizer_version(name) for name in sorted(tokenizers)}
    return identity


def build_index(evaluation: EvaluationSet, texts: Iterator[str]) -> EvaluationIndex:
    """Index the texts of a set. Raises CorpusError if there is none."""
    parts: list[NDArray[np.uint64]] = []
    needed: list[int] = []
    digest = hashlib.blake2b(digest_size=16)
    for text in texts:
        digest.update(hashlib.blake2b(text.encode("utf-8", "surrogatepass")).digest())
        hashes = distinct(compare(text, evaluation).ngrams_N)
        enough = len(hashes) >= FEWEST
        needed.append(min(len(hashes), PASSAGE) if enough else 0)
        parts.append(hashes if enough else hashes[:0])
    if not parts:
        raise CorpusError(
            f"corpus.decontaminate, set '{evaluation.name}': {evaluation.uri} has no text; correct "
            "its uri or fields"
        )
    ngrams = np.concatenate(parts)
    texts_N = np.repeat(np.arange(len(parts), dtype=np.int32), [len(part) for part in parts])
    order = np.lexsort((texts_N, ngrams))
    return EvaluationIndex(
        evaluation, ngrams[order], texts_N[order], np.array(needed, np.int32), digest.hexdigest()
    )


@functools.lru_cache(8)
def _load(evaluation: EvaluationSet, data_uri: str, _: tuple[Any, ...]) -> EvaluationIndex:
    return build_index(evaluation, _texts(evaluation, data_uri))


def load_sets(settings: Settings) -> tuple[EvaluationIndex, ...]:
    """Index all evaluation sets of a corpus; kept in memory for the next shard.

    Raises CorpusError if a set can't be read.
    """
    data_uri = settings.data_uri
    return tuple(
        _load(e, data_uri, tuple(versions(e, data_uri).items())) for e in settings.decontaminate
    )


def find_overlaps(sets: Sequence[EvaluationIndex], text: str) -> list[Overlap]:
    """Return the largest overlap of a document with each set that it quotes."""
    keys = [(index.settings.tokenizer, index.settings.units) for index in sets]
    by_key = dict(zip(keys, sets, strict=True))
    compared = {key: compare(text, index.settings) for key, index in by_key.items()}
    overlaps = [index.find(compared[key]) for index, key in zip(sets, keys, strict=True)]
    return [overlap for overlap in overlaps if overlap is not None]


def describe(overlap: Overlap) -> str:
    """One line for the table `dropped`."""
    return (
        f"characters {overlap.start} to {overlap.end} quote text {overlap.text} of evaluation set "
        f"{overlap.evaluation_set} (overlap {overlap.overlap:.2f})"
    )


def row_of(overlap: Overlap, place: Mapping[str, Any], action: str) -> dict[str, Any]:
    """Row of the table `contaminated`. place: doc_id, file, row and external_id."""
    return {**place, **overlap._asdict(), "action": action}
