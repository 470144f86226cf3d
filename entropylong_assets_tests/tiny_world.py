"""A tiny corpus, tiny random models and the settings that go with them, made in a folder.

The scoring model is a random Llama with a byte-level BPE tokenizer trained on the corpus; its
weights are sharp enough that contexts move entropies both ways. The embedder is a random BERT.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from entropylong_assets.project import Project, make_project
from entropylong_assets.settings.section import Settings

_TEXT = (
    "river stone lamp copper north engine garden signal winter thread paper harbour salt mirror "
    "orchard bridge quiet ember violet ladder compass anchor meadow lantern granite willow"
)
WORDS = _TEXT.split()


def sentence(draw: np.random.Generator) -> str:
    words = draw.choice(WORDS, int(draw.integers(6, 14)))
    return " ".join(words).capitalize() + "."


def document(seed: int, sentences: int = 14) -> str:
    draw = np.random.default_rng(seed)
    lines = [" ".join(sentence(draw) for _ in range(3)) for _ in range(sentences // 3)]
    return "\n".join(lines)


def write_models(folder: Path, seed: int = 3) -> tuple[str, str]:
    """Folders of a scoring model and an embedder, with random weights of this seed."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import (
        BertConfig,
        BertModel,
        BertTokenizerFast,
        LlamaConfig,
        LlamaForCausalLM,
        PreTrainedTokenizerFast,
    )

    torch.manual_seed(seed)
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
    bpe.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator([document(seed) for seed in range(20)], trainer)
    scoring = folder / "llama"
    PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token="<s>", eos_token="</s>"
    ).save_pretrained(scoring)
    config = LlamaConfig(
        vocab_size=bpe.get_vocab_size(),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        tie_word_embeddings=False,
    )
    llama = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for name, parameter in llama.named_parameters():
            if "norm" not in name:
                parameter.normal_(0, 0.3)
        llama.lm_head.weight.normal_(0, 0.7)
    llama.save_pretrained(scoring)

    letters = folder / "vocab.txt"
    pieces = [*"abcdefghijklmnopqrstuvwxyz.", *(f"##{c}" for c in "abcdefghijklmnopqrstuvwxyz")]
    letters.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, *pieces]))
    bert = folder / "bert"
    BertTokenizerFast(vocab=str(letters), do_lower_case=True).save_pretrained(bert)
    BertModel(
        BertConfig(
            vocab_size=5 + len(WORDS) + len(pieces),
            hidden_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=32,
            max_position_embeddings=64,
        )
    ).save_pretrained(bert)
    return str(scoring), str(bert)


def write_corpus(folder: Path) -> None:
    """Two JSON Lines files of 12 documents. One is in both files, one is a near-copy of another."""
    folder.mkdir(parents=True, exist_ok=True)
    first = [document(seed) for seed in range(100, 112)]
    second = [document(seed) for seed in range(200, 210)]
    edited = first[1].replace("river", "canal", 1)
    for name, texts in (("a", first), ("b", [*second, first[0], edited])):
        lines = [json.dumps({"text": text, "id": f"{name}{i}"}) for i, text in enumerate(texts)]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def tiny_values(corpus: Path, data: Path, models: tuple[str, str], **over: Any) -> dict[str, Any]:
    """The content of a settings file with one corpus and one dataset."""
    scoring, embedder = models
    values: dict[str, Any] = {
        "data_uri": str(data),
        "corpus": {
            "sources": [
                {"name": "tiny", "uri": f"{corpus}/*.jsonl", "id_field": "id", "license": "cc0-1.0"}
            ],
            "min_chars": 20,
        },
        "embedding": {"model": embedder, "chunk_tokens": 40, "recall_queries": 10, "recall_k": 4},
        # The corpus has one near-copy, for the leak check to find.
        "near_duplicates": {"threshold": None},
        "roots": {"fraction": 0.5, "min_tokens": 20, "max_tokens": 400},
        "scoring": {"model": scoring, "bos": "always", "separator": "\n\n", "dtype": "float32"},
        "entropy": {"alpha": 1.5, "min_anchor_position": 4},
        "retrieval": {"top_k": 4, "half_window": 8},
        # A random model is moved by any text, so random contexts are often accepted here. Rule
        # `genuine` would reject nearly all: of so few words, every wording is in many documents.
        "verification": {
            "rule": "calibrated",
            "compared_rules": ["plain", "genuine"],
            "epsilon": 0.1,
            "controls": 2,
            "max_false_acceptance": 1.0,
        },
        "samples": {"tokens": 4096},
    }
    for section, changes in over.items():
        old = values.get(section, {})
        values[section] = {**old, **changes} if isinstance(changes, dict) else changes
    return values


def tiny_project(corpus: Path, data: Path, models: tuple[str, str], **over: Any) -> Project:
    return make_project(tiny_values(corpus, data, models, **over))


def tiny_settings(corpus: Path, data: Path, models: tuple[str, str], **over: Any) -> Settings:
    """Settings of the dataset of `tiny_project`."""
    return tiny_project(corpus, data, models, **over).dataset
