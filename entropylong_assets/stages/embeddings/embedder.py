"""The sentence transformer: texts to unit vectors.

Legend: B texts, E dimensions of the embedding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from entropylong_assets.stages.embeddings.settings import EmbeddingSettings
from entropylong_assets.stages.model_files import ModelError, locate, refusal

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer


@dataclass(frozen=True, eq=False)
class Embedder:
    """A loaded sentence transformer."""

    model: SentenceTransformer
    identity: str
    dimension: int
    window_tokens: int
    """Longest text (tokens, special ones included); the model ignores the rest of a longer one."""
    batch_size: int

    def count_tokens(self, texts: list[str]) -> list[int]:
        """Count the embedder's tokens of each text, special ones included."""
        if not texts:
            return []
        encoded = self.model.tokenizer(
            texts, truncation=False, return_attention_mask=False, verbose=False
        )
        return [len(ids) for ids in encoded["input_ids"]]

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return unit vectors, float32 [B, E].

        Chunks fit the window. Queries, which are cut from a root by the scoring model's tokens, can
        be longer: the embedder then sees their beginning only.
        """
        vectors_BE = np.asarray(
            self.model.encode(
                list(texts),
                batch_size=self.batch_size,
                normalize_embeddings=True,
                show_progress_bar=False,
                convert_to_numpy=True,
            ),
            np.float32,
        )
        # float16 models normalize in float16; the table's vectors have unit length in float32.
        return vectors_BE / np.linalg.norm(vectors_BE, axis=1, keepdims=True)


@lru_cache(maxsize=2)
def _load(reference: str, trust_remote_code: bool, device: str | None) -> SentenceTransformer:
    from safetensors import SafetensorError
    from sentence_transformers import SentenceTransformer

    folder = locate(reference, trust_remote_code).folder
    try:
        model = SentenceTransformer(
            str(folder),
            device=device,
            trust_remote_code=trust_remote_code,
            model_kwargs={"use_safetensors": True},
        )
    except (OSError, ValueError, KeyError, ImportError, SafetensorError) as error:
        raise refusal(
            "embedding",
            reference,
            error,
            "can't be loaded as a sentence transformer ({reason}); check that its files are whole",
        ) from error
    # Text that spells a special token is plain text, for its vector and for its length.
    model.tokenizer.split_special_tokens = True
    return model


def load_embedder(settings: EmbeddingSettings) -> Embedder:
    """Load the embedder; a second call in the same process returns the same weights.

    Raises ModelError if the model can't be loaded or its window is shorter than a chunk.
    """
    device = None if settings.device == "auto" else settings.device
    model = _load(settings.model, settings.trust_remote_code, device)
    window = int(model.max_seq_length or 512)
    if settings.chunk_tokens and settings.chunk_tokens > window:
        raise ModelError(
            f"embedding.chunk_tokens is {settings.chunk_tokens}, but {settings.model} reads only "
            f"{window} tokens; set it to {window} or less"
        )
    dimension = model.get_embedding_dimension()
    assert dimension is not None
    return Embedder(
        model=model,
        identity=embedder_identity(settings),
        dimension=int(dimension),
        window_tokens=settings.chunk_tokens or window,
        batch_size=settings.batch_size,
    )


def embedder_identity(settings: EmbeddingSettings) -> str:
    """Return the identity of the embedder that these settings name, without loading it."""
    return locate(settings.model, settings.trust_remote_code).identity
