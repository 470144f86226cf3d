"""How many texts are embedded at once: as many as the memory of the device allows, within bounds.

Vectors depend on the texts that they are batched with only by rounding. A batch is bounded by a
number of tokens, which is a power of two and at most `MOST_TOKENS`: machines with enough memory
form the same batches. Too little memory, measured on CUDA or met, halves it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

MOST_TOKENS = {"cpu": 2**14, "cuda": 2**18}
"""Tokens per batch, padding included: 64 texts of 256 tokens on a CPU, 1,024 on CUDA."""

_SHARE_OF_FREE_MEMORY = 0.4
"""Of one batch; two can be on the device at once."""
_PROBED_TEXTS = 5

T = TypeVar("T")
Encode = Callable[[Sequence[T]], NDArray[np.float32]]
"""Embeds one batch of texts, given as strings or as token ids."""


def most_tokens(device: str) -> int:
    return MOST_TOKENS.get(device.partition(":")[0], MOST_TOKENS["cpu"])


def measure_tokens(encode: Encode[str], text: str, n_tokens: int, device: str) -> int:
    """Return the number of tokens per batch that the memory of the device allows.

    text: of `n_tokens` tokens, as long as the texts to come. CUDA: a batch of one and one of
    several such texts are embedded, and the growth of memory per text is scaled to a share of the
    free memory. Elsewhere memory is not measured, but bounded by `MOST_TOKENS`.
    """
    import torch

    most = most_tokens(device)
    if not device.startswith("cuda"):
        return most
    place = torch.device(device)
    peaks = []
    for count in (1, _PROBED_TEXTS):
        torch.cuda.empty_cache()
        before = torch.cuda.memory_allocated(place)
        torch.cuda.reset_peak_memory_stats(place)
        try:
            encode([text] * count)
        except torch.OutOfMemoryError:
            return n_tokens  # one text at a time
        peaks.append(torch.cuda.max_memory_allocated(place) - before)
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info(place)
    return tokens_within(peaks[0], peaks[1], int(free * _SHARE_OF_FREE_MEMORY), n_tokens, most)


def tokens_within(one: int, several: int, budget: int, n_tokens: int, most: int) -> int:
    """Return the largest power of two of tokens per batch whose memory stays within the budget.

    one, several: peak memory of one and of `_PROBED_TEXTS` texts of `n_tokens` tokens (bytes, like
    budget). At least one text is always allowed.
    """
    per_text = max((several - one) / (_PROBED_TEXTS - 1), 1.0)
    texts = max(1, int((budget - one) / per_text) + 1)
    return min(most, 1 << (texts * n_tokens).bit_length() - 1)


def ran_out_of_memory(error: BaseException) -> bool:
    """Whether a batch was too large for the memory of its device."""
    import torch

    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    words = ("not enough memory", "can't allocate memory")
    return isinstance(error, RuntimeError) and any(word in str(error) for word in words)


class Batches:
    """Embeds any number of texts in batches."""

    def __init__(self, tokens: int, texts: int | None) -> None:
        """tokens: per batch, padding included. texts: texts per batch instead, if given."""
        self.tokens, self.texts = tokens, texts

    def encode(
        self, encode: Encode[T], texts: Sequence[T], n_tokens: Sequence[int], dimension: int
    ) -> NDArray[np.float32]:
        """Return the vectors of the texts in their order, float32 [B, E].

        n_tokens [B]: their lengths. The longest are embedded first. A batch that does not fit into
        memory is halved, and so are the batches after it. Raises what `encode` raises if a single
        text does not fit.
        """
        vectors_BE = np.empty((len(texts), dimension), np.float32)
        waiting = sorted(range(len(texts)), key=lambda i: (-n_tokens[i], i))
        while waiting:
            count = self.texts or max(1, self.tokens // max(n_tokens[waiting[0]], 1))
            self._encode_batch(encode, texts, waiting[:count], vectors_BE)
            waiting = waiting[count:]
        return vectors_BE

    def _encode_batch(
        self,
        encode: Encode[T],
        texts: Sequence[T],
        batch: list[int],
        vectors_BE: NDArray[np.float32],
    ) -> None:
        try:
            vectors_BE[batch] = encode([texts[i] for i in batch])
            return
        except (RuntimeError, MemoryError) as error:
            if not ran_out_of_memory(error) or len(batch) == 1:
                raise
        self._halve()  # outside the handler, so that the failed batch's tensors are freed
        middle = len(batch) // 2
        for half in (batch[:middle], batch[middle:]):
            self._encode_batch(encode, texts, half, vectors_BE)

    def _halve(self) -> None:
        import torch

        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        self.tokens = max(1, self.tokens // 2)
        self.texts = max(1, self.texts // 2) if self.texts else None
