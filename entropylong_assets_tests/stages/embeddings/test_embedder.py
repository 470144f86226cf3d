"""An embedder that can't be used ends in one line."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from entropylong_assets.stages.embeddings.embedder import load_embedder
from entropylong_assets.stages.embeddings.settings import EmbeddingSettings
from entropylong_assets.stages.model_files import ModelError


@pytest.mark.parametrize("size", [0, 100, 5000])
def test_weights_that_are_cut_short(
    tiny_models: tuple[str, str], tmp_path: Path, size: int
) -> None:
    folder = tmp_path / "embedder"
    shutil.copytree(tiny_models[1], folder)
    assert load_embedder(EmbeddingSettings(model=tiny_models[1])).dimension > 0
    for weights in folder.rglob("*.safetensors"):
        weights.write_bytes(weights.read_bytes()[:size])
    with pytest.raises(ModelError, match="can't be loaded as a sentence transformer") as caught:
        load_embedder(EmbeddingSettings(model=str(folder)))
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)


def test_text_that_spells_special_tokens_is_embedded_as_text(tiny_models: tuple[str, str]) -> None:
    embedder = load_embedder(EmbeddingSettings(model=tiny_models[1], device="cpu"))
    tokenizer = embedder.model.tokenizer
    spelt = "[SEP] [CLS] [PAD] [MASK]"
    special = {tokenizer.sep_token_id, tokenizer.pad_token_id, tokenizer.mask_token_id}
    ids = tokenizer(f"river {spelt} stone")["input_ids"]
    assert not special & set(ids[1:-1])
    assert embedder.count_tokens([spelt]) == [len(tokenizer(spelt)["input_ids"])] != [6]
    assert tokenizer.cls_token_id == ids[0], "its own special tokens are still put around a text"
    assert tokenizer.sep_token_id == ids[-1]
