"""The classes of more trainers read our exports as cards and docs say (`make test-exports`).

Failures looked for: a sample cut, merged or shifted; padding that is learnt; a real token that is
not; a context in another attention span than its anchor; ids read as another type; a snippet of a
card or page that does not run.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from entropylong_assets.stages.training_data.export import export_training_data
from entropylong_assets_tests.stages.training_data.stores import (
    CODE,
    SHARDS,
    TOKENS,
    export_settings,
    fill_store,
    table,
)

PYTHON = os.environ.get("ENTROPYLONG_READERS_PYTHON")
READER = Path(__file__).parent / "readers" / "read_more.py"
DOCS = Path(__file__).parents[3] / "docs"
PAGE = DOCS / "trainers.md"

pytestmark = pytest.mark.skipif(
    not PYTHON, reason="the real readers have an environment of their own: make test-exports"
)


TOKENIZERS = {
    "two bytes per id, with EOS": {"vocab_size": 50_000, "eos_id": 2, "eos_token": "</s>"},
    "four bytes per id, no EOS": {"vocab_size": 100_000},
}


@pytest.fixture(scope="module", params=TOKENIZERS)
def exported(tmp_path_factory, request):
    choice = {"formats": ["olmo", "nanotron", "parquet"], "validation_fraction": 0.3}
    settings = export_settings(tmp_path_factory.mktemp("data"), choice)
    store = fill_store(settings, **TOKENIZERS[request.param])
    export = export_training_data(store, SHARDS, settings, code_version=CODE)
    assert min(export.manifest["splits"].values()) > 0
    return store, export


def block_after(text: str, heading: str, language: str = "python") -> str:
    """The first code block of a language after a heading."""
    match = re.search(rf"```{language}\n(.*?)```", text[text.index(heading) :], re.S)
    assert match, f"no code after {heading}"
    return match[1]


def run_reader(form: str, export: Any, code: str, scratch: Path) -> list[dict[str, Any]]:
    snippet = scratch / "snippet.py"
    snippet.write_text(code, encoding="utf-8")
    command = [str(PYTHON), str(READER), form, export.uri, str(scratch), str(snippet)]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(scratch / "hf")}
    environment |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": ""}
    run = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert run.returncode == 0, run.stderr[-3000:]
    rows: list[dict[str, Any]] = json.loads(run.stdout.splitlines()[-1])
    return rows


def digest(values: Any) -> str:
    return hashlib.sha256(np.asarray(values, np.int64).tobytes()).hexdigest()


def expected_samples(store: Any, export: Any) -> dict[str, dict[str, Any]]:
    """Samples of the split train: ids, number of real tokens and dependencies, from the tables."""
    validation = set(export.manifest.get("validation", ()))
    samples = {
        s["sample_id"]: {"ids": s["input_ids"], "real": TOKENS - s["n_padding"], "pairs": []}
        for s in table(store, "samples")
        if s["sample_id"] not in validation
    }
    for d in table(store, "dependencies"):
        pair = (d["context_start"], d["context_end"], d["anchor_position"])
        samples[d["sample_id"]]["pairs"].append(pair)
    return samples


def check(rows: list[dict[str, Any]], store: Any, export: Any) -> None:
    """Each sample of the split once, whole, learnt but for its padding, in one attention span."""
    samples = {digest(s["ids"]): s for s in expected_samples(store, export).values()}
    assert len(rows) == export.manifest["splits"]["train"]
    assert len({row["ids"] for row in rows}) == len(rows), "a sample is read twice"
    padded = pairs = 0
    for row in rows:
        sample = samples[row["ids"]]
        real = sample["real"]
        assert row["learnt"] == real - 1, "all real tokens but the first, which nothing predicts"
        assert row["targets"] == digest(sample["ids"][1:real])
        for start, end, anchor in sample["pairs"]:
            spans = {sum(s <= at for s in row["span_starts"]) for at in (start, end - 1, anchor)}
            assert len(spans) == 1
            pairs += 1
        padded += real < TOKENS
    assert padded
    assert pairs > 20


def test_olmo_core_reads_its_arrays(exported: Any, tmp_path: Path) -> None:
    store, export = exported
    card = (Path(export.uri) / "README.md").read_text(encoding="utf-8")
    code = block_after(card, "### OLMo-core")
    rows = run_reader("olmo", export, code, tmp_path)
    check(rows, store, export)
    for row in rows:
        assert row["length"] == export.manifest["splits"]["train"]
        small = export.manifest["tokenizer"]["vocab_size"] == 50_000
        assert row["guessed"] == row["named"] == ("uint16" if small else "uint32")


def test_datatrove_reads_t_plus_one_tokens_and_masks_padding(exported: Any, tmp_path: Path) -> None:
    store, export = exported
    card = (Path(export.uri) / "README.md").read_text(encoding="utf-8")
    code = block_after(card, "### nanotron, datatrove")
    rows = run_reader("nanotron", export, code, tmp_path)
    tokenizer = export.manifest["tokenizer"]
    has_eos = tokenizer["eos_id"] is not None
    padding = tokenizer["eos_id"] if has_eos else tokenizer["pad_id"]
    samples = {tuple(s["ids"][: s["real"]]): s for s in expected_samples(store, export).values()}
    as_read = []
    for row in rows:
        stored = row["stored"]
        assert len(stored) == TOKENS + 1
        ends = [i for i, token in enumerate(stored) if token == padding]
        real = ends[0]
        assert ends == list(range(real, TOKENS + 1)), "padding inside a sample"
        # As the ids of the sample, with its own padding.
        ids = samples[tuple(stored[:real])]["ids"]
        as_read.append(row | {"ids": digest(ids)})
        # If nanotron finds documents at EOS, it learns the one that follows the real tokens.
        assert row["learnt_by_eos"] == row["learnt"] + has_eos
    check(as_read, store, export)


def test_torchtitan_reads_parquet_through_the_class_of_the_docs(
    exported: Any, tmp_path: Path
) -> None:
    store, export = exported
    code = block_after(PAGE.read_text(encoding="utf-8"), "## torchtitan")
    check(run_reader("torchtitan", export, code, tmp_path), store, export)


def test_litdata_reads_parquet_as_the_docs_say(exported: Any, tmp_path: Path) -> None:
    store, export = exported
    code = block_after(PAGE.read_text(encoding="utf-8"), "## litdata")
    code = code.replace("<this folder>", export.uri).replace(
        "litdata-train", str(tmp_path / "train")
    )
    check(run_reader("litdata", export, code, tmp_path), store, export)
