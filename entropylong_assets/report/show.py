"""A sample as text: what it is made of, and what its strongest dependencies say."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import polars as pl

from entropylong_assets.stages.entropy.model import Tokenizer
from entropylong_assets.storage.tables import TableError, TableStore

_STEERING = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")


@dataclass(frozen=True)
class ShownDependency:
    """One verified dependency, readable. Entropies in nats, distance in tokens."""

    before: str
    token: str
    after: str
    context: str
    entropy: float
    entropy_context: float
    gain: float
    calibrated_gain: float | None
    distance: int
    root_id: str
    chunk_id: str


@dataclass(frozen=True)
class ShownSample:
    """Segments (role, start, end, doc_id, source) and the strongest dependencies of a sample."""

    sample_id: str
    shard: str
    segments: pl.DataFrame
    n_dependencies: int
    dependencies: list[ShownDependency]


def shard_of(sample_id: str) -> str:
    """`<shard>-<nnnnn>` without its number."""
    return sample_id.rpartition("-")[0]


def printable(text: str) -> str:
    """Without what would steer a terminal: escapes, bells and bidirectional controls."""
    return _STEERING.sub("\ufffd", text)


def show_sample(
    store: TableStore, tokenizer: Tokenizer, sample_id: str, strongest: int, window: int = 40
) -> ShownSample:
    """Reads a sample. `window`: tokens of the root shown on either side of an anchor.

    Raises TableError where there is no such sample, and names some that there are.
    """
    asset, shard = "long_context_samples", shard_of(sample_id)
    manifest = store.manifest(asset, shard)
    rows = store.read(asset, shard, "samples").filter(sample_id=sample_id) if manifest else None
    if rows is None or not len(rows):
        known: list[str] = []
        for other in store.shards(asset):
            known += store.read(asset, other, "samples", ["sample_id"])["sample_id"].to_list()
        some = ", ".join(known[:8]) or "none yet"
        raise TableError(f"no sample {sample_id}; there are {len(known)}: {some}")
    token_ids = rows["input_ids"][0].to_list()
    segments = store.read(asset, shard, "segments").filter(sample_id=sample_id).sort("segment")
    dependencies = store.read(asset, shard, "dependencies").filter(sample_id=sample_id)
    roots = {
        root_id: (start, end)
        for root_id, start, end in segments.filter(role="root")
        .select("root_id", "start", "end")
        .iter_rows()
    }
    best = dependencies.sort("gain", "chunk_id", descending=[True, False]).head(strongest)
    return ShownSample(
        sample_id,
        shard,
        segments,
        len(dependencies),
        [_shown(row, token_ids, roots, tokenizer, window) for row in best.iter_rows(named=True)],
    )


def _shown(
    row: dict[str, object],
    token_ids: Sequence[int],
    roots: dict[str, tuple[int, int]],
    tokenizer: Tokenizer,
    window: int,
) -> ShownDependency:
    root_id, position = str(row["root_id"]), int(str(row["anchor_position"]))
    start, end = roots[root_id]

    def text(first: int, last: int) -> str:
        return printable(tokenizer.decode(token_ids[first:last]))

    calibrated = row["calibrated_gain"]
    return ShownDependency(
        before=text(max(start, position - window), position),
        token=text(position, position + 1),
        after=text(position + 1, min(end, position + 1 + window // 2)),
        context=text(int(str(row["context_start"])), int(str(row["context_end"]))),
        entropy=float(str(row["entropy"])),
        entropy_context=float(str(row["entropy_context"])),
        gain=float(str(row["gain"])),
        calibrated_gain=None if calibrated is None else float(str(calibrated)),
        distance=int(str(row["distance"])),
        root_id=root_id,
        chunk_id=str(row["chunk_id"]),
    )
