"""Spread of dependencies, against numbers worked out by hand."""

from __future__ import annotations

import math

import polars as pl
import pytest

from entropylong_assets.stages.diversity import spread_lines, spread_of, spreads, use_keys


def test_effective_number_of_equal_and_of_uneven_uses() -> None:
    assert spread_of([3] * 7).effective == pytest.approx(7)
    assert spread_of([5]).effective == pytest.approx(1)
    # 29 of 34 pairs in two roots, the others alone: 34² / (15² + 14² + 5).
    uneven = spread_of([15, 14, 1, 1, 1, 1, 1])
    assert uneven.effective == pytest.approx(1156 / 426)
    assert (uneven.number, uneven.largest_share) == (7, 15 / 34)


def test_effective_number_is_that_of_simpson_by_brute_force() -> None:
    """One over the share of ordered pairs of dependencies that use the same thing."""
    used = [name for name, n in zip("abcdef", (1, 2, 3, 5, 8, 13), strict=True) for _ in range(n)]
    same = sum(one == other for one in used for other in used)
    spread = spread_of([used.count(name) for name in set(used)])
    assert spread.effective == pytest.approx(len(used) ** 2 / same)
    shares = [used.count(name) / len(used) for name in set(used)]
    assert spread.effective < math.exp(-sum(p * math.log(p) for p in shares)), "order 2 below 1"


def test_spreads_count_anchors_roots_contexts_and_documents() -> None:
    rows = [
        ("r", 3, "d-0"),
        ("r", 3, "d-1"),  # the same anchor, and another chunk of the same document
        ("r", 5, "d-0"),
        ("s", 3, "e-0"),  # the same position in another root is another anchor
    ]
    pairs = pl.DataFrame(rows, schema=["root_id", "anchor", "chunk_id"], orient="row")
    whole = spreads([use_keys(pairs)])
    assert spreads([use_keys(pairs[:1]), use_keys(pairs[1:])]) == whole
    expected = {
        "anchors": (3, 16 / 6, 2 / 4),
        "roots": (2, 16 / 10, 3 / 4),
        "contexts": (3, 16 / 6, 2 / 4),
        "documents": (2, 16 / 10, 3 / 4),
    }
    assert whole.keys() == expected.keys()
    for thing, (number, effective, largest) in expected.items():
        assert whole[thing].number == number
        assert whole[thing].effective == pytest.approx(effective)
        assert whole[thing].largest_share == pytest.approx(largest)


def test_without_dependencies_there_is_no_spread() -> None:
    empty = pl.DataFrame(schema={"root_id": pl.String, "anchor": pl.Int32, "chunk_id": pl.String})
    assert spreads([]) == spreads([use_keys(empty)]) == {}


def test_lines_for_people() -> None:
    spreads_by_thing = {"roots": spread_of([3, 1]).model_dump()}
    line = ("roots of dependencies, effective number", "1.6 of 2; the largest has 75.0% of the")
    assert [(name, text[:38]) for name, text in spread_lines(spreads_by_thing)] == [line]
