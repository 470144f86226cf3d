"""Front matter that the Hub accepts: its client's own classes read it, and its lists are kept here.

The lists are those of the Hub's documentation: a value outside them makes it reject the card.
"""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from huggingface_hub import DatasetCard, DatasetCardData
from huggingface_hub.repocard import metadata_load, metadata_save

from entropylong_assets.stages.training_data.card import dataset_card, facts_of
from entropylong_assets.stages.training_data.export import export_training_data
from entropylong_assets.stages.training_data.front_matter import NO_TABLE, front_matter
from entropylong_assets_tests.stages.training_data.stores import (
    CODE,
    SHARDS,
    export_settings,
    fill_store,
)

SIZES = {
    1: "n<1K",
    999: "n<1K",
    1_000: "1K<n<10K",
    9_999: "1K<n<10K",
    10_000: "10K<n<100K",
    100_000: "100K<n<1M",
    1_000_000: "1M<n<10M",
    30_000_000: "10M<n<100M",
}


@pytest.fixture(scope="module")
def content(tmp_path_factory) -> dict[str, Any]:
    settings = export_settings(tmp_path_factory.mktemp("data"))
    export = export_training_data(fill_store(settings), SHARDS, settings, code_version=CODE)
    return export.manifest


def front_of(content: dict[str, Any], **changed: Any) -> dict[str, Any]:
    changed = {"figures": content["figures"] | changed.pop("figures", {})} | changed
    text = front_matter(content | changed, facts_of(content))
    assert "&id" not in text, "the Hub does not read YAML's references"
    return yaml.safe_load(text.strip().strip("-"))


@pytest.mark.parametrize("samples", SIZES)
def test_size_is_one_of_the_categories_of_the_hub(content, samples) -> None:
    assert front_of(content, figures={"samples": samples})["size_categories"] == [SIZES[samples]]


@pytest.mark.parametrize(
    ("licenses", "expected"),
    [
        ({"a": {"odc-by": 3}}, "odc-by"),
        ({"a": {"ODC-By": 3}, "b": {"odc-by": 1}}, "odc-by"),
        ({"a": {"unknown": 3}}, "unknown"),
        ({"a": {"odc-by": 3}, "b": {"mit": 1}}, "other"),
        ({"a": {"my-own-terms": 3}}, "other"),
    ],
)
def test_license_is_known_to_the_hub_or_named_and_linked(content, licenses, expected) -> None:
    front = front_of(content, figures={"licenses": licenses})
    assert front["license"] == expected
    named = {key for key in front if key.startswith("license_")}
    assert named == ({"license_name", "license_link"} if expected == "other" else set())


def test_client_of_the_hub_reads_and_writes_the_card_unchanged(content, tmp_path) -> None:
    text = dataset_card(content)
    card = DatasetCard(text, ignore_metadata_errors=False)
    assert isinstance(card.data, DatasetCardData)
    assert card.data.size_categories == ["n<1K"]
    assert card.data.task_categories == ["text-generation"]
    assert [config["config_name"] for config in card.data.to_dict()["configs"]] == [
        "default",
        "provenance",
    ]
    path = tmp_path / "README.md"
    path.write_text(text)
    before = metadata_load(path)
    metadata_save(path, before)
    assert metadata_load(path) == before


def test_export_without_tables_says_so_to_datasets(content) -> None:
    """`load_dataset` would otherwise load the index of MDS as if it were the samples."""
    front = front_of(content, formats=["mds", "megatron"])
    assert front["configs"] == [{"config_name": "default", "data_files": NO_TABLE}]
    assert front["viewer"] is False
    assert "`load_dataset` cannot load these formats" in dataset_card(
        content | {"formats": ["mds", "megatron"]}
    )
