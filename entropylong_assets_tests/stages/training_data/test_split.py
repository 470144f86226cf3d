"""The split, against components found by walking the documents one by one."""

from __future__ import annotations

import polars as pl
from hypothesis import given, settings
from hypothesis import strategies as st

from entropylong_assets.stages.training_data.split import split_samples

links = st.lists(
    st.tuples(st.integers(0, 25), st.integers(0, 40)), min_size=1, max_size=60, unique=True
)


def frame(pairs):
    return pl.DataFrame(
        {"sample_id": [f"s-{a:05d}" for a, _ in pairs], "doc_id": [f"d{b}" for _, b in pairs]}
    )


def walk(pairs) -> list[set[str]]:
    """Components by repeated merging of sets."""
    parts: list[tuple[set[str], set[str]]] = []
    for row in frame(pairs).iter_rows():
        samples, documents = {row[0]}, {row[1]}
        rest = []
        for part in parts:
            if part[0] & samples or part[1] & documents:
                samples, documents = samples | part[0], documents | part[1]
            else:
                rest.append(part)
        parts = [*rest, (samples, documents)]
    return [samples for samples, _ in parts]


@settings(max_examples=80, deadline=None)
@given(pairs=links, fraction=st.sampled_from([0.0, 0.1, 0.5]), seed=st.integers(0, 5))
def test_whole_components_are_held_out_up_to_the_fraction(pairs, fraction, seed):
    split = split_samples(frame(pairs), fraction, seed)
    components = walk(pairs)
    n = len({a for a, _ in pairs})
    assert split.samples == n
    assert split.components == len(components)
    assert split.largest_component == max(map(len, components))
    assert len(split.validation) <= fraction * n
    for samples in components:
        assert samples <= split.validation or not samples & split.validation
    room = int(fraction * n) - len(split.validation)
    left = [c for c in components if not c & split.validation]
    assert all(len(c) > room for c in left), "a component that still fitted was left in train"
    assert split_samples(frame(pairs[::-1]), fraction, seed) == split


def test_independent_samples_give_the_fraction_and_seeds_differ():
    pairs = [(i, i) for i in range(100)]
    held = {seed: split_samples(frame(pairs), 0.1, seed).validation for seed in (1, 2)}
    assert len(held[1]) == len(held[2]) == 10
    assert held[1] != held[2]


def test_one_component_is_not_torn():
    pairs = [(i, i) for i in range(50)] + [(i, 0) for i in range(50)]
    split = split_samples(frame(pairs), 0.2, 1)
    assert not split.validation
    assert not split.left_out
    assert split.largest_component == 50


@settings(max_examples=80, deadline=None)
@given(pairs=links, fraction=st.sampled_from([0.1, 0.5]), cost=st.sampled_from([0.1, 0.4]))
def test_left_out_samples_separate_the_splits(pairs, fraction, cost):
    split = split_samples(frame(pairs), fraction, 1, cost)
    n = split.samples
    assert not split.validation & split.left_out
    assert len(split.validation) <= fraction * n
    assert len(split.left_out) <= cost * n
    sides: dict[bool, set[str]] = {True: set(), False: set()}
    for sample_id, doc_id in frame(pairs).iter_rows():
        if sample_id not in split.left_out:
            sides[sample_id in split.validation].add(doc_id)
    assert not sides[True] & sides[False]
    assert len(split.validation) >= len(split_samples(frame(pairs), fraction, 1).validation)
    assert split_samples(frame(pairs[::-1]), fraction, 1, cost) == split


def test_a_chain_is_cut_if_that_is_allowed():
    """Sample i shares a document with i + 1: one component, whose end costs one sample."""
    pairs = [(i, i) for i in range(20)] + [(i, i + 1) for i in range(20)]
    assert not split_samples(frame(pairs), 0.2, 1).validation
    split = split_samples(frame(pairs), 0.2, 1, 0.1)
    assert len(split.validation) == 4
    assert 1 <= len(split.left_out) <= 2
