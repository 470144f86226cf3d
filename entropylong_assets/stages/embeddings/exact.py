"""Exact nearest neighbours by blocks of matrix products, on a CPU or a GPU.

Each block of vectors is read once, for all queries together. Memory holds one block, one tile of
similarities and the best rows so far, per device. Several devices take the blocks in turn: a GPU
computes while the next block is copied to another. Needs nothing but NumPy and torch.

Legend: Q queries, B vectors of a block, E dimensions, K neighbours, P pairs of query and vector.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import cycle
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch

Block = tuple[NDArray[np.int64], NDArray[np.float32]]
"""Row numbers [B], and their unit vectors [B, E]."""

ROUNDING = 1e-6
"""Error of a similarity computed in float32; two closer similarities have no defined order."""

_TILE = {"cpu": 2**24, "cuda": 2**28}
"""Similarities computed at once: 64 MiB, 1 GiB."""

_BLOCK_ROWS = 32_768
"""Vectors of a block (48 MiB at 384 dimensions)."""

_PAIRS_WIDENED = 1024
"""Pairs of vectors in float64 at once (6 MiB at 384 dimensions)."""


def device_of(setting: str) -> str:
    """Return the device for `auto`, `cpu`, `cuda`, `cuda:1`, ... on this machine."""
    import torch

    if setting != "auto":
        return setting
    return "cuda" if torch.cuda.is_available() else "cpu"


def devices_of(setting: str) -> list[str]:
    """Return all CUDA devices that this process sees for `auto`, else the one of `device_of`."""
    import torch

    device = device_of(setting)
    if setting != "auto" or device != "cuda":
        return [device]
    return [f"cuda:{number}" for number in range(torch.cuda.device_count())]


def nearest(
    queries_QE: NDArray[np.float32],
    blocks: Iterable[Block],
    limit: int,
    devices: Sequence[str] = ("cpu",),
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return row numbers and similarities of the `limit` nearest vectors per query, nearest first.

    queries_QE: unit vectors, float32. Both results are [Q, K], where K is `limit`, or the number of
    vectors if that is smaller. Similarities are exact to `ROUNDING`. Vectors whose similarities are
    closer than that may be in any order, and any of them may be missing at the limit: measure the
    result with `cosines`, and search with a higher limit if there is a tie at the end.
    """
    import torch

    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")  # TF32 has an error of 1e-3
    try:
        with torch.inference_mode():
            found = [_Nearest(queries_QE, limit, device) for device in devices]
            for block, on_device in zip(blocks, cycle(found), strict=False):
                on_device.add(*block)
            first, *others = found
            for other in others:
                first.join(other)
            return first.rows.cpu().numpy(), first.best.cpu().numpy()
    finally:
        torch.set_float32_matmul_precision(precision)


class _Nearest:
    """The nearest rows among the blocks of one device."""

    def __init__(self, queries_QE: NDArray[np.float32], limit: int, device: str) -> None:
        import torch

        self._device, self._limit = device, limit
        self._queries = torch.from_numpy(np.ascontiguousarray(queries_QE)).to(device)
        self.best = self._queries.new_full((len(queries_QE), 0), -torch.inf)
        self.rows = torch.zeros((len(queries_QE), 0), dtype=torch.int64, device=device)

    def add(self, numbers_B: NDArray[np.int64], vectors_BE: NDArray[np.float32]) -> None:
        """Compare a block with all queries."""
        import torch

        block = torch.from_numpy(vectors_BE).to(self._device)
        numbers = torch.from_numpy(numbers_B).to(self._device)
        merged = []
        for part in tiles(len(self._queries), len(numbers), self._device):
            similarity, at = (self._queries[part] @ block.T).topk(min(self._limit, len(numbers)))
            merged.append(self._merge(part, similarity, numbers[at]))
        if merged:
            self.best = torch.cat([similarity for similarity, _ in merged])
            self.rows = torch.cat([number for _, number in merged])

    def join(self, other: _Nearest) -> None:
        """Add the rows of another device."""
        best, rows = other.best.to(self._device), other.rows.to(self._device)
        self.best, self.rows = self._merge(slice(None), best, rows)

    def _merge(
        self, part: slice, similarity: torch.Tensor, number: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the best of the rows of some queries, with these added."""
        import torch

        similarity = torch.cat([self.best[part], similarity], dim=1)
        number = torch.cat([self.rows[part], number], dim=1)
        similarity, at = similarity.topk(min(self._limit, similarity.shape[1]))
        return similarity, number.gather(1, at)


def tiles(n_queries: int, n_vectors: int, device: str) -> Iterator[slice]:
    """Yield ranges of queries, each so small that its similarities to all vectors fit a tile."""
    size = max(1, _TILE[device.partition(":")[0]] // max(n_vectors, 1))
    for start in range(0, n_queries, size):
        yield slice(start, start + size)


def in_blocks(pieces: Iterable[Block], size: int | None = None) -> Iterator[Block]:
    """Yield the same rows in blocks of `size`, or `_BLOCK_ROWS`; the last one may be smaller.

    The pieces are copied as they are read, so that one block is in memory, and the one in use.
    """
    size = size or _BLOCK_ROWS
    numbers_B, vectors_BE, filled = np.empty(0, np.int64), np.empty((0, 0), np.float32), 0
    for numbers, vectors in pieces:
        at = 0
        while at < len(numbers):
            if not filled:
                numbers_B = np.empty(size, np.int64)
                vectors_BE = np.empty((size, vectors.shape[1]), np.float32)
            count = min(size - filled, len(numbers) - at)
            numbers_B[filled : filled + count] = numbers[at : at + count]
            vectors_BE[filled : filled + count] = vectors[at : at + count]
            at, filled = at + count, filled + count
            if filled == size:
                yield numbers_B, vectors_BE
                filled = 0
    if filled:
        yield numbers_B[:filled], vectors_BE[:filled]


def cosines(first_PE: NDArray[Any], second_PE: NDArray[Any]) -> NDArray[np.float32]:
    """Return the cosine of each pair, float32 [P].

    It is computed in float64 from the pair alone: equal pairs have equal cosines, whatever other
    pairs are computed with them.
    """
    cosines_P = np.empty(len(first_PE), np.float32)
    for start in range(0, len(first_PE), _PAIRS_WIDENED):
        part = slice(start, start + _PAIRS_WIDENED)
        one, other = first_PE[part].astype(np.float64), second_PE[part].astype(np.float64)
        lengths = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
        cosines_P[part] = np.einsum("pe,pe->p", one, other) / lengths
    return cosines_P
