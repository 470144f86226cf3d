from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ["ENTROPYLONG_PROFILE"] = "quickstart"
os.environ.pop("ENTROPYLONG_SETTINGS", None)

import dagster as dg
import pytest

from entropylong_assets.orchestration.local_run import register_shards, run_project
from entropylong_assets.project import Project, open_store
from entropylong_assets.settings.section import Settings
from entropylong_assets.storage.tables import TableStore
from entropylong_assets_tests.faults.summary import pytest_terminal_summary  # noqa: F401
from entropylong_assets_tests.tiny_world import tiny_project, write_corpus, write_models

if TYPE_CHECKING:
    from entropylong_assets_tests.storage.faulty_s3 import Bucket


@dataclass(frozen=True)
class World:
    """A corpus and a dataset with all stages materialized, and the instance of their runs."""

    project: Project
    settings: Settings
    """Settings of the dataset."""
    store: TableStore
    instance: dg.DagsterInstance
    shards: tuple[str, ...]
    corpus: Path
    """Folder of the source files."""


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    return write_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="session")
def tiny_corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    write_corpus(folder)
    return folder


@pytest.fixture(scope="session")
def world(
    tmp_path_factory: pytest.TempPathFactory, tiny_models: tuple[str, str], tiny_corpus: Path
) -> Iterator[World]:
    """All stages and checks of two shards, audits aside, through real Dagster runs. Read only."""
    project = tiny_project(tiny_corpus, tmp_path_factory.mktemp("data"), tiny_models)
    with dg.DagsterInstance.ephemeral() as instance:
        plan = register_shards(project.corpus, instance)
        run_project(project, instance)
        yield World(
            project,
            project.dataset,
            open_store(project.dataset),
            instance,
            tuple(shard.key for shard in plan.shards),
            tiny_corpus,
        )


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """URL of an S3 server."""
    from entropylong_assets_tests.storage import faulty_s3

    with faulty_s3.server() as url:
        yield url


@pytest.fixture
def bucket(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    """A new bucket, configured through environment variables as a user does it."""
    from entropylong_assets.storage.s3 import S3
    from entropylong_assets_tests.storage import faulty_s3

    for name, value in faulty_s3.environment(s3_server).items():
        monkeypatch.setenv(name, value)
    S3.clear_instance_cache()
    yield faulty_s3.Bucket(s3_server, f"lake-{uuid.uuid4().hex[:12]}")
    S3.clear_instance_cache()
