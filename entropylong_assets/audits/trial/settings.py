"""Settings of the training trial."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, field_validator

from entropylong_assets.audits.trial.training_settings import TrainingSettings
from entropylong_assets.settings.section import NAME_PATTERN, Section, beside
from entropylong_assets.stages.training_data.settings import Shares


class Arm(Section):
    """Each entry is an arm: one way to make samples from the stored tables of a dataset."""

    recipe: str | None = None
    """Recipe; `null`: the contexts that the arm's rule verified."""
    rule: str | None = None
    """Rule in force, which sets the roots and their budgets; `null`: that of the dataset."""
    samples: Mapping[str, Any] = {}
    """Other settings of `samples` than the dataset's: `layout`, `fill`, `order`, …"""
    loss_weights: Literal["uniform", "anchors", "distance"] = "uniform"
    """As `export.loss_weights`."""
    anchor_weight: float = Field(2.0, gt=0)
    """As `export.anchor_weight`."""
    mixture: Shares | None = None
    """As `export.mixture`: shares of the arm's `constructed` samples, of `natural` windows, which
    are cut to the length of the trial's samples, and of `short` documents. `null`: constructed."""


class TrialSettings(Section):
    """`training_trial`: a small model is trained on each arm's samples, and all are compared."""

    arms: Mapping[str, Arm] = {}
    """Arms that the trial compares, by name: `random: {recipe: random}`. Empty: no such audit."""
    tokens: int = Field(15_000_000, ge=1)
    """Tokens that each run learns."""
    sample_tokens: int = Field(16_384, ge=64)
    """Length of the trial's samples (tokens)."""
    seeds: tuple[int, ...] = (0, 1)
    """Seeds of the order of samples; each arm is trained once per seed."""
    evaluation: str = ""
    """Held-out text: a JSON Lines file with a field `text`, the name of another corpus under the
    same `data_uri`, or the folder of a trial, whose items are taken. Empty: documents of the
    dataset's corpus that no sample contains."""
    items: int = Field(64, ge=1)
    """Number of items per synthetic task and length."""
    natural: int = Field(48, ge=1)
    """Number of held-out long documents."""
    short_window: int = Field(1024, ge=8)
    """Short context of LongPPL's key tokens (tokens)."""
    learning_rate: float = Field(TrainingSettings.learning_rate, gt=0)
    """Highest learning rate."""
    batch_tokens: int = Field(TrainingSettings.batch_tokens, ge=1)
    """Tokens per optimizer step."""
    max_repeats: int = Field(TrainingSettings.max_repeats, ge=1)
    """Maximum number of times that a sample is learnt, if an arm has fewer samples than needed."""
    max_short_loss: float = Field(0.02, ge=0)
    """Increase of the loss on short documents over the model as it starts (nats per token) at which
    a check warns."""

    def located(self, folder: Path) -> Self:
        is_corpus = re.fullmatch(NAME_PATTERN, self.evaluation)
        evaluation = self.evaluation if is_corpus else beside(folder, self.evaluation)
        return self.with_located(folder, evaluation=evaluation)

    @field_validator("arms")
    @classmethod
    def _names_are_file_names(cls, arms: Mapping[str, Arm]) -> Mapping[str, Arm]:
        for name in arms:
            if not re.fullmatch(r"[a-z0-9][a-z0-9_]*", name):
                raise ValueError(f"arm '{name}': use lower-case letters, digits and underscores")
        return arms

    @field_validator("seeds")
    @classmethod
    def _seeds_differ(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        if not seeds or len(set(seeds)) < len(seeds):
            raise ValueError("must be one or more different numbers")
        return seeds
