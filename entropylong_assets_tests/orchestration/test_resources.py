"""The launchpad shows every setting, and what it gives back is those settings."""

from __future__ import annotations

from typing import Any

import dagster as dg
import pytest

from entropylong_assets.orchestration.resources import Pipeline, pipeline_resource
from entropylong_assets.settings.model import Settings, SettingsError, make_settings
from entropylong_assets.settings.profiles import PROFILES


def through_dagster(settings: Settings, override: dict[str, Any] | None = None) -> Settings:
    """The settings that an asset sees in a run with this launchpad entry."""
    seen: list[Settings] = []

    @dg.asset
    def look(pipeline: dg.ResourceParam[Pipeline]) -> None:
        seen.append(pipeline.settings)

    config = {"resources": {"pipeline": {"config": override}}} if override else {}
    result = dg.materialize(
        [look],
        resources={"pipeline": pipeline_resource(settings)},
        run_config=config,
        raise_on_error=True,
    )
    assert result.success
    return seen[0]


@pytest.mark.parametrize("profile", PROFILES)
def test_every_profile_comes_back_as_it_was(profile: str) -> None:
    settings = make_settings(profile)
    assert through_dagster(settings) == settings


@pytest.mark.parametrize("profile", PROFILES)
def test_a_partial_entry_changes_its_field_alone(profile: str) -> None:
    """Dagster fills the rest of a touched group from class defaults, which must be ours."""
    settings = make_settings(profile)
    override = {"verification": {"epsilon": 0.25}, "seed": 9, "embedding": {"batch_size": 3}}
    seen = through_dagster(settings, override)
    wanted = make_settings(profile, override)
    assert seen == wanted
    assert seen.verification.epsilon == 0.25 != settings.verification.epsilon


def test_sources_can_be_replaced() -> None:
    source = {"name": "mine", "uri": "/tmp/*.jsonl", "kind": "jsonl", "root_fraction": 0.5}
    seen = through_dagster(make_settings("paper"), {"corpus": {"sources": [source]}})
    assert seen == make_settings("paper", {"corpus": {"sources": [source]}})
    assert [s.name for s in seen.corpus.sources] == ["mine"]


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ({"verification": {"epsilon": 1.5}}, "verification.epsilon: Input should be less than 1"),
        ({"verification": {"rule": "best"}}, "verification.rule: Input should be 'plain'"),
        ({"samples": {"tokens": 100}}, "samples.tokens"),
        ({"corpus": {"sources": [{"name": "No", "uri": "x"}]}}, "corpus.sources.0.name"),
        ({"profile": "none"}, "no profile 'none'"),
    ],
)
def test_a_bad_value_ends_the_run_with_its_line(override: dict[str, Any], words: str) -> None:
    with pytest.raises((SettingsError, dg.DagsterError)) as caught:
        through_dagster(make_settings("quickstart"), override)
    errors, error = [], caught.value
    while error is not None:
        errors.append(str(error))
        error = error.__cause__  # type: ignore[assignment]
    assert any(words in line for line in errors), errors


@pytest.mark.parametrize("override", [{"verification": {"epsilon": "much"}}, {"sed": 1}])
def test_a_value_of_another_type_or_an_unknown_name_never_starts(override: dict[str, Any]) -> None:
    with pytest.raises(dg.DagsterInvalidConfigError):
        through_dagster(make_settings(), override)
