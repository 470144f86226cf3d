"""Where the runs of the command line show up in the UI.

The UI lists a run under its job, on the timeline and in the overview only if the run names the code
location and the repository of the job. Dagster records both for the runs that it launches, not for
those of `execute_in_process`.

Like `launcher.py`, this module imports from `dagster._core`: the classes of a run's origin are not
exported by Dagster 1.13.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import dagster as dg
from dagster._core.definitions.repository_definition import SINGLETON_REPOSITORY_NAME
from dagster._core.remote_origin import (
    RegisteredCodeLocationOrigin,
    RemoteJobOrigin,
    RemoteRepositoryOrigin,
)

CODE_LOCATION = "entropylong"
"""Name of the code location in workspace.yaml and pyproject.toml."""


def job_origin(job_name: str) -> RemoteJobOrigin:
    """The origin that Dagster gives to runs of this job that it launches itself."""
    location = RegisteredCodeLocationOrigin(CODE_LOCATION)
    repository = RemoteRepositoryOrigin(location, SINGLETON_REPOSITORY_NAME)
    return RemoteJobOrigin(repository, job_name)


@contextmanager
def recording_origin(instance: dg.DagsterInstance, job_name: str) -> Iterator[None]:
    """Give runs that are created inside this context the origin of a job.

    `execute_in_process` creates its run itself and takes no origin.
    """
    create = instance.create_run_for_job
    instance.create_run_for_job = partial(  # type: ignore[method-assign]
        create, remote_job_origin=job_origin(job_name)
    )
    try:
        yield
    finally:
        del instance.create_run_for_job
