"""Jobs of a corpus that make no asset: scan, retire shards, take documents down, compact.

Dagster reads the annotations of the functions here, so they are not postponed.
"""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import dagster as dg

from entropylong_assets.orchestration.errors import step_errors
from entropylong_assets.orchestration.naming import prefixed
from entropylong_assets.orchestration.resources import chosen_settings, resource_keys
from entropylong_assets.orchestration.retirement import (
    bring_back,
    retire,
    retired_shards,
    take_down,
)
from entropylong_assets.orchestration.scanning import register, scan
from entropylong_assets.project import Project, open_store
from entropylong_assets.report.holdings import find_exports
from entropylong_assets.settings.section import Settings
from entropylong_assets.stages.corpus.stage import CORPUS_DOCUMENTS_STAGE
from entropylong_assets.stages.embeddings.index_stages import INDEX_POOL
from entropylong_assets.stages.embeddings.retention import KEEP_DAYS, KEEP_DAYS_HELP

Work = Callable[[Any, Settings], None]


def build_corpus_jobs(project: Project, corpus: Settings) -> list[dg.JobDefinition]:
    """The jobs `scan`, `retire`, `takedown` and `compact` of a corpus."""
    datasets = project.datasets_over(corpus.name)

    def scan_sources(context: Any, chosen: Settings) -> None:
        result = scan(chosen, context.instance)
        register(chosen, result, context.instance)
        context.log.info(result.message)

    def retire_name(context: Any, chosen: Settings) -> None:
        given = context.op_config
        if given["undo"]:
            back = bring_back(chosen, given["name"], context.instance)
            context.log.info(f"brought back: {', '.join(back) or 'no shard'}; materialize them")
            return
        by = f"run {context.run_id}"
        removal = retire(chosen, given["name"], context.instance, given["reason"], by)
        context.log.info(f"{removal.kind} {removal.name} is retired: {removal.reason}")
        store = open_store(chosen)
        for uri in find_exports(store, datasets, retired_shards(chosen, removal.name)).exports:
            context.log.warning(f"an earlier export contains documents of it: {uri}")

    def take_document_down(context: Any, chosen: Settings) -> None:
        given = context.op_config
        by = f"run {context.run_id}"
        for taken in take_down(chosen, datasets, given["document"], given["reason"], by):
            for line in taken.lines():
                context.log.info(line)

    def compact_table(context: Any, chosen: Settings) -> None:
        from entropylong_assets.stages.embeddings.compaction import compact

        kept_for = timedelta(days=context.op_config["keep_days"])
        context.log.info(compact(open_store(chosen).corpus_uri, kept_for).message)

    return [
        _job(
            corpus,
            "scan",
            "Scans the sources and registers a partition for each new shard. Starts no other run: "
            "backfill `ingest` for the new partitions, or switch on the sensor `new_files`.",
            scan_sources,
        ),
        _job(
            corpus,
            "retire",
            "Takes a shard or a source out of the corpus and its datasets, until brought back "
            "with `undo`. Then run `index`, and `build_samples` and `export` of each dataset.",
            retire_name,
            {
                "name": dg.Field(str, description="Key of a shard, or name of a source."),
                "reason": dg.Field(str, default_value="not given", description="For the record."),
                "undo": dg.Field(bool, default_value=False, description="Bring it back."),
            },
        ),
        _job(
            corpus,
            "takedown",
            "Takes a document out of the corpus for good: lists where it is held, refuses it when "
            "it is read again, and makes its shards stale. Then run `ingest` for these, `index`, "
            "and `build_samples` and `export` of each dataset.",
            take_document_down,
            {
                "document": dg.Field(
                    str, description="doc_id (the hash of its text), or the source's own id."
                ),
                "reason": dg.Field(str, description="For the record."),
            },
        ),
        _job(
            corpus,
            "compact",
            "Joins small fragments of the corpus' LanceDB table, and removes its old versions and "
            "the files of killed writers. Shards can be embedded and the index searched meanwhile.",
            compact_table,
            {"keep_days": dg.Field(int, default_value=KEEP_DAYS, description=KEEP_DAYS_HELP)},
            INDEX_POOL.format(corpus=corpus.name),
        ),
    ]


def _job(
    corpus: Settings,
    name: str,
    description: str,
    work: Work,
    config: Any = None,
    pool: str | None = None,
) -> dg.JobDefinition:
    # The same sections as the stage that reads the sources.
    stage = CORPUS_DOCUMENTS_STAGE

    @dg.op(
        name=prefixed(corpus, f"{name}_step"),
        required_resource_keys=resource_keys(corpus, stage),
        config_schema=config or {},
        pool=pool,
    )
    def step(context: dg.OpExecutionContext) -> None:
        with step_errors():
            work(context, chosen_settings(corpus, stage, context.resources))

    @dg.job(
        name=prefixed(corpus, name),
        description=description,
        executor_def=dg.in_process_executor,
    )
    def job() -> None:
        step()

    return job
