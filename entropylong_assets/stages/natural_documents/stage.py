"""The stage `natural_documents`: windows of long documents in which distant text matters.

Windows are chosen within a shard, so that shards stay independent. The evidence of all windows of
the shard stays in memory until the choice. Their tokens do not: the chosen windows are cut again
from their documents.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl

from entropylong_assets.settings.cluster import GPU_STEP
from entropylong_assets.settings.section import Settings
from entropylong_assets.stages.corpus.stage import CORPUS_DOCUMENTS_STAGE
from entropylong_assets.stages.corpus.tables import CORPUS_DOCUMENTS
from entropylong_assets.stages.embeddings.index_stages import EMBEDDING_INDEX_STAGE
from entropylong_assets.stages.entropy.stage import ENTROPY_SCORES_STAGE
from entropylong_assets.stages.entropy.tables import ENTROPY_SCORES
from entropylong_assets.stages.natural_documents.settings import NaturalSettings
from entropylong_assets.stages.natural_documents.tables import (
    NATURAL_DOCUMENTS,
    NaturalDocumentsSummary,
)
from entropylong_assets.stages.retrieval.stage import removed_documents
from entropylong_assets.stages.stage import Check, Job, Partition, Result, Stage, Step
from entropylong_assets.storage import duck

DOCUMENTS_PER_BATCH = 64


def _compute(step: Step) -> Result:
    if not step.settings.natural.keep:
        return Result(NaturalDocumentsSummary())
    from entropylong_assets.stages.entropy.chunked import ChunkedScorer
    from entropylong_assets.stages.entropy.engine import load_scorer
    from entropylong_assets.stages.entropy.model import load_scoring_model
    from entropylong_assets.stages.natural_documents.selection import count_reasons, keep_windows
    from entropylong_assets.stages.natural_documents.shard import (
        COLUMNS,
        IS_ROOT,
        DocumentChoice,
        sample_row,
        score_all,
        window_lengths,
    )

    settings, store, shard = step.settings, step.store, step.shard
    natural: NaturalSettings = settings.natural
    model = load_scoring_model(settings.scoring)
    tokenizer = model.tokenizer
    lengths = window_lengths(
        settings.samples.tokens, model.max_positions, tokenizer.bos_ids, natural.short_tokens
    )
    roots = store.read(ENTROPY_SCORES, shard, "roots", ["root_id"])["root_id"]
    removed = removed_documents(step) | dict.fromkeys(roots, IS_ROOT)
    min_tokens = natural.min_tokens or lengths.sample

    def new_choice() -> DocumentChoice:
        return DocumentChoice(lengths, min_tokens, tokenizer, removed)

    def documents() -> Any:
        return store.batches(CORPUS_DOCUMENTS, shard, "documents", COLUMNS, DOCUMENTS_PER_BATCH)

    scorer = ChunkedScorer(load_scorer(model, settings.scoring.pack_tokens))
    choice = new_choice()
    windows = choice.windows(documents(), lambda rows: step.writer.append("dropped", rows))
    scored = list(score_all(windows, scorer, lengths, step.progress))
    reasons = keep_windows(
        [(s.row["window_id"], s.row["gain"], s.row["gzip_ratio"]) for s in scored], natural
    )
    step.writer.append(
        "windows", [s.row | {"reason": r} for s, r in zip(scored, reasons, strict=True)]
    )
    kept = [s for s, reason in zip(scored, reasons, strict=True) if reason is None]
    for each in kept:
        step.writer.append("evidence", each.evidence)
    kept_ids = {s.row["window_id"] for s in kept}
    of_documents = frozenset(s.row["doc_id"] for s in kept)
    for window in new_choice().windows(documents(), only=of_documents):
        if window.window_id in kept_ids:
            step.writer.append("samples", [sample_row(window, lengths.bos_ids)])
    evidence = [row for s in kept for row in s.evidence]
    return Result(
        NaturalDocumentsSummary(
            documents=choice.documents,
            short=choice.short,
            dropped=dict(sorted(choice.dropped.items())),
            cut=choice.cut,
            tokens=choice.tokens,
            tokens_dropped=choice.tokens - len(scored) * lengths.content,
            windows=len(scored),
            not_kept=count_reasons(reasons),
            kept=len(kept),
            lowest_gain=min((s.row["gain"] for s in kept), default=None),
            long_tokens=lengths.long,
            short_tokens=lengths.short,
            key_tokens=len(evidence),
            key_tokens_located=sum(row["found_at"] is not None for row in evidence),
            forward_tokens=step.progress.done,
            model=model.identity,
        ),
        {
            "preview": step.writer.preview("windows"),
            "long window shorter than a sample": int(lengths.long < lengths.sample),
        },
    )


def _determined_by(settings: Settings) -> tuple[str, ...]:
    if not settings.natural.keep:
        return ("natural.keep",)
    return (
        "natural",
        "samples.tokens",
        "scoring.model",
        "scoring.bos",
        "scoring.dtype",
        "scoring.max_forward_tokens",
    )


def _identify(partition: Partition) -> Mapping[str, Any]:
    from entropylong_assets.stages.entropy.model import model_identity

    if not partition.settings.natural.keep:
        return {}
    return {"model": model_identity(partition.settings.scoring)}


def _views(partition: Partition) -> Mapping[str, duck.View]:
    store, shard = partition.store, partition.shard

    def counts() -> pl.DataFrame:
        summary = store.summary(NATURAL_DOCUMENTS, shard)
        totals = {name: sum(getattr(summary, name).values()) for name in ("dropped", "not_kept")}
        return pl.DataFrame([summary.model_dump() | totals], infer_schema_length=None)

    own = ("windows", "samples", "evidence", "dropped")
    return {
        "summary": counts,
        "roots": (ENTROPY_SCORES, [shard], "roots"),
        **{name: (NATURAL_DOCUMENTS, [shard], name) for name in own},
    }


def _check_parameters(partition: Partition) -> Mapping[str, Any]:
    from entropylong_assets.stages.entropy.key_tokens import KEY_GAIN, KEY_LOSS
    from entropylong_assets.stages.natural_documents.selection import LOW_GAIN

    return {
        "sample_tokens": partition.settings.samples.tokens,
        "key_gain": KEY_GAIN,
        "key_loss": KEY_LOSS,
        "low_gain": LOW_GAIN,
        **partition.settings.natural.model_dump(),
    }


NATURAL_DOCUMENTS_STAGE = Stage(
    tables=NATURAL_DOCUMENTS,
    description="""Windows of long documents, selected by how much distant text helps.

Documents of at least `natural.min_tokens` tokens that are no roots are cut into windows of the
length of a sample. Each is scored in a long and in a short window. Of those within the bounds of
the gzip ratio, the share `natural.keep` with the highest information gain is kept, as samples with
evidence: the tokens that need more than the short window, and where the text that they need
probably is. Empty if `natural.keep` is 0.""",
    compute=_compute,
    inputs=(CORPUS_DOCUMENTS_STAGE, ENTROPY_SCORES_STAGE, EMBEDDING_INDEX_STAGE),
    sections={"natural": NaturalSettings},
    determined_by=_determined_by,
    identify=_identify,
    code_version=1,
    check_folder=Path(__file__).parent / "checks",
    checks=(
        Check("natural_reconcile", "Documents, windows and tokens add up; each has one outcome."),
        Check("natural_samples_whole", "Every kept window is a sample of `samples.tokens` tokens."),
        Check("top_windows_kept", "The windows with the highest gain within the bounds are kept."),
        Check("natural_evidence_sound", "Key tokens and what they need are as defined."),
    ),
    views=_views,
    check_parameters=_check_parameters,
    job=Job("natural", "Select windows of long documents.", hours=48),
    automation="per_shard",
    resources=GPU_STEP,
    pool="gpu",
    unit="tokens",
    kinds=frozenset({"pytorch", "parquet"}),
)
