"""Materializing one partition of any stage."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from entropylong_assets.settings.section import fingerprint
from entropylong_assets.stages.progress import Observer, Progress, listening
from entropylong_assets.stages.records import write_record
from entropylong_assets.stages.stage import Metadata, Partition, Stage, Step
from entropylong_assets.stages.versioning import determinants, eligible_shards
from entropylong_assets.storage.checkpoints import remove_checkpoints
from entropylong_assets.storage.manifest import Manifest


@dataclass(frozen=True)
class Materialization:
    """A published partition, and what to report about its materialization."""

    manifest: Manifest
    metadata: Metadata
    seconds: float
    unit: str
    rate: float
    left_out: Mapping[str, str]
    """Shards that a stage over all shards left out, with the reasons."""
    uri: str
    """Folder of the partition: an absolute path if it is local."""


def materialize(
    stage: Stage,
    partition: Partition,
    *,
    log: Callable[[str], None] = lambda _: None,
    warn: Callable[[str], None] = lambda _: None,
    observer: Observer | None = None,
) -> Materialization:
    """Open the inputs, compute, and publish one partition.

    Raises TableError if an input is missing, and the errors of the computation. After an error, the
    previous partition is unchanged.
    """
    with listening(log):
        return _materialize(stage, partition, log, warn, observer)


def _materialize(
    stage: Stage,
    partition: Partition,
    log: Callable[[str], None],
    warn: Callable[[str], None],
    observer: Observer | None,
) -> Materialization:
    progress = Progress(stage.unit, log, observer)
    progress(0)  # the observer shows the stage from the start
    left_out = {} if stage.partitioned else eligible_shards(stage, partition).left_out
    for shard, reason in left_out.items():
        warn(f"shard {shard} is left out: {reason}")
    made_from = determinants(stage, partition)
    write_record(stage, partition)
    with partition.store.write(
        stage.tables, partition.shard, fingerprint=fingerprint(made_from), determinants=made_from
    ) as writer:
        step = Step(
            partition.settings,
            partition.store,
            partition.shard,
            stage=stage,
            determinants=made_from,
            writer=writer,
            progress=progress,
            log=log,
            warn=warn,
            left_out=left_out,
        )
        result = stage.compute(step)
        assert isinstance(result.summary, stage.tables.summary)
        progress(0)  # the observer may stop the work before anything is published
        writer.summary = result.summary.model_dump(mode="json")
    remove_checkpoints(partition.store, stage.tables, partition.shard)
    return Materialization(
        manifest=partition.store.require(stage.tables, partition.shard),
        metadata=result.metadata,
        seconds=progress.seconds,
        unit=progress.unit,
        rate=progress.rate,
        uri=_uri_of(partition, stage),
        left_out=left_out,
    )


def _uri_of(partition: Partition, stage: Stage) -> str:
    store = partition.store
    folder = store.folder(stage.tables, partition.shard)
    return folder if store.is_local else str(store.fs.unstrip_protocol(folder))
