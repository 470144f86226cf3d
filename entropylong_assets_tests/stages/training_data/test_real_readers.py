"""Trainers' own classes load our exports, with the code of the export's card (`make test-exports`).

Failures looked for: ids of another type or order; padding that is learnt, and tokens that are not;
a sample cut, shifted, or merged with another; a context in another attention span than its anchor;
weights on other tokens, or left out. The oracle is the tables that the samples come from.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from entropylong_assets.stages.training_data.export import export_training_data
from entropylong_assets_tests.stages.training_data.stores import (
    CODE,
    SHARDS,
    export_settings,
    fill_store,
    table,
    worlds,
)

PYTHON = os.environ.get("ENTROPYLONG_READERS_PYTHON")
READER = Path(__file__).parent / "readers" / "read_export.py"
TOKENS = 2048
"""More than TRL's default maximum of 1,024, at which it cuts."""
WEIGHT = 3.0

FIXED_LENGTH = {"transformers", "flattening", "weighted", "trl", "axolotl", "llamafactory"}
WEIGHTED = {"prolong", "weighted"}
TRAINERS = ("prolong", *sorted(FIXED_LENGTH), "megatron")

pytestmark = pytest.mark.skipif(
    not PYTHON, reason="the trainers have an environment of their own: make test-exports"
)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Three samples, each with padding; one is held out."""
    choice = {
        "formats": ["mds", "parquet", "megatron"],
        "validation_fraction": 0.34,
        "loss_weights": "anchors",
        "anchor_weight": WEIGHT,
    }
    settings = export_settings(tmp_path_factory.mktemp("data"), choice, tokens=TOKENS)
    store = fill_store(settings)
    export = export_training_data(store, SHARDS, settings, code_version=CODE)
    assert export.manifest["splits"] == {"train": 2, "validation": 1}
    assert all(row["n_padding"] for row in table(store, "samples"))
    return store, export


def run_reader(name: str, folder: str, scratch: Path, *left_out: str) -> Any:
    command = [str(PYTHON), str(READER), name, folder, str(scratch), *left_out]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(scratch / "hf")}
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


def read(name: str, folder: str, scratch: Path, *left_out: str) -> list[dict]:
    run = run_reader(name, folder, scratch, *left_out)
    assert run.returncode == 0, run.stderr[-3000:]
    return json.loads(run.stdout.splitlines()[-1])


@pytest.mark.parametrize("trainer", TRAINERS)
def test_trainer_learns_every_real_token_of_every_sample(exported, tmp_path, trainer):
    store, export = exported
    rows = read(trainer, export.uri, tmp_path)
    splits = [row["split"] for row in rows]
    assert {split: splits.count(split) for split in set(splits)} == export.manifest["splits"]
    samples = {
        tuple(row["input_ids"][: TOKENS - row["n_padding"]]): row for row in table(store, "samples")
    }
    checked = 0
    for row in rows:
        sample = next(s for ids, s in samples.items() if tuple(row["ids"][: len(ids)]) == ids)
        n = TOKENS - sample["n_padding"]
        if trainer != "prolong":  # which does not compute padding at all
            assert row["ids"] == sample["input_ids"], "a sample was cut, shifted or merged"
        assert len(row["labels"]) == len(row["ids"])
        learnt = {i for i, label in enumerate(row["labels"]) if label != -100}
        assert learnt == set(range(1, n)), "all real tokens but the first, which has no prefix"
        assert [row["labels"][i] for i in sorted(learnt)] == row["ids"][1:n]
        assert row.get("beyond", -100) == -100, "a token of another sample is predicted"
        anchors = set()
        for d in table(store, "dependencies"):
            if d["sample_id"] == sample["sample_id"]:
                span = row["span"][d["context_start"] : d["context_end"]]
                assert set(span) == {row["span"][d["anchor_position"]]} != {-1}
                assert d["anchor_position"] in learnt
                anchors.add(d["anchor_position"])
                checked += 1
        if trainer in WEIGHTED:
            expected = [WEIGHT if i in anchors else 1.0 for i in range(1, n)]
            assert row["weights"][1:n] == pytest.approx(expected, rel=1e-3)
        else:
            assert row["weights"] is None
        samples = {ids: s for ids, s in samples.items() if s is not sample}
    assert not samples, "a sample was read twice, another not at all"
    assert checked == len(table(store, "dependencies")) > 20


def test_datasets_loads_the_folder_with_types_splits_and_provenance(exported, tmp_path):
    store, export = exported
    loaded = read("datasets", export.uri, tmp_path)
    expected = {row["sample_id"]: row for row in table(store, "samples")}
    seen = set()
    for part in loaded:
        assert part["types"] == {
            "input_ids": "int32",
            "labels": "int32",
            "attention_mask": "int8",
            "loss_weights": "float32",
            "anchors": "int32",
        }
        assert len(part["rows"]) == export.manifest["splits"][part["split"]]
        for row in part["rows"]:
            assert row["input_ids"] == expected[row["sample_id"]]["input_ids"]
            seen.add(row["sample_id"])
    assert seen == set(expected)
    for name in ("segments", "dependencies"):
        n = sum(len(row[name]) for part in loaded for row in part["rows"])
        assert n == len(table(store, name)) > 20


def test_export_without_tables_is_refused_by_datasets(exported, tmp_path):
    """`load_dataset` would take the JSON index of MDS for the samples, without an error."""
    store, _ = exported
    settings = export_settings(tmp_path, {"formats": ["mds"]}, tokens=TOKENS)
    export = export_training_data(store, SHARDS, settings, code_version=CODE)
    card = Path(export.uri) / "README.md"
    assert "`load_dataset` cannot load these formats" in card.read_text()
    code = f"import datasets; datasets.load_dataset({export.uri!r})"
    command = [str(PYTHON), "-c", code]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf")}
    run = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert run.returncode != 0
    assert "this-export-has-no-parquet-files" in run.stderr.splitlines()[-1]


def test_settings_on_the_card_are_needed(exported, tmp_path):
    """Without the card's settings, the trainers damage the samples.

    If this test fails for one of them, the card no longer needs that setting.
    """
    _, export = exported
    (tmp_path / "trl").mkdir()
    cut = read("trl", export.uri, tmp_path / "trl", "max_length=None, ")
    assert {len(row["ids"]) for row in cut} == {1024}

    choice = {"formats": ["megatron"], "validation_fraction": 0}
    settings = export_settings(tmp_path / "data", choice, tokens=TOKENS)
    export = export_training_data(
        fill_store(settings, worlds(SHARDS[:2])), SHARDS[:2], settings, code_version=CODE
    )
    left_out = {"whole": [], "shifted": ["    add_extra_token_to_sequence=False,\n"]}
    rows = {}
    for name, part in left_out.items():
        (tmp_path / name).mkdir()
        rows[name] = read("megatron", export.uri, tmp_path / name, *part)
    assert (len(rows["whole"]), len(rows["shifted"])) == (2, 1)
    assert rows["whole"][0]["beyond"] == -100
    assert rows["shifted"][0]["beyond"] != -100
