"""The page and chart of the reference run's training trial are those of its kept results."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.reference_run import trial_page
from benchmarks.reference_run.run import groups_of
from entropylong_assets.audits.trial.folder import TrialFolder
from entropylong_assets.audits.trial.measures import by_arm, paired_difference
from entropylong_assets.project import load_project

REPOSITORY = Path(__file__).parents[2]


def test_page_is_that_of_the_kept_results() -> None:
    """A page that was edited, or not written again after a change of its text, would differ."""
    facts = TrialFolder(trial_page.KEPT).facts
    text = trial_page.trial_page(facts, trial_page.kept_results(), trial_page.DATE)
    assert (REPOSITORY / trial_page.PAGE).read_text(encoding="utf-8") == text


def test_figures_of_the_summary_follow_from_the_kept_results() -> None:
    """The oracle is the plain mean over tasks, items and seeds, without the code of intervals."""
    results = [r for r in trial_page.kept_results() if r["run"]["tokens"]]
    means = {}
    for arm in ("genuine", "random"):
        values = [
            value
            for result in results
            if result["run"]["arm"] == arm
            for name, scores in result["scores"].items()
            if name.endswith("-16384")
            for value in scores["log_likelihood"]
        ]
        means[arm] = sum(values) / len(values)
    arms = by_arm(results)
    ours = paired_difference(arms["genuine"], arms["random"], "answers-16384").value
    assert ours == pytest.approx(means["genuine"] - means["random"], abs=1e-9)
    summary = (REPOSITORY / "docs/reference-run.md").read_text(encoding="utf-8")
    assert f"`genuine` {ours:.3f}" in summary


def test_chart_shows_every_arm_and_measure() -> None:
    content = json.dumps(trial_page.chart(trial_page.kept_results()).to_dict())
    assert all(content.count(f'"{arm}"') >= 7 for arm in trial_page.ARMS)


def test_stages_of_the_reference_run_end_with_the_verified_dependencies() -> None:
    """Stages over all shards must wait for all shards of the stages before them."""
    file = REPOSITORY / "benchmarks/reference_run/settings.yaml"
    groups = list(groups_of(load_project(file).stages))
    names = [[stage.name for stage in stages] for _, stages in groups]
    assert [partitioned for partitioned, _ in groups] == [True, False, True]
    assert names[1] == ["near_duplicates", "embedding_index"]
    assert names[-1][-1] == "verified_dependencies"
