"""Packing one shard: from the tables of scoring and verification to the tables of samples."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import polars as pl

from entropylong_assets.settings.section import Settings
from entropylong_assets.stages.entropy.tokenizer_facts import TokenizerFacts
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
from entropylong_assets.stages.samples.registry import Pool
from entropylong_assets.stages.samples.selection import (
    choose_groups,
    require_controls,
    required_gain,
    verifying_rule,
)
from entropylong_assets.stages.samples.shard_inputs import ShardTables
from entropylong_assets.stages.samples.tables import (
    LONG_CONTEXT_SAMPLES,
    LongContextSamplesSummary,
)
from entropylong_assets.storage.partition_writer import PartitionWriter

SAMPLES_PER_WRITE = 16
"""Samples in memory at once (8 MiB of tokens at 131,072)."""

ROOTS_PER_READ = 128
"""Roots whose contexts are in memory at once."""

LISTED_SAMPLES = 20
SHOWN_DEPENDENCIES = 5

ROLES = ("bos", "root", "verified", "hard_negative", "unverified", "filler", "padding")


_DEPENDENCIES = pl.Schema(LONG_CONTEXT_SAMPLES.schemas["dependencies"])


@dataclass(frozen=True)
class PackedShard:
    """What was written, and what the metadata shows of it."""

    summary: LongContextSamplesSummary
    best_dependencies: pl.DataFrame
    """Those with the largest gains, with the columns of the table."""
    contexts: pl.DataFrame
    """sample_id and chunk_id of the contexts of the first LISTED_SAMPLES samples; shard of the
    passages that no anchor nominated, else null."""


@dataclass
class SampleRows:
    """Rows of a few samples, as in the tables of samples."""

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

    def add(self, sample_id: str, segments: Sequence[Segment], source: str) -> Counter[str]:
        """Add the rows of one sample; return its tokens by role. source: of the roots."""
        starts = np.cumsum([0] + [len(segment.token_ids) for segment in segments]).tolist()
        tokens: Counter[str] = Counter()
        root_starts: dict[str, int] = {}
        for number, segment in enumerate(segments):
            tokens[segment.role] += len(segment.token_ids)
            if segment.role == "root":
                assert segment.group is not None
                root_starts.setdefault(segment.group.root_id, starts[number])
            span = {"start": starts[number], "end": starts[number + 1]}
            place = {"sample_id": sample_id, "segment": number, "role": segment.role}
            self.segments.append(place | span | _origin(segment, source))
        for number, segment in enumerate(segments):
            if segment.role == "verified":
                assert segment.group is not None
                root_start = root_starts[segment.group.root_id]
                self.dependencies.extend(
                    _dependency_rows(sample_id, segment, starts[number], root_start)
                )
        self.samples.append(
            {
                "sample_id": sample_id,
                "input_ids": np.concatenate([segment.token_ids for segment in segments]),
                "n_root": tokens["root"],
                "n_verified": tokens["verified"],
                "n_negative": tokens["hard_negative"] + tokens["unverified"] + tokens["filler"],
                "n_padding": tokens["padding"],
            }
        )
        return tokens


def _origin(segment: Segment, source: str) -> dict[str, str | None]:
    """The root that a segment belongs to, and the passage or document that it comes from."""
    context, group = segment.context, segment.group
    root_id = group.root_id if group else None
    return {
        "root_id": root_id,
        "doc_id": context.doc_id if context else root_id,
        "chunk_id": context.chunk_id if context else None,
        "source": context.source if context else (source if group else None),
    }


def _dependency_rows(
    sample_id: str, segment: Segment, start: int, root_start: int
) -> Iterator[dict[str, Any]]:
    """Rows of a verified context that starts at `start` and whose root starts at `root_start`."""
    context = segment.context
    assert context is not None
    end = start + len(segment.token_ids)
    for dependency in context.dependencies:
        position = root_start + dependency.anchor
        row = asdict(dependency)
        evidence = [row.pop(name) for name in ("token_start", "token_end")]
        evidence_start, evidence_end = (None if t is None else start + t for t in evidence)
        yield row | {
            "sample_id": sample_id,
            "root_id": context.root_id,
            "chunk_id": context.chunk_id,
            "anchor_position": position,
            "context_start": start,
            "context_end": end,
            "distance": position - end,
            "evidence_start": evidence_start,
            "evidence_end": evidence_end,
        }


@dataclass
class _Packed:
    """Counts over the samples laid out so far."""

    samples: int = 0
    roots: int = 0
    dependencies: int = 0
    negatives_available: int = 0
    negatives: int = 0
    tokens: Counter[str] = field(default_factory=Counter)
    best: pl.DataFrame = field(default_factory=lambda: pl.DataFrame(schema=_DEPENDENCIES))
    listed: list[tuple[str, str]] = field(default_factory=list)
    """(sample_id, chunk_id) of the first samples."""

    def add(self, members: Sequence[Group], segments: Sequence[Segment]) -> None:
        self.samples += 1
        self.roots += len(members)
        self.dependencies += sum(len(c.dependencies) for g in members for c in g.chosen)
        self.negatives_available += sum(len(group.negatives) for group in members)
        self.negatives += sum(segment.role == "hard_negative" for segment in segments)

    def show(self, rows: SampleRows) -> None:
        """Keep the best dependencies and the contexts of the first samples."""
        new = pl.DataFrame(rows.dependencies, schema=_DEPENDENCIES)
        ranked = pl.concat([self.best, new]).sort("gain", descending=True, maintain_order=True)
        self.best = ranked.head(SHOWN_DEPENDENCIES)
        first = self.samples - len(rows.samples)
        listed = {row["sample_id"] for row in rows.samples[: max(0, LISTED_SAMPLES - first)]}
        self.listed += [
            (row["sample_id"], row["chunk_id"])
            for row in rows.segments
            if row["chunk_id"] and row["sample_id"] in listed
        ]


def _summary(
    roots: int,
    dependencies: int,
    packed: _Packed,
    dropped: Sequence[Dropped],
    tokenizer: TokenizerFacts,
) -> LongContextSamplesSummary:
    roots_dropped: Counter[str] = Counter()
    contexts_dropped: Counter[str] = Counter()
    dependencies_dropped: Counter[str] = Counter()
    for drop in dropped:
        (roots_dropped if drop.chunk_id is None else contexts_dropped)[drop.reason] += 1
        dependencies_dropped[drop.reason] += drop.n_dependencies
    total = packed.tokens.total()
    return LongContextSamplesSummary(
        samples=packed.samples,
        roots=roots,
        roots_packed=packed.roots,
        roots_dropped=dict(sorted(roots_dropped.items())),
        contexts_dropped=dict(sorted(contexts_dropped.items())),
        dependencies=dependencies,
        dependencies_packed=packed.dependencies,
        dependencies_dropped=dict(sorted((k, n) for k, n in dependencies_dropped.items() if n)),
        negatives_available=packed.negatives_available,
        negatives_packed=packed.negatives,
        tokens={role: packed.tokens[role] for role in ROLES},
        utilisation=round(1 - packed.tokens["padding"] / total, 6) if total else None,
        tokenizer=tokenizer,
    )


def _read_together(samples: Sequence[Sequence[str]]) -> Iterator[list[Sequence[str]]]:
    """The same samples in batches of at most ROOTS_PER_READ roots, but of at least one sample."""
    together: list[Sequence[str]] = []
    for members in samples:
        if together and sum(map(len, together)) + len(members) > ROOTS_PER_READ:
            yield together
            together = []
        together.append(members)
    if together:
        yield together


@dataclass(frozen=True)
class _Groups:
    """Reads the groups of roots and fits each to the length of a sample."""

    tables: ShardTables
    settings: Settings
    framing: Framing
    pool: Pool | None

    def read(
        self, root_ids: Sequence[str]
    ) -> tuple[dict[str, Group], list[Dropped], list[Dropped]]:
        """Groups that fit a sample, by root_id; what the recipe dropped; what does not fit."""
        tables = self.tables.of(root_ids)
        groups, by_recipe = choose_groups(*tables, self.settings, self.pool, whole=False)
        fitted: dict[str, Group] = {}
        by_length: list[Dropped] = []
        for group in sorted(groups, key=lambda g: g.root_id):
            kept, too_large = fit_group(group, self.framing, self.settings.samples.tokens)
            by_length += too_large
            if kept is not None:
                fitted[kept.root_id] = kept
        return fitted, by_recipe, by_length


@dataclass
class _Passages:
    """Writes the passages of samples that no anchor nominated, each once."""

    tables: ShardTables
    writer: PartitionWriter
    pool: Pool | None
    shards: dict[str, str] = field(default_factory=dict)
    """Shard of each passage written, by chunk_id."""

    def write(self, segments: Sequence[dict[str, Any]]) -> None:
        """Write the passages among these rows of `segments`."""
        if self.pool is None:
            return
        used = {row["chunk_id"] for row in segments if row["role"] in ("unverified", "filler")}
        new = sorted(used - self.shards.keys())
        passages = self.pool.rows(sorted(set(new) - self.tables.among_contexts(new)))
        if passages:
            self.writer.append("passages", passages)
            self.shards |= {row["chunk_id"]: row["shard"] for row in passages}


def pack_shard(
    tables: ShardTables,
    *,
    settings: Settings,
    shard: str,
    tokenizer: TokenizerFacts,
    writer: PartitionWriter,
    pool: Pool | None = None,
    on_sample: Callable[[int], None] = lambda _: None,
) -> PackedShard:
    """Write the samples of one shard.

    The roots are read twice, ROOTS_PER_READ at a time: for the size of each, from which the samples
    of the whole shard are planned, and sample by sample to be laid out. Sample ids are
    `<shard>-<nnnnn>`. The result depends on the rows' content, not on their order.

    pool: the indexed corpus, if `needs_pool`. `on_sample` is called with finished samples. Raises
    SampleError if a root does not fit a sample or the tables contradict each other.
    """
    chosen, framing = settings.samples, Framing.of(tokenizer)
    column = required_gain(settings)
    if column is not None:
        require_controls(settings, tables.count_pairs(), tables.count_pairs(with_value=column))
    reader = _Groups(tables, settings, framing, pool)
    root_ids = tables.root_ids()
    sizes: dict[str, int] = {}
    dropped_by_recipe: list[Dropped] = []
    dropped_by_length: list[Dropped] = []
    for start in range(0, len(root_ids), ROOTS_PER_READ):
        groups, by_recipe, by_length = reader.read(root_ids[start : start + ROOTS_PER_READ])
        sizes |= {root_id: size_of(group, framing) for root_id, group in groups.items()}
        dropped_by_recipe += by_recipe
        dropped_by_length += by_length

    source = shard.rpartition("-")[0]
    packed, rows = _Packed(), SampleRows()
    passages = _Passages(tables, writer, pool)
    for together in _read_together(arrange(sizes, framing, chosen, settings.seed)):
        groups, _, _ = reader.read([root_id for members in together for root_id in members])
        for ids in together:
            members = [groups[root_id] for root_id in ids]
            segments = lay_out(members, framing, chosen, settings.seed, pool)
            packed.tokens += rows.add(f"{shard}-{packed.samples:05d}", segments, source)
            packed.add(members, segments)
            on_sample(1)
            if len(rows.samples) == SAMPLES_PER_WRITE:
                packed.show(rows)
                passages.write(rows.segments)
                rows.write(writer)
                rows = SampleRows()
    packed.show(rows)
    passages.write(rows.segments)
    rows.write(writer)
    dropped = [*dropped_by_recipe, *dropped_by_length]
    writer.append("dropped", [asdict(drop) for drop in dropped])
    rule = verifying_rule(settings)
    dependencies = tables.count_accepted(rule) if rule else 0
    listed = [(sample, chunk, passages.shards.get(chunk)) for sample, chunk in packed.listed]
    columns = {"sample_id": pl.String, "chunk_id": pl.String, "shard": pl.String}
    return PackedShard(
        summary=_summary(len(root_ids), dependencies, packed, dropped, tokenizer),
        best_dependencies=packed.best,
        contexts=pl.DataFrame(listed, schema=columns, orient="row"),
    )
