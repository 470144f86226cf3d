from collections.abc import Callable
from typing import Any

import dagster as dg
import polars as pl

from entropylong_assets.orchestration.errors import RETRIES, plain_errors
from entropylong_assets.orchestration.metadata import Progress, materialised, preview
from entropylong_assets.orchestration.partitions import corpus_shard
from entropylong_assets.orchestration.resources import Pipeline
from entropylong_assets.orchestration.versioning import determinants
from entropylong_assets.settings.model import fingerprint
from entropylong_assets.storage.tables import PartitionWriter

_NO_MODEL = "audit.model names no second model: name one of another family to have this audit"


def _audited(
    context: dg.AssetExecutionContext,
    pipeline: Pipeline,
    shown: str,
    work: Callable[[PartitionWriter, Progress], dict[str, Any]],
    draw: Callable[[pl.DataFrame], str],
    **more: Any,
) -> dg.MaterializeResult:
    """Writes an audit's partition by `work`; its table `shown` is previewed, and drawn by `draw`
    unless it is empty."""
    asset, shard = context.asset_key.to_user_string(), context.partition_key
    store = pipeline.store
    verified = store.require("verified_dependencies", shard)
    inputs = {"verified_dependencies": verified.data_version}
    basis = determinants(asset, pipeline.settings, inputs, **more)
    progress = Progress(context, "tokens", None)
    with store.write(asset, shard, fingerprint=fingerprint(basis), determinants=basis) as writer:
        writer.summary |= work(writer, progress) | {"forward_tokens": progress.done}
    rows = store.read(asset, shard, shown)
    pictures = {"picture": dg.MetadataValue.md(draw(rows))} if len(rows) else {}
    return materialised(
        store.require(asset, shard),
        shown,
        progress.seconds,
        preview=preview(rows, 64),
        **pictures,
    )


def _draw_rates(rows: pl.DataFrame) -> str:
    from entropylong_assets.stages.charts import intervals

    named = rows.select(
        name=pl.col("kind") + ", " + pl.col("rule"), value="rate", low="low", high="high"
    )
    return intervals(named.to_dicts(), "share that passes the rule")


def _draw_recipes(rows: pl.DataFrame) -> str:
    from entropylong_assets.audits.audit_tables import RECIPE_ORDER
    from entropylong_assets.stages.charts import intervals

    falls = rows.filter(measure="surprisal_drop_over_random").rename({"recipe": "name"}).to_dicts()
    falls.sort(key=lambda row: RECIPE_ORDER.index(row["name"]))
    return intervals(falls, "anchors' surprisal drop over random contexts (nats)")


@dg.asset(
    deps=["verified_dependencies"],
    partitions_def=corpus_shard,
    kinds={"pytorch", "parquet"},
    retry_policy=RETRIES,
    pool="gpu",
)
def null_calibration(
    context: dg.AssetExecutionContext, pipeline: dg.ResourceParam[Pipeline]
) -> dg.MaterializeResult:
    """How often contexts that should not help pass the rule, on a sample of the shard's roots.

    Random chunks, chunks on the same topic that no anchor retrieved, and accepted chunks with
    their sentences shuffled; the ε that holds a wished rate; the lift of retrieval over chance.
    """
    from entropylong_assets.audits.open_corpus import open_corpus
    from entropylong_assets.audits.shard_audits import calibrate_null
    from entropylong_assets.stages.entropy.engine import load_scorer
    from entropylong_assets.stages.entropy.model import load_scoring_model

    shard, settings = context.partition_key, pipeline.settings
    with plain_errors():
        model = load_scoring_model(settings.scoring)
        return _audited(
            context,
            pipeline,
            "rates",
            lambda writer, progress: calibrate_null(
                pipeline.store,
                shard,
                settings,
                open_corpus(settings, shard),
                model.tokenizer,
                load_scorer(model, settings.scoring.pack_tokens),
                model.max_positions,
                writer,
                progress,
            ),
            _draw_rates,
            model=model.identity,
        )


@dg.asset(
    deps=["verified_dependencies"],
    partitions_def=corpus_shard,
    kinds={"pytorch", "parquet"},
    retry_policy=RETRIES,
    pool="gpu",
)
def cross_model_audit(
    context: dg.AssetExecutionContext, pipeline: dg.ResourceParam[Pipeline]
) -> dg.MaterializeResult:
    """Pairs that both rules, one or neither accepts, scored again by the model of `audit.model`.

    Tells how much of the data is tied to its scoring model. Without a second model it stays
    empty and says so.
    """
    from entropylong_assets.audits.cross_model import Second, second_settings
    from entropylong_assets.audits.shard_audits import audit_second_model
    from entropylong_assets.stages.charts import both_gains
    from entropylong_assets.stages.entropy.engine import load_scorer
    from entropylong_assets.stages.entropy.model import (
        load_scoring_model,
        load_tokenizer,
        model_identity,
    )

    shard, settings = context.partition_key, pipeline.settings
    chosen = second_settings(settings)

    def work(writer: PartitionWriter, progress: Progress) -> dict[str, Any]:
        if chosen is None:
            return {"skipped": _NO_MODEL}
        model = load_scoring_model(chosen)
        second = Second(
            model.tokenizer, load_scorer(model, chosen.pack_tokens), model.max_positions
        )
        figures = audit_second_model(
            pipeline.store,
            shard,
            settings,
            load_tokenizer(settings.scoring),
            second,
            writer,
            progress,
        )
        return figures | {"second_model": model.identity}

    with plain_errors():
        return _audited(
            context,
            pipeline,
            "pairs",
            work,
            lambda rows: both_gains(rows, settings.verification.epsilon),
            model=model_identity(chosen) if chosen else None,
        )


@dg.asset(
    deps=["verified_dependencies"],
    partitions_def=corpus_shard,
    kinds={"pytorch", "parquet"},
    retry_policy=RETRIES,
    pool="gpu",
)
def long_range_audit(
    context: dg.AssetExecutionContext, pipeline: dg.ResourceParam[Pipeline]
) -> dg.MaterializeResult:
    """Every recipe on the same roots and budget: what its contexts do for the anchors in place.

    Entropy and surprisal against random contexts, by distance; key-token density; dependency
    score; each with an interval over roots.
    """
    from entropylong_assets.audits.shard_audits import audit_long_range
    from entropylong_assets.stages.entropy.engine import load_scorer
    from entropylong_assets.stages.entropy.model import load_scoring_model
    from entropylong_assets.stages.samples.pool import open_pool

    shard, settings = context.partition_key, pipeline.settings
    with plain_errors():
        model = load_scoring_model(settings.scoring)
        return _audited(
            context,
            pipeline,
            "recipes",
            lambda writer, progress: audit_long_range(
                pipeline.store,
                shard,
                settings,
                open_pool(settings, shard),
                model.tokenizer,
                load_scorer(model, settings.scoring.pack_tokens),
                model.max_positions,
                writer,
                progress,
            ),
            _draw_recipes,
            model=model.identity,
        )
