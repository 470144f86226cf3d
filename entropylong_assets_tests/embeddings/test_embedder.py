"""An embedder that can't be used ends in one line."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from entropylong_assets.embeddings.embedder import load_embedder
from entropylong_assets.entropy.model_files import ModelError
from entropylong_assets.settings import EmbeddingSettings


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
