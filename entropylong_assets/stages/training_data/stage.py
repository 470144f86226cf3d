"""The stage `training_dataset`: export the samples of all eligible shards for trainers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from entropylong_assets.settings.section import Settings, fingerprint
from entropylong_assets.stages.natural_documents.stage import NATURAL_DOCUMENTS_STAGE
from entropylong_assets.stages.samples.stage import LONG_CONTEXT_SAMPLES_STAGE
from entropylong_assets.stages.samples.tables import LONG_CONTEXT_SAMPLES
from entropylong_assets.stages.stage import Check, Job, Partition, Result, Stage, Step
from entropylong_assets.stages.training_data.settings import ExportSettings
from entropylong_assets.stages.training_data.tables import (
    TRAINING_DATASET,
    TrainingDatasetSummary,
)
from entropylong_assets.stages.verification.registry import evaluated_rules
from entropylong_assets.stages.versioning import code_version, shard_fault
from entropylong_assets.storage.duck import View

EXPORT = Job("export", "Export the samples of all eligible shards, and write the report.", hours=12)

# Figures of an export that its summary repeats.
_FIGURES = (
    "samples",
    "tokens",
    "documents",
    "roots_scored",
    "anchors",
    "dependencies",
    "dependencies_by_kind",
    "near_duplicates_refused",
    "acceptance_rate",
    "mean_gain",
    "mean_calibrated_gain",
    "mean_surprisal_drop_nats",
    "accepted_with_surprisal_rise",
    "dependencies_per_root",
    "distance_tokens",
    "share_by_role",
    "tokens_by_source",
    "licenses",
    "false_acceptance",
    "diversity",
)


def _determined_by(settings: Settings) -> tuple[str, ...]:
    # The false-acceptance rate in the export is computed again, over all shards.
    rules = evaluated_rules(settings.verification).values()
    read_by_rules = {f"verification.{name}" for rule in rules for name in rule.settings}
    return (
        "export",
        "seed",
        "corpus.sources",
        "verification.rule",
        "verification.compared_rules",
        *sorted(read_by_rules),
    )


def _compute(step: Step) -> Result:
    from entropylong_assets.stages.training_data.card import facts_of
    from entropylong_assets.stages.training_data.export import export_training_data
    from entropylong_assets.stages.training_data.manifest import ExportError

    shards, left_out = step.input_shards(LONG_CONTEXT_SAMPLES), _left_out(step)
    if not shards:
        first = next(iter(left_out.items()), None)
        raise ExportError(
            f"none of {len(left_out)} shards can be exported; {first[0]}: {first[1]}"
            if first
            else "no shard yet; run `entropylong run`, or materialize "
            f"{LONG_CONTEXT_SAMPLES.name} first"
        )

    def on_progress(done: int, total: int) -> None:
        step.progress.total = total
        step.progress(done - step.progress.done)

    export = export_training_data(
        step.store,
        shards,
        step.settings,
        code_version=_code_version(step),
        on_progress=on_progress,
    )
    manifests = [step.store.require(LONG_CONTEXT_SAMPLES, shard) for shard in shards]
    step.writer.append(
        "shards",
        [
            {
                "shard": manifest.shard,
                "data_version": manifest.data_version,
                "n_samples": manifest.tables["samples"].rows,
                "export": export.version,
            }
            for manifest in manifests
        ],
    )
    step.writer.append("left_out", [{"shard": s, "reason": r} for s, r in left_out.items()])
    content = export.manifest
    figures = content["figures"]
    summary = TrainingDatasetSummary(
        version=export.version,
        formats=content["formats"],
        splits=content["splits"],
        left_out_of_splits=content["left_out"],
        files=len(content["files"]),
        bytes=sum(file["bytes"] for file in content["files"]),
        reused=export.reused,
        model=content["made_from"]["model"],
        tokenizer=facts_of(content).tokenizer,
        shards=len(shards),
        shards_left_out=len(left_out),
        **{name: figures[name] for name in _FIGURES},
    )
    metadata: dict[str, Any] = {
        "uri": export.uri,
        "formats": ", ".join(summary.formats),
        "licenses": figures["licenses"],
        "false_acceptance": figures["false_acceptance"],
        "diversity": figures["diversity"],
    }
    return Result(summary, metadata | ({"left out": left_out} if left_out else {}))


def _left_out(step: Step) -> dict[str, str]:
    """Every shard that is not exported, and why: shards that have no samples yet included."""
    from entropylong_assets.stages.corpus.shards import load_plan

    known = {*step.input_shards(LONG_CONTEXT_SAMPLES), *step.left_out}
    planned = {shard.key for shard in load_plan(step.store).shards}
    reason = f"{LONG_CONTEXT_SAMPLES.name} is not materialized"
    return dict(sorted({**step.left_out, **dict.fromkeys(planned - known, reason)}.items()))


def _code_version(step: Step) -> str:
    """Version that changes with the code or settings of any stage that samples are made of."""
    settings = {"corpus": step.corpus, "dataset": step.settings}
    return fingerprint([code_version(s, settings[s.scope]) for s in step.stage.chain()])


def _skip_reason(partition: Partition) -> str | None:
    """Why nothing is exported: no shard that may be exported has a sample.

    None as well if no shard may be exported, which is an error that the computation explains.
    """
    empty = []
    for shard in partition.store.shards(LONG_CONTEXT_SAMPLES):
        if shard_fault(TRAINING_DATASET_STAGE, replace(partition, shard=shard)) is None:
            if partition.store.require(LONG_CONTEXT_SAMPLES, shard).tables["samples"].rows:
                return None
            empty.append(shard)
    if not empty:
        return None
    more = f" and {len(empty) - 1:,} more" if len(empty) > 1 else ""
    return (
        f"shard {empty[0]}{more}: no verified dependencies, so no samples yet; there is an export "
        "once a shard has samples"
    )


def _views(partition: Partition) -> Mapping[str, View]:
    from entropylong_assets.stages.training_data.check_views import export_views

    return export_views(partition)


TRAINING_DATASET_STAGE = Stage(
    tables=TRAINING_DATASET,
    description="""All samples of the eligible shards in the formats of trainers, with a dataset \
card.

A shard is exported if all stages before its samples are up to date under the present settings and
have passed their blocking checks. The table `left_out` lists the other shards with the reason.
The same inputs give the same bytes under the same name; an export that exists already is kept.""",
    compute=_compute,
    inputs=(LONG_CONTEXT_SAMPLES_STAGE, NATURAL_DOCUMENTS_STAGE),
    partitioned=False,
    requires_up_to_date_inputs=True,
    sections={"export": ExportSettings},
    determined_by=_determined_by,
    skip_reason=_skip_reason,
    code_version=5,
    check_folder=Path(__file__).parent / "checks",
    checks=(
        Check("files_as_written", "Every file, read again, has the bytes that were written."),
        Check("every_sample_exported", "Every format contains every sample of each split, once."),
        Check(
            "no_document_in_both_splits",
            "No document is in both train and validation, in formats that store ids.",
        ),
        Check(
            "all_shards_exported",
            "No registered shard was left out of the export.",
            blocking=False,
            warns=True,
        ),
    ),
    views=_views,
    job=EXPORT,
    automation="per_batch",
    unit="samples",
    kinds=frozenset({"parquet"}),
)
