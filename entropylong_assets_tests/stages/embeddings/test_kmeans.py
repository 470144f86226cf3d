"""Centroids, held against Lloyd's algorithm in NumPy and against planted clusters."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from entropylong_assets.stages.embeddings import exact
from entropylong_assets.stages.embeddings.kmeans import centroids_of


def lloyd(vectors_NE: NDArray[np.float32], count: int, rounds: int) -> NDArray[np.float64]:
    vectors = vectors_NE.astype(np.float64)
    centroids = vectors[:count].copy()
    for _ in range(rounds):
        distances = ((vectors[:, None] - centroids[None]) ** 2).sum(2)
        nearest = distances.argmin(1)
        for number in range(count):
            if (nearest == number).any():
                centroids[number] = vectors[nearest == number].mean(0)
    return centroids


@pytest.mark.parametrize("similarities_at_once", [2**24, 100])
def test_centroids_are_those_of_lloyd_whatever_the_blocks(
    monkeypatch: pytest.MonkeyPatch, similarities_at_once: int
) -> None:
    """100 similarities at once: blocks of 9 vectors, the last one shorter."""
    monkeypatch.setitem(exact._TILE, "cpu", similarities_at_once)
    vectors = np.random.default_rng(3).normal(size=(400, 6)).astype(np.float32)
    before = vectors.copy()
    found = centroids_of(vectors, 11, rounds=4)
    np.testing.assert_allclose(found, lloyd(vectors, 11, 4), atol=1e-5)
    assert not np.allclose(found, lloyd(vectors, 11, 3), atol=1e-3), "four rounds are no more"
    assert (vectors == before).all()
    assert (centroids_of(vectors, 11, rounds=4) == found).all()


def test_planted_clusters_are_found() -> None:
    draw = np.random.default_rng(1)
    corners = np.eye(8, dtype=np.float32)
    spread = corners[np.arange(800) % 8] + draw.normal(scale=0.05, size=(800, 8))
    found = centroids_of(spread.astype(np.float32), 8)
    np.testing.assert_allclose(found, corners, atol=0.02)


def test_a_cluster_without_vectors_keeps_its_centroid() -> None:
    """The initial centroids are equal, so one of them gets all vectors; a mean of none is NaN."""
    vectors = np.asarray([[1, 0], [1, 0], [0, 1], [0, 1]], np.float32)
    found = centroids_of(vectors, 2, rounds=1)
    assert sorted(found.tolist()) == [[0.5, 0.5], [1.0, 0.0]]
