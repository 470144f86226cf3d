import dagster as dg
import pytest
from entropylong_assets.orchestration.local_run import register_shards
from entropylong_assets.project import open_store
from entropylong_assets.stages.execution import materialize
from entropylong_assets.stages.checks import run_checks
from entropylong_assets.stages.stage import Partition
from entropylong_assets_tests.conftest import World
from entropylong_assets_tests.tiny_world import tiny_project

@pytest.fixture(scope="session")
def world(tmp_path_factory, tiny_models, tiny_corpus):
    project = tiny_project(tiny_corpus, tmp_path_factory.mktemp("data"), tiny_models)
    with dg.DagsterInstance.ephemeral() as instance:
        plan = register_shards(project.corpus, instance)
        shards = tuple(s.key for s in plan.shards)
        for settings in (project.corpus, project.dataset):
            for stage in project.stages_of(settings):
                if stage.automation == "by_hand" or stage.name in ("report", "training_dataset"): continue
                for shard in shards if stage.partitioned else ("all",):
                    p = Partition(settings, open_store(settings), shard)
                    materialize(stage, p)
                    bad = [r.check.name for r in run_checks(stage, p) if not r.passed and r.check.blocking]
                    assert not bad, bad
        yield World(project, project.dataset, open_store(project.dataset), instance, shards, tiny_corpus)
