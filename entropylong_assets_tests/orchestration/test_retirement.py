"""Retiring shards and sources, and taking documents down, on a finished corpus with a dataset."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from entropylong_assets.orchestration.local_run import register_shards, run_export, run_project
from entropylong_assets.orchestration.readiness import is_outdated
from entropylong_assets.orchestration.runner import RunFailuresError
from entropylong_assets.project import Project, make_project, open_store
from entropylong_assets.stages.corpus.tables import CORPUS_DOCUMENTS
from entropylong_assets.stages.embeddings.table import open_table
from entropylong_assets.stages.embeddings.tables import CHUNK_EMBEDDINGS, EMBEDDING_INDEX
from entropylong_assets.stages.retrieval.tables import CANDIDATE_CONTEXTS
from entropylong_assets.stages.samples.tables import LONG_CONTEXT_SAMPLES
from entropylong_assets.stages.stage import Partition
from entropylong_assets.stages.training_data.destination import export_uri
from entropylong_assets.stages.training_data.tables import TRAINING_DATASET
from entropylong_assets.stages.versioning import shard_fault, stale_reason
from entropylong_assets.storage.removals import (
    delete_removal,
    record_removal,
    record_shards_of,
)
from entropylong_assets.storage.tables import TableStore
from entropylong_assets_tests.conftest import World
from entropylong_assets_tests.stage_names import BY_NAME
from entropylong_assets_tests.tiny_world import document, tiny_values

A, B, C = "tiny-00000", "tiny-00001", "tiny-00002"
TOPIC = 7_000
"""First seed of the documents of the third file."""


@dataclass(frozen=True)
class Place:
    """A finished corpus of three files, its dataset, and the instance that made it."""

    project: Project
    instance: dg.DagsterInstance
    corpus: Path

    @property
    def store(self) -> TableStore:
        return open_store(self.project.dataset)

    def run(self) -> int:
        register_shards(self.project.corpus, self.instance, accept_changes=True)
        return run_project(self.project, self.instance)

    def documents(self, shard: str) -> set[str]:
        return set(self.store.read(CORPUS_DOCUMENTS, shard, "documents", ["doc_id"])["doc_id"])

    def contexts(self, shard: str) -> set[str]:
        """Documents that the candidates of a shard were cut from."""
        return set(self.store.read(CANDIDATE_CONTEXTS, shard, "chunks", ["doc_id"])["doc_id"])

    def in_samples(self, shard: str) -> set[str]:
        segments = self.store.read(LONG_CONTEXT_SAMPLES, shard, "segments", ["doc_id"])
        return set(segments["doc_id"].drop_nulls())

    def exported(self) -> str:
        """All text of the present export's JSON Lines."""
        version = self.store.summary(TRAINING_DATASET).version
        folder = Path(export_uri(self.project.dataset, version))
        return "".join(path.read_text() for path in sorted(folder.rglob("*.jsonl")))


@pytest.fixture(scope="module")
def finished(
    world: World, tiny_models: tuple[str, str], tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, Any], Path]:
    """Settings and source folder of a corpus of which everything was made. Read only."""
    folder = tmp_path_factory.mktemp("finished")
    shutil.copytree(world.corpus, folder / "in")
    # Its documents are like those of the first file, so that they are contexts there.
    texts = [document(seed)[:-200] for seed in range(100, 108)]
    lines = [json.dumps({"text": text, "id": f"c{i}"}) for i, text in enumerate(texts)]
    (folder / "in/c.jsonl").write_text("\n".join(lines) + "\n")
    values = tiny_values(
        folder / "in", folder / "data", tiny_models, export={"formats": ["jsonl"]}
    )
    project = make_project(values)
    with dg.DagsterInstance.ephemeral() as instance:
        register_shards(project.corpus, instance)
        run_project(project, instance)
    return values, folder


@pytest.fixture
def place(finished: tuple[dict[str, Any], Path], tmp_path: Path) -> Iterator[Place]:
    values, folder = finished
    shutil.copytree(folder, tmp_path / "copy", copy_function=shutil.copy2)
    text = json.dumps(values).replace(str(folder), str(tmp_path / "copy"))
    plan = tmp_path / "copy/data/corpus/shards.json"
    plan.write_text(plan.read_text().replace(str(folder), str(tmp_path / "copy")))
    with dg.DagsterInstance.ephemeral() as instance:
        yield Place(make_project(json.loads(text)), instance, tmp_path / "copy/in")


def test_the_world_has_contexts_of_the_third_shard(place: Place) -> None:
    """Otherwise the tests below would prove nothing."""
    assert place.contexts(A) & place.documents(C)
    assert place.in_samples(A) & place.documents(C)
