"""The command `status`: what is up to date, stale, failed, running and missing, and why."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from entropylong_assets.cli.common import (
    DatasetName,
    SettingsFile,
    open_project,
    out,
    plain_errors,
)

if TYPE_CHECKING:
    from entropylong_assets.stages.status import StageStatus


def add_commands(app: typer.Typer) -> None:
    app.command()(status)


def status(
    settings_file: SettingsFile = None,
    dataset: DatasetName = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON list with an entry per stage.")
    ] = False,
) -> None:
    """Show which shards of each stage are up to date, stale, failed, running or missing, and why.

    It compares the data with the present settings, code and inputs. It runs and writes nothing.
    """
    with plain_errors():
        project = open_project(settings_file)
        from entropylong_assets.orchestration import status as project_status
        from entropylong_assets.orchestration.instance_data import refuse_other_data
        from entropylong_assets.orchestration.local_run import read_instance

        with read_instance(project) as instance:
            refuse_other_data((*project.corpora.values(), *project.datasets.values()), instance)
            statuses = project_status.project_status(project, instance, dataset)
        if as_json:
            print(json.dumps(project_status.as_json(statuses), indent=2, ensure_ascii=False))
        else:
            print_status(statuses)


def print_status(statuses: Sequence[StageStatus]) -> None:
    """Print a table of counts per corpus and dataset, and a line per reason.

    States that no partition is in have no column. Stages that are made by hand only, and were not,
    are in one line below.
    """
    from entropylong_assets.stages.stage import is_corpus
    from entropylong_assets.stages.status import STATES

    for name in dict.fromkeys(status.owner.name for status in statuses):
        all_of_owner = [status for status in statuses if status.owner.name == name]
        of_owner = [status for status in all_of_owner if not _is_optional(status)]
        shown = [
            state
            for state in STATES
            if state == "up_to_date" or any(status.count(state) for status in of_owner)
        ]
        table = Table(title=name, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
        table.add_column("stage", no_wrap=True)
        for state in shown:
            table.add_column(state.replace("_", " "), justify="right", no_wrap=True)
        for status in of_owner:
            counts = [status.count(state) for state in shown]
            table.add_row(status.stage.name, *(f"{n:,}" if n else "" for n in counts))
        out.print(table)
        if is_corpus(of_owner[0].owner) and not any(
            status.states for status in all_of_owner if status.stage.partitioned
        ):
            out.print("no shard yet: `entropylong scan` or `entropylong run` registers them")
        for status in of_owner:
            for partition_state, shards in status.reasons().items():
                if partition_state.state == "by_hand":
                    continue  # its column says it
                more = f" and {len(shards) - 1:,} more" if len(shards) > 1 else ""
                out.print(
                    f"{partition_state.state}: {status.stage.name}, {escape(shards[0])}{more}: "
                    f"{escape(partition_state.reason)}",
                    soft_wrap=True,
                )
        by_hand = [status.stage.name for status in all_of_owner if _is_optional(status)]
        if by_hand:
            out.print(f"made by hand only: {', '.join(by_hand)}", soft_wrap=True)


def _is_optional(status: StageStatus) -> bool:
    """Whether the stage is made by hand only, and no partition of it exists or is running."""
    made = len(status.states) - status.count("by_hand")
    return status.stage.automation == "by_hand" and made == 0
