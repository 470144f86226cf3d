import dagster as dg
import pytest

from entropylong_assets.orchestration.local_run import RunError, register_shards, run_project
from entropylong_assets.project import open_store
from entropylong_assets_tests.conftest import World
from entropylong_assets_tests.tiny_world import tiny_project


@pytest.fixture(scope="session")
def world(tmp_path_factory, tiny_models, tiny_corpus):
    project = tiny_project(tiny_corpus, tmp_path_factory.mktemp("data"), tiny_models)
    with dg.DagsterInstance.ephemeral() as instance:
        plan = register_shards(project.corpus, instance)
        try:
            run_project(project, instance)
        except RunError as error:
            print("WORLD", error)
        yield World(project, project.dataset, open_store(project.dataset), instance,
                    tuple(s.key for s in plan.shards), tiny_corpus)
