"""A model that can't be scored is refused in one line, by loading it and by the doctor."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from entropylong_assets.orchestration import doctor_checks
from entropylong_assets.stages.entropy.engine import load_scorer
from entropylong_assets.stages.entropy.model import load_scoring_model
from entropylong_assets.stages.entropy.settings import ScoringModelSettings
from entropylong_assets.stages.model_files import ModelError
from entropylong_assets_tests.architectures.outcome import finding_of, write_model


@pytest.fixture
def folder(tiny_models: tuple[str, str], tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_models[0], tmp_path / "model"))


def change_config(folder: Path, **values: Any) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def change_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    file = folder / "model.safetensors"
    weights = load_file(file)
    change(weights)
    save_file(weights, file, metadata={"format": "pt"})


def refusals(folder: Path) -> tuple[str, str]:
    """The lines of loading and of the doctor."""
    with pytest.raises(ModelError) as loading:
        load_scorer(
            load_scoring_model(
                ScoringModelSettings(model=str(folder), device="cpu", dtype="float32")
            )
        )
    with pytest.raises(ModelError) as examining:
        finding_of(folder)
    for message in (loading.value, examining.value):
        assert "\n" not in str(message)
        assert str(folder) in str(message)
        assert ";" in str(message), "it says what to do"
    return str(loading.value), str(examining.value)


def test_a_model_that_can_be_scored_is_not_refused(folder: Path) -> None:
    finding = finding_of(folder)
    assert finding.verdict == "ok"
    assert "256 positions, scoring mode 'packed'" in finding.message


QUANTIZED: list[dict[str, Any]] = [
    {"quant_method": "bitsandbytes", "load_in_4bit": True},
    {"quant_method": "bitsandbytes", "load_in_8bit": True},
    {"quant_method": "gptq", "bits": 4},
    {"quant_method": "awq", "bits": 4},
    {"quant_method": "fp8"},
    {"quant_method": "fbgemm_fp8"},
    {"quant_method": "compressed-tensors", "config_groups": {}},
    {"quant_method": "hqq"},
    {"quant_method": "aqlm"},
    {"quant_method": "quanto", "weights": "int4"},
    {"quant_method": "torchao", "quant_type": "int4_weight_only"},
    {"quant_method": "mxfp4"},
    {"quant_method": "higgs"},
    {"quant_method": "no-such-method"},
]


@pytest.mark.parametrize("quantization", QUANTIZED, ids=lambda q: "-".join(map(str, q.values())))
def test_a_quantized_checkpoint_is_refused(folder: Path, quantization: dict[str, Any]) -> None:
    """Its packages are not installed, or its weights are not what the class expects."""

    def quantize(weights: dict[str, torch.Tensor]) -> None:
        for name in [name for name in weights if "proj" in name]:
            weights[name.replace("weight", "qweight")] = weights.pop(name).to(torch.int32)

    change_weights(folder, quantize)
    change_config(folder, quantization_config=quantization)
    for message in refusals(folder):
        assert "scoring.model" in message


@pytest.mark.parametrize("name", ["lm_head.weight", "model.layers.1.mlp.up_proj.weight"])
def test_a_model_without_some_of_its_weights_is_refused(folder: Path, name: str) -> None:
    """transformers fills them with random numbers, and says so in a warning only."""
    change_weights(folder, lambda weights: weights.pop(name))
    for message in refusals(folder):
        assert f"lack the weights {name}" in message


def test_weights_that_the_model_does_not_use_are_named(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """transformers leaves them out: biases without `attention_bias`, layers beyond the last."""
    change_config(folder, num_hidden_layers=1)
    load_scoring_model(ScoringModelSettings(model=str(folder), device="cpu", dtype="float32"))
    (message,) = [m for m in caplog.messages if "does not use" in m]
    assert str(folder) in message
    assert "model.layers.1." in message


def test_weights_of_another_shape_are_refused(folder: Path) -> None:
    change_config(folder, intermediate_size=32)
    refusals(folder)


def test_a_model_whose_scores_are_not_numbers_is_refused(folder: Path) -> None:
    def spoil(weights: dict[str, torch.Tensor]) -> None:
        weights["model.norm.weight"][3] = float("nan")

    change_weights(folder, spoil)
    for message in refusals(folder):
        assert "not finite numbers" in message


def test_an_encoder_is_refused(tiny_models: tuple[str, str], tmp_path: Path) -> None:
    """Its surprisals would be those of tokens that it sees."""
    write_model("bert", tmp_path / "model", Path(tiny_models[0]))
    for message in refusals(tmp_path / "model"):
        assert "not causal" in message
        assert "is_decoder" in message


@pytest.mark.parametrize(
    "config",
    [
        {"model_type": "no-such-type"},
        {"model_type": "t5"},
        {"hidden_act": "no-such-function"},
        {"num_attention_heads": 5},
        {"rope_parameters": {"rope_type": "no-such-type", "rope_theta": 1.0}},
        {"rope_parameters": {"rope_type": "longrope", "rope_theta": 1e4}},
        {"vocab_size": "many"},
    ],
    ids=lambda config: next(iter(config)) + "-" + str(next(iter(config.values())))[:12],
)
def test_a_config_that_makes_no_model_is_refused(folder: Path, config: dict[str, Any]) -> None:
    change_config(folder, **config)
    refusals(folder)


def test_a_model_that_is_too_large_for_the_machine_is_not_loaded(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor_checks, "_free_memory", lambda _: 1000)
    finding = finding_of(folder)
    assert finding.verdict == "warning"
    assert "not tested: its weights take 0.0 GiB" in finding.message
    assert "run the doctor where the model will run" in finding.message
