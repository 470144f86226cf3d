"""Reads an export with the code of its card or of docs/trainers.md, and prints what it gives.

    python read_more.py olmo|nanotron|torchtitan|litdata <export> <scratch> <file with code>

Runs in the readers' own environment, in the folder of the export; imports nothing of the package.
Prints JSON: a row per sample with the hash of its ids, the number of positions whose prediction is
learnt, the ids of these targets, and where an attention span of the sample starts.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np


def digest(values: Any) -> str:
    return hashlib.sha256(np.asarray(values, np.int64).tobytes()).hexdigest()


def row(ids: Any, targets: Any, span_starts: list[int], **more: Any) -> dict[str, Any]:
    """targets: the id that each position predicts, -100 for positions that are not learnt."""
    targets = np.asarray(targets)
    learnt = targets[targets != -100]
    return {
        "ids": digest(ids),
        "learnt": len(learnt),
        "targets": digest(learnt),
        "span_starts": span_starts,
        **more,
    }


def read_olmo(space: dict[str, Any], scratch: Path) -> list[dict[str, Any]]:
    from olmo_core.data.data_loader import NumpyDataLoaderConfig
    from olmo_core.data.utils import get_labels

    config = space["config"]
    named, config.dtype = config.dtype, None
    guessed = config.get_dtype().__name__
    config.dtype = named
    dataset = space["dataset"]
    length = config.sequence_length
    loader = NumpyDataLoaderConfig(
        global_batch_size=length, seed=0, work_dir=str(scratch), target_device_type="cpu"
    ).build(dataset)
    loader.reshuffle(epoch=1)
    rows = []
    for batch in loader:
        assert batch["input_ids"].shape == (1, length)
        labels = get_labels(batch)[0].numpy()
        # Without `doc_lens` attention spans the whole instance.
        assert "doc_lens" not in batch
        ids = batch["input_ids"][0].numpy()
        rows.append(row(ids, labels, [0], guessed=guessed, named=str(named), length=len(dataset)))
    return rows


def nanotron_targets(item: dict[str, Any]) -> np.ndarray:
    """Labels as nanotron's collators give them (docstring of the format nanotron)."""
    ids, positions = item["input_ids"].numpy(), item["positions"].numpy()
    return np.where(positions[1:] == 0, -100, ids[1:])


def read_nanotron(space: dict[str, Any], _: Path) -> list[dict[str, Any]]:
    from datatrove.utils.dataset import DatatroveFolderDataset

    facts = json.loads(Path("nanotron/dataset.json").read_text())
    by_index = space["dataset"]
    by_eos = DatatroveFolderDataset(
        "nanotron/train",
        seq_len=facts["sequence_length"],
        filename_pattern="**/*.ds",
        token_size=np.dtype(facts["dtype"]).itemsize,
        return_positions=True,
        positions_from_eos_token_id=facts["eos_token_id"],
    )
    rows = []
    for number in range(len(by_index)):
        item = by_index[number]
        positions = item["positions"].numpy()[:-1]
        rows.append(
            row(
                item["input_ids"][:-1].numpy(),
                nanotron_targets(item),
                np.flatnonzero(positions == 0).tolist(),
                stored=item["input_ids"].tolist(),
                learnt_by_eos=int((nanotron_targets(by_eos[number]) != -100).sum()),
            )
        )
    return rows


def draw_and_resume(config: Any, length: int, count: int, half: int) -> list[Any]:
    """Draw batches from a torchtitan loader, and check that it resumes after `half` of them."""

    def build() -> Any:
        return config.build(
            dp_world_size=1, dp_rank=0, tokenizer=None, seq_len=length, local_batch_size=1
        )

    loader = build()
    batches, state = [], None
    for batch in itertools.islice(loader, count):
        batches.append(batch)
        if len(batches) == half:
            state = loader.state_dict()
    resumed = build()
    resumed.load_state_dict(state)
    again, expected = next(iter(resumed)), batches[half]
    assert (again[0]["input"] == expected[0]["input"]).all(), "not resumed where it was"
    return batches


def read_torchtitan(space: dict[str, Any], _: Path) -> list[dict[str, Any]]:
    config = space["TokenIdLoader"].Config(dataset_path=str(Path.cwd()))
    content = json.loads(Path("manifest.json").read_text())
    samples = content["splits"]["train"]
    length = content["tokenizer"]["sample_tokens"]
    batches = draw_and_resume(config, length, samples + 1, samples // 2)
    rows = []
    for inputs, labels in batches[:samples]:
        positions = inputs["positions"][0].numpy()
        starts = np.flatnonzero(positions == 0).tolist()
        rows.append(row(inputs["input"][0].numpy(), labels[0].numpy(), starts))
    return rows


def read_litdata(space: dict[str, Any], _: Path) -> list[dict[str, Any]]:
    return [
        row(item["input_ids"], item["labels"][1:], [0], sample_id=item["sample_id"])
        for item in space["dataset"]
    ]


READERS = {
    "olmo": read_olmo,
    "nanotron": read_nanotron,
    "torchtitan": read_torchtitan,
    "litdata": read_litdata,
}

if __name__ == "__main__":
    name, export, scratch, code = sys.argv[1:]
    os.chdir(export)
    space: dict[str, Any] = {"__name__": "snippet", "folder": export}
    sys.modules["snippet"] = type(sys)("snippet")
    exec(compile(Path(code).read_text(), code, "exec"), space)
    print(json.dumps(READERS[name](space, Path(scratch))))
