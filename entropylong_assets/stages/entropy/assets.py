import math
from collections.abc import Iterator
from typing import Any

import dagster as dg
import polars as pl

from entropylong_assets.orchestration.errors import RETRIES, plain_errors
from entropylong_assets.orchestration.metadata import Progress, materialised, preview
from entropylong_assets.orchestration.partitions import corpus_shard
from entropylong_assets.orchestration.resources import Pipeline
from entropylong_assets.orchestration.versioning import determinants
from entropylong_assets.settings.model import fingerprint

BATCH = 32


@dg.asset(
    deps=["corpus_documents"],
    partitions_def=corpus_shard,
    kinds={"pytorch", "parquet"},
    retry_policy=RETRIES,
    pool="gpu",
)
def entropy_scores(
    context: dg.AssetExecutionContext, pipeline: dg.ResourceParam[Pipeline]
) -> dg.MaterializeResult:
    """Entropy and surprisal of every token of the shard's roots, and their anchors.

    Anchors are the positions with H_t > μ + α·σ of their own root (paper, section 3.1).
    """
    from entropylong_assets.stages.charts import entropy_histogram
    from entropylong_assets.stages.entropy.anchors import score_roots
    from entropylong_assets.stages.entropy.engine import load_scorer
    from entropylong_assets.stages.entropy.histogram import Histogram
    from entropylong_assets.stages.entropy.model import load_scoring_model

    shard, settings, store = context.partition_key, pipeline.settings, pipeline.store
    with plain_errors():
        upstream = store.require("corpus_documents", shard)
        model = load_scoring_model(settings.scoring)
        basis = determinants(
            "entropy_scores",
            settings,
            {"corpus_documents": upstream.data_version},
            model=model.identity,
        )
        tokenizer, longest = model.tokenizer, model.max_positions - len(model.tokenizer.bos_ids)
        progress = Progress(context, "tokens", None)
        too_long: list[dict[str, object]] = []

        def roots() -> Iterator[tuple[str, list[int]]]:
            columns = ["doc_id", "text", "is_root"]
            for batch in store.batches("corpus_documents", shard, "documents", columns):
                chosen = batch.filter("is_root")
                ids = tokenizer.encode(chosen["text"].to_list())
                for doc_id, token_ids in zip(chosen["doc_id"], ids, strict=True):
                    if len(token_ids) <= longest:
                        yield doc_id, token_ids
                    else:
                        too_long.append(
                            {
                                "root_id": doc_id,
                                "reason": "too_long_for_model",
                                "n_tokens": len(token_ids),
                            }
                        )

        with store.write(
            "entropy_scores", shard, fingerprint=fingerprint(basis), determinants=basis
        ) as writer:
            scorer = load_scorer(model, settings.scoring.pack_tokens)
            rows: list[dict[str, Any]] = []
            before = scorer.usage.snapshot()
            anchors = n_too_long = 0
            thresholds = 0.0
            histogram = Histogram(0, math.log(model.vocab_size), 60)

            def flush() -> None:
                nonlocal anchors, thresholds, n_too_long
                writer.append("roots", rows)
                writer.append("dropped", too_long)
                anchors += sum(len(row["anchors"]) for row in rows)
                thresholds += math.fsum(row["threshold"] for row in rows)
                for row in rows:
                    histogram.add(pl.Series(row["entropies"], dtype=pl.Float32))
                n_too_long += len(too_long)
                rows.clear()
                too_long.clear()

            for row in score_roots(
                roots(), scorer, tokenizer.bos_ids, settings.entropy, BATCH, progress
            ):
                rows.append(row)
                if len(rows) == BATCH:
                    flush()
            flush()
            n_roots = writer.rows["roots"]
            writer.summary |= {
                "roots_chosen": upstream.summary["roots"],
                "roots": n_roots,
                "dropped": {"too_long_for_model": n_too_long},
                "forward_tokens": progress.done,
                "model": model.identity,
                "vocab_size": model.vocab_size,
            }
        columns = ["root_id", "mean", "std", "threshold", "anchors"]
        shown = store.head("entropy_scores", shard, "roots", columns)
    mean_threshold = thresholds / n_roots if n_roots else None
    return materialised(
        store.require("entropy_scores", shard),
        "roots",
        progress.seconds,
        anchors=anchors,
        **{"tokens per second": round(progress.rate, 1)},
        scoring=dg.MetadataValue.json(scorer.figures(before)),
        preview=preview(shown.with_columns(pl.col("anchors").list.len())),
        entropies=dg.MetadataValue.md(entropy_histogram(histogram, mean_threshold)),
    )
