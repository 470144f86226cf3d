from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import polars as pl

from entropylong_assets.orchestration.checks import EXAMPLES, SqlCheck, run_check
from entropylong_assets.orchestration.errors import RETRIES, plain_errors
from entropylong_assets.orchestration.metadata import preview
from entropylong_assets.orchestration.resources import Pipeline
from entropylong_assets.storage import duck

_ASSET = "training_dataset"
_FOLDER = Path(__file__).parent / "checks"

_SQL = (
    SqlCheck("every_sample_exported", "Every format holds every sample of each split, once."),
    SqlCheck(
        "no_document_in_both_splits",
        "No document stands in train and in validation. Measured on the Parquet form.",
    ),
)
_FILES = "files_as_written"
_SHARDS = "all_shards_exported"


def _latest(instance: dg.DagsterInstance) -> dict[str, Any]:
    """Metadata of the latest materialisation."""
    event = instance.get_latest_materialization_event(dg.AssetKey(_ASSET))
    if event is None or event.asset_materialization is None:
        raise dg.Failure(f"{_ASSET} was never materialised", allow_retries=False)
    return {name: value.value for name, value in event.asset_materialization.metadata.items()}


@dg.multi_asset_check(
    name=f"{_ASSET}_checks",
    specs=[
        dg.AssetCheckSpec(
            _FILES,
            asset=_ASSET,
            blocking=True,
            description="Every file, read again, has the bytes that the manifest tells.",
        ),
        *(
            dg.AssetCheckSpec(
                check.name, asset=_ASSET, blocking=check.blocking, description=check.description
            )
            for check in _SQL
        ),
        dg.AssetCheckSpec(
            _SHARDS, asset=_ASSET, description="No registered shard was left out of the export."
        ),
    ],
    can_subset=True,
    compute_kind="duckdb",
    retry_policy=RETRIES,
)
def export_checks(
    context: dg.AssetCheckExecutionContext, pipeline: dg.ResourceParam[Pipeline]
) -> Iterator[dg.AssetCheckResult]:
    from entropylong_assets.stages.training_data.export_contents import (
        count_samples,
        documents_by_split,
    )
    from entropylong_assets.stages.training_data.verify import read_manifest, verify_export

    chosen = {key.name for key in context.selected_asset_check_keys}
    made = _latest(context.instance)
    uri = str(made["uri"])
    with plain_errors():
        manifest = read_manifest(uri)
        if _FILES in chosen:
            verification = verify_export(uri)
            faults = verification.faults
            yield dg.AssetCheckResult(
                asset_key=_ASSET,
                check_name=_FILES,
                passed=not faults,
                description=f"{len(faults)} files differ; export again" if faults else None,
                metadata={
                    "files": verification.files,
                    "bytes": verification.bytes,
                    "faults": dg.MetadataValue.json(list(faults[:EXAMPLES])),
                },
            )
        splits = [{"split": s, "samples": n} for s, n in manifest["splits"].items()]
        shards = sorted(manifest["made_from"]["data_versions"]["long_context_samples"])
        views: dict[str, duck.View] = {
            "formats": pl.DataFrame({"format": manifest["formats"]}),
            "splits": pl.DataFrame(splits),
            "found": count_samples(uri, manifest),
            "samples": ("long_context_samples", shards, "samples"),
            "summary": pl.DataFrame({"left_out": [manifest["left_out"]]}),
            "documents": documents_by_split(uri, manifest),
        }
        for check in _SQL:
            if check.name in chosen:
                count, examples = run_check(_FOLDER, check, views, pipeline, {})
                metadata: dict[str, Any] = {"faulty rows": count}
                if count:
                    metadata["examples"] = preview(examples, EXAMPLES)
                yield dg.AssetCheckResult(
                    asset_key=_ASSET,
                    check_name=check.name,
                    passed=count == 0,
                    metadata=metadata,
                )
    if _SHARDS in chosen:
        left_out = int(made["shards left out"])
        yield dg.AssetCheckResult(
            asset_key=_ASSET,
            check_name=_SHARDS,
            passed=left_out == 0,
            severity=dg.AssetCheckSeverity.WARN,
            description=f"{left_out} shards were left out; the metadata of the export tells why"
            if left_out
            else None,
            metadata={"shards left out": left_out},
        )
