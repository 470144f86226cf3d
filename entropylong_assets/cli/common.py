"""What all commands share: the console, the settings option, and errors in one line."""

from __future__ import annotations

import os
import signal
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape

from entropylong_assets.orchestration.signals import StopActions, stop_signal, watch_signals
from entropylong_assets.stages.progress import disable_progress_bars

if TYPE_CHECKING:
    from entropylong_assets.project import Project
    from entropylong_assets.settings.section import Settings

disable_progress_bars()
out = Console(highlight=False)

SettingsFile = Annotated[
    str | None,
    typer.Option(
        "--settings",
        "-s",
        help="Settings file (YAML). Default: the file that ENTROPYLONG_SETTINGS names, or the "
        "profile that ENTROPYLONG_PROFILE names.",
    ),
]
DatasetName = Annotated[
    str | None,
    typer.Option(
        "--dataset", "-d", help="Name of the dataset. Needed if the settings have several."
    ),
]


RESUME = "Finished work is kept; run the same command again to resume."


@contextmanager
def resumable() -> Iterator[None]:
    """`plain_errors` for a command that runs stages: SIGINT and SIGTERM stop it within seconds.

    The exit code is 130 or 143 then.
    """
    with watch_signals(StopActions(on_overdue=_print_overdue), until_exit=True), plain_errors():
        try:
            yield
        except KeyboardInterrupt:
            number = stop_signal() or signal.SIGINT
            _print_error(f"[yellow]stopped by {number.name}.[/] {RESUME}")
            raise typer.Exit(128 + number) from None


def _print_overdue() -> None:
    """Print the message from another thread, because the main one can't be interrupted."""
    number = stop_signal() or signal.SIGINT
    os.write(2, f"\nstopped by {number.name}. {RESUME}\n".encode())


def _print_error(markup: str) -> None:
    Console(stderr=True, highlight=False, soft_wrap=True).print(markup)


@contextmanager
def plain_errors() -> Iterator[None]:
    """End a user's mistake, or an unreachable store, with one line and exit code 2."""
    # Dagster warns of features that it may change. Users need not know: its version is pinned.
    warnings.filterwarnings("ignore", message=r".* is currently in (preview|beta), and may have")
    try:
        yield
    except Exception as error:
        from entropylong_assets.orchestration.errors import is_ours, is_transient, line

        if not (is_ours(error) or isinstance(error, OSError) or is_transient(error)):
            raise
        _print_error(f"[red]error:[/] {escape(line(error))}")
        raise typer.Exit(2) from None


def open_project(path: str | None) -> Project:
    from entropylong_assets.project import load_project

    return load_project(path)


def open_dataset(path: str | None, name: str | None) -> Settings:
    """Settings of one dataset; without a name, of the only one."""
    return open_project(path).find_dataset(name)
