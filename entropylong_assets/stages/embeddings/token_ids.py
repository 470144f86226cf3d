"""Embedding texts by their token ids, so that no text is tokenized twice.

A chunk is tokenized when it is cut, because its tokens are counted. sentence-transformers takes no
ids: it tokenizes a text in the thread that keeps the device busy, which waits meanwhile. So the
features that its input module makes of texts are made here from the ids.

Legend: B texts, T tokens of the longest, E dimensions of the embedding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from entropylong_assets.stages.embeddings.sides import Side
from entropylong_assets.stages.embeddings.word_ids import TokenCounter

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

TokenIds = NDArray[np.int32]
"""Ids of one text [T], with prompt and special tokens."""

_PROBES = ("A river is a stream of water.", "river", "Æther ﬁne\t日本語。 [MASK]", "?")

_PADDED = frozenset({"input_ids", "attention_mask", "token_type_ids"})
_JOINED = frozenset({"input_ids", "offsets"})


@dataclass(frozen=True, eq=False)
class IdFeatures:
    """Makes the features of a batch of texts, as the input module does, from their token ids."""

    tensors: frozenset[str]
    """Names of the features that are tensors: `_JOINED`, or some of `_PADDED`."""
    constants: Mapping[str, Any]
    """All other features, which are the same for every batch."""
    pad_id: int
    pads_left: bool

    def of(self, token_ids: Sequence[TokenIds]) -> dict[str, Any]:
        """Return the features of a batch. Tensors are int64, [B, T] or, if joined, flat."""
        import torch

        lengths_B = np.array([len(ids) for ids in token_ids], np.int64)
        if self.tensors == _JOINED:
            made = {
                "input_ids": np.concatenate(token_ids).astype(np.int64),
                "offsets": np.concatenate([[0], lengths_B.cumsum()[:-1]]),
            }
        else:
            made = self._padded(token_ids, lengths_B)
        return {**self.constants, **{n: torch.from_numpy(made[n]) for n in self.tensors}}

    def _padded(
        self, token_ids: Sequence[TokenIds], lengths_B: NDArray[np.int64]
    ) -> dict[str, NDArray[np.int64]]:
        width = int(lengths_B.max(initial=0))
        at_T = np.arange(width)
        ends_B1 = lengths_B[:, None]
        is_token_BT = at_T >= width - ends_B1 if self.pads_left else at_T < ends_B1
        ids_BT = np.full((len(token_ids), width), self.pad_id, np.int64)
        ids_BT[is_token_BT] = np.concatenate(token_ids)
        return {
            "input_ids": ids_BT,
            "attention_mask": is_token_BT.astype(np.int64),
            "token_type_ids": np.zeros_like(ids_BT),
        }


def find_id_features(model: SentenceTransformer, side: Side) -> IdFeatures | None:
    """Return what makes the features of a side from token ids; None if the model has others.

    The features of some texts are compared with those that the model itself makes of them. If any
    differs, such as positions, or type ids that are not 0, texts are embedded as texts.
    """
    import torch

    token_ids = side.token_ids(_PROBES)
    if token_ids is None:
        return None
    expected = dict(model.preprocess(list(_PROBES), prompt=side.prompt, **side.task_argument))
    tensors = frozenset(n for n, value in expected.items() if isinstance(value, torch.Tensor))
    if "input_ids" not in tensors or not (tensors == _JOINED or tensors <= _PADDED):
        return None
    features = IdFeatures(
        tensors=tensors,
        constants={n: value for n, value in expected.items() if n not in tensors},
        pad_id=getattr(side.tokenizer, "pad_token_id", None) or 0,
        pads_left=getattr(side.tokenizer, "padding_side", "right") == "left",
    )
    made = features.of(token_ids)
    return features if all(torch.equal(made[n], expected[n]) for n in tensors) else None


def encode_ids(
    model: SentenceTransformer,
    side: Side,
    dimension: int,
    features: IdFeatures,
    token_ids: Sequence[TokenIds],
) -> NDArray[np.float32]:
    """Embed one batch, float32 [B, E], as `probing.encode_texts` does with the texts themselves."""
    import torch
    from sentence_transformers.util import batch_to_device, truncate_embeddings

    model.eval()
    with torch.inference_mode():
        output = model(batch_to_device(features.of(token_ids), model.device), **side.task_argument)
        vectors_BE = truncate_embeddings(output["sentence_embedding"], dimension)
        return vectors_BE.float().cpu().numpy()


class IdMemory:
    """Counts the tokens of parts of one document, and keeps the ids of those counted alone.

    A chunk of several sentences is counted alone, as a whole, when it is cut.
    """

    def __init__(self, counter: TokenCounter) -> None:
        self._counter = counter
        self._ids: dict[str, TokenIds] = {}

    def count_tokens(self, texts: list[str]) -> list[int]:
        """Count as `Side.count_tokens`."""
        if len(texts) != 1:
            return self._counter.count(texts)
        (self._ids[texts[0]],) = self._counter.ids(texts)
        return [len(self._ids[texts[0]])]

    def of(self, texts: Sequence[str]) -> list[TokenIds]:
        """Return the ids of these texts. Those that were not counted alone are tokenized here."""
        missing = [text for text in texts if text not in self._ids]
        self._ids |= zip(missing, self._counter.ids(missing), strict=True)
        return [self._ids[text] for text in texts]
