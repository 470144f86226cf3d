"""Commands that take things out of a corpus: `retire`, `takedown`, `compact`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from entropylong_assets.cli.common import SettingsFile, open_project, out, plain_errors
from entropylong_assets.stages.embeddings.retention import KEEP_DAYS, KEEP_DAYS_HELP

if TYPE_CHECKING:
    from entropylong_assets.project import Project
    from entropylong_assets.settings.section import Settings

CorpusName = Annotated[
    str | None,
    typer.Option("--corpus", "-c", help="Name of the corpus. Needed if the settings have several."),
]
NEXT = "Run `entropylong run` to make what follows again."


def add_commands(app: typer.Typer) -> None:
    app.command()(retire)
    app.command()(takedown)
    app.command()(compact)


def retire(
    name: Annotated[
        str | None, typer.Argument(help="Key of a shard, e.g. web-00012, or name of a source.")
    ] = None,
    settings_file: SettingsFile = None,
    corpus: CorpusName = None,
    reason: Annotated[str, typer.Option(help="The reason, for the record.")] = "not given",
    undo: Annotated[bool, typer.Option("--undo", help="Bring it back.")] = False,
    list_all: Annotated[
        bool, typer.Option("--list", help="List everything removed: by whom, when and why.")
    ] = False,
) -> None:
    """Take a shard or a whole source out of a corpus and its datasets, until it is brought back.

    Its partitions are removed at once, and its files are not read again. The index, candidates,
    samples and exports no longer contain it once they are made again, e.g. by `entropylong run`.
    Its tables are kept. Exports made before are listed.
    """
    with plain_errors():
        project = open_project(settings_file)
        if list_all or name is None:
            for settings in [project.find_corpus(corpus)] if corpus else project.corpora.values():
                _print_removals(settings)
            return
        chosen = _corpus_with(project, name, corpus)
        from entropylong_assets.orchestration.local_run import open_instance
        from entropylong_assets.orchestration.retirement import bring_back, retired_shards
        from entropylong_assets.orchestration.retirement import retire as retire_name
        from entropylong_assets.project import open_store
        from entropylong_assets.report.holdings import find_exports

        with open_instance(project) as instance:
            if undo:
                back = bring_back(chosen, name, instance)
                out.print(f"{chosen.name}: brought back: {', '.join(back) or 'no shard'}. {NEXT}")
                return
            removal = retire_name(chosen, name, instance, reason)
        shards = retired_shards(chosen, name)
        out.print(
            f"{chosen.name}: {removal.kind} {name} is retired, {len(shards):,} shards. {NEXT}",
            soft_wrap=True,
        )
        holdings = find_exports(open_store(chosen), project.datasets_over(chosen.name), shards)
        for uri in holdings.exports:
            out.print(f"an earlier export contains documents of it: {escape(uri)}", soft_wrap=True)
        for uri in holdings.doubtful_exports:
            out.print(f"an earlier export may contain its texts: {escape(uri)}", soft_wrap=True)


def takedown(
    document: Annotated[
        str, typer.Argument(help="doc_id (32 hex digits, the hash of its text) or external_id.")
    ],
    reason: Annotated[str, typer.Option(help="The reason, for the record.")],
    settings_file: SettingsFile = None,
    corpus: CorpusName = None,
) -> None:
    """Take one document out of a corpus permanently, and list where it is held.

    Its shards become stale: the next run makes them, and everything made from them, without it.
    Wherever it is read again it is refused, with a row in the table `dropped`. Exports made before
    are listed, not deleted.
    """
    with plain_errors():
        project = open_project(settings_file)
        chosen = project.find_corpus(corpus)
        from entropylong_assets.orchestration.retirement import take_down

        for taken in take_down(chosen, project.datasets_over(chosen.name), document, reason):
            for line in taken.lines():
                out.print(escape(line), soft_wrap=True)
        out.print(NEXT)


def compact(
    corpus: Annotated[
        str | None, typer.Argument(help="Name of the corpus. Needed if the settings have several.")
    ] = None,
    settings_file: SettingsFile = None,
    keep_days: Annotated[int, typer.Option(min=0, help=KEEP_DAYS_HELP)] = KEEP_DAYS,
) -> None:
    """Join small fragments of a corpus' LanceDB table, and remove files that are no longer needed.

    These are files of old versions without a tag, and files of writers that were killed. Shards can
    be embedded and the index searched meanwhile. If the index is being made, it waits.
    """
    with plain_errors():
        project = open_project(settings_file)
        chosen = project.find_corpus(corpus)
        from entropylong_assets.orchestration.local_run import compact_table, open_instance

        def print_line(line: str) -> None:
            out.print(escape(line), soft_wrap=True)

        with open_instance(project) as instance:
            message = compact_table(project, chosen, instance, keep_days, print_line)
        print_line(f"{chosen.name}: {message}")


def _print_removals(corpus: Settings) -> None:
    from entropylong_assets.project import open_store
    from entropylong_assets.storage.removals import read_removals

    removals = read_removals(open_store(corpus))
    for removal in removals:
        out.print(
            escape(
                f"{corpus.name}: {removal.kind} {removal.name}, {removal.at} by {removal.by}: "
                f"{removal.reason}"
            ),
            soft_wrap=True,
        )
    if not removals:
        out.print(f"{corpus.name}: nothing is retired or taken down")


def _corpus_with(project: Project, name: str, corpus: str | None) -> Settings:
    """The corpus that has a shard or source of this name, unless one is named."""
    from entropylong_assets.orchestration.retirement import knows

    if corpus is None and len(project.corpora) > 1:
        corpora = [settings for settings in project.corpora.values() if knows(settings, name)]
        if len(corpora) == 1:
            return corpora[0]
    return project.find_corpus(corpus)
