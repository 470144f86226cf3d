"""One shard's samples: from the tables of scoring and verification to the tables of samples."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import polars as pl

from entropylong_assets.samples.groups import Group
from entropylong_assets.samples.packing import Dropped, Framing, Segment, lay_out, pack
from entropylong_assets.samples.recipes import Pool, choose_groups, verdict_column
from entropylong_assets.settings import Settings
from entropylong_assets.storage.tables import PartitionWriter

SAMPLES_A_WRITE = 16
"""Samples held in memory at once (8 MiB of tokens at 131,072)."""

ROLES = ("bos", "root", "verified", "hard_negative", "unverified", "padding")


@dataclass
class _Rows:
    """Rows of a few samples, and the count of tokens by role over all."""

    samples: list[dict[str, Any]] = field(default_factory=list)
    segments: list[dict[str, Any]] = field(default_factory=list)
    dependencies: list[dict[str, Any]] = field(default_factory=list)

    def write(self, writer: PartitionWriter) -> None:
        if self.samples:
            token_ids = np.stack([row.pop("input_ids") for row in self.samples])
            frame = pl.DataFrame(self.samples).with_columns(
                pl.Series("input_ids", token_ids).arr.to_list()
            )
            writer.append("samples", frame)
            writer.append("segments", self.segments)
            writer.append("dependencies", self.dependencies)


def _dependency_rows(
    sample_id: str, segment: Segment, start: int, root_start: int
) -> Iterator[dict[str, Any]]:
    """Rows of a verified context that starts at `start` and whose root starts at `root_start`."""
    context = segment.context
    assert context is not None
    end = start + len(segment.token_ids)
    for dependency in context.dependencies:
        position = root_start + dependency.anchor
        yield asdict(dependency) | {
            "sample_id": sample_id,
            "root_id": context.root_id,
            "chunk_id": context.chunk_id,
            "anchor_position": position,
            "context_start": start,
            "context_end": end,
            "distance": position - end,
        }


def _add_sample(
    rows: _Rows, sample_id: str, segments: Sequence[Segment], source: str
) -> Counter[str]:
    """Adds one sample's rows; returns its tokens by role."""
    starts = np.cumsum([0] + [len(segment.token_ids) for segment in segments]).tolist()
    tokens: Counter[str] = Counter()
    root_starts: dict[str, int] = {}
    for number, segment in enumerate(segments):
        context, group = segment.context, segment.group
        tokens[segment.role] += len(segment.token_ids)
        if segment.role == "root":
            assert group is not None
            root_starts.setdefault(group.root_id, starts[number])
        root_id = group.root_id if group else None
        rows.segments.append(
            {
                "sample_id": sample_id,
                "segment": number,
                "role": segment.role,
                "start": starts[number],
                "end": starts[number + 1],
                "root_id": root_id,
                "doc_id": context.doc_id if context else root_id,
                "chunk_id": context.chunk_id if context else None,
                "source": context.source if context else (source if group else None),
            }
        )
    for number, segment in enumerate(segments):
        if segment.role == "verified":
            assert segment.group is not None
            root_start = root_starts[segment.group.root_id]
            rows.dependencies.extend(
                _dependency_rows(sample_id, segment, starts[number], root_start)
            )
    rows.samples.append(
        {
            "sample_id": sample_id,
            "input_ids": np.concatenate([segment.token_ids for segment in segments]),
            "n_root": tokens["root"],
            "n_verified": tokens["verified"],
            "n_negative": tokens["hard_negative"] + tokens["unverified"],
            "n_padding": tokens["padding"],
        }
    )
    return tokens


def _foreign(
    samples: Sequence[Sequence[Group]], contexts: pl.DataFrame, pool: Pool | None
) -> list[dict[str, Any]]:
    """Rows of `passages`: what was packed and is not among the contexts that were scored."""
    known = set(contexts["chunk_id"].to_list())
    packed = {c.chunk_id for members in samples for group in members for c in group.chosen}
    return pool.rows(sorted(packed - known)) if pool else []


def _summary(
    roots: pl.DataFrame,
    samples: Sequence[Sequence[Group]],
    dropped: Sequence[Dropped],
    tokens: Counter[str],
    negatives: int,
    wanted: int,
) -> dict[str, Any]:
    """Counts that reconcile: what came in is packed, or dropped under a reason."""

    def dependencies(members: Sequence[Group]) -> int:
        return sum(len(c.dependencies) for group in members for c in group.chosen)

    roots_dropped: Counter[str] = Counter()
    contexts_dropped: Counter[str] = Counter()
    dependencies_dropped: Counter[str] = Counter()
    for drop in dropped:
        (roots_dropped if drop.chunk_id is None else contexts_dropped)[drop.reason] += 1
        dependencies_dropped[drop.reason] += drop.n_dependencies
    available = sum(len(group.negatives) for members in samples for group in members)
    total = tokens.total()
    return {
        "samples": len(samples),
        "roots": len(roots),
        "roots_packed": sum(len(members) for members in samples),
        "roots_dropped": dict(sorted(roots_dropped.items())),
        "contexts_dropped": dict(sorted(contexts_dropped.items())),
        "dependencies": wanted,
        "dependencies_packed": sum(dependencies(members) for members in samples),
        "dependencies_dropped": dict(sorted((k, n) for k, n in dependencies_dropped.items() if n)),
        "negatives_available": available,
        "negatives_packed": negatives,
        "tokens": {role: tokens[role] for role in ROLES},
        "utilisation": round(1 - tokens["padding"] / total, 6) if total else None,
    }


def pack_shard(
    roots: pl.DataFrame,
    pairs: pl.DataFrame,
    contexts: pl.DataFrame,
    *,
    settings: Settings,
    shard: str,
    separator_ids: Sequence[int],
    bos_id: int | None,
    pad_id: int,
    writer: PartitionWriter,
    pool: Pool | None = None,
) -> dict[str, Any]:
    """Writes the samples of one shard; returns its counts.

    roots: root_id and token_ids of `entropy_scores.roots`; pairs and contexts: the tables of
    `verified_dependencies`. separator_ids, bos_id (None: the model scores without one) are those
    of the scoring; pad_id fills up a sample and is masked from the loss. pool: passages of the
    corpus, for recipes that take such. Sample ids are `<shard>-<nnnnn>`. The result depends on
    the rows' content, not on their order. Raises SampleError where a root does not fit a sample
    or the tables don't fit each other.
    """
    groups, passed_over = choose_groups(roots, pairs, contexts, settings, pool)
    framing = Framing(bos_id=bos_id, separator_ids=tuple(separator_ids), pad_id=pad_id)
    samples, dropped = pack(groups, framing, settings.samples, settings.seed)
    dropped = [*passed_over, *dropped]
    source = shard.rpartition("-")[0]
    tokens: Counter[str] = Counter()
    negatives = 0
    rows = _Rows()
    for number, members in enumerate(samples):
        segments = lay_out(members, framing, settings.samples, settings.seed)
        tokens += _add_sample(rows, f"{shard}-{number:05d}", segments, source)
        negatives += sum(segment.role == "hard_negative" for segment in segments)
        if len(rows.samples) == SAMPLES_A_WRITE:
            rows.write(writer)
            rows = _Rows()
    rows.write(writer)
    writer.append("dropped", [asdict(drop) for drop in dropped])
    foreign = _foreign(samples, contexts, pool)
    if foreign:
        writer.append("passages", foreign)
    column = verdict_column(settings)
    wanted = int(pairs[column].sum()) if column else 0
    return _summary(roots, samples, dropped, tokens, negatives, wanted)
