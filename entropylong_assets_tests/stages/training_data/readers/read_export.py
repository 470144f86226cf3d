"""Reads an export as a trainer does, with the code of its card, and prints what the trainer gets.

    python read_export.py <trainer> <export> <scratch> [<part of the card's code to leave out>]

Runs in the readers' own environment (requirements.txt); imports nothing of the package. Prints
JSON: one row per sample that reaches the model, with

    split
    ids      token ids, as the model reads them
    labels   by position of the token itself: the id if the trainer learns to predict it, else -100
    span     by position: tokens of equal numbers attend to each other; -1: nothing attends to it
    weights  by position: what the token's own loss is multiplied by; None without weights
    beyond   the token that the last one is to predict, if the trainer shifts labels itself; else
             absent
"""

from __future__ import annotations

import importlib.machinery
import json
import os
import re
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))
from formats import collate_like_prolong

NOT_LEARNT = -100


def code_of_card(export: Path, heading: str, language: str = "python") -> list[str]:
    """The blocks of code under a heading of the card that begins so."""
    text = (export / "README.md").read_text(encoding="utf-8")
    (section,) = re.findall(rf"^### {re.escape(heading)}.*?(?=^#|\Z)", text, re.M | re.S)
    return re.findall(rf"```{language}\n(.*?)```", section, re.S)


def run_card(export: Path, heading: str, **names: Any) -> dict[str, Any]:
    """Run the first block of Python under a heading; return its names."""
    space = {"folder": str(export), **names}
    code = code_of_card(export, heading)[0]
    left_out = sys.argv[4] if len(sys.argv) > 4 else ""
    assert left_out in code
    code = code.replace(left_out, "") if left_out else code
    exec(code.replace("SFTConfig(", "SFTConfig(use_cpu=True, "), space)  # it insists on a GPU
    return space


def without(module: str) -> None:
    """Let a library import a module that is not installed and not needed for token ids."""
    sys.modules[module] = types.ModuleType(module)
    sys.modules[module].__spec__ = importlib.machinery.ModuleSpec(module, None)


def tokenizer_of(export: Path, scratch: Path) -> Any:
    """A tokenizer with the same ids as the export's. It is never used on a text."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    facts = json.loads((export / "manifest.json").read_text())["tokenizer"]
    words = {f"w{number}": number for number in range(facts["vocab_size"])}
    del words[f"w{facts['pad_id']}"], words[f"w{facts['bos_id']}"]
    words |= {facts["pad_token"]: facts["pad_id"], facts["bos_token"]: facts["bos_id"]}
    words["</s>"] = words.pop(f"w{facts['bos_id'] + 1}")
    rust = Tokenizer(models.WordLevel(words, unk_token=facts["pad_token"]))
    fast = PreTrainedTokenizerFast(
        tokenizer_object=rust, pad_token=facts["pad_token"], eos_token="</s>"
    )
    fast.save_pretrained(scratch / "tokenizer")
    return fast


def tiny_model(export: Path) -> Any:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    facts = json.loads((export / "manifest.json").read_text())["tokenizer"]
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=facts["vocab_size"],
            hidden_size=8,
            intermediate_size=8,
            num_hidden_layers=1,
            num_attention_heads=1,
            max_position_embeddings=facts["sample_tokens"],
        )
    )


def shifted(labels: Any) -> list[int]:
    """Labels of a model that shifts them itself, which so never predicts the first token."""
    return [NOT_LEARNT, *np.asarray(labels).tolist()[1:]]


def rows_of_batch(batch: Any, split: str = "train") -> list[dict[str, Any]]:
    """Rows of a batch with one sample per row, as models of transformers are called with."""
    import torch

    unknown = set(batch) - {"input_ids", "labels", "attention_mask", "loss_weights"}
    assert not unknown, f"no model takes {unknown}"
    mask = batch.get("attention_mask")
    mask = torch.ones_like(batch["input_ids"]) if mask is None else mask
    weights = batch.get("loss_weights")
    return [
        {
            "split": split,
            "ids": batch["input_ids"][i].tolist(),
            "labels": shifted(batch["labels"][i]),
            "span": (mask[i].to(torch.int64) - 1).tolist(),
            "weights": None if weights is None else weights[i].tolist(),
        }
        for i in range(len(batch["input_ids"]))
    ]


def read_prolong(export: Path, _: Path) -> list[dict[str, Any]]:
    without("streaming.vision")
    from streaming import Stream, StreamingDataset

    (command,) = code_of_card(export, "ProLong and EntropyLong", "bash")
    paths = re.findall(r"<folder>(/\S+)", command)
    rows = []
    for split in ("train", "validation"):
        folders = [f"{export}{path}".replace("/train/", f"/{split}/") for path in paths]
        if split == "validation":
            folders = [str(path) for path in (export / "mds" / split).iterdir()]
        # As ProLong names its streams.
        streams = [Stream(remote=folder, local=folder) for folder in folders]
        for sample in StreamingDataset(streams=streams, shuffle=False, batch_size=1):
            batch = collate_like_prolong(sample, apply_masks=False)
            rows.append(
                {
                    "split": split,
                    "ids": batch["input_ids"].tolist(),
                    "labels": batch["labels"].tolist(),
                    "span": batch["span"].tolist(),
                    "weights": batch["weights"],
                }
            )
    return rows


def read_transformers(export: Path, scratch: Path) -> list[dict[str, Any]]:
    os.chdir(scratch)
    space = run_card(export, "transformers", model=tiny_model(export))
    trainer = space["trainer"]
    rows = [row for batch in trainer.get_train_dataloader() for row in rows_of_batch(batch)]
    held = trainer.get_eval_dataloader(space["samples"]["validation"])
    rows += [row for batch in held for row in rows_of_batch(batch, "validation")]
    learn_one_step(trainer)
    return rows


def learn_one_step(trainer: Any) -> None:
    """Run the trainer's own step, and check that it divides the loss by the number of labels."""
    import torch

    batch = next(iter(trainer.get_train_dataloader()))
    n_learnt = int((batch["labels"][:, 1:] != NOT_LEARNT).sum())
    with torch.no_grad():
        mean = trainer.compute_loss(trainer.model, dict(batch))
        scaled = trainer.compute_loss(
            trainer.model, dict(batch), num_items_in_batch=torch.tensor(2 * n_learnt)
        )
    assert torch.isclose(scaled, mean / 2, rtol=1e-4), (mean, scaled)


def read_flattening(export: Path, _: Path) -> list[dict[str, Any]]:
    """DataCollatorWithFlattening puts the samples of a batch after one another."""
    from datasets import load_dataset
    from transformers import DataCollatorWithFlattening

    samples = load_dataset(str(export))
    result = []
    for split, rows in samples.items():
        batch = DataCollatorWithFlattening()(list(rows))
        positions = batch["position_ids"][0].numpy()
        number = np.cumsum(positions == 0) - 1
        for i in range(number.max() + 1):
            mine = number == i
            result.append(
                {
                    "split": str(split),
                    "ids": batch["input_ids"][0].numpy()[mine].tolist(),
                    "labels": batch["labels"][0].numpy()[mine].tolist(),
                    "span": number[mine].tolist(),
                    "weights": None,
                }
            )
    return result


def read_weighted(export: Path, scratch: Path) -> list[dict[str, Any]]:
    """The card's loss in a `Trainer`. Its gradient shows the factor of each label."""
    import torch
    from datasets import load_dataset
    from transformers import TrainingArguments

    os.chdir(scratch)
    loss, trainer = code_of_card(export, "Loss weights")
    space: dict[str, Any] = {}
    exec(loss + "\n" + trainer, space)
    samples = load_dataset(str(export), "weighted")
    arguments = TrainingArguments(
        output_dir="out", per_device_train_batch_size=1, remove_unused_columns=False
    )
    model = tiny_model(export)
    trainer = space["WeightedTrainer"](model=model, args=arguments, train_dataset=samples["train"])
    learn_one_step(trainer)
    result = []
    for split, rows in samples.items():
        for batch in trainer.get_eval_dataloader(rows):
            labels = batch["labels"]
            # Equal logits: the gradient of a token's loss is the same but for its weight.
            logits = torch.zeros(*labels.shape, 4, requires_grad=True)
            few = torch.where(labels == NOT_LEARNT, labels, labels % 4)
            space["weighted_loss"](logits, few, batch["loss_weights"]).backward()
            n_learnt = int((labels[:, 1:] != NOT_LEARNT).sum())
            multiplied = logits.grad.abs().sum(-1) * n_learnt / 1.5
            for row, of_next in zip(rows_of_batch(batch, str(split)), multiplied, strict=True):
                result.append(row | {"weights": [0.0, *of_next[:-1].tolist()]})
    return result


def read_trl(export: Path, scratch: Path) -> list[dict[str, Any]]:
    os.chdir(scratch)
    names = {"model": tiny_model(export), "tokenizer": tokenizer_of(export, scratch)}
    space = run_card(export, "TRL", **names)
    trainer = space["trainer"]
    rows = [row for batch in trainer.get_train_dataloader() for row in rows_of_batch(batch)]
    held = trainer._prepare_dataset(
        space["samples"]["validation"], names["tokenizer"], trainer.args, False, None, "eval"
    )
    batches = trainer.get_eval_dataloader(held)
    return rows + [row for batch in batches for row in rows_of_batch(batch, "validation")]


def read_axolotl(export: Path, scratch: Path) -> list[dict[str, Any]]:
    import yaml
    from axolotl.utils.data.sft import _load_and_prepare_datasets
    from axolotl.utils.dict import DictDefault
    from transformers import DataCollatorForSeq2Seq

    os.chdir(scratch)
    (text,) = code_of_card(export, "axolotl", "yaml")
    settings = yaml.safe_load(text.replace("<folder>", str(export)))
    rows = []
    tokenizer = tokenizer_of(export, scratch)
    collate = DataCollatorForSeq2Seq(tokenizer)  # what axolotl takes without sample_packing
    for split, key in (("train", "datasets"), ("validation", "test_datasets")):
        given = settings | {key: [settings["datasets"][0] | {"split": split}]}
        more = {"dataset_prepared_path": str(scratch / split), "val_set_size": 0}
        config, side = DictDefault(given | more), "train" if split == "train" else "test"
        train, held, _ = _load_and_prepare_datasets(tokenizer, config, split=side)
        for row in train or held:
            rows += rows_of_batch(collate([dict(row)]), split)
    return rows


def read_llamafactory(export: Path, scratch: Path) -> list[dict[str, Any]]:
    without("torchaudio")
    # It names older versions of transformers, datasets, TRL; its own switch for newer ones.
    os.environ["DISABLE_VERSION_CHECK"] = "1"
    from llamafactory.data import SFTDataCollatorWith4DAttentionMask, get_template_and_fix_tokenizer
    from llamafactory.data.loader import get_dataset
    from llamafactory.hparams import DataArguments
    from transformers import Seq2SeqTrainer, Seq2SeqTrainingArguments

    os.chdir(scratch)
    run_card(export, "LLaMA-Factory")
    tokenizer = tokenizer_of(export, scratch)
    data = DataArguments(tokenized_path="tokenized", template="empty")
    template = get_template_and_fix_tokenizer(tokenizer, data)
    arguments = Seq2SeqTrainingArguments(output_dir="out", per_device_train_batch_size=1)
    module = get_dataset(template, None, data, arguments, stage="sft", tokenizer=tokenizer)
    collator = SFTDataCollatorWith4DAttentionMask(
        template=template, tokenizer=tokenizer, pad_to_multiple_of=8, label_pad_token_id=NOT_LEARNT
    )
    trainer = Seq2SeqTrainer(
        model=tiny_model(export),
        args=arguments,
        data_collator=collator,
        train_dataset=module["train_dataset"],
        eval_dataset=module["eval_dataset"],
    )
    rows = [row for batch in trainer.get_train_dataloader() for row in rows_of_batch(batch)]
    held = trainer.get_eval_dataloader()
    return rows + [row for batch in held for row in rows_of_batch(batch, "validation")]


def read_megatron(export: Path, scratch: Path) -> list[dict[str, Any]]:
    from megatron.core.datasets.blended_megatron_dataset_builder import (
        BlendedMegatronDatasetBuilder,
    )
    from megatron.core.datasets.gpt_dataset import GPTDataset

    facts = json.loads((export / "manifest.json").read_text())["tokenizer"]
    tokenizer = types.SimpleNamespace(
        pad=facts["pad_id"],
        eod=facts["bos_id"] + 1,
        vocab_size=facts["vocab_size"],
        unique_identifiers={"class": "of the test"},
    )
    config = run_card(export, "Megatron-LM", tokenizer=tokenizer)["config"]
    config.path_to_cache = str(scratch)
    sizes = [None, None, None]  # one epoch
    splits = BlendedMegatronDatasetBuilder(GPTDataset, sizes, lambda: True, config).build()
    rows = []
    for split, dataset in zip(("train", "validation"), splits[:2], strict=True):
        for i in range(len(dataset or ())):
            sample = dataset[i]
            learnt = sample["loss_mask"].numpy() > 0
            labels = np.where(learnt, sample["labels"].numpy(), NOT_LEARNT).tolist()
            # The mask is True where attention is cut: a causal one cuts nothing before a token.
            attends = ~sample["attention_mask"][0].numpy()
            span = (np.tril(np.ones_like(attends)) == attends).all(1).astype(int) - 1
            rows.append(
                {
                    "split": split,
                    "ids": sample["tokens"].tolist(),
                    "labels": [NOT_LEARNT, *labels[:-1]],
                    "span": span.tolist(),
                    "weights": None,
                    "beyond": labels[-1],
                }
            )
    return rows


def read_datasets(export: Path, _: Path) -> list[dict[str, Any]]:
    """All columns, by the second block of code under the heading."""
    space = run_card(export, "Hugging Face `datasets`")
    assert set(space["samples"]["train"].column_names) == {"input_ids", "labels", "attention_mask"}
    return [
        {
            "split": str(split),
            "types": {
                name: rows.features[name].feature.dtype
                for name in ("input_ids", "labels", "attention_mask", "loss_weights", "anchors")
            },
            "rows": [dict(row) for row in rows],
        }
        for split, rows in space["proof"].items()
    ]


READERS = {
    "datasets": read_datasets,
    "prolong": read_prolong,
    "transformers": read_transformers,
    "flattening": read_flattening,
    "weighted": read_weighted,
    "trl": read_trl,
    "axolotl": read_axolotl,
    "llamafactory": read_llamafactory,
    "megatron": read_megatron,
}

if __name__ == "__main__":
    rows = READERS[sys.argv[1]](Path(sys.argv[2]), Path(sys.argv[3]))
    print(json.dumps(rows))
