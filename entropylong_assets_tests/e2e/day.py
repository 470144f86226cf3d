"""A source folder, tiny models and a real server: what an operator's day needs."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import dagster as dg

from entropylong_assets.orchestration.local_run import register_shards, run_project
from entropylong_assets.project import make_project
from entropylong_assets_tests.e2e.server import PROJECT, Server
from entropylong_assets_tests.stage_names import BY_NAME, FOLLOWING, SHARDWISE
from entropylong_assets_tests.tiny_world import document, tiny_values, write_models

CARRIERS = ("corpus__carry_new_shards", "dataset__carry_new_shards")
"""The sensors that carry shards on, of the corpus and of the dataset."""

AFTER_INGEST = [name for name in SHARDWISE if BY_NAME[name].scope == "dataset"]

SECONDS_OF_A_COMMAND = 900
"""Longest time of a command, on a machine that others use too. A minute on a quiet one."""


class Day:
    """Two files lie in the source folder at first; `shards` names theirs."""

    def __init__(self, folder: Path, dagster_yaml: str = "") -> None:
        self.folder, self.corpus = folder, folder / "corpus"
        self.corpus.mkdir(parents=True)
        models = write_models(folder)
        self.values = tiny_values(self.corpus, folder / "data", models)
        self.values["corpus"]["on_bad_row"] = "skip"
        for name in ("a", "b"):
            self.write(name)
        self.server = Server(folder, self.values, dagster_yaml)
        self._commands: list[subprocess.Popen[str]] = []

    def write(self, name: str, broken: int = 0, documents: int = 12) -> None:
        """A file of documents, `broken` of which are no JSON. Same name, same documents."""
        first = ord(name) * 1000
        lines = [
            json.dumps({"text": document(first + i), "id": f"{name}{i}"}) for i in range(documents)
        ]
        for row in range(broken):
            lines[row] = lines[row][:-9]
        # Whole or not at all, as a careful copy does it.
        part = self.corpus / f".{name}.part"
        part.write_text("\n".join(lines) + "\n", encoding="utf-8")
        part.rename(self.corpus / f"{name}.jsonl")

    def make_beforehand(self) -> None:
        """Runs the pipeline and the export over what is there, in this process."""
        project = make_project(self.values)
        home = self.server.home
        if not (home / "dagster.yaml").exists():
            shutil.copyfile(PROJECT / "entropylong_assets" / "dagster.yaml", home / "dagster.yaml")
        with dg.DagsterInstance.from_config(str(home)) as instance:
            register_shards(project.corpus, instance)
            run_project(project, instance)

    def begin(self, *arguments: str, **environment: str) -> subprocess.Popen[str]:
        """Start `entropylong` with these arguments, in a terminal beside the server."""
        process = subprocess.Popen(
            [sys.executable, "-m", "entropylong_assets.cli", *arguments],
            cwd=self.folder,
            env=self.server.environment | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._commands.append(process)
        return process

    def end(self) -> None:
        """Kill the commands that a failed test left running."""
        for process in self._commands:
            process.kill()
            process.wait()

    def terminal(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run `entropylong` with these arguments to its end."""
        process = self.begin(*arguments, **environment)
        output, errors = process.communicate(timeout=SECONDS_OF_A_COMMAND)
        return subprocess.CompletedProcess(arguments, process.returncode, output, errors)

    def change(self, section: str, **values: Any) -> None:
        """Edits the settings file and clicks Reload."""
        self.values[section] |= values
        self.server.write_settings(self.values)
        self.server.reload()

    def times(self) -> Mapping[str, dict[str, list[float]]]:
        """Times of all materializations, by asset and shard."""
        return {asset: self.server.materializations(asset) for asset in FOLLOWING}

    def wait_for(self, asset: str, shards: set[str], seconds: float) -> None:
        """Until these are the shards that have the asset, and nothing runs or is queued."""

        def made_and_settled() -> bool:
            made = set(self.server.materializations(asset))
            assert made <= shards | {"all"}, f"{asset} of {made - shards}"
            return made >= shards and self.server.settled()

        self.server.wait(f"{asset} of {sorted(shards)}", made_and_settled, seconds)

    def wait_for_run(self, run: str, seconds: float = 120) -> str:
        return self.server.wait_for_run(run, seconds)

    def wait_for_backfill(self, backfill: str, seconds: float) -> str:
        ends = ("COMPLETED_SUCCESS", "COMPLETED_FAILED", "FAILED", "CANCELED", "COMPLETED")
        return self.server.wait(
            f"backfill {backfill}",
            lambda: (s := self.server.backfill_status(backfill)) in ends and s,
            seconds,
        )
