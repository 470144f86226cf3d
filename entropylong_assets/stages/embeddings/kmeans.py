"""Centroids of clusters of unit vectors, by Lloyd's algorithm, on a CPU or a GPU.

Legend: N vectors, B vectors of a block, P clusters, E dimensions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from entropylong_assets.stages.embeddings.exact import tiles

if TYPE_CHECKING:
    import torch

ROUNDS = 5
"""Rounds of the algorithm. On the vectors of `benchmarks/vectors.py`, 10 found no better ones."""


def centroids_of(
    vectors_NE: NDArray[np.float32], count: int, device: str = "cpu", rounds: int = ROUNDS
) -> NDArray[np.float32]:
    """Return centroids of clusters, float32 [P, E], where P is `count`.

    vectors_NE: float32, at least `count` of them, in random order: the first ones are the initial
    centroids. The result depends on the vectors and their order; on one device and number of
    threads it is the same every time. A cluster without vectors keeps its centroid.
    """
    import torch

    assert len(vectors_NE) >= count
    with torch.inference_mode():
        vectors = torch.from_numpy(np.ascontiguousarray(vectors_NE))
        centroids = vectors[:count].to(device, copy=True)
        for _ in range(rounds):
            sums, sizes = _sum_clusters(vectors, centroids)
            found = sizes > 0
            centroids[found] = sums[found] / sizes[found, None]
        return centroids.cpu().numpy()


def _sum_clusters(
    vectors: torch.Tensor, centroids: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the sum of the vectors nearest to each centroid [P, E], and their number [P]."""
    import torch

    count = len(centroids)
    half_squares_P = centroids.square().sum(1) / 2
    sums_PE, sizes_P = torch.zeros_like(centroids), centroids.new_zeros(count)
    for part in tiles(len(vectors), count, centroids.device.type):
        block_BE = vectors[part].to(centroids.device)
        # The nearest centroid has the largest x·c - |c|²/2.
        nearest_B = (block_BE @ centroids.T).sub_(half_squares_P).argmax(1)
        order_B = nearest_B.argsort(stable=True)
        lengths_P = torch.bincount(nearest_B, minlength=count)
        # Unlike index_add_, this adds in the same order every time on CUDA too.
        sums_PE += torch.segment_reduce(block_BE[order_B], "sum", lengths=lengths_P, initial=0)
        sizes_P += lengths_P
    return sums_PE, sizes_P
