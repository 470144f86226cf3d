"""Dagster's storage on PostgreSQL, as `dagster.yaml` shows it, with a real server.

Needs Debian's package `postgresql` and Python's `dagster-postgres`.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest
import yaml

from entropylong_assets.orchestration.doctor import examine
from entropylong_assets.orchestration.local_run import register_shards, run_project
from entropylong_assets_tests.e2e.server import PROJECT, free_port
from entropylong_assets_tests.stage_names import path_of
from entropylong_assets_tests.tiny_world import tiny_project, write_corpus


def server_programs() -> Path | None:
    """Folder of `initdb` and `postgres`; Debian keeps it out of the PATH."""
    debian = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    found = str(debian[-1]) if debian else shutil.which("initdb")
    return Path(found).parent if found else None


PROGRAMS = server_programs()
pytestmark = pytest.mark.skipif(
    PROGRAMS is None, reason="no PostgreSQL: apt-get install postgresql"
)


def wait_until_it_answers(port: int) -> None:
    import psycopg2

    for _ in range(120):
        try:
            psycopg2.connect(
                host="127.0.0.1",
                port=port,
                user="dagster",
                password="quite secret",
                dbname="postgres",
            ).close()
            return
        except psycopg2.OperationalError:
            time.sleep(0.25)
    raise AssertionError("PostgreSQL does not answer")


@pytest.fixture
def database() -> Iterator[dict[str, str]]:
    """A server of its own; yields the environment that the configuration asks for."""
    pytest.importorskip("dagster_postgres")
    assert PROGRAMS is not None
    # Not under pytest's own folder, which is closed to others: it refuses to run as root.
    folder = Path(tempfile.mkdtemp(prefix="postgres-"))
    data, port = folder / "data", free_port()
    password = folder / "password"
    password.write_text("quite secret")
    user = "postgres" if os.geteuid() == 0 else None
    if user:
        for path in (folder, password):
            shutil.chown(path, user)
    subprocess.run(
        [
            *(PROGRAMS / "initdb", "-D", data, "-U", "dagster", "--no-sync"),
            *("--auth=scram-sha-256", f"--pwfile={password}"),
        ],
        check=True,
        capture_output=True,
        user=user,
        cwd=folder,
    )
    server = subprocess.Popen(
        [
            *(PROGRAMS / "postgres", "-D", data, "-p", str(port), "-k", folder),
            *("-c", "listen_addresses=127.0.0.1", "-c", "fsync=off"),
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        user=user,
        cwd=folder,
    )
    try:
        wait_until_it_answers(port)
        yield {
            "DAGSTER_PG_HOST": "127.0.0.1",
            "DAGSTER_PG_PORT": str(port),
            "DAGSTER_PG_DB": "postgres",
            "DAGSTER_PG_USER": "dagster",
            "DAGSTER_PG_PASSWORD": "quite secret",
        }
    finally:
        server.send_signal(signal.SIGINT)
        server.wait(30)
        shutil.rmtree(folder)


def with_postgres(text: str) -> str:
    """The project's dagster.yaml, its PostgreSQL lines uncommented as it tells people to."""
    return re.sub(r"^# ((storage:| ).*)$", r"\1", text, flags=re.MULTILINE)


def test_the_lines_to_copy_are_the_storage_and_nothing_else() -> None:
    text = (PROJECT / "entropylong_assets" / "dagster.yaml").read_text(encoding="utf-8")
    before, after = yaml.safe_load(text), yaml.safe_load(with_postgres(text))
    assert set(after) - set(before) == {"storage"}
    assert {key: after[key] for key in before} == before
    asked = re.findall(r"env: (\w+)", text)
    assert {"DAGSTER_PG_HOST", "DAGSTER_PG_PASSWORD"} <= set(asked), "nothing in it is a secret"


def test_a_pipeline_runs_on_postgresql(
    database: dict[str, str],
    tmp_path: Path,
    tiny_models: tuple[str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    corpus, home = tmp_path / "corpus", tmp_path / "home"
    write_corpus(corpus)
    home.mkdir()
    text = (PROJECT / "entropylong_assets" / "dagster.yaml").read_text(encoding="utf-8")
    (home / "dagster.yaml").write_text(with_postgres(text), encoding="utf-8")
    for name, value in {**database, "DAGSTER_HOME": str(home)}.items():
        monkeypatch.setenv(name, value)
    project = tiny_project(corpus, tmp_path / "data", tiny_models)
    with dg.DagsterInstance.get() as instance:
        assert type(instance.run_storage).__name__ == "PostgresRunStorage"
        register_shards(project.corpus, instance)
        run_project(project, instance, with_export=False)
    # Another process sees it: nothing of it lies in the folder.
    with dg.DagsterInstance.get() as again:
        made = again.get_materialized_partitions(dg.AssetKey(path_of("long_context_samples")))
        assert made == {"tiny-00000", "tiny-00001"}
        assert again.get_runs_count() >= 9
    assert not list(home.rglob("*.db"))
    found = {f.subject: f for f in examine(project)}
    assert found["instance"].verdict == "ok"
    assert "PostgreSQL" in found["instance"].message
    # A database that is missing is a fault with a remedy, not a traceback.
    monkeypatch.setenv("DAGSTER_PG_PORT", str(free_port()))
    lost = next(iter(examine(project)))
    assert (lost.subject, lost.verdict) == ("instance", "fault")
    assert "start its database" in lost.message
