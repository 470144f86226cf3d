"""Results of a trial with chosen scores, as the runs of a trial write them."""

from __future__ import annotations

from typing import Any

from entropylong_assets.audits.trial.training_settings import TrainingSettings


def result(
    arm: str, seed: int, answers: list[float], far: list[float | None], **over: Any
) -> dict[str, Any]:
    """One run's result. answers: log-likelihood of each item; far: loss of each document.

    over: fields of the run.
    """
    return {
        "run": {"arm": arm, "seed": seed, "tokens": 1000, "start": "", **over},
        "settings": {**vars(TrainingSettings())},
        "model": "models/tiny",
        "sample_tokens": 8192,
        "short_window": 64,
        "evaluation": "e",
        "rope_theta": 1e5,
        "device": "CPU",
        "training": {"steps": 3, "tokens": 1000, "seconds": 2.0, "losses": [], "repeats": 1.0},
        "scores": {
            "single_needle-8192": {"log_likelihood": answers, "exact": [1.0] * len(answers)},
            "natural": {"from_4096": far, "all": [2.0] * len(far)},
            "short": {"all": [3.0]},
        },
    }
