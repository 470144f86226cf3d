import dagster as dg

from entropylong_assets.orchestration.errors import RETRIES, plain_errors
from entropylong_assets.orchestration.metadata import Progress, materialised, preview
from entropylong_assets.orchestration.partitions import corpus_shard
from entropylong_assets.orchestration.resources import Pipeline
from entropylong_assets.orchestration.versioning import determinants
from entropylong_assets.settings.model import fingerprint
from entropylong_assets.storage.tables import TableError


@dg.asset(
    deps=["candidate_contexts", "entropy_scores"],
    partitions_def=corpus_shard,
    kinds={"pytorch", "parquet"},
    retry_policy=RETRIES,
    pool="gpu",
)
def verified_dependencies(
    context: dg.AssetExecutionContext, pipeline: dg.ResourceParam[Pipeline]
) -> dg.MaterializeResult:
    """Every (root, anchor, chunk), scored: does the chunk lower the entropy there?

    Entropy and surprisal of the root alone, behind the chunk and behind control contexts; plain
    and calibrated gain; the verdict and its reason (paper, section 3.3; controls are ours).
    """
    from entropylong_assets.stages.charts import gain_histogram
    from entropylong_assets.stages.embeddings.embedder import load_embedder
    from entropylong_assets.stages.embeddings.table import ChunkTable
    from entropylong_assets.stages.entropy.engine import load_scorer
    from entropylong_assets.stages.entropy.model import load_scoring_model
    from entropylong_assets.stages.entropy.screener import load_screener
    from entropylong_assets.stages.verification.shard_verification import (
        batches_key,
        chunk_universe,
        verify_shard,
    )
    from entropylong_assets.storage.checkpoints import KeptBatches

    shard, settings, store = context.partition_key, pipeline.settings, pipeline.store
    with plain_errors():
        candidates = store.require("candidate_contexts", shard)
        scores = store.require("entropy_scores", shard)
        model = load_scoring_model(settings.scoring)
        if scores.summary["model"] != model.identity:
            raise TableError(
                f"entropy_scores, {shard}: scored by {scores.summary['model']}, but scoring.model "
                f"is {model.identity}; materialise entropy_scores first"
            )
        embedder = load_embedder(settings.embedding)
        table = ChunkTable(settings.data_uri, embedder.dimension, embedder.identity)
        table.checkout(candidates.summary["index"])
        basis = determinants(
            "verified_dependencies",
            settings,
            {"candidate_contexts": candidates.data_version, "entropy_scores": scores.data_version},
            model=model.identity,
            index=candidates.summary["index"],
        )
        progress = Progress(context, "tokens", None)
        scorer = load_scorer(model, settings.scoring.pack_tokens)
        screener = None
        if settings.scoring.screen != "off":
            screener = load_screener(model, settings.scoring.screen, settings.scoring.pack_tokens)
            screened_before = screener.usage.snapshot()
        before = scorer.usage.snapshot()
        key = batches_key(basis, settings, str(scorer.device))
        kept = KeptBatches(store, "verified_dependencies", shard, key)
        with store.write(
            "verified_dependencies", shard, fingerprint=fingerprint(basis), determinants=basis
        ) as writer:
            done = verify_shard(
                store,
                shard,
                settings,
                model.tokenizer,
                model.max_positions,
                scorer,
                chunk_universe(table, candidates.summary["excluded_shards"]),
                lambda ids: table.fetch(ids, ["chunk_id", "doc_id", "text"]).drop("shard"),
                writer,
                on_progress=progress,
                kept=kept,
                screener=screener,
            )
            figures = done.figures.summary()
            writer.summary |= figures | {
                "forward_tokens": done.forward_tokens,
                "model": model.identity,
                "vocab_size": model.vocab_size,
            }
            if screener:
                writer.summary["screen"] = done.screen.metadata()
        kept.remove_all()
    if done.batches_taken_up:
        context.log.info(f"{done.batches_taken_up} finished batches of a killed run were taken up")
    scored, epsilon = figures["pairs_scored"], settings.verification.epsilon
    scoring = scorer.figures(before) | {
        "batches_taken_up": done.batches_taken_up,
        "pairs_saved_by_sharing": scored - figures["contexts_scored"],
    }
    if screener:
        scoring["screen"] = screener.figures(screened_before)
    return materialised(
        store.require("verified_dependencies", shard),
        "pairs",
        progress.seconds,
        **{"tokens per second": round(progress.rate, 1)},
        **{"acceptance rate": figures["accepted"] / scored if scored else 0.0},
        verdicts=dg.MetadataValue.json(figures["verdicts"]),
        scoring=dg.MetadataValue.json(scoring),
        preview=preview(done.figures.best),
        gains=dg.MetadataValue.md(gain_histogram(done.figures.gains, epsilon)),
    )
