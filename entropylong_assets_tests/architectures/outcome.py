"""The outcome of one model type: loaded from a folder, examined by the doctor, and scored."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from entropylong_assets.orchestration import doctor_checks
from entropylong_assets.orchestration.doctor_checks import Finding
from entropylong_assets.stages.entropy.engine import PackedScorer
from entropylong_assets.stages.entropy.model import load_scoring_model
from entropylong_assets.stages.entropy.settings import ScoringModelSettings
from entropylong_assets.stages.model_files import ModelError
from entropylong_assets_tests.architectures.definition import (
    defined_scores,
    largest_difference,
    requests_of_lengths,
)
from entropylong_assets_tests.architectures.tiny_models import (
    POSITIONS,
    VARIANTS,
    tiny_config,
    tiny_hf_model,
)
from entropylong_assets_tests.tiny_world import tiny_settings

LENGTHS = [240, 30, 100, 66, 240, 10, 150]
"""Lengths below, at and beyond all windows, chunks and switches of the tiny models (tokens)."""

MAX_ROOT_TOKENS = 50


@dataclass(frozen=True)
class Outcome:
    """`mode` and largest difference to the plain definition (nats), or why it was refused."""

    name: str
    class_name: str
    mode: str | None = None
    difference: float | None = None
    refusal: str | None = None
    spread: float = 0.0
    """Standard deviation of the entropies: a model of equal entropies would prove nothing."""


def config_of(name: str) -> tuple[str, Mapping[str, Any]]:
    return VARIANTS.get(name, (name, {}))


def write_model(name: str, folder: Path, tokenizer: Path) -> None:
    """Save the tiny model with a tokenizer; if there is no such class, a config and no weights."""
    model_type, over = config_of(name)
    folder.mkdir(parents=True)
    for file in tokenizer.glob("tokenizer*"):
        shutil.copy(file, folder)
    try:
        config = tiny_config(model_type, **over)
    except Exception:
        (folder / "config.json").write_text(f'{{"model_type": "{model_type}"}}')
        (folder / "model.safetensors").write_bytes(b"")
        return
    try:
        tiny_hf_model(config).save_pretrained(folder)
        config.save_pretrained(folder)  # also the parts that a text model leaves out
    except Exception:
        config.save_pretrained(folder)
        (folder / "model.safetensors").write_bytes(b"")


def outcome_of(name: str, class_name: str, folder: Path) -> Outcome:
    """Load and score the model in the folder, with passes in several threads."""
    from transformers import AutoModelForCausalLM

    settings = ScoringModelSettings(
        model=str(folder), device="cpu", dtype="float32", max_forward_tokens=POSITIONS
    )
    try:
        model = load_scoring_model(settings)
        scorer = PackedScorer(model, pack_tokens=300)
        requests = requests_of_lengths([min(n, longest_of(model)) for n in LENGTHS])
        scorer.test_up_to(max(len(r.token_ids_T) for r in requests))
    except ModelError as error:
        return Outcome(name, class_name, refusal=one_line(str(error), folder))
    fresh = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        scores = scorer.score(requests)
    finally:
        torch.set_num_threads(threads)
    defined = [defined_scores(fresh, request) for request in requests]
    entropies = torch.cat([torch.from_numpy(scores.entropy_N) for scores in defined])
    return Outcome(
        name,
        class_name,
        mode=scorer.mode,
        difference=largest_difference(scores, defined),
        spread=float(entropies.std()),
    )


def longest_of(model: Any) -> int:
    """Longest sequence of the test; `dynamic` models go beyond what their config names."""
    return POSITIONS if "dynamic" in model.hf_model.config.to_json_string() else model.max_positions


def one_line(message: str, folder: Path) -> str:
    assert "\n" not in message
    assert str(folder) in message
    return message.replace(str(folder), "MODEL")


def finding_of(folder: Path) -> Finding:
    """The doctor's finding for a dataset with this model."""
    settings = tiny_settings(
        folder.parent / "corpus",
        folder.parent / "data",
        (str(folder), "none"),
        scoring={"max_forward_tokens": POSITIONS, "bos": "auto", "device": "cpu"},
        roots={"max_tokens": MAX_ROOT_TOKENS},
    )
    return doctor_checks.scoring_model(settings)
