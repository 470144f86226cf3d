"""The one Definitions object that Dagster serves."""

from __future__ import annotations

import dagster as dg

from entropylong_assets.audits.assets import (
    cross_model_audit,
    long_range_audit,
    null_calibration,
)
from entropylong_assets.audits.checks import audit_checks
from entropylong_assets.orchestration.cluster import executor, on_cluster
from entropylong_assets.orchestration.conditions import conditions
from entropylong_assets.orchestration.jobs import jobs
from entropylong_assets.orchestration.presentation import presented
from entropylong_assets.orchestration.resources import pipeline_resource
from entropylong_assets.orchestration.schedules import (
    daily_scan,
    make_carrier,
    make_sweeps,
    new_files,
)
from entropylong_assets.orchestration.versioning import code_version
from entropylong_assets.settings.model import Settings, load_settings
from entropylong_assets.stages.corpus.assets import corpus_documents
from entropylong_assets.stages.corpus.checks import corpus_checks
from entropylong_assets.stages.embeddings.assets import chunk_embeddings, embedding_index
from entropylong_assets.stages.embeddings.checks import chunk_checks, index_checks
from entropylong_assets.stages.entropy.assets import entropy_scores
from entropylong_assets.stages.entropy.checks import entropy_checks
from entropylong_assets.stages.retrieval.assets import candidate_contexts
from entropylong_assets.stages.retrieval.checks import candidate_checks
from entropylong_assets.stages.samples.assets import long_context_samples
from entropylong_assets.stages.samples.checks import sample_checks
from entropylong_assets.stages.training_data.assets import training_dataset
from entropylong_assets.stages.training_data.checks import export_checks
from entropylong_assets.stages.verification.assets import verified_dependencies
from entropylong_assets.stages.verification.checks import verification_checks

ASSETS = [
    corpus_documents,
    chunk_embeddings,
    embedding_index,
    entropy_scores,
    candidate_contexts,
    verified_dependencies,
    long_context_samples,
    training_dataset,
    null_calibration,
    cross_model_audit,
    long_range_audit,
]

CHECKS = [
    corpus_checks,
    chunk_checks,
    index_checks,
    entropy_checks,
    candidate_checks,
    verification_checks,
    sample_checks,
    export_checks,
    *audit_checks,
]

BEFORE_INDEX = [corpus_checks, chunk_checks]


def build_definitions(settings: Settings) -> dg.Definitions:
    """All assets and checks under these settings, which are part of their code versions."""
    automation = conditions(settings.data_uri, BEFORE_INDEX)

    def specified(spec: dg.AssetSpec) -> dg.AssetSpec:
        asset = spec.key.to_user_string()
        return presented(spec).replace_attributes(
            code_version=code_version(asset, settings),
            automation_condition=automation.get(asset),
        )

    return dg.Definitions(
        assets=[on_cluster(asset.map_asset_specs(specified), settings.cluster) for asset in ASSETS],
        asset_checks=[on_cluster(checks, settings.cluster) for checks in CHECKS],
        jobs=jobs,
        sensors=[new_files, make_carrier(dg.AssetSelection.assets(*ASSETS))],
        schedules=[daily_scan, *make_sweeps(CHECKS, BEFORE_INDEX)],
        resources={"pipeline": pipeline_resource(settings)},
        executor=executor(settings.cluster),
    )


defs = build_definitions(load_settings())
