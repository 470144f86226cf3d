"""Keys and values of sequences that later passes attend to.

Legend: T tokens of a pass, K key heads, E head size.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from entropylong_assets.stages.entropy.attention import AttentionInputs, attend_packed


class Range(NamedTuple):
    """Neighbouring tokens of `KeptKeys`: the first one, and their number."""

    start: int
    tokens: int


class KeptKeys:
    """Keys and values of some sequences in every layer, in the order of the sequences."""

    def __init__(self, lengths: Sequence[int]) -> None:
        """lengths: tokens of each sequence."""
        *self.starts, self.tokens = accumulate(lengths, initial=0)
        self.lengths = list(lengths)
        self.layers: list[tuple[Tensor, Tensor]] = []
        """Rotated keys and values [tokens, K, E] of each layer."""
        self._lock = threading.Lock()

    def write(self, layer: int, at_T: Tensor, key_TKE: Tensor, value_TKE: Tensor) -> None:
        """Keep the keys and values of one pass. at_T: int64, where each token belongs."""
        with self._lock:
            if layer == len(self.layers):
                shapes = ((self.tokens, *x.shape[1:]) for x in (key_TKE, value_TKE))
                keys, values = (key_TKE.new_empty(shape) for shape in shapes)
                self.layers.append((keys, values))
        keys, values = self.layers[layer]
        keys.index_copy_(0, at_T, key_TKE)
        values.index_copy_(0, at_T, value_TKE)

    @property
    def bytes_per_token(self) -> int:
        return sum(x[0].nbytes for both in self.layers for x in both)


class Keeping:
    """Attention of one pass over whole sequences that keeps their keys and values."""

    def __init__(self, kept: KeptKeys, at_T: Tensor) -> None:
        self._kept, self._at_T, self._layer = kept, at_T, 0

    def __call__(self, inputs: AttentionInputs) -> Tensor:
        self._kept.write(self._layer, self._at_T, inputs.key_TKE, inputs.value_TKE)
        self._layer += 1
        return attend_packed(inputs)


def index_of(kept: KeptKeys, numbers: Sequence[int]) -> NDArray[np.int64]:
    """Return where the tokens of these sequences belong, int64 [T]."""
    return np.concatenate([kept.starts[i] + np.arange(kept.lengths[i]) for i in numbers])
