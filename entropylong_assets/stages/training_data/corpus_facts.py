"""Facts about the corpus in an export: how it was cleaned, and the metadata of its documents."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from entropylong_assets.stages.corpus.tables import CORPUS_DOCUMENTS
from entropylong_assets.stages.near_duplicates.tables import NEAR_DUPLICATES
from entropylong_assets.stages.samples.tables import LONG_CONTEXT_SAMPLES
from entropylong_assets.storage import duck
from entropylong_assets.storage.tables import TableStore

DOCUMENTS = "documents.jsonl"
"""File of an export with the metadata of its documents; there is none without metadata."""

_LINES = 1024

_USED = """
WITH used AS (SELECT DISTINCT doc_id, source FROM segments WHERE doc_id IS NOT NULL)
SELECT json_object('doc_id', doc_id, 'source', min(source), 'metadata', min(metadata)::JSON)
FROM used JOIN metadata USING (doc_id) GROUP BY doc_id ORDER BY doc_id
"""


def cleaning(store: TableStore) -> dict[str, Any]:
    """Evaluation sets that the whole corpus was compared with, and its near-duplicates.

    A context can come from any shard, so all shards count. Shards that were compared with another
    version of a set are listed apart, by its content hash. JSON values.
    """
    sets: dict[tuple[Any, ...], dict[str, Any]] = {}
    shards = store.shards(CORPUS_DOCUMENTS)
    for shard in shards:
        for evaluation_set in store.require(CORPUS_DOCUMENTS, shard).summary.get(
            "evaluation_sets", ()
        ):
            values = dict(evaluation_set)
            documents = values.pop("documents")
            entry = sets.setdefault(tuple(values.values()), {**values, "documents": 0, "shards": 0})
            entry["documents"] += documents
            entry["shards"] += 1
    result: dict[str, Any] = {
        "shards": len(shards),
        "evaluation_sets": [sets[key] for key in sorted(sets, key=repr)],
    }
    if store.manifest(NEAR_DUPLICATES) is not None:
        summary = store.summary(NEAR_DUPLICATES)
        if summary.bands:
            result["repeated"] = {
                "documents": summary.documents,
                "clusters": summary.clusters,
                "members": summary.members,
            }
    return result


def document_lines(store: TableStore, shards: Sequence[str]) -> Iterator[bytes]:
    """Yield a line of JSON per document of these shards' samples that has metadata, by id.

    Keys: doc_id, source, and metadata, an object of the source's `metadata_fields`. Raises the
    errors of `duck.querying`.
    """
    with_metadata = [
        shard
        for shard in store.shards(CORPUS_DOCUMENTS)
        if "metadata" in store.require(CORPUS_DOCUMENTS, shard).tables
    ]
    if not with_metadata:
        return
    views: Mapping[str, duck.View] = {
        "segments": (LONG_CONTEXT_SAMPLES, list(shards), "segments"),
        "metadata": (CORPUS_DOCUMENTS, with_metadata, "metadata"),
    }
    with duck.querying(store, views) as session:
        result = session.execute(_USED)
        while rows := result.fetchmany(_LINES):
            yield "".join(f"{line}\n" for (line,) in rows).encode()


def cleaning_section(content: Mapping[str, Any]) -> str:
    """The card's section about cleaning, from the manifest; empty if nothing was cleaned."""
    facts = content.get("cleaning", {})
    lines = []
    if near := facts.get("repeated"):
        lines.append(
            f"Near-duplicates: of {near['documents']:,} documents of the corpus, "
            f"{near['members']:,} in {near['clusters']:,} clusters repeat another one. They are "
            "neither roots nor contexts."
        )
    for entry in facts.get("evaluation_sets", ()):
        what = "were dropped" if entry["action"] == "drop" else "are kept, and listed in the corpus"
        part = entry["shards"], facts["shards"]
        tokenizer = entry.get("tokenizer")
        units = f"tokens of `{tokenizer}`" if tokenizer else "words"
        of = "" if part[0] == part[1] else f" Compared: {part[0]} of {part[1]} shards."
        lines.append(
            f"Decontaminated against `{entry['name']}` (content `{entry['content']}`): "
            f"{entry['texts']:,} texts, of which {entry['too_short']:,} are too short to be "
            f"compared; {entry['ngram']}-grams of {units}, overlap {entry['overlap']:g}. "
            f"{entry['documents']:,} documents that quote it {what}.{of}"
        )
    if not lines:
        return ""
    return "\n## Cleaning\n\n" + "\n\n".join(lines) + "\n"
