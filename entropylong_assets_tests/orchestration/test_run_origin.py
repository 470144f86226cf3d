"""Runs of the command line are listed where runs of the UI are: by job, timeline and overview."""

from __future__ import annotations

import tomllib
from pathlib import Path

import dagster as dg
import yaml
from dagster_graphql.test.utils import (
    define_out_of_process_context,
    execute_dagster_graphql,
    temp_workspace_file,
)

from entropylong_assets.orchestration import run_origin
from entropylong_assets.orchestration.runner import run_job
from entropylong_assets.storage.tables import WHOLE

PROJECT = Path(__file__).parents[2]


@dg.asset
def numbers() -> int:
    return 1


count = dg.define_asset_job("count", selection=[numbers])
defs = dg.Definitions(assets=[numbers], jobs=[count])

RUNS = """
query($job: String!, $location: String!, $repository: String!) {
  pipelineOrError(params: {pipelineName: $job, repositoryLocationName: $location,
                           repositoryName: $repository}) {
    ... on Pipeline { runs { runId } }
  }
  runsFeedOrError(limit: 5, view: RUNS) {
    ... on RunsFeedConnection {
      results { id ... on Run {
        repositoryOrigin { repositoryLocationName repositoryName } tags { key value } } }
    }
  }
}
"""


def test_a_run_is_listed_under_its_job_and_code_location() -> None:
    """Queries GraphQL as the UI does, on a code server that did not start the run."""
    location, repository = run_origin.CODE_LOCATION, "__repository__"
    variables = {"job": "count", "location": location, "repository": repository}
    with dg.DagsterInstance.local_temp() as instance:
        run_job(defs.get_repository_def().get_job("count"), WHOLE, instance)
        (run,) = instance.get_runs()
        with (
            temp_workspace_file([(location, __file__, "defs")]) as workspace,
            define_out_of_process_context(workspace, None, instance) as context,
        ):
            answer = execute_dagster_graphql(context, RUNS, variables)
    (listed,) = answer.data["runsFeedOrError"]["results"]
    assert listed["id"] == run.run_id
    assert listed["repositoryOrigin"] == {
        "repositoryLocationName": location,
        "repositoryName": repository,
    }
    tags = {tag["key"]: tag["value"] for tag in listed["tags"]}
    assert tags["dagster/code_location"] == location
    assert answer.data["pipelineOrError"]["runs"] == [{"runId": run.run_id}]


def test_the_code_location_has_the_name_of_the_projects_files() -> None:
    workspace = yaml.safe_load((PROJECT / "workspace.yaml").read_text())
    (loaded,) = workspace["load_from"]
    assert loaded["python_module"]["location_name"] == run_origin.CODE_LOCATION
    pyproject = tomllib.loads((PROJECT / "pyproject.toml").read_text())
    assert pyproject["tool"]["dg"]["project"]["code_location_name"] == run_origin.CODE_LOCATION
