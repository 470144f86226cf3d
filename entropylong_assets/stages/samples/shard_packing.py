"""One shard's samples: from the tables of scoring and verification to the tables of samples."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import polars as pl

from entropylong_assets.settings.model import Settings
from entropylong_assets.stages.samples.groups import Group
from entropylong_assets.stages.samples.packing import (
    Dropped,
    Framing,
    Segment,
    arrange,
    fit_group,
    lay_out,
    size_of,
)
from entropylong_assets.stages.samples.recipes import (
    Pool,
    choose_groups,
    require_controls,
    verdict_column,
)
from entropylong_assets.stages.samples.shard_inputs import ShardTables
from entropylong_assets.storage.tables import PartitionWriter

SAMPLES_A_WRITE = 16
"""Samples held in memory at once (8 MiB of tokens at 131,072)."""

ROOTS_A_READ = 128
"""Roots whose contexts are held in memory at once."""

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


@dataclass
class _Packed:
    """Counts over the samples laid out so far."""

    samples: int = 0
    roots: int = 0
    dependencies: int = 0
    negatives_available: int = 0
    negatives: int = 0
    tokens: Counter[str] = field(default_factory=Counter)

    def add(self, members: Sequence[Group], segments: Sequence[Segment]) -> None:
        self.samples += 1
        self.roots += len(members)
        self.dependencies += sum(len(c.dependencies) for g in members for c in g.chosen)
        self.negatives_available += sum(len(group.negatives) for group in members)
        self.negatives += sum(segment.role == "hard_negative" for segment in segments)


def _summary(
    roots: int, packed: _Packed, dropped: Sequence[Dropped], wanted: int
) -> dict[str, Any]:
    """Counts that reconcile: what came in is packed, or dropped under a reason."""
    roots_dropped: Counter[str] = Counter()
    contexts_dropped: Counter[str] = Counter()
    dependencies_dropped: Counter[str] = Counter()
    for drop in dropped:
        (roots_dropped if drop.chunk_id is None else contexts_dropped)[drop.reason] += 1
        dependencies_dropped[drop.reason] += drop.n_dependencies
    total = packed.tokens.total()
    return {
        "samples": packed.samples,
        "roots": roots,
        "roots_packed": packed.roots,
        "roots_dropped": dict(sorted(roots_dropped.items())),
        "contexts_dropped": dict(sorted(contexts_dropped.items())),
        "dependencies": wanted,
        "dependencies_packed": packed.dependencies,
        "dependencies_dropped": dict(sorted((k, n) for k, n in dependencies_dropped.items() if n)),
        "negatives_available": packed.negatives_available,
        "negatives_packed": packed.negatives,
        "tokens": {role: packed.tokens[role] for role in ROLES},
        "utilisation": round(1 - packed.tokens["padding"] / total, 6) if total else None,
    }


def _read_together(samples: Sequence[Sequence[str]]) -> Iterator[list[Sequence[str]]]:
    """The same samples, as many at a time as have `ROOTS_A_READ` roots; one at least."""
    together: list[Sequence[str]] = []
    for members in samples:
        if together and sum(map(len, together)) + len(members) > ROOTS_A_READ:
            yield together
            together = []
        together.append(members)
    if together:
        yield together


def pack_shard(
    tables: ShardTables,
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

    separator_ids, bos_id (None: the model scores without one) are those of the scoring; pad_id
    fills up a sample and is masked from the loss. pool: passages of the corpus, for recipes that
    take such. Sample ids are `<shard>-<nnnnn>`. The result depends on the rows' content, not on
    their order. Raises SampleError where a root does not fit a sample or the tables don't fit
    each other.

    The roots are read twice, `ROOTS_A_READ` at a time: for the size of each, by which samples
    are planned over the whole shard, and sample by sample to be laid out.
    """
    framing = Framing(bos_id=bos_id, separator_ids=tuple(separator_ids), pad_id=pad_id)
    chosen = settings.samples
    if chosen.recipe == "calibrated":
        behind_controls = tables.count("calibrated_gain IS NOT NULL")
        require_controls(settings, tables.count("true"), behind_controls)

    def fitted(root_ids: Sequence[str]) -> tuple[dict[str, Group], list[Dropped], list[Dropped]]:
        """Groups that fit a sample; what the recipe passed over; what does not fit."""
        groups, passed_over = choose_groups(*tables.of(root_ids), settings, pool, whole=False)
        kept: dict[str, Group] = {}
        given_up: list[Dropped] = []
        for group in sorted(groups, key=lambda g: g.root_id):
            whole, lost = fit_group(group, framing, chosen.tokens)
            given_up += lost
            if whole is not None:
                kept[whole.root_id] = whole
        return kept, passed_over, given_up

    root_ids = tables.root_ids()
    sizes: dict[str, int] = {}
    passed_over: list[Dropped] = []
    given_up: list[Dropped] = []
    for start in range(0, len(root_ids), ROOTS_A_READ):
        groups, passed, lost = fitted(root_ids[start : start + ROOTS_A_READ])
        sizes |= {root_id: size_of(group, framing) for root_id, group in groups.items()}
        passed_over += passed
        given_up += lost

    source = shard.rpartition("-")[0]
    packed, rows = _Packed(), _Rows()
    foreign: set[str] = set()
    for together in _read_together(arrange(sizes, framing, chosen, settings.seed)):
        groups, _, _ = fitted([root_id for members in together for root_id in members])
        for ids in together:
            members = [groups[root_id] for root_id in ids]
            segments = lay_out(members, framing, chosen, settings.seed)
            sample_id = f"{shard}-{packed.samples:05d}"
            packed.tokens += _add_sample(rows, sample_id, segments, source)
            packed.add(members, segments)
            if pool:
                foreign.update(c.chunk_id for group in members for c in group.chosen)
            if len(rows.samples) == SAMPLES_A_WRITE:
                rows.write(writer)
                rows = _Rows()
    rows.write(writer)
    dropped = [*passed_over, *given_up]
    writer.append("dropped", [asdict(drop) for drop in dropped])
    if pool:
        foreign -= tables.among_contexts(sorted(foreign))
        if foreign:
            writer.append("passages", pool.rows(sorted(foreign)))
    column = verdict_column(settings)
    wanted = tables.count(column) if column else 0
    return _summary(len(root_ids), packed, dropped, wanted)
