"""How Ray and Kubernetes receive the settings `cluster`, and the files of deploy/."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import dagster as dg
import kubernetes_validate
import pytest
import yaml

from entropylong_assets.orchestration.build import build_definitions
from entropylong_assets.orchestration.cluster import kubernetes_config, unplaceable_steps
from entropylong_assets.pipeline import STAGES
from entropylong_assets.project import Project, load_project, make_project
from entropylong_assets.settings.cluster import StepResources
from entropylong_assets.settings.section import SettingsError

REPOSITORY = Path(__file__).parents[2]
DEPLOY = REPOSITORY / "deploy"
GPU_STEPS = {
    "chunk_embeddings",
    "entropy_scores",
    "natural_documents",
    "verified_dependencies",
    "null_calibration",
    "cross_model_audit",
    "long_range_audit",
    "training_trial",
}
"""Names of the stages whose steps load a model, written by hand."""


def on(engine: str, resources: dict[str, Any] | None = None) -> Project:
    cluster = {"engine": engine, "resources": resources or {}}
    return make_project({"data_uri": "/srv/shared", "cluster": cluster}, "quickstart")


def stage_of(step: str) -> str:
    """Name of the stage, or of its checks, that a step belongs to."""
    return step.partition("__")[2]


def steps(project: Project) -> dict[str, dg.OpDefinition]:
    """Every step of every job of assets in the definitions, by its key."""
    by_key: dict[str, dg.OpDefinition] = {}
    for job in build_definitions(project).get_repository_def().get_all_jobs():
        for node in job.nodes if job.asset_layer.executable_asset_keys else ():
            assert isinstance(node.definition, dg.OpDefinition)
            by_key[node.name] = node.definition
    return by_key


def python(script: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script],
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        check=False,
    )


def test_every_step_asks_ray_for_its_resources() -> None:
    from dagster_ray.configs import RayExecutionConfig

    asked = {"entropy_scores": {"num_cpus": 6, "memory": "16GiB"}, "checks": {"num_cpus": 0.5}}
    all_steps = steps(on("ray", asked))
    assert len(all_steps) == 2 * len(STAGES)
    for step, op in all_steps.items():
        name = stage_of(step)
        config = RayExecutionConfig.from_tags(op.tags)
        # Without a CPU Ray would put the step on the head node, whatever that has to do.
        assert config.num_cpus == {"entropy_scores": 6}.get(
            name, 0.5 if name.endswith("_checks") else 1
        )
        assert config.num_gpus == (1 if name in GPU_STEPS else 0), name
        hidden = (config.runtime_env or {}).get("env_vars", {}).get("CUDA_VISIBLE_DEVICES")
        assert hidden == (None if name in GPU_STEPS else ""), name
        assert config.memory == (16 * 2**30 if name == "entropy_scores" else None)


def test_steps_differ_in_their_tags_alone_between_engines() -> None:
    """The failure: a step that loses its pool or its retries when its tags are set."""
    local = steps(on("local"))
    for engine in ("ray", "kubernetes"):
        other = steps(on(engine))
        assert other.keys() == local.keys()
        for name, op in local.items():
            assert other[name].pool == op.pool
            assert other[name].retry_policy == op.retry_policy is not None
            assert set(op.tags) <= set(other[name].tags)
    keys = {
        engine: build_definitions(on(engine)).resolve_asset_graph().asset_check_keys
        for engine in ("local", "ray")
    }
    assert keys["local"] == keys["ray"]


def test_code_versions_do_not_depend_on_the_engine() -> None:
    """Otherwise a partition would be stale after a change of the engine."""

    def code(project: Project) -> dict[str, str | None]:
        graph = build_definitions(project).resolve_asset_graph()
        return {k.to_user_string(): graph.get(k).code_version for k in graph.get_all_asset_keys()}

    assert code(on("ray")) == code(on("local")) == code(on("kubernetes"))


def test_executor_is_that_of_the_engine() -> None:
    names = {}
    for engine in ("local", "ray", "kubernetes"):
        repository = build_definitions(on(engine)).get_repository_def()
        names[engine] = repository.get_job("dataset__score").executor_def.name
    assert names == {"local": "in_process", "ray": "ray", "kubernetes": "kubernetes"}


@pytest.mark.parametrize("gpus", [0, 2])
def test_kubernetes_pods_have_their_resources(gpus: int) -> None:
    from dagster_k8s.job import (
        DagsterK8sJobConfig,
        UserDefinedDagsterK8sConfig,
        construct_dagster_k8s_job,
    )

    asked = StepResources(num_cpus=4, num_gpus=gpus, memory=8 * 2**30)  # type: ignore[arg-type]
    job = construct_dagster_k8s_job(
        DagsterK8sJobConfig(job_image="entropylong:1", dagster_home="/opt/dagster"),
        ["dagster", "api", "execute_step"],
        "step",
        user_defined_k8s_config=UserDefinedDagsterK8sConfig.from_dict(kubernetes_config(asked)),
    )
    container = job.spec.template.spec.containers[0]
    assert container.resources.requests == {"cpu": "4", "memory": str(8 * 2**30)}
    gpu = {"nvidia.com/gpu": "2"} if gpus else {}
    assert container.resources.limits == {"memory": str(8 * 2**30), **gpu}
    assert {"OMP_NUM_THREADS": "4"}.items() <= {e.name: e.value for e in container.env}.items()


def test_part_of_a_gpu_is_refused_on_kubernetes() -> None:
    asked = {"entropy_scores": {"num_gpus": 0.5}}
    build_definitions(on("ray", asked))
    with pytest.raises(SettingsError, match=r"gives whole GPUs, not 0\.5"):
        build_definitions(on("kubernetes", asked))
    with pytest.raises(SettingsError, match=r"cluster\.resources\.entropy_scores\.num_gpus"):
        on("ray", {"entropy_scores": {"num_gpus": 1.5}})


def test_folder_that_nodes_do_not_share_is_refused() -> None:
    with pytest.raises(SettingsError, match=r"data_uri \(data/here\) must be a URI or the full"):
        make_project({"data_uri": "data/here", "cluster": {"engine": "ray"}}, "quickstart")


def test_default_installation_has_no_cluster_library() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    wanted = " ".join(project["dependencies"])
    assert "ray" not in wanted
    assert "k8s" not in wanted
    assert {"ray", "k8s"} <= project["optional-dependencies"].keys()


@pytest.mark.parametrize("engine", ["local", "ray", "kubernetes"])
def test_definitions_load_without_ray(engine: str) -> None:
    """Ray takes a second to import; its executor needs it only where it executes."""
    done = python(
        "import sys\n"
        "from entropylong_assets.orchestration.build import build_definitions\n"
        "from entropylong_assets.project import make_project\n"
        f"build_definitions(make_project({{'data_uri': '/x', 'cluster': "
        f"{{'engine': {engine!r}}}}}, 'quickstart')).get_repository_def()\n"
        "print('ray' in sys.modules, 'dagster_ray' in sys.modules, 'dagster_k8s' in sys.modules)\n"
    )
    wanted = {"local": "False False False", "ray": "False True"}.get(engine, "False")
    assert done.stdout.startswith(wanted), done.stdout + done.stderr


@pytest.mark.parametrize(
    ("engine", "module", "extra"),
    [
        ("ray", "dagster_ray", "ray"),
        ("ray", "ray", "ray"),
        ("kubernetes", "dagster_k8s", "k8s"),
    ],
)
def test_missing_extra_is_one_line(engine: str, module: str, extra: str) -> None:
    done = python(
        f"import sys; sys.modules[{module!r}] = None  # as if it were not installed\n"
        "from entropylong_assets.orchestration.build import build_definitions\n"
        "from entropylong_assets.project import make_project\n"
        "from entropylong_assets.settings.section import SettingsError\n"
        "project = make_project({'data_uri': '/x', 'cluster': "
        f"{{'engine': {engine!r}}}}}, 'quickstart')\n"
        "try:\n    build_definitions(project)\n"
        "except SettingsError as error:\n    print(error)\n"
    )
    (line,) = done.stdout.splitlines()
    assert line.startswith(f"cluster.engine: '{engine}' needs the package ")
    assert f"pip install -c constraints.txt -e '.[{extra}]'" in line


# The files of deploy/


def documents(folder: str) -> list[dict[str, Any]]:
    paths = sorted((DEPLOY / folder).glob("*.yaml"))
    return [doc for path in paths for doc in yaml.safe_load_all(path.read_text())]


def test_manifests_fit_the_schemas_of_kubernetes() -> None:
    kinds = set()
    for document in documents("dagster") + documents("kubernetes") + documents("kuberay"):
        kind = document.get("kind")
        if kind == "RayCluster":
            groups = [document["spec"]["headGroupSpec"], *document["spec"]["workerGroupSpecs"]]
            pods = [group["template"]["spec"] for group in groups]
        elif kind in (None, "Kustomization"):
            continue
        else:
            kubernetes_validate.validate(document, "1.36", strict=True)
            pods = []
        for pod in pods:
            whole = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, "spec": pod}
            kubernetes_validate.validate(whole, "1.36", strict=True)
        kinds.add(kind)
    wanted = {"Deployment", "ServiceAccount", "Role", "RoleBinding", "NetworkPolicy", "RayCluster"}
    assert kinds == wanted


@pytest.mark.parametrize("folder", ["local-ray", "kuberay", "kubernetes"])
def test_settings_and_instance_of_a_folder_are_valid(
    folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dagster._config import process_config
    from dagster._core.instance.config import dagster_instance_config_schema
    from dagster_k8s import K8sRunLauncher
    from dagster_ray import RayRunLauncher

    for name in ("HOST", "PORT", "DB", "USER", "PASSWORD"):
        monkeypatch.setenv(f"DAGSTER_PG_{name}", "5432")
    instance = yaml.safe_load((DEPLOY / folder / "dagster.yaml").read_text())
    checked = process_config(dagster_instance_config_schema(), instance)
    assert checked.success, checked.errors
    launcher = instance["run_launcher"]
    kinds = {"RayRunLauncher": RayRunLauncher, "K8sRunLauncher": K8sRunLauncher}
    schema = kinds[launcher["class"]].config_type()
    checked = process_config(schema, launcher["config"])
    assert checked.success, checked.errors

    project = load_project(DEPLOY / folder / "settings.yaml")
    assert project.cluster.engine == ("kubernetes" if folder == "kubernetes" else "ray")
    assert len(steps(project)) == 2 * len(STAGES) * len(project.datasets)


def test_no_step_on_kubernetes_has_the_memory_of_a_run() -> None:
    """The failure: a step without `memory` inherits the 2 GiB that a run's pod gets."""
    from dagster_k8s.container_context import K8sContainerContext
    from dagster_k8s.job import UserDefinedDagsterK8sConfig

    def context(config: Any) -> K8sContainerContext:
        return K8sContainerContext(run_k8s_config=UserDefinedDagsterK8sConfig.from_dict(config))

    launcher = yaml.safe_load((DEPLOY / "kubernetes" / "dagster.yaml").read_text())["run_launcher"]
    of_run = launcher["config"]["run_k8s_config"]
    of_run_memory = of_run["container_config"]["resources"]["limits"]["memory"]
    resources_of = load_project(DEPLOY / "kubernetes" / "settings.yaml").cluster.resources

    # How dagster-k8s makes the pod of a step.
    unset = context(of_run).merge(context(kubernetes_config(StepResources()))).run_k8s_config
    assert unset.container_config["resources"]["limits"]["memory"] == of_run_memory
    for name in type(resources_of).model_fields:
        own = kubernetes_config(getattr(resources_of, name))
        pod = context(of_run).merge(context(own)).run_k8s_config
        resources = pod.container_config["resources"]
        assert int(resources["limits"]["memory"]) >= 8 * 2**30, name
        assert resources["limits"]["memory"] == resources["requests"]["memory"], name
        assert ("nvidia.com/gpu" in resources["limits"]) == (name in GPU_STEPS), name
        (toleration,) = pod.pod_spec_config["tolerations"]
        assert toleration["key"] == "nvidia.com/gpu"


def test_every_step_fits_a_node_of_the_ray_cluster() -> None:
    """A step that fits no node never starts. Ray keeps 30% of a node's memory for its objects."""
    (cluster,) = [d for d in documents("kuberay") if d.get("kind") == "RayCluster"]
    nodes: list[dict[str, float]] = []
    for group in cluster["spec"]["workerGroupSpecs"]:
        (container,) = group["template"]["spec"]["containers"]
        limits = container["resources"]["limits"]
        cpus = float(group["rayStartParams"].get("num-cpus", limits["cpu"]))
        memory = 0.7 * float(limits["memory"].removesuffix("Gi")) * 2**30
        gpus = float(limits.get("nvidia.com/gpu", 0))
        nodes.append({"CPU": cpus, "GPU": gpus, "memory": memory})
    project = load_project(DEPLOY / "kuberay" / "settings.yaml")
    assert unplaceable_steps(project, nodes) == []
    without_gpus = [node | {"GPU": 0.0} for node in nodes]
    assert {stage_of(step) for step in unplaceable_steps(project, without_gpus)} == GPU_STEPS
    narrow = [node | {"memory": 8.0 * 2**30} for node in nodes]
    corpus = project.corpus.name
    assert f"{corpus}__embedding_index" in unplaceable_steps(project, narrow)
    assert set(unplaceable_steps(project, [])) == set(steps(project))
