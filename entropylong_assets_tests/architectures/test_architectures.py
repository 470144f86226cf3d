"""Every causal class of the installed transformers, as a tiny random model in a folder.

Each is loaded and scored, or refused in one line, by the platform and by the doctor alike; scores
equal the plain definition. `make test-architectures` runs this and writes docs/architectures.md.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from entropylong_assets.stages.model_files import ModelError
from entropylong_assets_tests.architectures.outcome import (
    Outcome,
    config_of,
    finding_of,
    outcome_of,
    write_model,
)
from entropylong_assets_tests.architectures.tiny_models import ENCODERS, VARIANTS

NOT_CAUSAL = "it is not causal: later tokens change the scores of earlier ones"

REFUSED: Mapping[str, str] = {
    **dict.fromkeys((*ENCODERS, "cpmant", "prophetnet", "xlm", "xlnet"), NOT_CAUSAL),
    "big_bird": "attention_type: original_full",
    "big_bird: decoder": "attention_type: original_full",
    "gemma3: bidirectional": NOT_CAUSAL,
    "gemma3n": "timm",
    "gemma4_assistant": "can't be",
    "gemma4_unified_assistant": "inputs_embeds and shared_kv_states cannot be None",
    "musicgen": "can't be",
    "musicgen_melody": "can't be",
    "reformer": "it gives other scores when asked again",
}
"""Models that can't be scored, and words of the line that says why."""


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)  # threads of a matrix product would wait for each other


@pytest.mark.long
@pytest.mark.parametrize("name", [*MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, *VARIANTS])
def test_every_class_is_scored_or_refused_in_one_line(
    name: str, tmp_path: Path, tiny_models: tuple[str, str]
) -> None:
    folder = tmp_path / "model"
    write_model(name, folder, Path(tiny_models[0]))
    class_name = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[config_of(name)[0]]
    outcome = outcome_of(name, class_name, folder)
    report(outcome)
    if outcome.refusal is not None:
        assert REFUSED.get(name, "none: it must be scored") in outcome.refusal
        with pytest.raises(ModelError) as caught:
            finding_of(folder)
        assert "\n" not in str(caught.value)
        assert str(folder) in str(caught.value)
        return
    assert name not in REFUSED
    assert outcome.difference is not None
    assert outcome.difference < 5e-5
    assert outcome.spread > 0.005, "the model must tell positions apart for this to mean anything"
    finding = finding_of(folder)
    assert finding.verdict == "ok"
    assert "scoring mode" in finding.message


def report(outcome: Outcome) -> None:
    """Save the outcome for the table of docs/architectures.md, if that is being written."""
    folder = os.environ.get("ENTROPYLONG_ARCHITECTURES_REPORT")
    if folder:
        file = Path(folder) / f"{outcome.name.replace(' ', '_').replace(':', '')}.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(asdict(outcome)))
