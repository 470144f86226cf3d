"""Logistic regression with an L2 penalty, small enough to be read.

Newton's method from zero, with halved steps where a whole one would not lower the loss: the loss is
strictly convex, so the same rows give the same coefficients. All numbers are float64.

Legend: N rows, F features.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

PENALTY = 1.0
"""Half of this times the sum of the squared coefficients of standardised features is added to the
loss, which is summed over rows."""

_STEPS = 50


@dataclass(frozen=True, eq=False)
class Logistic:
    """logit = intercept + Σ weight · (feature - mean) / scale."""

    mean_F: Floats
    scale_F: Floats
    weight_F: Floats
    intercept: float

    def logits(self, features_NF: Floats) -> Floats:
        return self.intercept + (features_NF - self.mean_F) / self.scale_F @ self.weight_F


def fit(features_NF: Floats, is_positive_N: NDArray[np.bool_]) -> Logistic:
    """Return the regression of these rows, of which there must be at least one.

    A feature that is the same in all rows gets no weight.
    """
    mean_F, scale_F = features_NF.mean(0), features_NF.std(0)
    is_constant_F = scale_F <= 1e-12 * (1 + np.abs(mean_F))
    scale_F = np.where(is_constant_F, 1.0, scale_F)
    standard_NF = np.where(is_constant_F, 0.0, (features_NF - mean_F) / scale_F)
    rows = np.concatenate([np.ones((len(standard_NF), 1)), standard_NF], 1)
    # The intercept has next to no penalty: enough for rows of one kind.
    penalty = np.concatenate([[1e-6], np.full(rows.shape[1] - 1, PENALTY)])
    target = is_positive_N.astype(np.float64)

    def loss(weights: Floats) -> float:
        logits = rows @ weights
        return float((np.logaddexp(0, logits) - target * logits).sum() + penalty @ weights**2 / 2)

    weights = np.zeros(rows.shape[1])
    present = loss(weights)
    for _ in range(_STEPS):
        probability = 1 / (1 + np.exp(-np.clip(rows @ weights, -500, 500)))
        gradient = rows.T @ (probability - target) + penalty * weights
        curvature = (rows.T * (probability * (1 - probability))) @ rows + np.diag(penalty)
        step = np.linalg.solve(curvature, gradient)
        size = 1.0
        while loss(weights - size * step) > present and size > 1e-6:
            size /= 2
        weights = weights - size * step
        before, present = present, loss(weights)
        if before - present <= 1e-10 * (1 + abs(present)):
            break
    return Logistic(mean_F, scale_F, weights[1:], float(weights[0]))
