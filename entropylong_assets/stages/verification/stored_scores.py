"""Scores of an earlier materialization, so that another rule or ε needs no forward pass.

The table `pairs` keeps every score from which verdicts follow. If only settings that judge differ,
the scores of this dataset's present partition, or of another dataset's over the same corpus, are
those that scoring again would give, to the last bit: the same requests shared the same forward
passes. Where a limit or a screen lets verdicts decide what is scored, nothing is taken over.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import polars as pl

from entropylong_assets.stages.entropy.scoring import PositionScores
from entropylong_assets.stages.verification.registry import NO_SCREEN
from entropylong_assets.stages.verification.tables import VERIFIED_DEPENDENCIES
from entropylong_assets.storage.manifest import Manifest, TableError
from entropylong_assets.storage.tables import TableStore

SCORING_SETTINGS = ("controls", "screen", "max_contexts_per_root", "max_forward_tokens_per_root")
"""Settings of `verification` that determine what is scored; the others judge. The stage's
`determined_by` takes them from here."""

_CONTEXT_COLUMNS = ["root_id", "anchor", "chunk_id", "entropy_context", "surprisal_context"]
_CONTROL_COLUMNS = ["root_id", "anchor", "control", "entropy", "surprisal"]


@dataclass(frozen=True)
class KnownScores:
    """Known scores of some roots, in the order of their anchors."""

    contexts: Mapping[tuple[str, str], PositionScores] = field(default_factory=dict)
    """By (root_id, chunk_id)."""
    controls: Mapping[tuple[str, int], PositionScores] = field(default_factory=dict)
    """By (root_id, number of the control)."""


NOTHING_KNOWN = KnownScores()


def scoring_determinants(determinants: Mapping[str, Any]) -> dict[str, Any]:
    """What of a partition's determinants determines its scores."""
    scoring = {f"verification.{name}" for name in SCORING_SETTINGS}
    settings = {
        name: value
        for name, value in determinants["settings"].items()
        if not name.startswith("verification.") or name in scoring
    }
    return {**determinants, "settings": settings}


def find_scores(store: TableStore, shard: str, determinants: Mapping[str, Any]) -> str | None:
    """Name a dataset whose partition of this shard has the scores that these determinants ask for.

    This dataset comes first, then the others by name. Returns None if there is none, or if verdicts
    decide what is scored.
    """
    settings = determinants["settings"]
    if (
        settings["verification.screen"] != NO_SCREEN
        or settings["verification.max_contexts_per_root"] is not None
    ):
        return None
    wanted = scoring_determinants(determinants)
    for name in _datasets(store):
        manifest = _readable_manifest(TableStore(store.uri, store.corpus, name), shard)
        if manifest is not None and scoring_determinants(manifest.determinants) == wanted:
            return name
    return None


def _datasets(store: TableStore) -> Iterator[str]:
    """Yield this dataset, then the names of all other folders beside it, listed only if asked."""
    yield store.dataset
    # Not `glob`, because the URI itself may contain its special characters.
    folders = store.fs.ls(store.root, detail=False)
    yield from sorted({path.rstrip("/").rpartition("/")[2] for path in folders} - {store.dataset})


def _readable_manifest(store: TableStore, shard: str) -> Manifest | None:
    manifest = store.manifest(VERIFIED_DEPENDENCIES, shard)
    if manifest is None or manifest.format_version != VERIFIED_DEPENDENCIES.format_version:
        return None
    return manifest if "settings" in manifest.determinants else None


class StoredScores:
    """Reads the scores of a partition root by root, in the order in which they were written."""

    def __init__(self, store: TableStore, shard: str) -> None:
        self._contexts = _ScoresByRoot(store, shard, "pairs", _CONTEXT_COLUMNS)
        self._controls = _ScoresByRoot(store, shard, "controls", _CONTROL_COLUMNS)
        self._is_damaged = False

    def take(self, root_ids: Sequence[str]) -> KnownScores:
        """Return the scores of these roots, which follow those of the last call.

        From a damaged file on, nothing is known: what could not be read is scored again.
        """
        if self._is_damaged:
            return NOTHING_KNOWN
        try:
            return KnownScores(self._contexts.take(root_ids), self._controls.take(root_ids))
        except TableError:
            self._is_damaged = True
            return NOTHING_KNOWN


class _ScoresByRoot:
    """One table of scores. columns: root_id, anchor, key, entropy and surprisal."""

    def __init__(self, store: TableStore, shard: str, table: str, columns: Sequence[str]) -> None:
        _, _, self._key, self._entropy, self._surprisal = columns
        batches = store.batches(VERIFIED_DEPENDENCIES, shard, table, list(columns), rows=8192)
        self._roots = rows_by_root(batches)
        self._pending: tuple[str, pl.DataFrame] | None = None

    def take(self, root_ids: Sequence[str]) -> dict[tuple[str, Any], PositionScores]:
        scores: dict[tuple[str, Any], PositionScores] = {}
        for root_id in root_ids:
            root = self._pending or next(self._roots, None)
            self._pending = None
            if root is None or root[0] != root_id:  # this root has no rows
                self._pending = root
                continue
            scored = root[1].filter(pl.col(self._entropy).is_not_null()).sort("anchor")
            for (key,), rows in scored.group_by(self._key, maintain_order=True):
                scores[root_id, key] = PositionScores(
                    rows[self._entropy].to_numpy(), rows[self._surprisal].to_numpy()
                )
        return scores


def rows_by_root(batches: Iterable[pl.DataFrame]) -> Iterator[tuple[str, pl.DataFrame]]:
    """Yield each root's id and rows, which are adjacent but may span batches."""
    pending: list[pl.DataFrame] = []
    for batch in batches:
        for part in batch.partition_by("root_id", maintain_order=True):
            if pending and pending[0]["root_id"][0] != part["root_id"][0]:
                yield pending[0]["root_id"][0], pl.concat(pending)
                pending = []
            pending.append(part)
    if pending:
        yield pending[0]["root_id"][0], pl.concat(pending)
