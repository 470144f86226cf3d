"""The stage `corpus_documents`: canonical documents of one shard of the sources."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from entropylong_assets.settings.section import Settings
from entropylong_assets.stages.corpus.errors import MissingSourceError, one_line
from entropylong_assets.stages.corpus.removals import documents_taken_down
from entropylong_assets.stages.corpus.settings import SourceSettings
from entropylong_assets.stages.corpus.tables import CORPUS_DOCUMENTS
from entropylong_assets.stages.stage import Check, Job, Partition, Result, Stage, Step
from entropylong_assets.stages.versioning import determining_settings
from entropylong_assets.storage import duck
from entropylong_assets.storage.manifest import TableError
from entropylong_assets.storage.removals import find_removed

INGEST = Job(
    "ingest", "Read new shards of the sources, cut documents into chunks and embed them.", hours=12
)

_PREVIEW = ["external_id", "n_chars", "text"]  # without doc_id, which leaves no room for the text


def _compute(step: Step) -> Result:
    from entropylong_assets.stages.corpus.documents import ingest_shard
    from entropylong_assets.stages.corpus.shards import current_shard, load_plan

    shard = current_shard(step.settings, load_plan(step.store), step.shard)
    missing = set(step.determinants["shard"]["files"]).difference(shard.files)
    if missing:
        raise MissingSourceError(
            f"shard {shard.key}: {one_line(min(missing))} does not exist; put it back, or take "
            f"the shard out with `entropylong retire {shard.key}`; it is up to date but for that"
        )
    step.progress.total = shard.n_rows
    taken_down = find_removed(step.store).documents
    summary = ingest_shard(shard, step.settings, step.writer, step.progress, taken_down)
    duplicates = summary.dropped.get("duplicate_in_shard", 0)
    return Result(
        summary,
        {
            "share of duplicates": duplicates / max(summary.rows_read, 1),
            "rows not selected": summary.not_selected,
            "evaluation sets": [figures.model_dump() for figures in summary.evaluation_sets],
            "files": list(shard.files),
            "preview": step.writer.preview("documents").select(_PREVIEW),
        },
    )


def _identify(partition: Partition) -> Mapping[str, Any]:
    """The shard, its source, and the versions of filters and evaluation sets."""
    from entropylong_assets.stages.corpus.evaluation_sets import identify_sets
    from entropylong_assets.stages.corpus.filters import identify_filters

    settings = partition.settings
    return {
        **_identify_shard(partition),
        **identify_filters(settings),
        **identify_sets(settings),
    }


def _described(source: SourceSettings) -> dict[str, Any]:
    """Settings of a source, without unused ones that manifests of earlier versions lack."""
    unused = {name for name in ("metadata_fields", "where") if not getattr(source, name)}
    return source.model_dump(mode="json", exclude=unused)


def _identify_shard(partition: Partition) -> Mapping[str, Any]:
    """The present versions of the shard's files, and the settings of its source.

    Other sources are left out, so that a new source makes no old shard stale. A missing file or
    source makes no shard stale either: then the recorded values are returned.
    """
    from entropylong_assets.stages.corpus.shards import current_shard, load_plan, source_of

    plan = load_plan(partition.store)
    try:
        manifest = partition.store.manifest(CORPUS_DOCUMENTS, partition.shard)
    except TableError:  # damaged: it is about to be made again
        manifest = None
    recorded = manifest.determinants if manifest else {}
    try:
        source = _described(source_of(plan.shard(partition.shard), partition.settings))
        shard = current_shard(partition.settings, plan, partition.shard)
    except MissingSourceError:
        if not {"shard", "source"} <= recorded.keys():
            raise
        sources = {source.name: source for source in partition.settings.sources}
        known = sources.get(recorded["source"]["name"])
        source = _described(known) if known else recorded["source"]
        return {"shard": recorded["shard"], "source": source}
    now = shard.model_dump(mode="json", exclude={"position", "revision", "corpus_rows"})
    if recorded.get("source") == source and _lacks_files_only(recorded["shard"], now):
        # Only if nothing else has changed: otherwise it is made again, without the missing files.
        settings = determining_settings(CORPUS_DOCUMENTS_STAGE, partition.settings)
        code = CORPUS_DOCUMENTS_STAGE.code_version
        if (recorded.get("code"), recorded.get("settings")) == (code, settings):
            return {"shard": recorded["shard"], "source": source}
    return {"shard": now, "source": source}


def _lacks_files_only(recorded: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    """Whether missing files are the only change of a shard of whole files since it was made."""

    def versions(shard: Mapping[str, Any]) -> dict[str, str]:
        return dict(zip(shard["files"], shard["versions"], strict=True))

    return versions(now).items() < versions(recorded).items()


def _views(partition: Partition) -> Mapping[str, duck.View]:
    store, shard = partition.store, partition.shard
    return {
        "documents": (CORPUS_DOCUMENTS, [shard], "documents"),
        "dropped": (CORPUS_DOCUMENTS, [shard], "dropped"),
        "summary": lambda: duck.summary(store, CORPUS_DOCUMENTS, shard, ["rows_read"]),
    }


def _check_parameters(partition: Partition) -> Mapping[str, Any]:
    names = {"max_bad_share", "min_chars", "max_chars"}
    return partition.settings.model_dump(include=names)


def _determined_by(settings: Settings) -> Sequence[str]:
    """Unused settings are left out, so that a new kind of cleaning makes no old corpus stale."""
    cleaning = [name for name in ("filters", "decontaminate") if getattr(settings, name)]
    return ("min_chars", "max_chars", *cleaning)


CORPUS_DOCUMENTS_STAGE = Stage(
    tables=CORPUS_DOCUMENTS,
    description="""Documents of one shard, in a canonical form.

Texts are Unicode NFC without control characters. The id of a document is the hash of its text.
Every row that does not become a document is listed in the table `dropped`, with the reason. These
include documents that a filter (`corpus.filters`) drops or that quote an evaluation set
(`corpus.decontaminate`).""",
    compute=_compute,
    # Bad rows either end the shard or are dropped: no choice of `on_bad_row` and `max_bad_share`
    # yields other documents.
    determined_by=_determined_by,
    identify=_identify,
    removals=documents_taken_down,
    code_version=3,
    check_folder=Path(__file__).parent / "checks",
    checks=(
        Check("unique_documents", "The ids of the shard's documents are unique."),
        Check("no_empty_text", "Texts are as long as `min_chars` and `max_chars` allow."),
        Check("rows_reconcile", "Rows read = documents + dropped rows."),
        Check("few_bad_rows", "The share of bad rows is at most `max_bad_share`."),
        Check("bad_rows", "No row is bad.", blocking=False, warns=True),
    ),
    views=_views,
    check_parameters=_check_parameters,
    job=INGEST,
    automation="by_scan",
    unit="rows",
    kinds=frozenset({"parquet", "polars"}),
)
