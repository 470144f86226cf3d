"""Packing one shard: from the tables of scoring and verification to the tables of samples."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

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
    other_roots,
    size_of,
)
from entropylong_assets.stages.samples.registry import Pool
from entropylong_assets.stages.samples.sample_rows import SampleRows
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
from entropylong_assets.stages.samples.use_limits import (
    Use,
    drop_uses,
    has_use_limits,
    uses_over_limits,
)
from entropylong_assets.storage.partition_writer import RowWriter

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


def _batches(root_ids: Sequence[str]) -> Iterator[Sequence[str]]:
    for start in range(0, len(root_ids), ROOTS_PER_READ):
        yield root_ids[start : start + ROOTS_PER_READ]


@dataclass(frozen=True)
class _Groups:
    """Reads the groups of roots and fits each to the length of a sample."""

    tables: ShardTables
    settings: Settings
    framing: Framing
    pool: Pool | None
    over_limits: frozenset[Use] = frozenset()

    def choose(self, root_ids: Sequence[str]) -> tuple[list[Group], list[Dropped]]:
        """Groups as the recipe chooses them, and what it dropped."""
        return choose_groups(*self.tables.of(root_ids), self.settings, self.pool, whole=False)

    def limited(self, root_ids: Sequence[str]) -> _Groups:
        """The same reader, which drops the uses among all these roots that a limit forbids."""
        if not has_use_limits(self.settings.samples):
            return self
        chosen = (group for batch in _batches(root_ids) for group in self.choose(batch)[0])
        return replace(self, over_limits=uses_over_limits(chosen, self.settings.samples))

    def read(
        self, root_ids: Sequence[str]
    ) -> tuple[dict[str, Group], list[Dropped], list[Dropped]]:
        """Groups that fit a sample, by root_id; what the recipe and the limits of use dropped; what
        does not fit."""
        groups, by_recipe = self.choose(root_ids)
        groups, by_limit = drop_uses(groups, self.over_limits)
        by_recipe += by_limit
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
    writer: RowWriter
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
    writer: RowWriter,
    pool: Pool | None = None,
    on_sample: Callable[[int], None] = lambda _: None,
) -> PackedShard:
    """Write the samples of one shard.

    The roots are read twice, ROOTS_PER_READ at a time: for the size of each, from which the samples
    of the whole shard are planned, and sample by sample to be laid out. If uses are limited, they
    are read once more before, to find out which are over a limit. Sample ids are
    `<shard>-<nnnnn>`. The result depends on the rows' content, not on their order.

    pool: the indexed corpus, if `needs_pool`. `on_sample` is called with finished samples. Raises
    SampleError if a root does not fit a sample or the tables contradict each other.
    """
    chosen, framing = settings.samples, Framing.of(tokenizer)
    column = required_gain(settings)
    if column is not None:
        require_controls(settings, tables.count_pairs(), tables.count_pairs(with_value=column))
    root_ids = tables.root_ids()
    reader = _Groups(tables, settings, framing, pool).limited(root_ids)
    sizes: dict[str, int] = {}
    apart: dict[str, frozenset[str]] = {}
    all_roots = frozenset(root_ids)
    dropped_by_recipe: list[Dropped] = []
    dropped_by_length: list[Dropped] = []
    for batch in _batches(root_ids):
        groups, by_recipe, by_length = reader.read(batch)
        sizes |= {root_id: size_of(group, framing) for root_id, group in groups.items()}
        apart |= {root_id: other_roots(group, all_roots) for root_id, group in groups.items()}
        dropped_by_recipe += by_recipe
        dropped_by_length += by_length

    source = shard.rpartition("-")[0]
    packed, rows = _Packed(), SampleRows()
    passages = _Passages(tables, writer, pool)
    for together in _read_together(arrange(sizes, apart, framing, chosen, settings.seed)):
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
