from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import dagster as dg

from entropylong_assets.orchestration.checks import SqlCheck, sql_checks
from entropylong_assets.orchestration.resources import Pipeline
from entropylong_assets.storage import duck

_FOLDER = Path(__file__).parent / "checks"


def _views(pipeline: Pipeline, shard: str) -> Mapping[str, duck.View]:
    return {
        "documents": ("corpus_documents", [shard], "documents"),
        "dropped": ("corpus_documents", [shard], "dropped"),
        "summary": duck.summary(pipeline.store, "corpus_documents", shard, ["rows_read"]),
    }


corpus_checks = sql_checks(
    "corpus_documents",
    _FOLDER,
    [
        SqlCheck("unique_documents", "Ids of documents are unique in the shard."),
        SqlCheck("no_empty_text", "Texts are not empty and within the limits of length."),
        SqlCheck("rows_reconcile", "Rows read = documents + rows dropped under a reason."),
        SqlCheck("roots_eligible", "Roots are within the range of tokens."),
        SqlCheck("few_bad_rows", "Rows that could not be read are within corpus.max_bad_share."),
        SqlCheck(
            "bad_rows",
            "All rows could be read.",
            blocking=False,
            severity=dg.AssetCheckSeverity.WARN,
        ),
    ],
    _views,
    lambda s: s.corpus.model_dump(exclude={"sources"}),
)
