"""All Dagster definitions of a project."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import dagster as dg

from entropylong_assets.orchestration.assets import build_asset, build_checks
from entropylong_assets.orchestration.cluster import executor
from entropylong_assets.orchestration.corpus_jobs import build_corpus_jobs
from entropylong_assets.orchestration.jobs import build_jobs
from entropylong_assets.orchestration.resources import settings_resources
from entropylong_assets.orchestration.sensors import build_schedules, build_sensors
from entropylong_assets.project import Project, open_store
from entropylong_assets.settings.section import Settings, SettingsError
from entropylong_assets.stages.records import refuse_contradiction


def build_definitions(project: Project, *, with_executor: bool = True) -> dg.Definitions:
    """Assets, checks, jobs, sensors, schedules and resources of all corpora and datasets.

    with_executor: False for a component in another project, whose executor stays its own. Raises
    SettingsError if a name is in use for something else under the same data_uri.
    """
    owners = [*project.corpora.values(), *project.datasets.values()]
    _refuse_contradictions(project, owners)
    with warnings.catch_warnings():
        # Dagster warns, once per check, of features that it may change. Users need not know: its
        # version is pinned.
        for category in (dg.PreviewWarning, dg.BetaWarning):
            warnings.simplefilter("ignore", category)
        return _definitions(project, owners, with_executor)


def _definitions(
    project: Project, owners: Sequence[Settings], with_executor: bool
) -> dg.Definitions:
    pairs = [(settings, stage) for settings in owners for stage in project.stages_of(settings)]
    return dg.Definitions(
        assets=[build_asset(project, settings, stage) for settings, stage in pairs],
        asset_checks=[build_checks(project, settings, stage) for settings, stage in pairs],
        jobs=[
            *(job for settings in owners for job in build_jobs(project, settings)),
            *(job for c in project.corpora.values() for job in build_corpus_jobs(project, c)),
        ],
        sensors=[sensor for settings in owners for sensor in build_sensors(project, settings)],
        schedules=[s for settings in owners for s in build_schedules(project, settings)],
        resources={k: r for settings in owners for k, r in settings_resources(settings).items()},
        executor=executor(project) if with_executor else None,
    )


def _refuse_contradictions(project: Project, owners: Sequence[Settings]) -> None:
    """Raise SettingsError if a name stands for something else in the data."""
    for settings in owners:
        try:
            refuse_contradiction(settings, project.stages_of(settings), open_store(settings))
        except SettingsError:
            raise
        except Exception:
            # Definitions must load even if the store can't be reached (no credentials, no network);
            # the first step then reports the error. The other names are in the same store.
            return
