"""Tiny sentence transformers with random weights, one of each kind that people use.

Each function writes a model into a folder and returns the folder. Their tokenizers know the words
of the tiny world and the letters.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from entropylong_assets_tests.tiny_world import WORDS

LETTERS = "abcdefghijklmnopqrstuvwxyz"
PIECES = [*LETTERS, *".:,", *(f"##{c}" for c in LETTERS)]
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, *PIECES]


def write_bert(
    folder: Path, seed: int = 5, positions: int = 64, hidden: int = 32, model_type: str = "bert"
) -> Path:
    """A plain BERT or RoBERTa, without a word on pooling."""
    import torch
    from transformers import BertConfig, BertModel, BertTokenizerFast, RobertaConfig, RobertaModel

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(VOCABULARY))
    BertTokenizerFast(vocab=str(folder / "vocab.txt"), do_lower_case=True).save_pretrained(folder)
    torch.manual_seed(seed)
    sizes: dict[str, Any] = {
        "vocab_size": len(VOCABULARY),
        "hidden_size": hidden,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "max_position_embeddings": positions,
    }
    if model_type == "roberta":
        model: Any = RobertaModel(RobertaConfig(**sizes, pad_token_id=1))
    else:
        model = BertModel(BertConfig(**sizes))
    with torch.no_grad():  # sharp enough that every token moves the vector
        for name, parameter in model.named_parameters():
            if "LayerNorm" not in name:
                parameter.normal_(0, 0.2)
    model.save_pretrained(folder)
    return folder


def modules_of(folder: Path, window: int | None, **bert: Any) -> list[Any]:
    from sentence_transformers.base.modules import Transformer
    from sentence_transformers.sentence_transformer.modules import Pooling

    kwargs = {} if window is None else {"processor_kwargs": {"model_max_length": window}}
    transformer: Any = Transformer(str(write_bert(folder, **bert)), **kwargs)
    return [transformer, Pooling(transformer.get_embedding_dimension(), "mean")]


def save(modules: list[Any], folder: Path, **options: Any) -> Path:
    from sentence_transformers import SentenceTransformer

    SentenceTransformer(modules=modules, device="cpu", **options).save(str(folder))
    return folder


def write_prompted(folder: Path, window: int | None = None, **options: Any) -> Path:
    """A BERT with mean pooling. options: prompts, default_prompt_name, truncate_dim."""
    return save(modules_of(folder / "bert", window), folder / "st", **options)


def edit_config(folder: Path, **changes: Any) -> Path:
    """Change the model's `config_sentence_transformers.json`; a value of None removes the key."""
    path = folder / "config_sentence_transformers.json"
    config = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({k: v for k, v in config.items() if v is not None}))
    return folder


def write_asymmetric(folder: Path, query_hidden: int = 32, **options: Any) -> Path:
    """A router: queries and documents have weights, positions and windows of their own."""
    from sentence_transformers.base.modules import Router

    return save(
        [
            Router.for_query_document(
                modules_of(folder / "query", 24, seed=6, hidden=query_hidden),
                modules_of(folder / "document", 48, seed=7),
            )
        ],
        folder / "st",
        **options,
    )


def bare_tokenizer(max_length: int | None = None, unknown: bool = True) -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = {word: i for i, word in enumerate(VOCABULARY)}
    if unknown:
        tokenizer = Tokenizer(models.WordPiece(words, unk_token="[UNK]"))  # type: ignore[call-arg]
    else:
        tokenizer = Tokenizer(models.BPE({c: i for i, c in enumerate(LETTERS)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()  # type: ignore[assignment]
    if max_length:
        tokenizer.enable_truncation(max_length)
    return tokenizer


def write_static(
    folder: Path, max_length: int | None = None, unknown: bool = True, **options: Any
) -> Path:
    """Static embeddings: the mean of vectors of tokens; no window of their own."""
    import torch
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding

    torch.manual_seed(8)
    tokenizer = bare_tokenizer(max_length, unknown)
    module = StaticEmbedding(tokenizer, embedding_weights=torch.randn(len(VOCABULARY), 16))
    return save([module], folder, **options)


ADAPTER_CODE = '''
import torch
from sentence_transformers.base.modules import Transformer


class AdapterTransformer(Transformer):
    """As that of jina-embeddings-v3: a task selects an adapter, an unknown task is refused."""

    forward_kwargs = {"task"}

    def forward(self, features, task=None, **kwargs):
        tasks = self.config.lora_adaptations
        if task not in tasks:
            raise ValueError(f"Unsupported task '{task}'. Supported tasks are: {tasks}.")
        features = super().forward(features, **kwargs)
        features["token_embeddings"] = features["token_embeddings"] + 3 * torch.sin(
            torch.arange(32) * (1 + tasks.index(task))
        )
        return features
'''


def write_adapters(folder: Path, tasks: list[str], **options: Any) -> Path:
    """A model that ships its own code: an adapter per task."""
    st = save(modules_of(folder / "bert", 48), folder / "st", **options)
    (st / "adapter_code.py").write_text(ADAPTER_CODE)
    modules = json.loads((st / "modules.json").read_text())
    modules[0] |= {"type": "adapter_code.AdapterTransformer", "kwargs": ["task"]}
    (st / "modules.json").write_text(json.dumps(modules))
    config = json.loads((st / "config.json").read_text())
    (st / "config.json").write_text(json.dumps(config | {"lora_adaptations": tasks}))
    return st
