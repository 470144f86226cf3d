"""The sentence transformer: queries and documents to unit vectors, by the model's own contract.

Legend: B texts, E dimensions of the embedding.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from entropylong_assets.stages.dtypes import Dtype
from entropylong_assets.stages.embeddings.batches import (
    Batches,
    measure_tokens,
    ran_out_of_memory,
)
from entropylong_assets.stages.embeddings.chunking import CountTokens
from entropylong_assets.stages.embeddings.cutting import Workers
from entropylong_assets.stages.embeddings.loading import load_model
from entropylong_assets.stages.embeddings.probing import (
    PROBES,
    encode_texts,
    filling_text,
    find_dimension,
)
from entropylong_assets.stages.embeddings.prompts import (
    SideName,
    declared_prompts,
    missing_prompts,
    prompt_in_force,
)
from entropylong_assets.stages.embeddings.settings import EmbeddingSettings
from entropylong_assets.stages.embeddings.sides import Side, make_side
from entropylong_assets.stages.embeddings.token_ids import (
    IdFeatures,
    IdMemory,
    TokenIds,
    encode_ids,
    find_id_features,
)
from entropylong_assets.stages.embeddings.word_ids import TokenCounter
from entropylong_assets.stages.model_files import ModelError, locate

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer


_MOST_CUTTING_THREADS = 8
"""Maximum number of threads that cut documents. Nine tenths of the work is in the tokenizer, which
releases Python's global lock. The rest holds the lock, so more threads would only wait."""
_MOST_CUTTING_PROCESSES = 12
"""Maximum number of processes that cut documents. Each cuts 2,500 chunks/s of MiniLM's window, and
starting one takes a second of a core."""


class VectorError(ModelError):
    """A text has no usable vector."""

    def __init__(self, message: str, position: int) -> None:
        """position: of the text among those that were embedded together."""
        super().__init__(message)
        self.position = position


@dataclass(frozen=True, eq=False)
class Embedder:
    """A loaded sentence transformer."""

    model: SentenceTransformer
    identity: str
    dimension: int
    """Dimensions of the vectors."""
    query: Side
    document: Side
    batches: Batches
    id_features: IdFeatures | None = None
    """Features of documents from their token ids; None if they are embedded as texts only."""
    notes: tuple[str, ...] = ()
    """What a user should know about this model and these settings, in one line each."""

    @property
    def window_tokens(self) -> int:
        """Longest chunk (tokens, prompt and special ones included)."""
        return self.document.window_tokens

    @property
    def cutting(self) -> Workers:
        """How many threads, or processes, may count tokens while the device embeds.

        On a CPU, where the model takes most of the time: as many threads as torch uses, up to
        `_MOST_CUTTING_THREADS`. Beside another device: as many processes, less one for this
        process, up to `_MOST_CUTTING_PROCESSES`. No threads if the tokenizer allows one at a time
        only.
        """
        import torch

        if self.document.counter is None:
            return Workers(0)
        if self.model.device.type == "cpu":
            return Workers(min(torch.get_num_threads(), _MOST_CUTTING_THREADS))
        processes = min(max(1, torch.get_num_threads() - 1), _MOST_CUTTING_PROCESSES)
        return Workers(processes, are_processes=True)

    @property
    def embedding_threads(self) -> int:
        """How many threads may embed documents at once.

        Beside another device than a CPU 2, so that one prepares a batch while the device computes
        another. One if texts must be tokenized for it: the tokenizer allows one at a time only.
        """
        return 1 if self.model.device.type == "cpu" or self.id_features is None else 2

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Count the tokens of each document, prompt and special ones included."""
        return self.document.count_tokens(texts)

    @property
    def ids_of(self) -> TokenCounter | None:
        """Return what gives the token ids of documents; None if they are of no use."""
        return None if self.id_features is None else self.document.counter

    def id_memory(self) -> IdMemory | None:
        """Return what keeps the token ids of a document's chunks; None if they are of no use."""
        return None if self.ids_of is None else IdMemory(self.ids_of)

    @property
    def counting(self) -> CountTokens:
        """Counts as `count_tokens` does; it can be sent to another process if `cutting` has any."""
        counter = self.document.counter
        return self.count_tokens if counter is None else counter.count

    def embed_documents(
        self,
        texts: Sequence[str],
        n_tokens: Sequence[int] | None = None,
        token_ids: Sequence[TokenIds] | None = None,
    ) -> NDArray[np.float32]:
        """Return unit vectors of chunks, float32 [B, E].

        n_tokens [B]: their lengths by `count_tokens`, if known. token_ids [B]: their ids by
        `id_memory`, if known; then they are not tokenized again, and their vectors are the same.
        Raises VectorError if a text has no vector.
        """
        vectors_BE = self._embed(self.document, texts, n_tokens, token_ids)
        for position in np.flatnonzero(~vectors_BE.any(axis=1))[:1]:
            raise VectorError(
                "the embedder gives a vector of zeros; perhaps it knows none of the text's tokens. "
                "Name another embedding.model, or leave the document out",
                int(position),
            )
        return vectors_BE

    def fits_window(self, queries: Sequence[str]) -> list[bool]:
        """Say of each query whether the embedder sees it whole."""
        return [n <= self.query.window_tokens for n in self.query.count_tokens(queries)]

    def embed_queries(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return unit vectors of queries, float32 [B, E].

        The vector of a query without a token that the model knows is zero: it has no neighbours.
        Texts beyond the window are cut at their end. Raises VectorError if a vector is not finite.
        """
        return self._embed(self.query, texts, None, None)

    def _embed(
        self,
        side: Side,
        texts: Sequence[str],
        n_tokens: Sequence[int] | None,
        token_ids: Sequence[TokenIds] | None,
    ) -> NDArray[np.float32]:
        lengths = side.count_tokens(texts) if n_tokens is None else n_tokens
        # A single character can have more tokens than the window, which the tokenizer cuts.
        fit = max(lengths, default=0) <= side.window_tokens
        lengths = [min(n, side.window_tokens) for n in lengths]
        if token_ids is None or self.id_features is None or not fit:
            encode = partial(encode_texts, self.model, side, self.dimension)
            vectors_BE = self.batches.encode(encode, texts, lengths, self.dimension)
        else:
            of_ids = partial(encode_ids, self.model, side, self.dimension, self.id_features)
            vectors_BE = self.batches.encode(of_ids, token_ids, lengths, self.dimension)
        for position in np.flatnonzero(~np.isfinite(vectors_BE).all(axis=1))[:1]:
            raise VectorError(
                "the embedder gives a vector that is not finite; its weights may be damaged, or "
                "overflow in their type. Fetch it again, or name another embedding.model",
                int(position),
            )
        # In float32, whatever the type of the model; those of zeros stay so.
        lengths_B1 = np.linalg.norm(vectors_BE, axis=1, keepdims=True)
        return np.divide(vectors_BE, lengths_B1, out=vectors_BE, where=lengths_B1 > 0)


class _Choices(NamedTuple):
    """The settings that an embedder is made from, without those of search and index."""

    model: str
    trust_remote_code: bool
    device: str
    dtype: Dtype
    chunk_tokens: int | None
    dimensions: int | None
    query_prompt: str | None
    document_prompt: str | None
    query_task: str | None
    document_task: str | None
    batch_size: int | None


def load_embedder(settings: EmbeddingSettings) -> Embedder:
    """Load the embedder; a second call in the same process returns the same weights.

    A query and a document are embedded once, so that a model that can't is refused here. Raises
    ModelError if the model can't be used, or not with these settings.
    """
    return _prepare(_Choices(*(getattr(settings, name) for name in _Choices._fields)))


@contextmanager
def _named(reference: str) -> Iterator[None]:
    """Let the message of a ModelError begin with the model's name."""
    try:
        yield
    except ModelError as error:
        if str(error).startswith(f"model {reference}: "):
            raise
        raise ModelError(f"embedding.model {reference}: {error}") from error.__cause__


@lru_cache(maxsize=4)
def _prepare(choices: _Choices) -> Embedder:
    with _named(choices.model):
        folder = locate(choices.model, choices.trust_remote_code).folder
        prompts = (
            prompt_in_force(choices.query_prompt, folder, "query"),
            prompt_in_force(choices.document_prompt, folder, "document"),
        )
    loaded = load_model(
        choices.model, choices.trust_remote_code, choices.device, choices.dtype, prompts
    )
    model = loaded.model
    with _named(choices.model):
        query = make_side(model, "query", prompts[0], choices.query_task, None)
        document = make_side(
            model, "document", prompts[1], choices.document_task, choices.chunk_tokens, query
        )
        dimension, notes = find_dimension(loaded, query, document, choices.dimensions)
    unset: list[SideName] = []
    if choices.query_prompt is None and not query.prompt:
        unset.append("query")
    if choices.document_prompt is None and not document.prompt:
        unset.append("document")
    notes += [note for note in (missing_prompts(choices.model, unset),) if note]
    tokens = measure_tokens(
        partial(encode_texts, model, document, dimension),
        filling_text(document),
        document.window_tokens,
        str(model.device),
    )
    return Embedder(
        model=model,
        identity=loaded.files.identity,
        dimension=dimension,
        query=query,
        document=document,
        batches=Batches(tokens, choices.batch_size),
        id_features=find_id_features(model, document),
        notes=(*loaded.notes, *notes),
    )


def embed_full_window(embedder: Embedder) -> None:
    """Embed a query and a document, as the pipeline does, and a text that fills the window.

    Raises ModelError if the model can't.
    """
    document = filling_text(embedder.document)
    try:
        embedder.embed_queries([PROBES["query"]])
        embedder.embed_documents([PROBES["document"], document])
    except VectorError:
        raise
    except Exception as error:
        if ran_out_of_memory(error):
            raise
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise ModelError(
            f"embedding.model {embedder.identity}: it can't embed a text of "
            f"{embedder.window_tokens:,} tokens ({reason}); lower embedding.chunk_tokens"
        ) from error


def default_prompt(settings: EmbeddingSettings) -> str:
    """Return the prompt that the model's files name for texts of any kind; may be empty."""
    return declared_prompts(locate(settings.model, settings.trust_remote_code).folder).default


def document_identity(settings: EmbeddingSettings) -> dict[str, str]:
    """Return what determines vectors of documents beside the settings, without loading a model."""
    files = locate(settings.model, settings.trust_remote_code)
    prompt = prompt_in_force(settings.document_prompt, files.folder, "document")
    return {"embedder": files.identity, "document_prompt": prompt}


def query_identity(settings: EmbeddingSettings) -> dict[str, str]:
    """Return what determines vectors of queries beside the settings, without loading a model."""
    files = locate(settings.model, settings.trust_remote_code)
    prompt = prompt_in_force(settings.query_prompt, files.folder, "query")
    return {"embedder": files.identity, "query_prompt": prompt}
