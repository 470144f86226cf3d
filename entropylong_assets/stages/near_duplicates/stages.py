"""The stages `document_signatures` and `near_duplicates`.

Near-duplicates need the whole corpus, so the work is in two parts. `document_signatures` reads the
text of one shard, once, on any worker. `near_duplicates` joins the signatures of all shards; it
reads only the texts of documents that share a band with another. A new shard therefore costs its
own signatures and one join.

Members are removed in `embedding_index`, which reads the whole corpus anyway: their chunks leave
the table that is searched, like those of exact copies. `candidate_contexts` drops a root that is a
member, with the reason. The chunks of members are embedded nevertheless. Filtering them before
would save that work, but a shard could then be embedded only after all others had been compared,
and every new shard would make earlier ones stale. Now no per-shard table of the corpus depends on
another shard: a new shard makes only `near_duplicates`, `embedding_index` and the stages that
search the index stale.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from entropylong_assets.settings.section import Settings
from entropylong_assets.stages.corpus.stage import CORPUS_DOCUMENTS_STAGE, INGEST
from entropylong_assets.stages.corpus.tables import CORPUS_DOCUMENTS
from entropylong_assets.stages.near_duplicates.settings import NearDuplicateSettings
from entropylong_assets.stages.near_duplicates.tables import (
    DOCUMENT_SIGNATURES,
    NEAR_DUPLICATES,
    DocumentSignaturesSummary,
    NearDuplicatesSummary,
)
from entropylong_assets.stages.stage import Check, Job, Partition, Result, Stage, Step
from entropylong_assets.storage import duck
from entropylong_assets.storage.tables import WHOLE

INDEX = Job(
    "index",
    "Find near-duplicates among all documents; tag and index all chunks embedded so far, and "
    "measure the recall.",
    hours=12,
)

_CHECKS = Path(__file__).parent / "checks"
_DOCUMENTS_PER_BATCH = 1024


def _sign(step: Step) -> Result:
    from entropylong_assets.stages.near_duplicates.minhash import shingles, signatures

    settings: NearDuplicateSettings = step.settings.near_duplicates
    not_compared = n_shingles = 0
    columns = ["doc_id", "source", "text"]
    batches = step.store.batches(
        CORPUS_DOCUMENTS, step.shard, "documents", columns, _DOCUMENTS_PER_BATCH
    )
    if not step.determinants["compared"]:
        batches = iter(())
        not_compared = step.require(CORPUS_DOCUMENTS).tables["documents"].rows
    for batch in batches:
        hashes = [shingles(text, settings.shingle_words) for text in batch["text"]]
        sizes = np.array([len(h) for h in hashes], np.int32)
        signed = batch.select("doc_id", "source").with_columns(n_shingles=pl.Series(sizes))
        signed = signed.filter(pl.col("n_shingles") > 0)
        values = signatures([h for h in hashes if len(h)])
        column = pl.Series("signature", values, pl.Array(pl.UInt32, values.shape[1]))
        step.writer.append("signatures", signed.with_columns(column.arr.to_list()))
        not_compared += int((sizes == 0).sum())
        n_shingles += int(sizes.sum())
        step.progress(len(batch))
    return Result(
        DocumentSignaturesSummary(
            documents=step.writer.rows["signatures"],
            not_compared=not_compared,
            shingles=n_shingles,
        )
    )


def _signature_views(partition: Partition) -> Mapping[str, duck.View]:
    store, shard = partition.store, partition.shard
    return {
        "documents": (CORPUS_DOCUMENTS, [shard], "documents"),
        "signatures": (DOCUMENT_SIGNATURES, [shard], "signatures"),
        "summary": lambda: duck.summary(store, DOCUMENT_SIGNATURES, shard, ["not_compared"]),
    }


def _signature_parameters(_: Partition) -> Mapping[str, Any]:
    from entropylong_assets.stages.near_duplicates.minhash import PERMUTATIONS

    return {"permutations": PERMUTATIONS}


def _validate(settings: Settings) -> None:
    """Refuse thresholds for sources that the corpus does not have."""
    known = [source.name for source in settings.sources]
    for name in settings.near_duplicates.threshold_by_source:
        if name not in known:
            raise ValueError(
                f"near_duplicates.threshold_by_source: no source '{name}'; there are "
                f"{', '.join(known) or 'none'}"
            )


DOCUMENT_SIGNATURES_STAGE = Stage(
    tables=DOCUMENT_SIGNATURES,
    description="""MinHash signatures of one shard's documents, for the search for near-duplicates.

A signature is made of shingles of `near_duplicates.shingle_words` adjacent words, of any script.
Without `near_duplicates.threshold` there are no signatures.""",
    compute=_sign,
    inputs=(CORPUS_DOCUMENTS_STAGE,),
    sections={"near_duplicates": NearDuplicateSettings},
    determined_by=lambda _: ("near_duplicates.shingle_words",),
    identify=lambda p: {"compared": p.settings.near_duplicates.threshold is not None},
    code_version=1,
    check_folder=_CHECKS,
    checks=(Check("one_signature_per_document", "Every document with a word has a signature."),),
    views=_signature_views,
    check_parameters=_signature_parameters,
    validate=_validate,
    job=INGEST,
    automation="per_shard",
    unit="documents",
    kinds=frozenset({"parquet", "numpy"}),
)


def _find(step: Step) -> Result:
    from entropylong_assets.stages.near_duplicates.clusters import (
        add_sources,
        count_documents,
        find_members,
        thresholds_of,
    )
    from entropylong_assets.stages.near_duplicates.minhash import choose_bands
    from entropylong_assets.stages.near_duplicates.pairs import ShingleFile, compare_documents

    settings: NearDuplicateSettings = step.settings.near_duplicates
    shards, lowest = step.input_shards(DOCUMENT_SIGNATURES), settings.lowest_threshold
    if lowest is None or not shards:
        figures = NearDuplicatesSummary(
            documents=0, candidate_pairs=0, pairs=0, clusters=0, members=0, bands=0, rows_per_band=0
        )
        return Result(figures, {"shards left out": len(step.left_out), "left out": step.left_out})
    bands = choose_bands(lowest)
    read: dict[str, duck.View] = {
        "signatures": (DOCUMENT_SIGNATURES, shards, "signatures"),
        "documents": (CORPUS_DOCUMENTS, shards, "documents"),
    }
    with (
        duck.reporting_damage(step.store, read),
        duck.connect(step.store, {}) as session,
        ShingleFile() as file,
    ):
        compared = compare_documents(
            step.store, shards, session, file, settings.shingle_words, lowest, bands
        )
        candidates = add_sources(step.store, shards, compared.candidates)
        members, n_pairs = find_members(replace(compared, candidates=candidates), settings, file)
    step.writer.append("members", members)
    documents = count_documents(step.store, shards)
    by_source = dict(members.group_by("source").len().iter_rows())
    sources = [
        {
            "source": source,
            "threshold": threshold,
            "documents": documents[source],
            "members": by_source.get(source, 0),
        }
        for source, threshold in thresholds_of([*documents], settings).items()
    ]
    step.writer.append("sources", sources)
    step.progress(len(shards))
    return Result(
        NearDuplicatesSummary(
            documents=sum(documents.values()),
            candidate_pairs=compared.n_compared,
            pairs=n_pairs,
            clusters=members["representative"].n_unique(),
            members=len(members),
            bands=bands[0],
            rows_per_band=bands[1],
        ),
        {
            "share of near-duplicates": len(members) / max(sum(documents.values()), 1),
            "sources": pl.DataFrame(sources),
            "preview": step.writer.preview("members"),
            "shards left out": len(step.left_out),
            "left out": step.left_out,
        },
    )


NEAR_DUPLICATES_STAGE = Stage(
    tables=NEAR_DUPLICATES,
    description="""Clusters of documents with almost the same text, over all shards.

Documents whose signatures share a band are compared; pairs whose shingles have a Jaccard similarity
of `near_duplicates.threshold` or more are connected into clusters. The smallest document id of a
cluster represents it; the others, its members, are not indexed and are no roots. The order of
shards has no effect.""",
    compute=_find,
    inputs=(CORPUS_DOCUMENTS_STAGE, DOCUMENT_SIGNATURES_STAGE),
    partitioned=False,
    determined_by=lambda _: (
        "near_duplicates.threshold",
        "near_duplicates.threshold_by_source",
        "near_duplicates.shingle_words",
    ),
    code_version=1,
    check_folder=_CHECKS,
    checks=(
        Check("representatives_are_kept", "A representative is no member of a cluster."),
        Check("members_reconcile", "The counts of members, clusters and sources agree."),
    ),
    views=lambda _: {
        "members": (NEAR_DUPLICATES, [WHOLE], "members"),
        "sources": (NEAR_DUPLICATES, [WHOLE], "sources"),
    },
    job=INDEX,
    automation="per_batch",
    unit="shards",
    kinds=frozenset({"duckdb"}),
)
