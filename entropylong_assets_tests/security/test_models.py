"""Loading a model runs no code of its folder: no pickle is loaded, and no Python file is imported
unless the settings say so. Code in each hostile folder would create a folder if it ran."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from entropylong_assets.settings.profiles import PROFILES
from entropylong_assets.stages.embeddings.embedder import load_embedder
from entropylong_assets.stages.embeddings.settings import EmbeddingSettings
from entropylong_assets.stages.entropy.model import load_scoring_model, load_tokenizer
from entropylong_assets.stages.entropy.settings import ScoringModelSettings
from entropylong_assets.stages.model_files import ModelError


class Planted:
    """As a pickle: creates a folder when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return os.mkdir, (str(self.path),)


@pytest.fixture
def sign(tmp_path: Path) -> Path:
    """A folder that exists if planted code ran."""
    return tmp_path / "code-ran"


@pytest.fixture
def scoring(tiny_models: tuple[str, str], tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_models[0], tmp_path / "scoring"))


@pytest.fixture
def embedder(tiny_models: tuple[str, str], tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_models[1], tmp_path / "embedder"))


def plant_pickle(folder: Path, sign: Path, name: str = "pytorch_model.bin") -> None:
    """Replace the safetensors by a pickle of the same weights and of an object that runs code."""
    weights = folder / "model.safetensors"
    content = load_file(weights) if weights.exists() else {}
    weights.unlink(missing_ok=True)
    torch.save(content | {"planted": Planted(sign)}, folder / name)


def plant_module(folder: Path, sign: Path, name: str = "planted") -> None:
    (folder / f"{name}.py").write_text(
        f"import os\nos.mkdir({str(sign)!r})\nclass Planted:\n    pass\n"
    )


def change(file: Path, **values: object) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def refusal(load: Callable[[], object]) -> str:
    with pytest.raises(ModelError) as caught:
        load()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def load_scoring(folder: Path, trust: bool = False) -> object:
    return load_scoring_model(
        ScoringModelSettings(model=str(folder), trust_remote_code=trust, device="cpu")
    )


def load_embedding(folder: Path, trust: bool = False) -> object:
    return load_embedder(
        EmbeddingSettings(model=str(folder), trust_remote_code=trust, device="cpu")
    )


def test_the_planted_pickle_does_run_code_if_it_is_trusted(scoring: Path, sign: Path) -> None:
    """Otherwise the tests below would show nothing."""
    plant_pickle(scoring, sign)
    torch.load(scoring / "pytorch_model.bin", weights_only=False)
    assert sign.exists()
    sign.rmdir()
    pickle.loads(pickle.dumps(Planted(sign)))
    assert sign.exists()


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.bin", "model.pt", "model.ckpt"])
def test_a_scoring_model_of_pickled_weights_is_refused(
    scoring: Path, sign: Path, name: str
) -> None:
    plant_pickle(scoring, sign, name)
    message = refusal(lambda: load_scoring(scoring))
    assert "safetensors" in message
    assert str(scoring) in message
    assert not sign.exists()


def test_a_pickle_in_parts_is_refused(scoring: Path, sign: Path) -> None:
    plant_pickle(scoring, sign, "pytorch_model-00001-of-00001.bin")
    (scoring / "pytorch_model.bin.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": {"a": "pytorch_model-00001-of-00001.bin"}})
    )
    assert "safetensors" in refusal(lambda: load_scoring(scoring))
    assert not sign.exists()


def test_a_pickle_under_the_name_of_safetensors_is_refused(scoring: Path, sign: Path) -> None:
    plant_pickle(scoring, sign, "model.safetensors")
    refusal(lambda: load_scoring(scoring))
    assert not sign.exists()


def test_a_pickle_beside_safetensors_is_not_read(scoring: Path, sign: Path) -> None:
    torch.save({"planted": Planted(sign)}, scoring / "pytorch_model.bin")
    load_scoring(scoring)
    assert not sign.exists()


def test_an_embedder_of_pickled_weights_is_refused(embedder: Path, sign: Path) -> None:
    plant_pickle(embedder, sign)
    assert "safetensors" in refusal(lambda: load_embedding(embedder))
    assert not sign.exists()


def test_a_layer_of_pickled_weights_is_refused(embedder: Path, sign: Path, tmp_path: Path) -> None:
    """Layers after the transformer have their own weights."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import Dense, Pooling, Transformer

    transformer, width = Transformer(str(embedder)), 32
    folder = tmp_path / "with-layer"
    SentenceTransformer(modules=[transformer, Pooling(width), Dense(width, 8)]).save(str(folder))
    assert load_embedding(folder).dimension == 8  # type: ignore[attr-defined]
    plant_pickle(folder / "2_Dense", sign)
    shutil.copytree(folder, changed := tmp_path / "changed")
    assert "safetensors" in refusal(lambda: load_embedding(changed))
    assert not sign.exists()


def test_code_of_a_scoring_model_runs_only_if_the_settings_say_so(
    scoring: Path, sign: Path
) -> None:
    plant_module(scoring, sign)
    change(
        scoring / "config.json",
        model_type="planted",
        auto_map={"AutoConfig": "planted.Planted", "AutoModelForCausalLM": "planted.Planted"},
    )
    message = refusal(lambda: load_scoring(scoring))
    assert "trust_remote_code" in message
    assert not sign.exists()


def test_code_of_a_tokenizer_runs_only_if_the_settings_say_so(scoring: Path, sign: Path) -> None:
    plant_module(scoring, sign)
    change(
        scoring / "tokenizer_config.json",
        tokenizer_class="Planted",
        auto_map={"AutoTokenizer": ["planted.Planted", "planted.Planted"]},
    )
    with suppress(ModelError):  # or only the data files of the folder are read, which is as good
        load_tokenizer(ScoringModelSettings(model=str(scoring)))
    assert not sign.exists()


def test_code_of_an_embedder_runs_only_if_the_settings_say_so(embedder: Path, sign: Path) -> None:
    plant_module(embedder, sign)
    modules = [{"idx": 0, "name": "0", "path": "", "type": "planted.Planted"}]
    (embedder / "modules.json").write_text(json.dumps(modules))
    message = refusal(lambda: load_embedding(embedder))
    assert "trust_remote_code" in message
    assert not sign.exists()
    shutil.copytree(embedder, trusted := embedder.parent / "trusted")
    with pytest.raises(ModelError, match="no attribute 'load'"):  # the planted class is no module
        load_embedding(trusted, trust=True)
    assert sign.exists(), "the planted code does not run even if it is trusted"


def test_a_class_that_is_installed_is_no_layer(embedder: Path, sign: Path) -> None:
    modules = [{"idx": 0, "name": "0", "path": "", "type": "subprocess.Popen"}]
    (embedder / "modules.json").write_text(json.dumps(modules))
    assert "trust_remote_code" in refusal(lambda: load_embedding(embedder))


def test_no_profile_but_the_paper_s_trusts_a_model_s_code() -> None:
    """jina-embeddings-v3, which the profile `paper` names, can't be loaded otherwise."""
    trusting = {
        (profile, section)
        for profile, sections in PROFILES.items()
        for section in ("scoring", "embedding")
        if sections.get(section, {}).get("trust_remote_code")
    }
    assert trusting == {("paper", "embedding")}
    assert not ScoringModelSettings().trust_remote_code
    assert not EmbeddingSettings().trust_remote_code
