"""The stage `entropy_scores`: choose roots, score every token of them, and find their anchors."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl

from entropylong_assets.settings.cluster import GPU_STEP
from entropylong_assets.settings.section import Settings
from entropylong_assets.stages.corpus.stage import CORPUS_DOCUMENTS_STAGE
from entropylong_assets.stages.corpus.tables import CORPUS_DOCUMENTS
from entropylong_assets.stages.entropy.settings import (
    EntropySettings,
    RootSettings,
    ScoringModelSettings,
)
from entropylong_assets.stages.entropy.tables import ENTROPY_SCORES, EntropyScoresSummary
from entropylong_assets.stages.stage import Check, Job, Markdown, Partition, Result, Stage, Step
from entropylong_assets.storage import duck

ROOTS_PER_BATCH = 32
"""Roots scored and written at once."""

SCORE = Job("score", "Choose roots and measure the entropy of their tokens.", hours=24)


def _compute(step: Step) -> Result:
    from entropylong_assets.stages.charts import entropy_histogram
    from entropylong_assets.stages.entropy.anchors import score_roots
    from entropylong_assets.stages.entropy.engine import load_scorer
    from entropylong_assets.stages.entropy.histogram import Histogram
    from entropylong_assets.stages.entropy.model import load_scoring_model
    from entropylong_assets.stages.entropy.roots import COLUMNS, RootChoice

    settings = step.settings
    model = load_scoring_model(settings.scoring)
    scorer = load_scorer(model, settings.scoring.pack_tokens)
    tokenizer = model.tokenizer
    before = scorer.usage.snapshot()
    choice = RootChoice(
        settings.roots,
        settings.seed,
        model.max_positions - len(tokenizer.bos_ids),
        _corpus_rows(step),
    )
    documents = step.store.batches(CORPUS_DOCUMENTS, step.shard, "documents", COLUMNS)
    rows: list[dict[str, Any]] = []
    histogram = Histogram(0, math.log(model.vocab_size), 60)
    anchors, by_surprisal, thresholds = 0, 0, 0.0

    def write() -> None:
        nonlocal anchors, by_surprisal, thresholds
        step.writer.append("roots", rows)
        anchors += sum(len(row["anchors"]) for row in rows)
        by_surprisal += sum(len(row["by_surprisal"]) for row in rows)
        thresholds += math.fsum(row["threshold"] for row in rows)
        for row in rows:
            histogram.add(pl.Series(row["entropies"], dtype=pl.Float32))
        rows.clear()

    roots = choice.roots(
        documents, tokenizer.encode, lambda dropped: step.writer.append("dropped", dropped)
    )
    n_documents = step.require(CORPUS_DOCUMENTS).tables["documents"].rows

    scored = 0  # documents up to the last root that is scored

    def on_progress(tokens: int, share_of_batch: float) -> None:
        in_batch = choice.reached - scored
        step.progress(tokens)
        step.progress.reach("documents", scored + in_batch * share_of_batch, n_documents)

    step.progress.reach("documents", 0, n_documents)
    for row in score_roots(
        roots, scorer, tokenizer.bos_ids, settings.entropy, ROOTS_PER_BATCH, on_progress
    ):
        rows.append(row)
        scored = choice.reached
        if len(rows) == ROOTS_PER_BATCH:
            write()
    write()
    n_roots = step.writer.rows["roots"]
    if not n_roots:
        step.warn(f"shard {step.shard}: {choice.why_none()}")
    return Result(
        EntropyScoresSummary(
            documents=choice.documents,
            not_drawn=choice.documents - choice.drawn,
            drawn=choice.drawn,
            roots=n_roots,
            dropped=dict(sorted(choice.dropped.items())),
            anchors=anchors,
            anchors_by_surprisal=by_surprisal,
            forward_tokens=step.progress.done,
            model=model.identity,
            vocab_size=model.vocab_size,
        ),
        {
            "scoring": scorer.figures(before),
            "preview": step.writer.preview("roots").select(
                "root_id", "mean", "std", "threshold", pl.col("anchors").list.len()
            ),
            "entropies": Markdown(
                entropy_histogram(histogram, thresholds / n_roots if n_roots else None)
            ),
            **({} if n_roots else {"warning": choice.why_none()}),
        },
    )


def _identify(partition: Partition) -> Mapping[str, Any]:
    from entropylong_assets.stages.entropy.model import model_identity

    identity = {"model": model_identity(partition.settings.scoring)}
    if partition.settings.roots.wished_number is None:
        return identity
    return {**identity, "corpus_rows": _corpus_rows(partition)}


def _corpus_rows(partition: Partition) -> int:
    """Rows of the corpus when the shard was registered; 0 if the number of roots is not wished."""
    from entropylong_assets.stages.corpus.shards import load_plan

    if partition.settings.roots.wished_number is None:
        return 0
    return load_plan(partition.store).corpus_rows(partition.shard)


def _validate(settings: Settings) -> None:
    """Refuse fractions for sources that the corpus does not have."""
    known = [source.name for source in settings.corpus.sources]
    for name in settings.roots.fraction_by_source:
        if name not in known:
            raise ValueError(
                f"roots.fraction_by_source: no source '{name}' in corpus "
                f"'{settings.corpus.name}'; there are {', '.join(known) or 'none'}"
            )


def _views(partition: Partition) -> Mapping[str, duck.View]:
    store, shard = partition.store, partition.shard

    def drawn() -> pl.DataFrame:
        """Ids of the documents that the draw selects, drawn again."""
        from entropylong_assets.stages.entropy.roots import draw

        columns = ["doc_id", "source"]
        documents = store.read(CORPUS_DOCUMENTS, shard, "documents", columns)
        rows = _corpus_rows(partition)
        return draw(documents, partition.settings.roots, partition.settings.seed, rows)

    def counts() -> pl.DataFrame:
        summary = store.summary(ENTROPY_SCORES, shard)
        return pl.DataFrame(
            [summary.model_dump() | {"dropped": sum(summary.dropped.values())}],
            infer_schema_length=None,
        )

    return {
        "documents": (CORPUS_DOCUMENTS, [shard], "documents"),
        "drawn": drawn,
        "roots": (ENTROPY_SCORES, [shard], "roots"),
        "dropped": (ENTROPY_SCORES, [shard], "dropped"),
        "summary": counts,
    }


ENTROPY_SCORES_STAGE = Stage(
    tables=ENTROPY_SCORES,
    description="""Entropy and surprisal of every token of the shard's roots, and their anchors.

Documents are drawn by hash (`roots.number` or `roots.fraction`). Those whose length in tokens of
the scoring model is between `roots.min_tokens` and `roots.max_tokens` become roots; the others are
listed in `dropped` with the reason. Anchors are the positions with H_t > μ + α·σ, where μ and σ are
those of the root (paper, section 3.1). With `entropy.anchors: both`, positions with a surprising
token are anchors too.""",
    compute=_compute,
    inputs=(CORPUS_DOCUMENTS_STAGE,),
    sections={
        "roots": RootSettings,
        "scoring": ScoringModelSettings,
        "entropy": EntropySettings,
    },
    determined_by=lambda _: (
        "roots",
        "scoring.model",
        "scoring.bos",
        "scoring.dtype",
        "scoring.max_forward_tokens",
        "entropy",
        "seed",
    ),
    identify=_identify,
    code_version=4,
    check_folder=Path(__file__).parent / "checks",
    checks=(
        Check(
            "roots_reconcile",
            "Drawn documents = roots + dropped documents; documents = drawn + not drawn.",
        ),
        Check("roots_eligible", "Roots are as long as `roots.min_tokens` and `max_tokens` allow."),
        Check("one_entropy_per_token", "Each root has one entropy and one surprisal per token."),
        Check("entropies_in_range", "Entropies are finite and between 0 and ln|V|."),
        Check("anchors_recomputed", "Anchors follow from the entropies and surprisals."),
        Check("has_roots", "The shard has a root.", blocking=False, warns=True),
    ),
    views=_views,
    check_parameters=lambda p: p.settings.entropy.model_dump() | p.settings.roots.model_dump(),
    validate=_validate,
    job=SCORE,
    automation="per_shard",
    resources=GPU_STEP,
    pool="gpu",
    unit="tokens",
    kinds=frozenset({"pytorch", "parquet"}),
)
