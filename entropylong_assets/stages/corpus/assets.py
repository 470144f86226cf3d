import dagster as dg

from entropylong_assets.orchestration.errors import RETRIES, plain_errors
from entropylong_assets.orchestration.metadata import Progress, materialised, preview
from entropylong_assets.orchestration.partitions import corpus_shard
from entropylong_assets.orchestration.resources import Pipeline
from entropylong_assets.orchestration.versioning import determinants, shard_basis
from entropylong_assets.settings.model import fingerprint
from entropylong_assets.stages.corpus.documents import ingest_shard
from entropylong_assets.stages.corpus.shards import current_shard, load_plan
from entropylong_assets.stages.entropy.model import load_tokenizer


@dg.asset(partitions_def=corpus_shard, kinds={"parquet", "polars"}, retry_policy=RETRIES)
def corpus_documents(
    context: dg.AssetExecutionContext, pipeline: dg.ResourceParam[Pipeline]
) -> dg.MaterializeResult:
    """Canonical documents of one shard, with their length in tokens, and which are roots.

    Text is Unicode NFC without control characters; a document's id is the hash of its text.
    What is dropped is listed in the table `dropped`, with the reason.
    """
    shard_key, settings, store = context.partition_key, pipeline.settings, pipeline.store
    with plain_errors():
        shard = current_shard(settings.corpus, load_plan(store), shard_key)
        tokenizer = load_tokenizer(settings.scoring)
        basis = determinants(
            "corpus_documents",
            settings,
            {},
            **shard_basis(settings, store, shard_key),
        )
        progress, before = Progress(context, "rows", shard.n_rows), 0

        def on_progress(rows: int, _: int) -> None:
            nonlocal before
            progress(rows - before)
            before = rows

        with store.write(
            "corpus_documents", shard_key, fingerprint=fingerprint(basis), determinants=basis
        ) as writer:
            writer.summary |= ingest_shard(shard, settings, tokenizer.count, writer, on_progress)
        manifest = store.require("corpus_documents", shard_key)
        columns = ["external_id", "n_tokens", "is_root", "text"]  # ids would squeeze the text
        documents = store.head("corpus_documents", shard_key, "documents", columns)
    copies = manifest.summary["dropped"].get("duplicate_in_shard", 0)
    return materialised(
        manifest,
        "documents",
        progress.seconds,
        **{
            "rows per second": round(progress.rate, 1),
            "dedup share": copies / max(manifest.summary["rows_read"], 1),
        },
        preview=preview(documents),
        files=dg.MetadataValue.json(list(shard.files)),
    )
