"""The pairs of a finished demo, as arrays that travel without the store they came from.

    python -m benchmarks.demo_pairs data/quickstart pairs.npz

Of each shard: every (root, chunk) that was scored, with the root's tokens, the anchors that
nominated the chunk, and what both rules need of each of the root's anchors.
"""

from __future__ import annotations

import sys
from typing import Any, NamedTuple

import numpy as np

from entropylong_assets.stages.entropy.scoring import PositionScores, ScoringRequest


class Passage(NamedTuple):
    """A chunk before a root. anchors_N: all anchors of the root that have controls."""

    root: int
    chunk: int
    context_ids: np.ndarray
    root_ids: np.ndarray
    anchors_N: np.ndarray
    nominated_N: np.ndarray
    entropy_N: np.ndarray
    entropy_control_N: np.ndarray
    surprisal_N: np.ndarray
    surprisal_control_N: np.ndarray

    def request(self, every_anchor: bool = False) -> ScoringRequest:
        """The engine's: the root cut after its last anchor, all anchors at once."""
        wanted = self.anchors_N if every_anchor else self.anchors_N[self.nominated_N]
        ids = np.concatenate([self.context_ids, self.root_ids[: wanted[-1] + 1]])
        return ScoringRequest(ids, len(self.context_ids) + wanted)

    def plain_requests(self) -> list[ScoringRequest]:
        """The definition's: the whole of [C; D] for every (anchor, chunk)."""
        ids = np.concatenate([self.context_ids, self.root_ids])
        wanted = self.anchors_N[self.nominated_N]
        return [ScoringRequest(ids, np.array([len(self.context_ids) + t])) for t in wanted]

    def gains(self, scores: PositionScores) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(ΔI, ΔI*, surprisal above the lower of its two references) at all anchors."""
        before = self.entropy_N.astype(np.float64)
        reference = np.minimum(self.entropy_N, self.entropy_control_N).astype(np.float64)
        behind = scores.entropy_N.astype(np.float64)
        over = scores.surprisal_N - np.minimum(self.surprisal_N, self.surprisal_control_N)
        return (before - behind) / before, (reference - behind) / before, over

    def verdicts(self, scores: PositionScores, epsilon: float = 0.4) -> np.ndarray:
        """bool [2, N]: accepted by the plain rule, by the calibrated rule."""
        gain, calibrated, over = self.gains(scores)
        return np.stack([gain > epsilon, (calibrated > epsilon) & (over < 0)])


def of_store(uri: str) -> list[Passage]:
    """All passages of a data folder. Raises TableError where it holds no verified shard."""
    import polars as pl

    from entropylong_assets.storage.tables import TableError, TableStore

    store, passages = TableStore(uri), []
    asset = "verified_dependencies"
    roots: dict[str, int] = {}
    chunks: dict[str, int] = {}
    for shard in store.shards(asset):
        pairs = store.read(asset, shard, "pairs").filter(pl.col("entropy_context").is_not_null())
        about = ["entropy", "entropy_control", "surprisal", "surprisal_control"]
        anchors = {
            root_id: rows.unique("anchor").sort("anchor")
            for (root_id,), rows in pairs.drop_nulls("entropy_control")
            .select("root_id", "anchor", *about)
            .partition_by("root_id", as_dict=True)
            .items()
        }
        contexts = dict(store.read(asset, shard, "contexts", ["chunk_id", "token_ids"]).iter_rows())
        ids = dict(
            store.read("entropy_scores", shard, "roots", ["root_id", "token_ids"]).iter_rows()
        )
        for root_id, chunk_id, nominating in (
            pairs.group_by("root_id", "chunk_id", maintain_order=True).agg("anchor").iter_rows()
        ):
            if root_id not in anchors:
                continue
            rows = anchors[root_id]
            every = rows["anchor"].to_numpy().astype(np.int64)
            passages.append(
                Passage(
                    roots.setdefault(root_id, len(roots)),
                    chunks.setdefault(chunk_id, len(chunks)),
                    np.asarray(contexts[chunk_id], np.int64),
                    np.asarray(ids[root_id], np.int64),
                    every,
                    np.isin(every, nominating),
                    *(rows[column].to_numpy() for column in about),
                )
            )
    if not passages:
        raise TableError(f"{uri}: no verified shard is there; run `make demo` first")
    return passages


def save(passages: list[Passage], path: str) -> None:
    arrays: dict[str, Any] = {"count": np.array(len(passages))}
    for number, passage in enumerate(passages):
        arrays |= {f"{number}-{name}": value for name, value in passage._asdict().items()}
    np.savez_compressed(path, **arrays)


def load(path: str) -> list[Passage]:
    """From a file of `save`, or from a data folder."""
    if not path.endswith(".npz"):
        return of_store(path)
    with np.load(path) as arrays:
        return [
            Passage(*(arrays[f"{number}-{name}"] for name in Passage._fields))
            for number in range(int(arrays["count"]))
        ]


if __name__ == "__main__":
    save(of_store(sys.argv[1]), sys.argv[2])
