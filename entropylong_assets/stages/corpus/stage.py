"""The stage `corpus_documents`: canonical documents of one shard of the sources."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from entropylong_assets.stages.corpus.tables import CORPUS_DOCUMENTS
from entropylong_assets.stages.stage import Check, Job, Partition, Result, Stage, Step
from entropylong_assets.storage import duck

INGEST = Job(
    "ingest", "Read new shards of the sources, cut documents into chunks and embed them.", hours=12
)

_PREVIEW = ["external_id", "n_chars", "text"]  # ids would take the room of the text


def _compute(step: Step) -> Result:
    from entropylong_assets.stages.corpus.documents import ingest_shard
    from entropylong_assets.stages.corpus.shards import current_shard, load_plan

    shard = current_shard(step.settings, load_plan(step.store), step.shard)
    step.progress.total = shard.n_rows
    summary = ingest_shard(shard, step.settings, step.writer, step.progress)
    duplicates = summary.dropped.get("duplicate_in_shard", 0)
    return Result(
        summary,
        {
            "share of duplicates": duplicates / max(summary.rows_read, 1),
            "files": list(shard.files),
            "preview": step.writer.preview("documents").select(_PREVIEW),
        },
    )


def _identify(partition: Partition) -> Mapping[str, Any]:
    """The shard's files as they are now, and the settings of its source.

    Other sources are left out: a new one makes no old shard stale.
    """
    from entropylong_assets.stages.corpus.shards import current_shard, load_plan, source_of

    shard = current_shard(partition.settings, load_plan(partition.store), partition.shard)
    return {
        "shard": shard.model_dump(mode="json", exclude={"position"}),
        "source": source_of(shard, partition.settings).model_dump(mode="json"),
    }


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


CORPUS_DOCUMENTS_STAGE = Stage(
    tables=CORPUS_DOCUMENTS,
    description="""Canonical documents of one shard.

Text is Unicode NFC without control characters. The id of a document is the hash of its text. Every
row that does not become a document is listed in the table `dropped`, with the reason.""",
    compute=_compute,
    # Bad rows either end the shard or are dropped: no choice of `on_bad_row` and `max_bad_share`
    # yields other documents.
    determined_by=lambda _: ("min_chars", "max_chars"),
    identify=_identify,
    code_version=3,
    check_folder=Path(__file__).parent / "checks",
    checks=(
        Check("unique_documents", "Ids of documents are unique in the shard."),
        Check("no_empty_text", "Texts are not empty and within the limits of length."),
        Check("rows_reconcile", "Rows read = documents + rows dropped under a reason."),
        Check("few_bad_rows", "The share of unreadable rows is at most max_bad_share."),
        Check("bad_rows", "All rows could be read.", blocking=False, warns=True),
    ),
    views=_views,
    check_parameters=_check_parameters,
    job=INGEST,
    automation="by_scan",
    unit="rows",
    kinds=frozenset({"parquet", "polars"}),
)
