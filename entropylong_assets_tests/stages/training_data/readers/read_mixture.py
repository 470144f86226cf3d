"""Draws from a mixture as a trainer does, with the code of its card or of docs/trainers.md.

    python read_mixture.py <trainer> <export> <scratch> <docs/trainers.md>

Runs in the readers' own environment (requirements.txt); imports nothing of the package. Prints
JSON: the hash of the first token ids of every sample that the trainer draws, in their order. The
last ids can be padding, which Megatron-LM replaces.
"""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path
from typing import Any

from read_export import NOT_LEARNT, code_of_card, run_card, without
from read_more import digest, draw_and_resume

BEGINNING = 64
"""Ids of a sample that are hashed."""
DRAWN = 400
"""Samples drawn by trainers that draw without end."""


def block_after(page: Path, heading: str) -> str:
    text = page.read_text(encoding="utf-8")
    match = re.search(r"```python\n(.*?)```", text[text.index(heading) :], re.S)
    assert match, heading
    return match[1]


def run_page(page: Path, *headings: str, **names: Any) -> dict[str, Any]:
    """Run the first block after each of these headings of docs/trainers.md."""
    sys.modules["snippet"] = type(sys)("snippet")  # where its dataclasses look for their module
    space: dict[str, Any] = {"__name__": "snippet", **names}
    for heading in headings:
        code = block_after(page, heading).replace("<this folder>", str(names["folder"]))
        exec(code, space)
    return space


def draw_streaming(export: Path, _: Path, __: Path) -> list[Any]:
    without("streaming.vision")
    code = code_of_card(export, "ProLong and EntropyLong")[-1]
    space: dict[str, Any] = {"folder": str(export)}
    exec(code, space)
    return [sample["input_ids"] for sample in space["dataset"]]


def draw_prolong(export: Path, _: Path, __: Path) -> list[Any]:
    """The paths as its `build_dataset` parses them, with its epoch of a fixed number of samples."""
    without("streaming.vision")
    from streaming import Stream, StreamingDataset

    (command,) = code_of_card(export, "ProLong and EntropyLong", "bash")
    paths = re.findall(r"<folder>(/\S+)", command)
    streams = []
    for path in paths:
        folder, proportion = f"{export}{path}".split("@", 1)
        streams.append(Stream(remote=folder, local=folder, proportion=float(proportion)))
    dataset = StreamingDataset(streams=streams, shuffle=False, batch_size=1, epoch_size=DRAWN)
    return [sample["input_ids"] for sample in dataset]


def draw_megatron(export: Path, scratch: Path, _: Path) -> list[Any]:
    import types

    import torch
    from megatron.core.datasets.blended_megatron_dataset_builder import (
        BlendedMegatronDatasetBuilder,
    )
    from megatron.core.datasets.gpt_dataset import GPTDataset
    from megatron.core.datasets.utils import get_blend_from_list

    content = json.loads((export / "manifest.json").read_text())
    facts = content["tokenizer"]
    tokenizer = types.SimpleNamespace(
        pad=facts["pad_id"],
        eod=facts["pad_id"],
        vocab_size=facts["vocab_size"],
        unique_identifiers={"class": "of the test"},
    )
    config = run_card(export, "Megatron-LM", tokenizer=tokenizer)["config"]
    (command,) = code_of_card(export, "Megatron-LM", "bash")
    arguments = command.split("--train-data-path ")[1].replace("<folder>", str(export)).split()
    assert get_blend_from_list(arguments) == tuple(config.blend_per_split[0])
    config.path_to_cache = str(scratch)
    torch.distributed.init_process_group(  # which the builder of a blend asks for its rank
        "gloo", init_method=f"file://{scratch}/group", rank=0, world_size=1
    )
    train, validation, _ = BlendedMegatronDatasetBuilder(
        GPTDataset, [DRAWN, None, None], lambda: True, config
    ).build()
    assert len(validation) == content["splits"]["validation"]
    return [train[i]["tokens"] for i in range(DRAWN)]


def draw_olmo(export: Path, scratch: Path, _: Path) -> list[Any]:
    space: dict[str, Any] = {"folder": str(export), "work_dir": str(scratch)}
    for code in code_of_card(export, "OLMo-core"):
        exec(code, space)
    assert len(space["source"]) > 0
    mixture = space["mixture"]
    mixture.num_instances = DRAWN
    for spec in mixture.source_specs:
        spec.max_repetition_factor = DRAWN
    source = mixture.build(str(scratch))
    instances = [source[i] for i in range(len(source))]
    assert all("label_mask" in instance for instance in instances)
    return [instance["input_ids"] for instance in instances]


def draw_datasets(export: Path, _: Path, __: Path) -> list[Any]:
    mixed = run_card(export, "Mixtures with `datasets`")["mixed"]
    assert set(mixed.column_names) == {"input_ids", "labels", "attention_mask"}
    return [row["input_ids"] for row in mixed]


def draw_trl(export: Path, _: Path, __: Path) -> list[Any]:
    """The YAML as TRL's scripts parse it."""
    import yaml
    from trl.scripts.utils import DatasetConfig, DatasetMixtureConfig, get_dataset

    (text,) = code_of_card(export, "Mixtures with `datasets`", "yaml")
    entries = yaml.safe_load(text.replace("<folder>", str(export)))["datasets"]
    mixture = DatasetMixtureConfig(datasets=[DatasetConfig(**entry) for entry in entries])
    return [row["input_ids"] for row in get_dataset(mixture)["train"]]


def draw_torchtitan(export: Path, _: Path, page: Path) -> list[Any]:
    content = json.loads((export / "manifest.json").read_text())
    space = run_page(page, "## torchtitan", "### torchtitan and mixtures", folder=str(export))
    shares = {part: row["share"] for part, row in content["mixture"].items()}
    config = space["MixtureLoader"].Config(dataset_path=str(export), weights=shares)
    length = content["tokenizer"]["sample_tokens"]
    batches = draw_and_resume(config, length, DRAWN, DRAWN // 2)
    assert all((labels != NOT_LEARNT).any() for _, labels in batches)
    return [inputs["input"][0] for inputs, _ in batches]


def draw_litdata(export: Path, scratch: Path, page: Path) -> list[Any]:
    os.chdir(scratch)
    mixture = json.loads((export / "manifest.json").read_text())["mixture"]
    shares = {part: row["share"] for part, row in mixture.items()}
    space = run_page(page, "### litdata and mixtures", folder=str(export), weights=shares)
    return [item["input_ids"] for item in space["dataset"]]


DRAWS = {
    "streaming": draw_streaming,
    "prolong": draw_prolong,
    "megatron": draw_megatron,
    "olmo": draw_olmo,
    "datasets": draw_datasets,
    "trl": draw_trl,
    "torchtitan": draw_torchtitan,
    "litdata": draw_litdata,
}

if __name__ == "__main__":
    name, export, scratch, page = sys.argv[1:]
    del sys.argv[4:]  # `run_card` reads more arguments
    drawn = DRAWS[name](Path(export), Path(scratch), Path(page))
    print(json.dumps([digest(ids[:BEGINNING]) for ids in drawn]))
