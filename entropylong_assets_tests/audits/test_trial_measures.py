"""Differences of a trial, their intervals, and the recipes that users take away.

Failures looked for: an unpaired difference; items of another seed; an interval that ignores seeds,
or is wrong by hand; runs of another length in one table; a verdict on the wrong side; a recipe in
deploy/ that is not what the trial runs.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest

from entropylong_assets.audits.root_sample import Mean, clustered_mean
from entropylong_assets.audits.trial.folder import TrialError, TrialFacts
from entropylong_assets.audits.trial.measures import (
    Measure,
    by_arm,
    crossed_mean,
    measures_of,
    paired_difference,
    setup_of,
    values_of,
)
from entropylong_assets.audits.trial.page import order_words, trial_page, verdict
from entropylong_assets.audits.trial.plan import make_plan
from entropylong_assets.audits.trial.training_settings import TrainingSettings
from entropylong_assets_tests.audits.trial_results import result

DEPLOY = Path(__file__).parents[2] / "deploy" / "training"


def test_one_seed_has_the_interval_of_the_package_s_means() -> None:
    values = np.random.default_rng(0).normal(0.3, 1, (1, 40))
    ours = crossed_mean(values)
    theirs = clustered_mean(values[0].tolist(), [str(n) for n in range(40)])
    assert (ours.value, ours.low, ours.high) == pytest.approx(
        (theirs.value, theirs.low, theirs.high)
    )


def test_interval_covers_the_truth_when_seeds_matter() -> None:
    """Seeds that shift all items together: an interval over items alone would cover far less."""
    draw, hits, naive = np.random.default_rng(1), 0, 0
    for _ in range(400):
        values = (
            draw.normal(0, 0.5, (3, 1)) + draw.normal(0, 1, (1, 30)) + draw.normal(0, 1, (3, 30))
        )
        mean = crossed_mean(values)
        assert mean.low is not None
        assert mean.high is not None
        hits += mean.low <= 0 <= mean.high
        items = clustered_mean(values.mean(0).tolist(), [str(n) for n in range(30)])
        assert items.low is not None
        assert items.high is not None
        naive += items.low <= 0 <= items.high
    assert 0.92 <= hits / 400 <= 1
    assert naive / 400 < 0.8


def test_difference_is_paired_by_seed_and_item() -> None:
    """Items differ by 10, seeds by 1; ours is 0.5 above theirs at each: no spread is left."""
    base = [0.0, 10.0, 20.0, 30.0]
    theirs = [result("t", seed, [v + seed for v in base], [None]) for seed in (0, 1)]
    ours = [result("o", seed, [v + seed + 0.5 for v in base], [None]) for seed in (1, 0, 7)]
    mean = paired_difference(ours, theirs, "answers-8192")
    assert (mean.value, mean.low, mean.high) == pytest.approx((0.5, 0.5, 0.5))
    assert (mean.trials, mean.clusters) == (8, 4)


def test_documents_without_such_tokens_are_left_out_of_both() -> None:
    ours = [result("o", 0, [1.0], [1.0, None, 3.0])]
    theirs = [result("t", 0, [1.0], [None, 2.0, 2.5])]
    assert paired_difference(ours, theirs, "natural/from_4096").value == 0.5
    assert values_of(ours[0], "natural/from_4096") == {("natural", 0): 1.0, ("natural", 2): 3.0}
    assert paired_difference(ours, theirs, "natural/none").value is None


def test_measures_follow_from_the_results() -> None:
    keys = [m.key for m in measures_of([result("a", 0, [1.0], [1.0])])]
    assert keys == ["answers-8192", "natural/from_4096", "natural/all", "short/all"]


def test_runs_of_another_length_or_rate_are_not_compared() -> None:
    first, second = result("a", 0, [1.0], [1.0]), result("b", 0, [1.0], [1.0])
    assert setup_of(first) == setup_of(second)
    second["settings"]["micro_batch_tokens"] = 1  # changes nothing
    assert setup_of(first) == setup_of(second)
    for change in ("learning_rate", "batch_tokens"):
        other = result("b", 0, [1.0], [1.0])
        other["settings"][change] = 7
        assert setup_of(first) != setup_of(other)
    assert setup_of(first) != setup_of(first | {"sample_tokens": 4096})
    assert setup_of(first) != setup_of(first | {"evaluation": "other items"})
    for change in ({"model": "models/other"}, {"rope_theta": 2e5}, {"short_window": 32}):
        assert setup_of(first) != setup_of(first | change)
    fewer_items = result("a", 0, [1.0], [1.0]), result("a", 0, [1.0, 2.0], [1.0])
    assert setup_of(fewer_items[0]) != setup_of(fewer_items[1])
    assert setup_of(first) != setup_of(result("a", 0, [1.0], [1.0], start="other"))


@pytest.mark.parametrize(
    ("mean", "is_higher_better", "word"),
    [
        (Mean(0.2, 0.1, 0.3, 8, 8), True, "**better**"),
        (Mean(0.2, 0.1, 0.3, 8, 8), False, "**worse**"),
        (Mean(-0.2, -0.3, -0.1, 8, 8), False, "**better**"),
        (Mean(-0.2, -0.3, -0.1, 8, 8), True, "**worse**"),
        # Half as wide as 0.14 = 2.8/1.96 of 0.1.
        (Mean(0.05, -0.05, 0.15, 8, 8), True, "no difference shown; a true one of 0.1429"),
        (Mean(0.2, None, None, 1, 1), True, "not enough items"),
    ],
)
def test_verdict_names_the_side(mean: Mean, is_higher_better: bool, word: str) -> None:
    assert word in verdict(mean, Measure("k", "name", is_higher_better))


def test_two_results_of_one_arm_and_seed_are_refused() -> None:
    with pytest.raises(TrialError, match="arm a with seed 0"):
        by_arm([result("a", 0, [1.0], [1.0]), result("a", 0, [2.0], [1.0], data="other")])


def test_folder_prepared_anew_replaces_its_results() -> None:
    """Samples of an earlier preparation must not end a trial whose runs are all trained."""
    old, new = result("a", 0, [1.0], [1.0], data=""), result("a", 0, [2.0], [1.0], data="")
    assert by_arm([old, new]) == {"a": [new]}


def test_start_row_is_of_the_section_s_model_and_length() -> None:
    draw = np.random.default_rng(3)
    trained = [result("random", 0, draw.normal(-2, 1, 9).tolist(), [1.0])]
    own = result("random", 0, [-1.25] * 9, [1.0], tokens=0)
    shorter = result("random", 0, [-7.25] * 9, [1.0], tokens=0) | {"sample_tokens": 4096}
    other = result("random", 0, [-8.25] * 9, [1.0], tokens=0) | {"model": "models/other"}
    facts = TrialFacts(model="m", vocab_size=18, pad_id=0, sample_tokens=8192, arms={})
    page = trial_page(facts, [other, shorter, own, *trained], "2026-01-01")
    row = next(line for line in page.splitlines() if line.startswith("| as it starts | –"))
    assert "-1.250" in row


def test_page_says_the_paper_s_order_by_the_figures() -> None:
    draw = np.random.default_rng(3)
    base = draw.normal(-2, 1, 30)
    gains = {"entropylong": 0.4, "no_verify": 0.1, "quest": 0.1, "random": 0.3}
    results = [
        result(arm, seed, (base + gain + draw.normal(0, 0.05, 30)).tolist(), [1.0, 2.0])
        for arm, gain in gains.items()
        for seed in (0, 1, 2, 3)
    ]
    start = result("random", 0, base.tolist(), [1.5, 2.5], tokens=0)
    arms = {arm: [r for r in results if r["run"]["arm"] == arm] for arm in gains}
    words = order_words(measures_of(results), arms).splitlines()
    assert "`entropylong` and `no_verify`" in words[0]
    assert "**better**" in words[0]
    by_pair = {line.split(",")[0]: line for line in words if "answers" in line}
    assert "no difference shown" in by_pair["- `no_verify` and `quest`"]
    assert "**worse**" in by_pair["- `quest` and `random`"]
    facts = TrialFacts(model="m", vocab_size=18, pad_id=0, sample_tokens=8192, arms={})
    page = trial_page(facts, [start, *results], "2026-01-01")
    row = next(line for line in page.splitlines() if line.startswith("| as it starts | –"))
    assert f"{base.mean():.3f}" in row
    assert "64 to 127 tokens" in page
    with pytest.raises(TrialError, match="no run"):
        trial_page(facts, [start], "2026-01-01")


def test_recipes_in_deploy_are_those_of_the_paper_and_the_trial() -> None:
    plan = make_plan(json.loads((DEPLOY / "trial.json").read_text()))
    assert plan.settings == TrainingSettings()
    script = (DEPLOY / "entropylong-128k.sh").read_text()
    options = dict(re.findall(r"--(\w+) ([\w.=-]+)", script))
    assert float(options["learning_rate"]) == 4e-5
    assert float(options["warmup_ratio"]) == plan.settings.warmup
    betas = (float(options["adam_beta1"]), float(options["adam_beta2"]))
    assert betas == (plan.settings.beta1, plan.settings.beta2)
    assert float(options["weight_decay"]) == plan.settings.weight_decay
    assert float(options["max_grad_norm"]) == plan.settings.max_gradient_norm
    assert options["config_overrides"] == "rope_theta=200000000"
    assert "steps=1000" in script
    assert 64 * 131_072 / 2 == 4 * 2**20  # tokens per step, as its comment says


def test_script_of_the_paper_passes_every_folder_with_its_proportion(tmp_path: Path) -> None:
    """Quoted as one argument, the folders of a mixture would be one path that does not exist."""
    trainer = tmp_path / "torchrun"
    trainer.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    trainer.chmod(0o755)
    given = {"MODEL": "llama", "DATA": "e/mds/train/constructed-a@0.6 e/mds/train/natural-a@0.4"}
    run = subprocess.run(
        ["bash", str(DEPLOY / "entropylong-128k.sh")],
        env=os.environ | given | {"PATH": f"{tmp_path}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=True,
    )
    arguments = run.stdout.splitlines()
    at = arguments.index("--tokenized_mds_train")
    assert arguments[at + 1 : at + 3] == given["DATA"].split()
    assert arguments[at + 3].startswith("--")
