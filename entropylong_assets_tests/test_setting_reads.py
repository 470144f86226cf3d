"""The recorder of setting reads: it must neither miss a read nor change a value."""

from __future__ import annotations

from typing import Any

import pytest

from entropylong_assets.project import make_project
from entropylong_assets.settings.section import Settings, fingerprint
from entropylong_assets.stages.stage import is_corpus
from entropylong_assets_tests.setting_reads import leaves, recorded


@pytest.fixture
def dataset() -> Settings:
    return make_project({"samples": {"recipe": "random"}}).dataset


def test_reads_are_recorded_leaf_by_leaf(dataset: Settings) -> None:
    settings, reads = recorded(dataset)
    section = settings.samples
    assert not reads
    assert section.tokens == dataset.samples.tokens
    assert settings.seed == dataset.seed
    assert settings.corpus.embedding.model == dataset.corpus.embedding.model
    assert settings.corpus.sources == dataset.corpus.sources
    assert reads == {"samples.tokens", "seed", "corpus.embedding.model", "corpus.sources"}


@pytest.mark.parametrize(
    "read", [dict, hash, fingerprint, lambda s: s.model_dump_json(), lambda s: s == s]
)
def test_reading_a_whole_section_reads_its_leaves(dataset: Settings, read: Any) -> None:
    settings, reads = recorded(dataset)
    read(settings.retrieval)
    assert reads == leaves(dataset, ["retrieval"])
    assert {"retrieval.top_k", "retrieval.max_containment"} < reads


def test_model_dump_reads_what_it_includes(dataset: Settings) -> None:
    settings, reads = recorded(dataset)
    include = {"tokens", "recipe"}
    assert settings.samples.model_dump(include=include) == dataset.samples.model_dump(
        include=include
    )
    assert reads == {"samples.tokens", "samples.recipe"}
    whole, all_reads = recorded(dataset)
    assert whole.model_dump(mode="json") == dataset.model_dump(mode="json")
    assert all_reads == leaves(dataset, type(dataset).model_fields)


def test_model_dump_reads_a_field_that_it_leaves_out_for_its_value(dataset: Settings) -> None:
    settings, reads = recorded(dataset)
    assert "screen" in settings.verification.model_dump(exclude_none=True, exclude={"rule"})
    assert "verification.max_contexts_per_root" in reads
    assert "verification.rule" not in reads


def test_copy_records_all_but_what_it_replaces(dataset: Settings) -> None:
    settings, reads = recorded(dataset)
    samples = settings.samples.model_copy(update={"recipe": "quest"})
    changed = settings.model_copy(update={"samples": samples})
    assert not reads
    assert changed.samples.recipe == "quest"
    assert not reads
    assert changed.samples.tokens == dataset.samples.tokens
    assert changed.seed == dataset.seed
    assert settings.samples.recipe == "random"
    assert reads == {"samples.tokens", "samples.recipe", "seed"}
    plain = settings.model_copy(update={"samples": dataset.samples})
    assert plain.samples.order == "shuffle"
    assert "samples.order" not in reads


def test_recorded_settings_are_of_the_same_kind(dataset: Settings) -> None:
    settings, _ = recorded(dataset)
    assert isinstance(settings, type(dataset))
    assert isinstance(settings.samples, type(dataset.samples))
    assert not is_corpus(settings)
    assert is_corpus(settings.corpus)


def test_leaves_expand_sections(dataset: Settings) -> None:
    paths = leaves(dataset, ["roots", "seed", "corpus.embedding.model"])
    assert paths == {
        "roots.number",
        "roots.fraction",
        "roots.fraction_by_source",
        "roots.min_tokens",
        "roots.max_tokens",
        "seed",
        "corpus.embedding.model",
    }
