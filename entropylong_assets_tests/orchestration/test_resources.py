"""The launchpad shows every setting, and returns the settings unchanged."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from entropylong_assets.orchestration.build import build_definitions
from entropylong_assets.orchestration.resources import (
    chosen_settings,
    resource_keys,
    settings_resources,
)
from entropylong_assets.project import make_project
from entropylong_assets.settings.profiles import PROFILES
from entropylong_assets.settings.section import Section, Settings, SettingsError
from entropylong_assets_tests.stage_names import BY_NAME


def through_dagster(settings: Settings, override: Mapping[str, Any] | None = None) -> Settings:
    """Return the settings that a stage gets if these are changed in the launchpad."""
    seen: list[Settings] = []
    everything = replace(BY_NAME["corpus_documents"], determined_by=lambda s: fields_of(s))

    @dg.asset(required_resource_keys=resource_keys(settings, everything))
    def look(context) -> None:  # type: ignore[no-untyped-def]  # Dagster reads annotations
        seen.append(chosen_settings(settings, everything, context.resources))

    result = dg.materialize(
        [look],
        resources=settings_resources(settings),
        run_config={"resources": entries(settings, override or {})},
        raise_on_error=True,
    )
    assert result.success
    return seen[0]


def fields_of(settings: Settings) -> list[str]:
    return list(type(settings).model_fields)


def entries(settings: Settings, override: Mapping[str, Any]) -> dict[str, Any]:
    """The launchpad's entry for settings that are written as in a settings file."""
    written: dict[str, Any] = {}
    for name, value in override.items():
        if isinstance(getattr(settings, name, None), Section):
            written[f"{settings.name}_settings__{name}"] = {"config": value}
        else:
            top = written.setdefault(f"{settings.name}_settings", {"config": {}})
            top["config"][name] = value
    return written


@pytest.mark.parametrize("profile", PROFILES)
def test_settings_of_every_profile_come_back_unchanged(profile: str) -> None:
    project = make_project({}, profile)
    for settings in (project.corpus, project.dataset):
        seen = through_dagster(settings)
        assert seen == settings
        assert type(seen) is type(settings)


@pytest.mark.parametrize("profile", PROFILES)
def test_partial_entry_changes_its_field_alone(profile: str) -> None:
    """Dagster fills the rest of a section from class defaults, which must be the settings'."""
    project = make_project({}, profile)
    override = {"verification": {"epsilon": 0.25}, "seed": 9}
    seen = through_dagster(project.dataset, override)
    wanted = make_project({"verification": {"epsilon": 0.25}, "seed": 9}, profile).dataset
    assert seen == wanted.model_copy(update={"corpus": project.corpus})
    assert seen.verification.epsilon == 0.25 != project.dataset.verification.epsilon

    override = {"embedding": {"batch_size": 3}, "seed": 9, "min_chars": 7}
    seen = through_dagster(project.corpus, override)
    values = {"embedding": {"batch_size": 3}, "seed": 9, "corpus": {"min_chars": 7}}
    assert seen == make_project(values, profile).corpus


def test_sources_can_be_replaced() -> None:
    source = {"name": "mine", "uri": "/tmp/*.jsonl", "kind": "jsonl", "license": "mit"}
    seen = through_dagster(make_project({}, "paper").corpus, {"sources": [source]})
    assert seen == make_project({"corpus": {"sources": [source]}}, "paper").corpus
    assert [s.name for s in seen.sources] == ["mine"]


def test_fractions_by_source_can_be_set() -> None:
    dataset = make_project({}, "paper").dataset
    fractions = {"cosmopedia": 0.25}
    seen = through_dagster(dataset, {"roots": {"fraction_by_source": fractions}})
    assert seen.roots.fraction_by_source == fractions
    assert seen.roots.fraction == dataset.roots.fraction


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ({"verification": {"epsilon": 1.5}}, "verification.epsilon: Input should be less than 1"),
        ({"verification": {"rule": "best"}}, "verification.rule: no rule 'best'"),
        ({"samples": {"tokens": 100}}, "samples.tokens"),
        ({"roots": {"fraction_by_source": {"no": 0.5}}}, "no source 'no'"),
        ({"sources": [{"name": "No", "uri": "x"}]}, "sources.0.name"),
        ({"min_chars": 9, "max_chars": 8}, "min_chars must not exceed max_chars"),
    ],
)
def test_bad_value_ends_the_run_with_one_line(override: dict[str, Any], words: str) -> None:
    project = make_project({}, "quickstart")
    is_corpus = override.keys() & {"sources", "min_chars"}
    with pytest.raises((SettingsError, dg.DagsterError)) as caught:
        through_dagster(project.corpus if is_corpus else project.dataset, override)
    messages, error = [], caught.value
    while error is not None:
        messages.append(str(error))
        error = error.__cause__  # type: ignore[assignment]
    (line,) = [m for m in messages if words in m]
    assert "\n" not in line


@pytest.mark.parametrize(
    "override",
    [
        {"verification": {"epsilon": "much"}},
        {"samples": {"order": "shufle"}},
        {"sed": 1},
        {"profile": "paper"},
        # Where the data is, and what a name stands for, is not for one run to change.
        {"name": "other"},
        {"data_uri": "/elsewhere"},
        {"corpus": {"min_chars": 1}},
    ],
)
def test_value_of_another_type_or_an_unknown_name_never_starts(override: dict[str, Any]) -> None:
    with pytest.raises(dg.DagsterInvalidConfigError):
        through_dagster(make_project().dataset, override)


def test_bounds_are_in_the_descriptions() -> None:
    """Dagster's config has no numbers with bounds, so the descriptions have to show them."""
    resource = settings_resources(make_project().dataset)["dataset_settings__verification"]
    verification = resource.config_schema.as_field().config_type
    assert "Allowed: less than 1." in verification.fields["epsilon"].description
    assert "Allowed: at least 0, at most 32." in verification.fields["controls"].description


@pytest.mark.parametrize(
    ("job", "sections"),
    [
        ("corpus__ingest", {"corpus": {"", "embedding", "near_duplicates"}}),
        ("dataset__score", {"dataset": {"", "roots", "scoring", "entropy"}}),
    ],
)
def test_a_job_shows_the_sections_that_its_stages_read(
    job: str, sections: dict[str, set[str]]
) -> None:
    """The failure: 101 lines for every job, with `audit` and `export` in `ingest`."""
    repository = build_definitions(make_project()).get_repository_def()
    shown = repository.get_job(job).resource_defs.keys() - {"io_manager"}
    required = repository.get_job(job).get_required_resource_defs().keys() & shown
    assert required == {
        f"{owner}_settings" + (f"__{name}" if name else "")
        for owner, names in sections.items()
        for name in names
    }


def test_a_value_out_of_bounds_fails_the_run_without_a_stack_trace(tmp_path: Path) -> None:
    """The failure: Dagster wraps what a resource raises into several stack traces."""
    project = make_project({"data_uri": str(tmp_path)})
    job = build_definitions(project).get_repository_def().get_job("dataset__verify")
    config = {"dataset_settings__verification": {"config": {"epsilon": 1.4}}}
    with dg.DagsterInstance.ephemeral() as instance:
        instance.add_dynamic_partitions("corpus_shards", ["a"])
        result = job.execute_in_process(
            instance=instance,
            partition_key="a",
            asset_selection=[dg.AssetKey(["dataset", "verified_dependencies"])],
            run_config={"resources": config},
            raise_on_error=False,
        )
    (failure,) = (e for e in result.all_events if e.is_step_failure)
    data = failure.step_failure_data
    assert data.user_failure_data.description == (
        "dataset.verification.epsilon: Input should be less than 1 (got 1.4)"
    )
    assert data.error.cause is None
