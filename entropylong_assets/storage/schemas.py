"""The schemas of all tables: columns, types, units and meaning, typed once.

An asset keeps one or more tables a shard. `TABLES[asset][table]` is a `pyarrow.Schema` whose
fields carry `unit` and `description` as metadata; the writer enforces it, the UI shows it.

Names that recur: `root_id` is the `doc_id` of a root; `anchor` is a token position in its root,
from 0; `chunk_id` names a passage of a document; H is an entropy in nats; I(x) = -ln p(x) the
surprisal of the true token in nats.
"""

from __future__ import annotations

import pyarrow as pa


def _column(
    name: str, kind: pa.DataType, description: str, unit: str = "", null: bool = False
) -> pa.Field:
    metadata = {"description": description} | ({"unit": unit} if unit else {})
    return pa.field(name, kind, nullable=null, metadata=metadata)


_text, _int, _float, _bool = pa.string(), pa.int32(), pa.float32(), pa.bool_()
_ids = pa.list_(pa.field("item", pa.uint32(), nullable=False))
_floats = pa.list_(pa.field("item", pa.float32()))
_ints = pa.list_(pa.field("item", pa.int32(), nullable=False))

_root = _column("root_id", _text, "doc_id of the root")
_anchor = _column("anchor", _int, "position in the root, from 0", "token")
_chunk = _column("chunk_id", _text, "passage: its doc_id, a dash, its number in the document")
_doc = _column("doc_id", _text, "document: 32 hex digits of the hash of its canonical text")
_source = _column("source", _text, "name of the source in the settings")
_shard = _column("shard", _text, "partition that holds the document")
_reason = _column("reason", _text, "why it was dropped")
_start = _column("start", _int, "first character in the document", "character")
_end = _column("end", _int, "one past the last character", "character")

TABLES: dict[str, dict[str, pa.Schema]] = {
    "corpus_documents": {
        "documents": pa.schema(
            [
                _doc,
                _column("text", pa.large_string(), "canonical text: NFC, no control characters"),
                _source,
                _column("file", _text, "URI of the source file"),
                _column("row", pa.int64(), "row in the file, from 0", "row"),
                _column("external_id", _text, "the source's own id", null=True),
                _column("license", _text, "licence as the source gives it"),
                _column("n_chars", _int, "length of the text", "character"),
                _column("n_tokens", _int, "length for the scoring model", "token"),
                _column("is_root", _bool, "chosen as a root, by hash"),
            ]
        ),
        "dropped": pa.schema(
            [
                _column("file", _text, "URI of the source file"),
                _column("row", pa.int64(), "row in the file, from 0", "row"),
                _column("external_id", _text, "the source's own id", null=True),
                _reason,
                _column("detail", _text, "what was found there"),
            ]
        ),
    },
    # Text and vectors of the chunks are in the LanceDB table (`embeddings/table.py`).
    "chunk_embeddings": {
        "chunks": pa.schema(
            [
                _chunk,
                _doc,
                _column("chunk_number", _int, "number in the document, from 0"),
                _start,
                _end,
                _column("n_embedder_tokens", _int, "length for the embedder", "token"),
            ]
        ),
    },
    "embedding_index": {
        "shards": pa.schema(
            [
                _shard,
                _column("position", _int, "place in the plan of shards"),
                _column("data_version", _text, "version of chunk_embeddings that is indexed"),
                _column("n_chunks", pa.int64(), "rows of the shard in the table", "row"),
            ]
        ),
        "duplicates": pa.schema(
            [
                _doc,
                _shard,
                _column("owner", _text, "shard whose copy counts"),
                _column("n_chunks", _int, "rows taken out of the table", "row"),
            ]
        ),
    },
    "entropy_scores": {
        "roots": pa.schema(
            [
                _root,
                _column("token_ids", _ids, "tokens of the scoring model, no special ones"),
                _column("entropies", _floats, "H_t; null where no prefix exists", "nat"),
                _column("surprisals", _floats, "I(x_t); null where no prefix exists", "nat"),
                _column("mean", pa.float64(), "μ of the entropies", "nat"),
                _column("std", pa.float64(), "σ of the entropies", "nat"),
                _column("threshold", pa.float64(), "τ = μ + α·σ", "nat"),
                _column("anchors", _ints, "positions with H_t > τ", "token"),
            ]
        ),
        "dropped": pa.schema([_root, _reason, _column("n_tokens", _int, "length", "token")]),
    },
    "candidate_contexts": {
        "queries": pa.schema([_root, _anchor, _column("query", _text, "text around the anchor")]),
        "candidates": pa.schema(
            [
                _root,
                _anchor,
                _column("rank", _int, "by similarity, from 1"),
                _chunk,
                _column("similarity", _float, "cosine of query and chunk"),
                _column("containment", _float, "share of the chunk's word n-grams in the root"),
                _column("guard", _text, "`passed` or `near_duplicate`"),
            ]
        ),
        "chunks": pa.schema(
            [
                _chunk,
                _doc,
                _shard,
                _source,
                _start,
                _end,
                _column("text", pa.large_string(), "text of the passage"),
            ]
        ),
        "dropped": pa.schema(
            [
                _root,
                _column("anchor", _int, "position; null: the whole root", "token", null=True),
                _reason,
                _column("n_anchors", _int, "anchors lost with it"),
            ]
        ),
    },
    "verified_dependencies": {
        "pairs": pa.schema(
            [
                _root,
                _anchor,
                _column("rank", _int, "of the candidate, from 1"),
                _chunk,
                _column("similarity", _float, "cosine of query and chunk"),
                _column("entropy", _float, "H_t of the root alone", "nat"),
                _column("entropy_context", _float, "H'_t behind the context", "nat", null=True),
                _column("entropy_control", _float, "H^c_t, mean behind controls", "nat", null=True),
                _column("surprisal", _float, "I(x_t) of the root alone", "nat"),
                _column("surprisal_context", _float, "I(x_t) behind it", "nat", null=True),
                _column("surprisal_control", _float, "mean I(x_t) behind controls", "nat", True),
                _column("gain", pa.float64(), "ΔI = (H - H') / H", null=True),
                _column("calibrated_gain", pa.float64(), "ΔI* = (min(H, H^c) - H') / H", null=True),
                _column("accepted_plain", _bool, "verdict of the published rule"),
                _column("accepted_calibrated", _bool, "verdict of the calibrated rule"),
                _column("accepted", _bool, "verdict of the rule in force"),
                _column("verdict", _text, "`accepted` or why not"),
            ]
        ),
        "contexts": pa.schema(
            [
                _chunk,
                _doc,
                _shard,
                _source,
                _start,
                _end,
                _column("token_ids", _ids, "tokens as scored, the separator's included"),
            ]
        ),
        "controls": pa.schema(
            [
                _root,
                _column("control", _int, "number of the control context, from 0"),
                _anchor,
                _column("entropy", _float, "H of the anchor behind this control", "nat"),
                _column("surprisal", _float, "I(x_t) behind this control", "nat"),
            ]
        ),
        "control_contexts": pa.schema(
            [
                _root,
                _column("control", _int, "number of the control context, from 0"),
                _column("chunk_ids", pa.list_(pa.string()), "chunks that it was cut from"),
                _column("token_ids", _ids, "tokens as scored, the separator's included"),
            ]
        ),
    },
    "long_context_samples": {
        # Passages that no anchor nominated: only where a recipe takes such (`OPTIONAL`).
        "passages": pa.schema(
            [
                _chunk,
                _doc,
                _shard,
                _source,
                _start,
                _end,
                _column("token_ids", _ids, "tokens as packed, the separator's included"),
            ]
        ),
        "samples": pa.schema(
            [
                _column("sample_id", _text, "shard, a dash, number in the shard"),
                _column("input_ids", _ids, "tokens of the sample"),
                _column("n_root", _int, "tokens in roots", "token"),
                _column("n_verified", _int, "tokens in verified contexts", "token"),
                _column("n_negative", _int, "tokens in hard negatives and unverified", "token"),
                _column("n_padding", _int, "tokens of padding, masked from the loss", "token"),
            ]
        ),
        "segments": pa.schema(
            [
                _column("sample_id", _text, "sample that holds it"),
                _column("segment", _int, "number in the sample, from 0"),
                _column("role", _text, "`bos`, `root`, `padding`, or a context's"),
                _column("start", _int, "first position in the sample", "token"),
                _column("end", _int, "one past the last position", "token"),
                _column("root_id", _text, "root that it belongs to", null=True),
                _column("doc_id", _text, "document that it was cut from", null=True),
                _column("chunk_id", _text, "passage, where it is a context", null=True),
                _column("source", _text, "name of the source", null=True),
            ]
        ),
        "dependencies": pa.schema(
            [
                _column("sample_id", _text, "sample that holds it"),
                _root,
                _anchor,
                _chunk,
                _column("rank", _int, "of the candidate, from 1"),
                _column("anchor_position", _int, "of the anchor, in the sample", "token"),
                _column("context_start", _int, "of the context, in the sample", "token"),
                _column("context_end", _int, "one past the context's end", "token"),
                _column("distance", _int, "from the context's end to the anchor", "token"),
                _column("gain", pa.float64(), "ΔI"),
                _column("calibrated_gain", pa.float64(), "ΔI*", null=True),
                _column("entropy", _float, "H_t of the root alone", "nat"),
                _column("entropy_context", _float, "H'_t behind the context", "nat"),
            ]
        ),
        "dropped": pa.schema(
            [
                _root,
                _column("chunk_id", _text, "context; null: the whole root", null=True),
                _reason,
                _column("n_dependencies", _int, "verified dependencies lost with it"),
            ]
        ),
    },
}


def _scores(behind: tuple[str, ...], null: bool = False) -> list[pa.Field]:
    """H and I(x) of an anchor alone and behind each of these."""
    fields = []
    for name, sign in (("entropy", "H"), ("surprisal", "I(x_t)")):
        fields.append(_column(name, _float, f"{sign} of the root alone", "nat", null))
        fields += [_column(f"{name}_{b}", _float, f"{sign}, {b}", "nat", null) for b in behind]
    return fields


_kind = _column("kind", _text, "`random`, `topical`, `shuffled`")
_recipe = _column("recipe", _text, "which contexts the root got")

TABLES |= {
    "null_calibration": {
        "trials": pa.schema(
            [
                _root,
                _anchor,
                _kind,
                _column("number", _int, "of the held-out control, from 0"),
                _column("chunk_ids", pa.list_(pa.string()), "chunks that it was made of"),
                _column("n_tokens", _int, "its length", "token"),
                _column("entropy", _float, "H_t of the root alone", "nat"),
                _column("entropy_context", _float, "H'_t behind it", "nat"),
                _column("entropy_control", _float, "stored H^c_t", "nat", True),
                _column("surprisal", _float, "I(x_t) of the root alone", "nat"),
                _column("surprisal_context", _float, "I(x_t) behind it", "nat"),
                _column("surprisal_control", _float, "stored mean I(x_t)", "nat", True),
                _column("gain", pa.float64(), "ΔI", null=True),
                _column("calibrated_gain", pa.float64(), "ΔI*", null=True),
                _column("accepted_plain", _bool, "passes the published rule"),
                _column("accepted_calibrated", _bool, "passes the calibrated rule"),
            ]
        ),
        "rates": pa.schema(
            [
                _column("kind", _text, "`retrieved`, `random`, `topical`, `shuffled`"),
                _column("rule", _text, "`plain` or `calibrated`"),
                _column("passed", _int, "trials that pass", "trial"),
                _column("total", _int, "trials", "trial"),
                _column("rate", pa.float64(), "their share", null=True),
                _column("low", pa.float64(), "of the 95% interval"),
                _column("high", pa.float64(), "of the 95% interval"),
            ]
        ),
    },
    "cross_model_audit": {
        "pairs": pa.schema(
            [
                _root,
                _anchor,
                _chunk,
                _column("accepted_plain", _bool, "passes the published rule, by the first model"),
                _column("accepted_calibrated", _bool, "passes ours, by the first model"),
                _column("gain", pa.float64(), "ΔI of the first model"),
                _column("surprisal_drop", pa.float64(), "of x_t, the first model's", "nat"),
                _column("second_entropy", _float, "H of the second model, root alone", "nat"),
                _column("second_entropy_context", _float, "H' of the second model", "nat"),
                _column("second_surprisal", _float, "I of its token there, root alone", "nat"),
                _column("second_surprisal_context", _float, "I behind the context", "nat"),
                _column("second_gain", pa.float64(), "ΔI of the second model", null=True),
                _column("holds", _bool, "ΔI of the second model > ε"),
            ]
        ),
        "dropped": pa.schema([_root, _anchor, _chunk, _reason]),
    },
    "long_range_audit": {
        "anchors": pa.schema([_recipe, _root, _anchor, *_scores(("in_place", "random"))]),
        "windows": pa.schema(
            [
                _recipe,
                _root,
                _column("window_tokens", _int, "contexts and root", "token"),
                _column("context_tokens", _int, "contexts", "token"),
                _column("root_tokens", _int, "root", "token"),
                _column("short_tokens", _int, "short window of the key tokens", "token"),
                _column("key_tokens", _int, "LongPPL's key tokens of the root", "token"),
                _column("segment_pairs", _int, "pairs of segments scored"),
                _column("dependency_score", _float, "mean relative fall of their loss", null=True),
            ]
        ),
        "dependencies": pa.schema(
            [
                _recipe,
                _root,
                _anchor,
                _chunk,
                _column("distance", _int, "from the context's end to the anchor", "token"),
                *_scores(("near", "in_place", "replaced")),
            ]
        ),
        "recipes": pa.schema(
            [
                _recipe,
                _column("measure", _text, "what was averaged"),
                _column("value", pa.float64(), "its mean", null=True),
                _column("low", pa.float64(), "of the 95% interval", null=True),
                _column("high", pa.float64(), "of the 95% interval", null=True),
                _column("trials", _int, "values"),
                _column("roots", _int, "clusters"),
            ]
        ),
    },
}

OPTIONAL = frozenset({"passages"})
"""Tables that have no file where nothing was written to them."""

# Rises when a table's meaning changes, so that a reader can refuse what it doesn't know.
FORMAT_VERSION = 1
