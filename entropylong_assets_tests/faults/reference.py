"""An undisturbed run of every stage, with the state before and after each."""

from __future__ import annotations

import os
import shutil
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import dagster as dg
import yaml

from entropylong_assets.storage.tables import DEFAULT_CORPUS, DEFAULT_DATASET, WHOLE, TableStore
from entropylong_assets_tests.e2e.server import PROJECT
from entropylong_assets_tests.faults import witness
from entropylong_assets_tests.faults.processes import Stage
from entropylong_assets_tests.stage_names import BY_NAME, FOLLOWING
from entropylong_assets_tests.tiny_world import tiny_values, write_corpus, write_models

FIRST, SHARD = "tiny-00000", "tiny-00001"
"""The runs on the second shard are killed. The first shard must not change."""

AUDITS = ("null_calibration", "long_range_audit")
STAGES = ("scan", *FOLLOWING, *AUDITS)


def shard_of(asset: str) -> str:
    return SHARD if asset in BY_NAME and BY_NAME[asset].partitioned else WHOLE


@dataclass
class Reference:
    """An undisturbed run. `folder` contains, per stage, data and instance before it, data after."""

    folder: Path
    content: dict[str, Any]
    """Content of the settings file."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Duration of each stage."""
    operations: dict[str, int] = field(default_factory=dict)
    """File operations under the data folder in an undisturbed run of each stage."""
    lance_files: dict[str, int] = field(default_factory=dict)
    """Number of files that each stage adds to the LanceDB table."""

    def values(self, data: Path) -> dict[str, Any]:
        return self.content | {"data_uri": str(data)}

    def make(self, last: str) -> None:
        """Run all stages up to this one, except those that have run already."""
        data, home = self.folder / "data", self.folder / "home"
        values = self.values(data)
        for asset in STAGES[: STAGES.index(last) + 1]:
            if asset in self.seconds:
                continue
            if shard_of(asset) == SHARD:
                Stage(values, home, asset, FIRST).finish()
            for name in ("data", "home"):
                shutil.copytree(self.folder / name, self.folder / asset / f"{name}-before")
            files = lance_files(data)
            stage = Stage(values, home, asset, shard_of(asset))
            self.operations[asset] = stage.finish()
            self.seconds[asset] = stage.ended - stage.began
            self.lance_files[asset] = lance_files(data) - files
            shutil.copytree(data, self.after(asset))

    def copy(self, stage: str, data: Path, home: Path) -> None:
        """Copy data and instance as they were before a stage."""
        shutil.copytree(self.folder / stage / "data-before", data)
        shutil.copytree(self.folder / stage / "home-before", home)
        show_data(home, data)

    def command(self, folder: Path) -> tuple[list[str], dict[str, str]]:
        """Copy data and instance as they were before the scan to `data` and `home` in a folder.

        Returns the command `entropylong run` over them, and its environment.
        """
        data, home = folder / "data", folder / "home"
        self.copy("scan", data, home)
        settings = folder / "settings.yaml"
        settings.write_text(yaml.safe_dump(self.values(data)), encoding="utf-8")
        command = [sys.executable, "-m", "entropylong_assets.cli", "run", "-s", str(settings)]
        return command, os.environ | {"DAGSTER_HOME": str(home), "PYTHONPATH": str(PROJECT)}

    def after(self, stage: str) -> Path:
        return self.folder / stage / "data-after"

    def tree(self, stage: str) -> dict[str, str]:
        """Hash of every file after a stage, as returned by `witness.tree_of`."""
        return witness.tree_of(self.after(stage), self.folder / "data")

    def versions(self, stage: str) -> dict[str, str]:
        store = TableStore(str(self.after(stage)))
        return {
            f"{asset}/{shard}": store.require(BY_NAME[asset].tables, shard).data_version
            for asset in (*FOLLOWING, *AUDITS)
            for shard in store.shards(BY_NAME[asset].tables)
        }

    def rows(self, stage: str) -> dict[str, list[str]]:
        """Hashes that the rows of each shard may have during a stage: those before and after it."""
        digests: dict[str, list[str]] = {}
        for data in (self.folder / stage / "data-before", self.after(stage)):
            for shard, digest in witness.rows_of(str(data)).items():
                digests.setdefault(shard, []).append(digest)
        return digests


def lance_files(data: Path) -> int:
    return sum(1 for path in (data / "corpus" / "lancedb").rglob("*") if path.is_file())


def begin(folder: Path) -> Reference:
    """Write models, corpus and an empty instance. `Reference.make` runs the stages on demand."""
    models = write_models(folder)
    write_corpus(folder / "corpus")
    for name in ("data", "home"):
        (folder / name).mkdir()
    shutil.copyfile(
        PROJECT / "entropylong_assets" / "dagster.yaml", folder / "home" / "dagster.yaml"
    )
    return Reference(folder, tiny_values(folder / "corpus", folder / "data", models))


def show_data(home: Path, data: Path) -> None:
    """Make a copied instance show the copied data, which it refuses while the original exists."""
    keys = [f"entropylong/data_uri/{name}" for name in (DEFAULT_CORPUS, DEFAULT_DATASET)]
    with dg.DagsterInstance.from_config(str(home)) as instance:
        instance.daemon_cursor_storage.set_cursor_values({key: str(data) for key in keys})
