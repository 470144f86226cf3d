"""The list of stages: the only one there is.

A new stage is a folder with a `Stage` declaration, and one line here.
"""

from __future__ import annotations

from entropylong_assets.audits.stages import (
    CROSS_MODEL_AUDIT_STAGE,
    LONG_RANGE_AUDIT_STAGE,
    NULL_CALIBRATION_STAGE,
)
from entropylong_assets.audits.trial.stage import TRAINING_TRIAL_STAGE
from entropylong_assets.report.stage import REPORT_STAGE
from entropylong_assets.stages.corpus.stage import CORPUS_DOCUMENTS_STAGE
from entropylong_assets.stages.embeddings.chunk_stage import CHUNK_EMBEDDINGS_STAGE
from entropylong_assets.stages.embeddings.index_stages import (
    EMBEDDING_INDEX_STAGE,
    INDEX_SEGMENTS_STAGE,
)
from entropylong_assets.stages.entropy.stage import ENTROPY_SCORES_STAGE
from entropylong_assets.stages.natural_documents.stage import NATURAL_DOCUMENTS_STAGE
from entropylong_assets.stages.near_duplicates.stages import (
    DOCUMENT_SIGNATURES_STAGE,
    NEAR_DUPLICATES_STAGE,
)
from entropylong_assets.stages.retrieval.stage import CANDIDATE_CONTEXTS_STAGE
from entropylong_assets.stages.samples.stage import LONG_CONTEXT_SAMPLES_STAGE
from entropylong_assets.stages.stage import Stage
from entropylong_assets.stages.training_data.stage import TRAINING_DATASET_STAGE
from entropylong_assets.stages.verification.stage import VERIFIED_DEPENDENCIES_STAGE

STAGES: tuple[Stage, ...] = (
    CORPUS_DOCUMENTS_STAGE,
    CHUNK_EMBEDDINGS_STAGE,
    DOCUMENT_SIGNATURES_STAGE,
    NEAR_DUPLICATES_STAGE,
    INDEX_SEGMENTS_STAGE,
    EMBEDDING_INDEX_STAGE,
    ENTROPY_SCORES_STAGE,
    CANDIDATE_CONTEXTS_STAGE,
    VERIFIED_DEPENDENCIES_STAGE,
    LONG_CONTEXT_SAMPLES_STAGE,
    NATURAL_DOCUMENTS_STAGE,
    TRAINING_DATASET_STAGE,
    NULL_CALIBRATION_STAGE,
    CROSS_MODEL_AUDIT_STAGE,
    LONG_RANGE_AUDIT_STAGE,
    TRAINING_TRIAL_STAGE,
    REPORT_STAGE,
)
"""All stages, in the order in which data flows."""
