"""Tries whether a sentence transformer embeds what it is asked to.

Legend: B texts, E dimensions of the embedding.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from entropylong_assets.stages.embeddings.batches import ran_out_of_memory
from entropylong_assets.stages.embeddings.loading import Loaded, matryoshka_note
from entropylong_assets.stages.embeddings.prompts import SideName
from entropylong_assets.stages.embeddings.sides import Side
from entropylong_assets.stages.model_files import ModelError

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

PROBES: dict[SideName, str] = {
    "query": "What is a river?",
    "document": "A river is a stream of water.",
}


def encode_texts(
    model: SentenceTransformer, side: Side, dimension: int | None, texts: Sequence[str]
) -> NDArray[np.float32]:
    """Embed one batch of texts, float32 [B, E], as `encode_query` or `encode_document` do.

    dimension: the first so many dimensions; none: all that the model gives by itself.
    """
    vectors_BE = model.encode(
        list(texts),
        prompt=side.prompt,
        batch_size=len(texts),
        truncate_dim=dimension,
        show_progress_bar=False,
        convert_to_numpy=True,
        **side.task_argument,
    )
    return np.asarray(vectors_BE, np.float32)


def filling_text(side: Side) -> str:
    """Return a text that nearly fills the window."""
    words = side.window_tokens
    (tokens,) = side.count_tokens(["the " * words])
    return "the " * max(1, words * side.window_tokens // max(tokens, side.window_tokens))


def find_dimension(
    loaded: Loaded, query: Side, document: Side, chosen: int | None
) -> tuple[int, list[str]]:
    """Return the dimensions of vectors, and notes, after a query and a document were embedded.

    Raises ModelError if the model can't embed them.
    """
    model = loaded.model
    with model.truncate_embeddings(None):
        sizes = {side.name: _probe(model, side) for side in (query, document)}
    full = sizes["document"]
    if sizes["query"] != full:
        raise ModelError(
            f"its vectors of queries have {sizes['query']:,} dimensions, those of documents "
            f"{full:,}; name a model that embeds both into one space"
        )
    if chosen is not None and chosen > full:
        raise ModelError(
            f"embedding.dimensions is {chosen:,}, but its vectors have {full:,}; set it to "
            f"{full:,} or less"
        )
    own = min(full, model.truncate_dim or full)
    if chosen is None or chosen >= own:
        return chosen or own, []
    note = matryoshka_note(loaded, chosen)
    return chosen, [note] if note else []


def _probe(model: SentenceTransformer, side: Side) -> int:
    """Embed a short text; return the dimensions of its vector."""
    try:
        vectors_BE = encode_texts(model, side, None, [PROBES[side.name]])
    except Exception as error:  # every model class, and code of a model's own, raises its own
        if ran_out_of_memory(error):
            raise
        if isinstance(error, KeyError) and error.args == ("sentence_embedding",):
            raise ModelError(
                "its modules.json names no pooling, so it gives no vector per text; name a "
                "sentence transformer"
            ) from None
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise ModelError(
            f"it can't embed a {side.name} ({reason}); name another model, or correct "
            f"embedding.{side.name}_task if it has tasks"
        ) from error
    if not vectors_BE.any() and side.count_tokens([PROBES[side.name]]) > side.count_tokens([""]):
        raise ModelError(
            "its vectors are zero; its weights are damaged: fetch it again, or name another model"
        )
    if vectors_BE.ndim != 2 or vectors_BE.shape[0] != 1:
        raise ModelError(
            f"it gives no single vector per text (shape {vectors_BE.shape}); name a model with "
            f"pooling"
        )
    if not np.isfinite(vectors_BE).all():
        raise ModelError(
            "its vectors are not finite; its weights may be damaged, or overflow in their type: "
            "fetch it again, or name another model"
        )
    return int(vectors_BE.shape[1])
