"""Synthetic vectors that are distributed like those of text: in clusters of clusters.

Vectors spread evenly have no near neighbours: in 384 dimensions all are nearly orthogonal, which is
the worst case for an index. Sentence embeddings form clusters: topics, documents within a topic,
passages within a document. Here each vector is the normalised sum of a topic (weight 0.6), a
document group (0.5) and a direction of its own (0.6). That direction lies in a subspace of few
dimensions that belongs to the topic, like the differences between passages on one subject.

Legend: N vectors, E dimensions.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

INTRINSIC = 24
"""Dimensions of the subspace in which the vectors of one topic differ."""


class Mixture:
    """A seeded source of clustered unit vectors."""

    def __init__(self, topics: int, groups: int, dimension: int = 384, seed: int = 0) -> None:
        """groups: number of document groups over all topics."""
        draw = np.random.default_rng(seed)
        self._topics = _unit(draw.normal(size=(topics, dimension)))
        self._groups = _unit(draw.normal(size=(groups, dimension)))
        self._of_group = draw.integers(0, topics, groups)
        frames = draw.normal(size=(min(topics, 64), INTRINSIC, dimension))
        self._frames = frames.astype(np.float32)

    def draw(self, n: int, seed: int) -> NDArray[np.float32]:
        """Return unit vectors, float32 [N, E]; the same seed gives the same vectors."""
        draw = np.random.default_rng((seed, 1))
        groups = draw.integers(0, len(self._groups), n)
        topics = self._of_group[groups]
        within = draw.normal(size=(n, INTRINSIC)).astype(np.float32)
        frame = topics % len(self._frames)
        own = np.empty((n, self._topics.shape[1]), np.float32)
        for number in range(len(self._frames)):
            mine = np.flatnonzero(frame == number)
            own[mine] = within[mine] @ self._frames[number]
        return _unit(0.6 * self._topics[topics] + 0.5 * self._groups[groups] + 0.6 * _unit(own))


def _unit(vectors_NE: NDArray[np.floating]) -> NDArray[np.float32]:
    return (vectors_NE / np.linalg.norm(vectors_NE, axis=1, keepdims=True)).astype(np.float32)
