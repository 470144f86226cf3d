"""The pages and charts of the reference run's training trials are those of their kept results."""

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


@pytest.mark.parametrize(("folder", "name"), trial_page.TRIALS.items(), ids=lambda x: Path(x).name)
def test_page_is_that_of_the_kept_results(folder: Path, name: str) -> None:
    """A page that was edited, or not written again after a change of its text, would differ."""
    results = trial_page.kept_results(folder)
    text = trial_page.trial_page(TrialFolder(folder).facts, results, trial_page.DATE)
    assert (REPOSITORY / f"docs/{name}.md").read_text(encoding="utf-8") == text


@pytest.mark.parametrize(
    ("folder", "words"),
    [
        (trial_page.HERE / "trial", "`genuine` {:.3f}"),
        (trial_page.HERE / "trial_30m", "| +0.185 (0.137 to 0.232) | +{:.3f} ("),
    ],
    ids=["trial", "trial_30m"],
)
def test_figures_of_the_summary_follow_from_the_kept_results(folder: Path, words: str) -> None:
    """The oracle is the plain mean over tasks, items and seeds, without the code of intervals."""
    results = [r for r in trial_page.kept_results(folder) if r["run"]["tokens"]]
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
    assert words.format(ours) in summary


@pytest.mark.parametrize("folder", trial_page.TRIALS, ids=lambda x: x.name)
def test_chart_shows_every_arm_and_measure(folder: Path) -> None:
    results = trial_page.kept_results(folder)
    trained = {r["run"]["arm"] for r in results if r["run"]["tokens"]} - {trial_page.BASELINE}
    content = json.dumps(trial_page.chart(results).to_dict())
    assert len(trained) >= 2
    assert all(content.count(f'"{arm}"') >= 7 for arm in trained)


def test_stages_of_the_reference_run_end_with_the_verified_dependencies() -> None:
    """Stages over all shards must wait for all shards of the stages before them."""
    file = REPOSITORY / "benchmarks/reference_run/settings.yaml"
    groups = list(groups_of(load_project(file).stages))
    names = [[stage.name for stage in stages] for _, stages in groups]
    assert [partitioned for partitioned, _ in groups] == [True, False, True]
    assert names[1] == ["near_duplicates", "embedding_index"]
    assert names[-1][-1] == "verified_dependencies"
