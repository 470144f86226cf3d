"""Which stages and shards a run of the command line is limited to, and what it would run."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace

from entropylong_assets.orchestration.jobs import jobs_by_stage
from entropylong_assets.orchestration.naming import owner_name
from entropylong_assets.project import Project, open_store
from entropylong_assets.settings.section import Settings, SettingsError, printable
from entropylong_assets.stages.corpus.errors import MissingSourceError
from entropylong_assets.stages.corpus.shards import ShardPlan, current_shard
from entropylong_assets.stages.stage import Job, Partition, Stage
from entropylong_assets.stages.versioning import failed_check, stale_reason
from entropylong_assets.storage.tables import WHOLE


@dataclass(frozen=True)
class Selection:
    """Limits of a run. The default is everything that follows from the sources."""

    datasets: tuple[str, ...] | None = None
    """Names of datasets to run, with their corpora; None: all datasets and all corpora."""
    shards: tuple[str, ...] = ()
    """Shards to run; empty: all. Stages over all shards are run as well."""
    first: str | None = None
    """Name of the first stage to run, in the order of the data."""
    last: str | None = None
    """Name of the last stage to run."""

    def owners(self, project: Project) -> tuple[list[Settings], list[Settings]]:
        """The corpora and the datasets to run. Raises SettingsError for an unknown name."""
        if self.datasets is None:
            return list(project.corpora.values()), list(project.datasets.values())
        chosen = [project.find_dataset(name) for name in self.datasets]
        names = {dataset.corpus.name for dataset in chosen}
        return [c for c in project.corpora.values() if c.name in names], chosen

    def stages(self, project: Project, settings: Settings) -> list[Stage]:
        """The stages of a corpus or dataset to run. Raises SettingsError for an unknown name."""
        names = [stage.name for stage in project.stages if stage.automation != "by_hand"]
        for name in (self.first, self.last):
            if name is not None:
                _require("stage", name, names)
        first = names.index(self.first) if self.first else 0
        last = names.index(self.last) if self.last else len(names) - 1
        if first > last:
            raise SettingsError(
                f"stage {self.first} comes after {self.last}; the order is {', '.join(names)}"
            )
        return [s for s in project.stages_of(settings) if s.name in names[first : last + 1]]

    def shards_of(self, plan: ShardPlan) -> list[str]:
        """The shards of a corpus to run."""
        keys = [shard.key for shard in plan.shards]
        return [key for key in keys if not self.shards or key in self.shards]

    def check_shards(self, plans: Collection[ShardPlan]) -> None:
        """Raise SettingsError if no corpus has a shard of this name."""
        known = [shard.key for plan in plans for shard in plan.shards]
        for shard in self.shards:
            _require("shard", shard, known)


def _require(kind: str, name: str, known: Sequence[str]) -> None:
    if name not in known:
        close = difflib.get_close_matches(name, known, 1)
        hint = f"; did you mean {close[0]}?" if close else ""
        few = ", ".join(known[:12]) + (", …" if len(known) > 12 else "")
        raise SettingsError(
            f"no {kind} '{printable(name, 60)}'{hint or f'; there are {few or None}'}"
        )


def run_reason(stage: Stage, partition: Partition) -> str | None:
    """Why a partition has to be made, or None if it is up to date and has passed its checks."""
    return stale_reason(stage, partition) or failed_check(stage, partition)


@dataclass
class ExpectedJob:
    """Partitions that a job is expected to make."""

    settings: Settings
    job: Job
    up_to_date: int = 0
    """Shards for which it has nothing to make."""
    reasons: dict[Stage, dict[str, str]] = field(default_factory=dict)
    """By stage and shard: why it has to be made."""
    skipped: dict[Stage, dict[str, str]] = field(default_factory=dict)
    """By stage and shard: why it is skipped."""

    @property
    def shards(self) -> list[str]:
        """Shards for which the job runs."""
        return sorted({shard for shards in self.reasons.values() for shard in shards})


def expected_jobs(
    project: Project, plans: dict[str, ShardPlan], selection: Selection
) -> Iterator[ExpectedJob]:
    """Yield what a run would do, job by job, without running or writing anything.

    plans: the shards of each corpus, by its name. A stage is expected to run if it is not up to
    date, or if one of its inputs runs: whether that changes the input is not known beforehand.
    """
    selection.check_shards(plans.values())
    corpora, datasets = selection.owners(project)
    running: dict[tuple[str, Stage], set[str]] = {}
    for settings in (*corpora, *datasets):
        partition = Partition(settings, open_store(settings))
        plan = plans[partition.corpus.name]
        for job, stages in jobs_by_stage(selection.stages(project, settings)).items():
            expected = ExpectedJob(settings, job)
            shards = selection.shards_of(plan) if stages[0].partitioned else [WHOLE]
            for shard in shards:
                here = replace(partition, shard=shard)
                for stage in stages:
                    follows = _running_input(stage, here, running)
                    reason = f"{follows.name} runs" if follows else run_reason(stage, here)
                    if reason is None:
                        continue
                    skip = None if follows else stage.skip_reason(here)
                    if stage.automation == "by_scan" and not _readable(here, plan):
                        skip = "its source files are missing"
                    if skip is not None:
                        expected.skipped.setdefault(stage, {})[shard] = skip
                        continue
                    expected.reasons.setdefault(stage, {})[shard] = reason
                    running.setdefault((owner_name(settings, stage), stage), set()).add(shard)
            expected.up_to_date = len(shards) - len(expected.shards)
            yield expected


def _running_input(
    stage: Stage, partition: Partition, running: dict[tuple[str, Stage], set[str]]
) -> Stage | None:
    """An input of the partition that is expected to run as well, or None."""
    for source in stage.inputs:
        shards = running.get((owner_name(partition.settings, source), source), set())
        if shards and (partition.shard in shards or not (source.partitioned and stage.partitioned)):
            return source
    return None


def _readable(partition: Partition, plan: ShardPlan) -> bool:
    try:
        current_shard(partition.settings, plan, partition.shard)
    except MissingSourceError:
        return False
    return True
