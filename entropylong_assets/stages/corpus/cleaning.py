"""Dropping whole documents after their text is canonical: filters, then decontamination."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any, NamedTuple

import polars as pl

from entropylong_assets.settings.section import Settings
from entropylong_assets.stages.corpus.evaluation_sets import (
    describe,
    find_overlaps,
    load_sets,
    row_of,
)
from entropylong_assets.stages.corpus.filters import make_filter, run_filter
from entropylong_assets.stages.corpus.tables import EvaluationSetFigures

CONTAMINATED = "contaminated"

_SHOWN = {
    "doc_id": pl.String,
    "text": pl.String,
    "source": pl.String,
    "external_id": pl.String,
    "metadata": pl.String,
}
"""Columns that filters get."""


class Fault(NamedTuple):
    """Why a row is dropped."""

    reason: str
    detail: str


class Cleaned(NamedTuple):
    """The result of cleaning a batch of documents."""

    kept: list[dict[str, Any]]
    dropped: list[tuple[dict[str, Any], Fault]]
    contaminated: list[dict[str, Any]]
    """Rows of the table `contaminated`."""


class Cleaning:
    """The filters and evaluation sets of a corpus."""

    def __init__(self, settings: Settings) -> None:
        """Raise CorpusError if a filter can't be made or a set can't be read."""
        self._filters = [(own, make_filter(own)) for own in settings.filters]
        self._sets = load_sets(settings)
        self._actions = {index.settings.name: index.settings.action for index in self._sets}
        self._quoting: Counter[str] = Counter()

    def clean(self, documents: list[dict[str, Any]]) -> Cleaned:
        """Return the documents that are kept, in their order, and why the others are not.

        Raises CorpusError if a filter fails.
        """
        dropped: list[tuple[dict[str, Any], Fault]] = []
        contaminated: list[dict[str, Any]] = []
        for settings, judge in self._filters:
            if not documents:
                break
            verdicts = run_filter(settings, judge, pl.DataFrame(documents, schema=_SHOWN))
            kept = []
            for document, verdict in zip(documents, verdicts, strict=True):
                if verdict is None:
                    kept.append(document)
                else:
                    reason = f"{settings.name}.{verdict.reason}"
                    dropped.append((document, Fault(reason, verdict.detail or verdict.reason)))
            documents = kept
        if self._sets:
            documents = [d for d in documents if self._passes(d, dropped, contaminated)]
        return Cleaned(documents, dropped, contaminated)

    def _passes(
        self,
        document: Mapping[str, Any],
        dropped: list[tuple[dict[str, Any], Fault]],
        contaminated: list[dict[str, Any]],
    ) -> bool:
        place = {name: document[name] for name in ("doc_id", "file", "row", "external_id")}
        overlaps = find_overlaps(self._sets, document["text"])
        fault = None
        for overlap in overlaps:
            action = self._actions[overlap.evaluation_set]
            self._quoting[overlap.evaluation_set] += 1
            contaminated.append(row_of(overlap, place, action))
            if action == "drop" and fault is None:
                fault = Fault(CONTAMINATED, describe(overlap))
        if fault:
            dropped.append((dict(document), fault))
        return fault is None

    def figures(self) -> tuple[EvaluationSetFigures, ...]:
        """The evaluation sets, and how many documents have quoted each so far."""
        return tuple(
            EvaluationSetFigures(**index.figures, documents=self._quoting[index.settings.name])
            for index in self._sets
        )
