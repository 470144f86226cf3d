"""The loss of docs/trainers.md and of the card, against the sum written out in float64."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
import torch

from entropylong_assets.stages.training_data.usage_texts import usage_text

PAGE = Path(__file__).parents[3] / "docs" / "trainers.md"


def blocks(text: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", text, re.S)


def test_page_and_card_have_the_same_loss() -> None:
    assert (
        blocks(PAGE.read_text(encoding="utf-8"))[0]
        == blocks(usage_text("weights", loss_weights="anchors"))[0]
    )


@pytest.mark.parametrize("n_learnt", [None, 10])
def test_loss_multiplies_each_tokens_own_loss_by_its_weight(n_learnt: int | None) -> None:
    """A weight on the token after its own, or padding in the mean, changes the sum."""
    space: dict = {}
    exec(blocks(PAGE.read_text(encoding="utf-8"))[0], space)
    torch.manual_seed(0)
    logits = torch.randn(2, 6, 5)
    labels = torch.tensor([[1, 2, 3, 4, 0, 1], [4, 3, 2, 1, -100, -100]])
    weights = torch.tensor([[1, 1, 7, 1, 1, 2.5], [1, 3, 1, 1, 0, 0]])
    total, learnt = 0.0, 0
    for i in range(2):
        for t in range(1, 6):
            if labels[i, t] != -100:
                p = torch.softmax(logits[i, t - 1].double(), -1)[labels[i, t]].item()
                total += -math.log(p) * weights[i, t].item()
                learnt += 1
    assert learnt == 8
    loss = space["weighted_loss"](logits, labels, weights, n_learnt)
    assert loss.item() == pytest.approx(total / (n_learnt or learnt), rel=1e-5)
    assert len(blocks(PAGE.read_text(encoding="utf-8"))[0].strip().splitlines()) <= 10
