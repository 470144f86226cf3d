"""A name under one data_uri keeps what it stands for; anything else is refused at load."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from entropylong_assets.orchestration.build import build_definitions
from entropylong_assets.project import make_project, open_store
from entropylong_assets.settings.section import SettingsError
from entropylong_assets.stages.records import RECORD, read_record
from entropylong_assets_tests.conftest import World


@pytest.fixture
def data(world: World, tmp_path: Path) -> Path:
    """The data of corpus `corpus` and dataset `dataset`."""
    shutil.copytree(world.project.data_uri, tmp_path / "data")
    return tmp_path / "data"


def written(data: Path, world: World, corpora: dict[str, Any], datasets: dict[str, Any]) -> Any:
    """A project over the data, whose corpora have the embedder of the world unless named."""
    embedder = world.project.corpus.embedding.model
    with_models = {
        name: {"embedding": {"model": embedder}} | content for name, content in corpora.items()
    }
    return make_project({"data_uri": str(data), "corpora": with_models, "datasets": datasets})


def refusal(data: Path, world: World, corpora: dict[str, Any], datasets: dict[str, Any]) -> str:
    with pytest.raises(SettingsError) as caught:
        build_definitions(written(data, world, corpora, datasets))
    message = str(caught.value)
    assert message.isprintable()
    return message


def test_names_with_the_same_meaning_are_accepted(data: Path, world: World) -> None:
    build_definitions(
        written(data, world, {"corpus": {}, "other": {}}, {"dataset": {"corpus": "corpus"}})
    )


def test_corpus_with_another_embedder_is_refused(data: Path, world: World) -> None:
    other = {"embedding": {"model": "other/model"}}
    message = refusal(data, world, {"corpus": other}, {})
    assert message.startswith("corpus.embedding.model: ")
    assert world.project.corpus.embedding.model in message
    assert "choose another name for one with other/model" in message
    build_definitions(written(data, world, {"corpus": {}, "corpus_b": other}, {}))


def test_corpus_with_other_dimensions_is_refused(data: Path, world: World) -> None:
    embedding = {"model": world.project.corpus.embedding.model, "dimensions": 8}
    message = refusal(data, world, {"corpus": {"embedding": embedding}}, {})
    assert message.startswith("corpus.embedding.dimensions: ")
    assert "was made with none; choose another name for one with 8" in message


def test_dataset_over_another_corpus_is_refused(data: Path, world: World) -> None:
    message = refusal(data, world, {"corpus": {}, "web": {}}, {"dataset": {"corpus": "web"}})
    assert message.startswith("dataset.corpus: ")
    assert "is over the corpus 'corpus'" in message
    assert "choose another name for a dataset over 'web'" in message


def test_name_of_the_other_kind_is_refused(data: Path, world: World) -> None:
    message = refusal(data, world, {"dataset": {}}, {})
    assert message.startswith("dataset: ")
    assert "is the name of a dataset; choose another name for the corpus" in message
    message = refusal(data, world, {"web": {}}, {"corpus": {"corpus": "web"}})
    assert message.startswith("corpus: ")
    assert "is the name of a corpus; choose another name for the dataset" in message


def test_same_names_elsewhere_are_free(world: World, tmp_path: Path) -> None:
    build_definitions(written(tmp_path / "new", world, {"dataset": {}}, {"corpus": {}}))


def test_records_say_what_the_names_stand_for(data: Path, world: World) -> None:
    store = open_store(written(data, world, {"corpus": {}}, {"dataset": {}}).dataset)
    corpus, dataset = read_record(store, "corpus"), read_record(store, "dataset")
    assert corpus is not None
    assert dataset is not None
    assert (corpus.kind, corpus.corpus) == ("corpus", "corpus")
    assert corpus.permanent == {
        "embedding.model": world.project.corpus.embedding.model,
        "embedding.dimensions": None,
    }
    assert (dataset.kind, dataset.corpus, dataset.permanent) == ("dataset", "corpus", {})
    assert read_record(store, "none") is None


@pytest.mark.parametrize("content", ["", "{}", "[", '{"kind": 1}'])
def test_damaged_record_refuses_nothing(data: Path, world: World, content: str) -> None:
    """It is written again by the next step."""
    (data / "corpus" / RECORD).write_text(content)
    build_definitions(written(data, world, {"corpus": {}}, {"dataset": {}}))


def test_record_of_a_later_version_is_read(data: Path, world: World) -> None:
    path = data / "dataset" / RECORD
    path.write_text(json.dumps(json.loads(path.read_text()) | {"added_later": 1}))
    assert "is over the corpus" in refusal(
        data, world, {"corpus": {}, "web": {}}, {"dataset": {"corpus": "web"}}
    )


def test_definitions_load_without_the_store(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without credentials, the code location still loads, and the first step reports the error."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    build_definitions(make_project({"data_uri": "s3://no-such-bucket-of-ours/run"}))
