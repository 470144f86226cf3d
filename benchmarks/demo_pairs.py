"""The scored pairs of a finished demo as arrays, in one file that needs no table store.

    python -m benchmarks.demo_pairs data/quickstart pairs.npz

For each shard: every (root, chunk) that was scored, with the root's tokens, the anchors that
nominated the chunk, and the values of all the root's anchors that the rules plain and calibrated
need.
"""

from __future__ import annotations

import sys
from typing import Any, NamedTuple

import numpy as np

from entropylong_assets.stages.entropy.scoring import PositionScores, ScoringRequest
from entropylong_assets.stages.entropy.tables import ENTROPY_SCORES
from entropylong_assets.stages.verification.tables import VERIFIED_DEPENDENCIES
from entropylong_assets.storage.manifest import TableError
from entropylong_assets.storage.schemas import TableSet
from entropylong_assets.storage.tables import TableStore


class Passage(NamedTuple):
    """A chunk before a root. anchors_N: all anchors of the root that have control scores."""

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
        """Return the engine's request: the root cut after its last anchor, all anchors at once."""
        wanted = self.anchors_N if every_anchor else self.anchors_N[self.nominated_N]
        ids = np.concatenate([self.context_ids, self.root_ids[: wanted[-1] + 1]])
        return ScoringRequest(ids, len(self.context_ids) + wanted)

    def plain_requests(self) -> list[ScoringRequest]:
        """Return the requests of the definition: all of [C; D] for every (anchor, chunk)."""
        ids = np.concatenate([self.context_ids, self.root_ids])
        wanted = self.anchors_N[self.nominated_N]
        return [ScoringRequest(ids, np.array([len(self.context_ids) + t])) for t in wanted]

    def gains(self, scores: PositionScores) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return ΔI, ΔI*, and surprisal minus the lower of its two references, at all anchors."""
        alone = self.entropy_N.astype(np.float64)
        reference = np.minimum(self.entropy_N, self.entropy_control_N).astype(np.float64)
        given = scores.entropy_N.astype(np.float64)
        over = scores.surprisal_N - np.minimum(self.surprisal_N, self.surprisal_control_N)
        return (alone - given) / alone, (reference - given) / alone, over

    def verdicts(self, scores: PositionScores, epsilon: float = 0.4) -> np.ndarray:
        """Return bool [2, N]: accepted by the rule plain, accepted by the rule calibrated."""
        gain, calibrated, over = self.gains(scores)
        return np.stack([gain > epsilon, (calibrated > epsilon) & (over < 0)])


def read_passages(uri: str) -> list[Passage]:
    """Read all passages of a data folder with one corpus and one dataset of the default names.

    Raises TableError if it has no verified shard.
    """
    import polars as pl

    store, passages = TableStore(uri), []
    roots: dict[str, int] = {}
    chunks: dict[str, int] = {}
    columns = ["entropy", "entropy_control", "surprisal", "surprisal_control"]
    for shard in store.shards(VERIFIED_DEPENDENCIES):
        scored = pl.col("entropy_context").is_not_null()
        pairs = store.read(VERIFIED_DEPENDENCIES, shard, "pairs").filter(scored)
        anchors = {
            root_id: rows.unique("anchor").sort("anchor")
            for (root_id,), rows in pairs.drop_nulls("entropy_control")
            .select("root_id", "anchor", *columns)
            .partition_by("root_id", as_dict=True)
            .items()
        }
        contexts = _token_ids(store, VERIFIED_DEPENDENCIES, shard, "contexts")
        root_ids = _token_ids(store, ENTROPY_SCORES, shard, "roots")
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
                    np.asarray(root_ids[root_id], np.int64),
                    every,
                    np.isin(every, nominating),
                    *(rows[column].to_numpy() for column in columns),
                )
            )
    if not passages:
        raise TableError(f"{uri}: it has no verified shard; run `make demo` first")
    return passages


def _token_ids(
    store: TableStore, tables: TableSet[Any], shard: str, table: str
) -> dict[str, list[int]]:
    """Return the token ids of a table's rows by the id in its first column."""
    key = tables.schemas[table].names[0]
    return dict(store.read(tables, shard, table, [key, "token_ids"]).iter_rows())


def save(passages: list[Passage], path: str) -> None:
    """Write passages to a file that `load` reads."""
    arrays: dict[str, Any] = {"count": np.array(len(passages))}
    for number, passage in enumerate(passages):
        arrays |= {f"{number}-{name}": value for name, value in passage._asdict().items()}
    np.savez_compressed(path, **arrays)


def load(path: str) -> list[Passage]:
    """Read passages from a file that `save` wrote, or from a data folder."""
    if not path.endswith(".npz"):
        return read_passages(path)
    with np.load(path) as arrays:
        return [
            Passage(*(arrays[f"{number}-{name}"] for name in Passage._fields))
            for number in range(int(arrays["count"]))
        ]


if __name__ == "__main__":
    save(read_passages(sys.argv[1]), sys.argv[2])
