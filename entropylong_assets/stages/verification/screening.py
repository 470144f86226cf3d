"""Screening of a shard, batch by batch: the kind of screen, what it learns, and what it counts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import polars as pl

from entropylong_assets.stages.entropy.scoring import PositionScores, Scorer
from entropylong_assets.stages.verification.calibrated_screen import (
    CalibratedFigures,
    CalibratedScreen,
)
from entropylong_assets.stages.verification.calibration import Calibration
from entropylong_assets.stages.verification.registry import Estimator, Key
from entropylong_assets.stages.verification.requests import ContextRequest
from entropylong_assets.stages.verification.screen import JudgeScores, Screen, ScreenFigures
from entropylong_assets.stages.verification.settings import VerificationSettings


class BatchScreen(Protocol):
    """Screens the contexts of one batch of roots."""

    figures: Any
    """A dataclass of counts."""
    learned: list[pl.DataFrame]
    """What later batches need to know."""

    def score(
        self,
        requests: Mapping[Key, ContextRequest],
        exact: Scorer,
        judge_scores: JudgeScores,
        on_progress: Callable[[int], None] = ...,
    ) -> dict[Key, PositionScores]:
        """Return scores of the contexts; those without scores are screened out."""
        ...


class Screening(Protocol):
    """Screening of one shard. Batches are added in order, also those from checkpoints."""

    def of_batch(self) -> BatchScreen:
        """Return the screen of the next batch."""
        ...

    def add(self, learned: pl.DataFrame, figures: Mapping[str, Any], roots: int) -> None:
        """Add what the screen of a batch of this many roots has learned and counted."""
        ...

    def metadata(self) -> dict[str, float]:
        """Return the figures of the shard."""
        ...


@dataclass
class MarginScreening:
    """Cheaper scores that are kept where no verdict could change within their margin."""

    cheap: Scorer
    settings: VerificationSettings
    figures: ScreenFigures = field(default_factory=ScreenFigures)

    def of_batch(self) -> Screen:
        return Screen(self.cheap, self.settings)

    def add(self, learned: pl.DataFrame, figures: Mapping[str, Any], roots: int) -> None:  # noqa: ARG002
        self.figures.add(ScreenFigures(**figures))

    def metadata(self) -> dict[str, float]:
        return self.figures.metadata()


@dataclass
class CalibratedScreening:
    """Estimates that decide which contexts are scored exactly."""

    estimator: Estimator
    settings: VerificationSettings
    calibration: Calibration
    figures: CalibratedFigures = field(default_factory=CalibratedFigures)

    def of_batch(self) -> CalibratedScreen:
        return CalibratedScreen(self.estimator, self.calibration, self.settings)

    def add(self, learned: pl.DataFrame, figures: Mapping[str, Any], roots: int) -> None:
        self.calibration.add(learned, roots)
        self.figures.add(CalibratedFigures(**figures))

    def metadata(self) -> dict[str, float]:
        return {**vars(self.figures), **self.calibration.metadata()}


def make_screening(
    screener: Scorer | Estimator | None, settings: VerificationSettings, roots: int
) -> Screening | None:
    """Return the screening of a shard with this many roots; None without a screen."""
    if screener is None:
        return None
    if isinstance(screener, Estimator):
        calibration = Calibration(settings.screen_recall, roots)
        return CalibratedScreening(screener, settings, calibration)
    return MarginScreening(screener, settings)
