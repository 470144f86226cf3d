"""The declaration of a stage, from which everything about it is derived.

A stage turns the partitions of its inputs into one partition of its own tables. Its folder owns its
settings, tables, summary, computation and SQL checks, and declares them once as a `Stage`:

    corpus_documents ─┬─► chunk_embeddings ─► embedding_index ─┐
                      └─► entropy_scores ──────────────────────┴─► candidate_contexts ─► ...

Assets, jobs, partitions, automation conditions, versions, staleness, column schemas, cluster
resources, `entropylong doctor` and the report follow from these declarations; `pipeline.py` lists
them. Stages do not depend on Dagster.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import polars as pl

from entropylong_assets.settings.cluster import CPU_STEP, StepResources
from entropylong_assets.settings.section import Section, Settings
from entropylong_assets.stages.progress import Progress
from entropylong_assets.storage.checkpoints import Checkpoints
from entropylong_assets.storage.duck import View
from entropylong_assets.storage.manifest import Manifest
from entropylong_assets.storage.partition_writer import PartitionWriter
from entropylong_assets.storage.schemas import Summary, TableSet
from entropylong_assets.storage.tables import WHOLE, TableStore

Automation = Literal["by_scan", "per_shard", "per_batch", "by_hand"]
"""What starts a stage by itself. `by_scan`: a scan of the sources finds a new or changed shard.
`per_shard`: a shard's inputs are ready. `per_batch`: a batch of shards has settled. `by_hand`:
nothing."""


class Markdown(str):
    """Metadata that the UI renders as Markdown."""


class Link(str):
    """Metadata that the UI renders as a link: an http or https URL, the only kinds that open."""


Metadata = Mapping[
    str, "int | float | str | Markdown | Link | Mapping[str, Any] | list[Any] | pl.DataFrame"
]
"""What a stage reports besides its summary. Mappings and lists are shown as JSON, frames as a
table of their first rows."""


@dataclass(frozen=True)
class Job:
    """A named job that materializes one or several stages of a corpus or dataset."""

    name: str
    description: str
    hours: int
    """Time limit of a run. A longer run is ended, and its partition has failed."""


@dataclass(frozen=True)
class Check:
    """A check written in SQL: a query whose rows are the faults.

    The file is `<folder>/<name>.sql`. If a blocking check fails, later stages do not run; with
    `warns`, a failure is a warning.
    """

    name: str
    description: str
    blocking: bool = True
    warns: bool = False


@dataclass(frozen=True)
class Partition:
    """One partition of a stage: settings of the corpus or dataset, its tables, and the shard."""

    settings: Settings
    store: TableStore
    shard: str = WHOLE

    @property
    def corpus(self) -> Settings:
        """Settings of the corpus: these, or those of the dataset's corpus."""
        corpus: Settings = self.settings if is_corpus(self.settings) else self.settings.corpus
        return corpus


def is_corpus(settings: Settings) -> bool:
    return "corpus" not in type(settings).model_fields


@dataclass(frozen=True)
class Step(Partition):
    """A partition that is being made: the argument of a stage's computation."""

    stage: Stage = field(kw_only=True)
    determinants: Mapping[str, Any] = field(kw_only=True)
    """All that determines the content, as recorded in the manifest."""
    writer: PartitionWriter = field(kw_only=True)
    progress: Progress = field(kw_only=True)
    log: Callable[[str], None] = field(kw_only=True)
    warn: Callable[[str], None] = field(kw_only=True)
    left_out: Mapping[str, str] = field(kw_only=True, default_factory=dict)
    """For a stage over all shards: shards that may not be used, and why."""

    def require(self, tables: TableSet[Any]) -> Manifest:
        """Manifest of an input: of the same shard, or of all shards if that stage has no shards."""
        return self.store.require(tables, self.shard_of(tables))

    def shard_of(self, tables: TableSet[Any]) -> str:
        whole = {stage.tables.name for stage in self.stage.upstream() if not stage.partitioned}
        return WHOLE if tables.name in whole else self.shard

    def input_shards(self, tables: TableSet[Any]) -> list[str]:
        """For a stage over all shards: the shards of an input that are used, sorted."""
        return sorted(self.determinants["inputs"][tables.name])

    def checkpoints(self, key: str) -> Checkpoints:
        """Finished batches of an interrupted run with the same key; removed once published."""
        return Checkpoints(self.store, self.stage.tables, self.shard, key)


@dataclass(frozen=True)
class Result:
    """What a computation returns after it has written its tables."""

    summary: Summary
    metadata: Metadata = field(default_factory=dict)


@dataclass(frozen=True, eq=False, kw_only=True)
class Stage:
    """The one declaration of a stage. See the module's docstring."""

    tables: TableSet[Any]
    description: str
    """Shown in the UI: first line, then what a user must know."""
    compute: Callable[[Step], Result]
    """Writes the tables of one partition and returns its summary. Raises ValueErrors of this
    package, with one line for the user, for everything that the user can correct."""
    inputs: tuple[Stage, ...] = ()
    optional_inputs: tuple[Stage, ...] = ()
    """Stages whose work this one uses if it was done, and does itself if not. It waits for them
    while they run; they do not determine its content."""
    partitioned: bool = True
    """One partition per shard of the corpus; else one over all shards."""
    sections: Mapping[str, type[Section]] = field(default_factory=dict)
    """Settings that this stage owns, by the name of their section."""
    determined_by: Callable[[Settings], Sequence[str]]
    """Dotted paths of the settings that determine the content, e.g. `verification.epsilon`, or
    `verification` for a whole section. No other setting changes the content."""
    identify: Callable[[Partition], Mapping[str, Any]] = lambda _: {}
    """What else determines the content: identities of models, versions of source files, the tag of
    the index. JSON values; computed without loading a model."""
    removals: Callable[[Partition], Mapping[str, Any]] = lambda _: {}
    """Determinants that name what was removed from the corpus and must not be in the content. A
    partition that was made before a removal is stale, and no stage over all shards uses it."""
    permanent: tuple[str, ...] = ()
    """Dotted paths of settings that can't change while the corpus or dataset keeps its name."""
    code_version: int
    """Increased when a change of the code changes the content."""
    check_folder: Path | None = None
    checks: tuple[Check, ...] = ()
    views: Callable[[Partition], Mapping[str, View]] = lambda _: {}
    """The views that the checks read, by name in SQL."""
    check_parameters: Callable[[Partition], Mapping[str, Any]] = lambda _: {}
    """Values for `$name` in the SQL."""
    validate: Callable[[Settings], None] = lambda _: None
    """Raises ValueError if settings of different sections contradict each other."""
    skip_reason: Callable[[Partition], str | None] = lambda _: None
    """Why there is nothing to make for the partition, or None. If there is a reason, the partition
    is skipped with a warning and not requested by the automation. Reads only settings and summaries
    of inputs."""
    requires_up_to_date_inputs: bool = False
    """For a stage over all shards: leave out shards made under other settings or code."""
    job: Job
    automation: Automation = "by_hand"
    resources: StepResources = CPU_STEP
    """Resources that a step requests of a cluster node, unless `cluster.resources` sets others."""
    pool: str | None = None
    """Dagster pool that limits steps running at once; `{corpus}` stands for the corpus' name."""
    unit: str = "rows"
    """Unit of its progress, e.g. tokens."""
    kinds: frozenset[str] = frozenset()
    group: str = ""
    """Suffix of the group in the UI; empty: the group of its corpus or dataset."""

    @property
    def name(self) -> str:
        return self.tables.name

    @property
    def scope(self) -> Literal["corpus", "dataset"]:
        return self.tables.scope

    @property
    def blocking_checks(self) -> tuple[str, ...]:
        return tuple(check.name for check in self.checks if check.blocking)

    def upstream(self) -> Iterator[Stage]:
        """All direct and indirect inputs of this stage, each once; inputs of inputs come first."""
        seen: list[Stage] = []

        def visit(stage: Stage) -> None:
            for other in stage.inputs:
                if other not in seen:
                    visit(other)
                    seen.append(other)

        visit(self)
        yield from seen

    def chain(self) -> list[Stage]:
        """This stage's inputs that are partitioned by shard, and their own such inputs."""
        seen: list[Stage] = []

        def visit(stage: Stage) -> None:
            for other in stage.inputs:
                if other.partitioned and other not in seen:
                    visit(other)
                    seen.append(other)

        visit(self)
        return seen
