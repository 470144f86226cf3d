import time
from typing import Any

import dagster as dg

from entropylong_assets.orchestration.errors import RETRIES, plain_errors
from entropylong_assets.orchestration.health import blocking_checks, unhealthy_shards
from entropylong_assets.orchestration.metadata import Progress
from entropylong_assets.orchestration.resources import Pipeline
from entropylong_assets.stages.corpus.checks import corpus_checks
from entropylong_assets.stages.embeddings.checks import chunk_checks
from entropylong_assets.stages.entropy.checks import entropy_checks
from entropylong_assets.stages.retrieval.checks import candidate_checks
from entropylong_assets.stages.samples.checks import sample_checks
from entropylong_assets.stages.verification.checks import verification_checks

SHARD_CHECKS = (
    corpus_checks,
    chunk_checks,
    entropy_checks,
    candidate_checks,
    verification_checks,
    sample_checks,
)

# Figures whose own page in the UI can be read as one number.
_SHOWN = (
    "documents",
    "roots",
    "anchors",
    "dependencies",
    "acceptance_rate",
    "mean_gain",
    "mean_calibrated_gain",
    "mean_surprisal_drop_nats",
    "accepted_with_surprisal_rise",
    "near_duplicates_refused",
    "tokens",
)
_SHOWN_AS_JSON = (
    "dependencies_per_root",
    "distance_tokens",
    "share_by_role",
    "tokens_by_source",
    "licenses",
    "false_acceptance",
)


def _metadata(figures: dict[str, Any]) -> dict[str, Any]:
    shown = {name: figures[name] for name in _SHOWN if figures.get(name) is not None}
    return shown | {name: dg.MetadataValue.json(figures[name]) for name in _SHOWN_AS_JSON}


@dg.asset(deps=["long_context_samples"], kinds={"parquet"}, retry_policy=RETRIES)
def training_dataset(
    context: dg.AssetExecutionContext, pipeline: dg.ResourceParam[Pipeline]
) -> dg.MaterializeResult:
    """All samples of healthy shards in the formats of trainers, with card, manifest and report.

    A shard is exported if its tables were made from one another as they stand now, under the
    present settings, and the latest run of each of its blocking checks passed. Equal inputs give
    the same bytes under the same name; what is there already is kept.
    """
    from entropylong_assets.report.page import make_report
    from entropylong_assets.stages.training_data.eligibility import (
        chain_version,
        find_healthy,
        known_shards,
    )
    from entropylong_assets.stages.training_data.export import export_training_data
    from entropylong_assets.stages.training_data.manifest import ExportError
    from entropylong_assets.storage.tables import TableStore

    settings, store = pipeline.settings, pipeline.store
    start = time.monotonic()
    with plain_errors():
        unchecked = unhealthy_shards(
            context.instance, blocking_checks(SHARD_CHECKS), known_shards(store)
        )
        health = find_healthy(store, settings, unchecked)
        for shard, fault in health.left_out.items():
            context.log.warning(f"{shard} is left out: {fault}")
        if not health.healthy:
            first = next(iter(health.left_out.items()), None)
            raise ExportError(
                f"none of {len(health.left_out)} shards is healthy; {first[0]}: {first[1]}"
                if first
                else "no shard yet; materialise long_context_samples first"
            )
        progress = Progress(context, "samples", None)

        def on_progress(done: int, _: int) -> None:
            progress(done - progress.done)

        export = export_training_data(
            store,
            health.healthy,
            settings,
            code_version=chain_version(settings),
            on_progress=on_progress,
        )
        destination = TableStore(export.uri.rpartition("/")[0])
        path = f"{destination.root}/{export.version}-report.html"
        destination.put(path, make_report(settings, shards=health.healthy).encode())
        report = destination.fs.unstrip_protocol(path)
    figures = export.manifest["figures"]
    return dg.MaterializeResult(
        metadata={
            "dagster/row_count": figures["samples"],
            "uri": dg.MetadataValue.path(export.uri),
            "report": dg.MetadataValue.url(report),
            "formats": ", ".join(export.manifest["formats"]),
            "splits": dg.MetadataValue.json(export.manifest["splits"]),
            "left out of both splits": export.manifest["left_out"],
            "bytes": sum(file["bytes"] for file in export.manifest["files"]),
            "files": len(export.manifest["files"]),
            "kept as it was": export.reused,
            "shards exported": len(health.healthy),
            "shards left out": len(health.left_out),
            "why left out": dg.MetadataValue.json(health.left_out),
            "model": export.manifest["made_from"]["model"],
            "seconds": round(time.monotonic() - start, 2),
            **_metadata(figures),
        },
        data_version=dg.DataVersion(export.version),
    )
