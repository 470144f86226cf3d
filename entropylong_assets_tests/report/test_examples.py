"""The dependencies that a report shows first: genuine ones, of different roots, as they read."""

from __future__ import annotations

from pathlib import Path

import pytest

from entropylong_assets.report.distributions import open_tables
from entropylong_assets.report.examples import EXAMPLES, dependencies_of, examples
from entropylong_assets.report.text import visible
from entropylong_assets.stages.corpus.tables import CORPUS_DOCUMENTS
from entropylong_assets.stages.samples.tables import LONG_CONTEXT_SAMPLES
from entropylong_assets.stages.verification.tables import VERIFIED_DEPENDENCIES
from entropylong_assets.storage.tables import TableStore
from entropylong_assets_tests.report.runs import (
    SHARDS,
    byte_tokenizer,
    run_settings,
    write_run,
)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> TableStore:
    return write_run(run_settings(tmp_path_factory.mktemp("run")))


def genuine_keys(store: TableStore) -> set[tuple[str, int, str]]:
    """Root, anchor and chunk of every pair that the rule `genuine` accepts."""
    pairs = store.read_all(VERIFIED_DEPENDENCIES, SHARDS, "pairs").to_dicts()
    return {
        (p["root_id"], p["anchor"], p["chunk_id"]) for p in pairs if "genuine" in p["accepted_by"]
    }


def test_dependencies_of_a_sample_are_genuine_first_then_by_gain(store: TableStore) -> None:
    """The failure: the first lines of a sample were boilerplate, whose gains are the largest."""
    stored = store.read_all(LONG_CONTEXT_SAMPLES, SHARDS, "dependencies")
    genuine, both = genuine_keys(store), 0
    with open_tables(store, SHARDS) as session:
        dependencies = dependencies_of(session, stored["sample_id"].unique().to_list())
    assert sum(len(own) for own in dependencies.values()) == len(stored)
    for sample_id, own in dependencies.items():
        flags = [(d["root_id"], d["anchor"], d["chunk_id"]) in genuine for d in own]
        assert [d["genuine"] for d in own] == flags == sorted(flags, reverse=True)
        assert {d["sample_id"] for d in own} == {sample_id}
        gains = [d["gain"] for d in own if d["genuine"] and d["kind"]]
        assert gains == sorted(gains, reverse=True)
        both += 0 < sum(flags) < len(flags)
    assert both


def test_examples_are_of_different_roots_and_read_as_in_the_sample(store: TableStore) -> None:
    with open_tables(store, SHARDS) as session:
        shown = examples(session, store, byte_tokenizer())
    dependencies = store.read_all(LONG_CONTEXT_SAMPLES, SHARDS, "dependencies").to_dicts()
    roots = {d["root_id"] for d in dependencies}
    documents = store.read_all(CORPUS_DOCUMENTS, SHARDS, "documents")
    texts = dict(documents.select("doc_id", "text").iter_rows())
    assert len(roots) >= EXAMPLES == len(shown)
    assert all(example["genuine"] for example in shown)
    for example in shown:
        (stored,) = (
            d
            for d in dependencies
            if (d["sample_id"], d["gain"], d["distance"])
            == (example["sample_id"], pytest.approx(example["gain"], abs=1e-4), example["distance"])
        )
        roots.remove(stored["root_id"])  # a second example of one root would raise
        around = example["before"] + example["token"] + example["after"]
        # Tokens are bytes here, so that a character can be cut.
        text = visible(texts[stored["root_id"]])
        assert all(part in text for part in around.split("\ufffd"))
        assert len(example["context"]) == 3
        if stored["kind"]:
            assert example["context"][1].endswith("passage")


def test_a_dataset_without_dependencies_has_no_examples(tmp_path: Path) -> None:
    store = write_run(run_settings(tmp_path, verification={"epsilon": 0.999}))
    with open_tables(store, SHARDS) as session:
        assert examples(session, store, byte_tokenizer()) == []
