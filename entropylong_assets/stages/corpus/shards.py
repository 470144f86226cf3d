"""Shards: bounded row ranges of the source files, the partitions of a corpus.

The plan of shards only grows. A shard keeps its key and its position forever; files that are added
later get the next numbers, whatever their names. The plan is stored as
`<data_uri>/<corpus>/shards.json`.
"""

from __future__ import annotations

import json
import os
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

from pydantic import ValidationError

from entropylong_assets.settings.section import Settings
from entropylong_assets.stages.corpus.errors import CorpusError, MissingSourceError, one_line
from entropylong_assets.stages.corpus.files import SourceFile
from entropylong_assets.stages.corpus.listing import (
    REASONS,
    file_version,
    list_files,
)
from entropylong_assets.stages.corpus.readers import count_rows, read_rows
from entropylong_assets.stages.corpus.rows import Item
from entropylong_assets.stages.corpus.settings import SourceSettings
from entropylong_assets.stages.corpus.shard_plan import Shard, ShardPlan, source_of
from entropylong_assets.stages.corpus.source_plans import (
    Range,
    SourcePlan,
    recut,
    with_present_files,
)
from entropylong_assets.storage.removals import find_removed
from entropylong_assets.storage.tables import TableStore

PLAN_FILE, PLAN_FORMAT = "shards.json", 1
NO_SOURCE = "its settings name no source; add one to its `sources` (docs/own-corpus.md)"


def read_shard(shard: Shard, source: SourceSettings) -> Iterator[Item]:
    """Yield the rows of a shard, file after file, lazily."""
    start, stop = shard.first_row, shard.first_row + shard.n_rows
    for file in shard.files:
        if shard.has_whole_files:
            yield from read_rows(file, shard.kind, source)
        else:
            yield from read_rows(file, shard.kind, source, start, stop)


def plan_shards(
    settings: Settings,
    known: Sequence[Shard] = (),
    *,
    empty: Mapping[str, str] | None = None,
    accept_changes: bool = False,
    max_new_files: int | None = None,
    retired: Sequence[Shard] = (),
    retired_sources: Collection[str] = (),
) -> ShardPlan:
    """List all sources and add shards for the files that `known` does not contain.

    settings: of the corpus. accept_changes: plan the shards of changed files again, under their old
    keys; rows that exceed them get new shards. A missing file is removed from a shard of whole
    files only if another of its files has changed. Without accept_changes, known shards are kept
    unchanged, and changed and missing files are only listed. empty: `ShardPlan.empty` of the plan
    so far; these files are not opened again. max_new_files: maximum number of new files per call;
    the next calls continue in the same order. retired: shards whose files are not planned again.
    retired_sources: names of sources that are not listed. Damaged files are planned too: their
    shard reports the damage.

    Raises CorpusError if a source has no file at all or can't be listed.
    """
    shards = {shard.key: shard for shard in known}
    by_source: dict[str, list[Shard]] = defaultdict(list)
    for shard in known:
        by_source[shard.source].append(shard)
    position = max((shard.position for shard in (*known, *retired)), default=-1) + 1
    left = max_new_files
    new, plans = list[str](), list[SourcePlan]()

    for source in settings.sources:
        if source.name in retired_sources:
            continue
        old = by_source.pop(source.name, [])
        out = [shard for shard in retired if shard.source == source.name]
        plan = SourcePlan(source, old, empty or {}, settings, out)
        plans.append(plan)
        ranges = list[Range]()
        if accept_changes:
            renewed, ranges = plan.renew()
            shards.update(renewed)
        n_waiting = len(plan.waiting)
        ranges += plan.add(left)
        if left is not None:
            left -= min(left, n_waiting - len(plan.waiting))
        numbers = [int(shard.key.rpartition("-")[2]) for shard in (*old, *out)]
        number = max(numbers, default=-1) + 1
        for files, first_row, n_rows in ranges:
            shard = Shard(
                key=f"{source.name}-{number:05d}",
                source=source.name,
                kind=files[0].kind,
                files=tuple(file.uri for file in files),
                versions=tuple(file.version for file in files),
                first_row=first_row,
                n_rows=n_rows,
                position=position,
            )
            shards[shard.key] = shard
            new.append(shard.key)
            number, position = number + 1, position + 1
    rows = sum(shard.n_rows for shard in shards.values())
    shards |= {key: shards[key].model_copy(update={"corpus_rows": rows}) for key in new}
    # Sources that are no longer in the settings.
    left_over = [f for old in by_source.values() for shard in old for f in shard.files]
    without_source = [shard.key for old in by_source.values() for shard in old]
    return ShardPlan(
        shards=tuple(shards.values()),
        retired=tuple(retired),
        retired_sources=tuple(retired_sources),
        new=tuple(new),
        changed=tuple(file.uri for plan in plans for file in plan.changed),
        missing=tuple(dict.fromkeys([uri for plan in plans for uri in plan.missing] + left_over)),
        missing_shards=(*(key for plan in plans for key in plan.missing_shards), *without_source),
        shared=_shared([*(plan.found for plan in plans), *([left_over] if left_over else [])]),
        empty={uri: version for plan in plans for uri, version in plan.empty.items()},
        passed_over=_merged(plans),
    )


def _merged(plans: Sequence[SourcePlan]) -> dict[str, tuple[str, ...]]:
    """URIs that sources pass over, by reason, without those that another source reads."""
    read = {
        uri for plan in plans for uri in plan.found.keys() - plan.empty.keys() - set(plan.forbidden)
    }
    merged = {
        reason: {uri for plan in plans for uri in plan.passed_over.get(reason, ())} - read
        for reason in REASONS
    }
    return {reason: tuple(sorted(uris)) for reason, uris in merged.items() if uris}


def _shared(sources: Sequence[Iterable[str]]) -> tuple[str, ...]:
    """Files that several sources have."""
    if len(sources) < 2:
        return ()
    times = Counter(
        uri if "://" in uri else os.path.abspath(uri) for uris in sources for uri in set(uris)
    )
    return tuple(sorted(uri for uri, n in times.items() if n > 1))


def replan(
    settings: Settings,
    plan: ShardPlan,
    *,
    accept_changes: bool = False,
    max_new_files: int | None = None,
) -> ShardPlan:
    """Scan the sources again, as `plan_shards` does, on top of a plan so far.

    Raises CorpusError, as `plan_shards` does, also if the corpus has neither sources nor shards.
    """
    if not settings.sources and not plan.known:
        raise CorpusError(f"corpus {settings.name}: {NO_SOURCE}")
    return plan_shards(
        settings,
        plan.shards,
        empty=plan.empty,
        accept_changes=accept_changes,
        max_new_files=max_new_files,
        retired=plan.retired,
        retired_sources=plan.retired_sources,
    )


def require_shards(settings: Settings, plan: ShardPlan) -> None:
    """Raise CorpusError if a plan has no shard, as all are retired or all files are empty."""
    if not plan.shards and (plan.retired or plan.retired_sources):
        raise CorpusError(
            f"corpus {settings.name}: all of its {len(plan.retired):,} shards are retired; bring "
            "some back with `entropylong retire NAME --undo`, or add a source"
        )
    if not plan.shards:
        raise CorpusError(
            f"corpus {settings.name}: its sources have no file with rows; put documents there, or "
            "correct the sources: `entropylong scan` lists what is passed over, and why"
        )


def current_shard(settings: Settings, plan: ShardPlan, key: str) -> Shard:
    """Return a shard with the present versions and rows of its files, without missing files.

    Changed shards are planned as `plan_shards` does with `accept_changes`. Call it before reading a
    shard, so that a corrected or longer file is read completely. Raises MissingSourceError if its
    files or its source no longer exist.
    """
    shard = plan.shard(key)
    source = source_of(shard, settings)
    if shard.has_whole_files:
        files = list_files(source, settings.data_uri)
        return with_present_files(shard, {file.uri: file.version for file in files})
    version = file_version(shard.files[0], shard.kind)
    if version is None:
        raise MissingSourceError(
            f"shard {key}: {one_line(shard.files[0])} does not exist; put it back, or take the "
            f"shard out with `entropylong retire {key}`"
        )
    if (version,) == shard.versions:
        return shard
    file = SourceFile(shard.files[0], shard.kind, version)
    siblings = [other for other in plan.known if other.files == shard.files]
    rows = count_rows(file.uri, file.kind)
    renewed_all = recut(siblings, file, rows, settings.shard_rows)
    return next(other for other in renewed_all if other.key == key)


def _plan_path(store: TableStore) -> str:
    return f"{store.root}/{store.corpus}/{PLAN_FILE}"


def load_plan(store: TableStore) -> ShardPlan:
    """Load the plan of the store's corpus; it is empty if none was saved.

    Raises CorpusError if the file is damaged.
    """
    try:
        content = json.loads(store.fs.cat_file(_plan_path(store)))
    except FileNotFoundError:
        return ShardPlan()
    except ValueError:
        content = {}
    try:
        if content.get("format") != PLAN_FORMAT:
            raise ValueError
        saved = ShardPlan.model_validate(
            {"shards": content["shards"], "empty": content.get("empty", {})}
        )
    except (ValidationError, ValueError, KeyError, AttributeError, TypeError):
        raise CorpusError(
            f"{store.corpus_uri}/{PLAN_FILE}: not a plan of shards in format {PLAN_FORMAT}; "
            "restore it from a backup, or choose another name for the corpus"
        ) from None
    removed = find_removed(store)
    return saved.model_copy(
        update={
            "shards": tuple(s for s in saved.shards if not removed.hides(s.key)),
            "retired": tuple(s for s in saved.shards if removed.hides(s.key)),
            "retired_sources": tuple(sorted(removed.sources)),
        }
    )


def save_plan(store: TableStore, plan: ShardPlan) -> None:
    """Save all shards and empty files of a plan. Raises CorpusError if other shards are saved.

    Otherwise two scans at once could give one key to two shards; the second has to start again.
    """
    saved, planned = load_plan(store).known, plan.known
    grows = len(saved) <= len(planned) and all(
        (old.key, old.position) == (new.key, new.position) and set(new.files) <= set(old.files)
        for old, new in zip(saved, planned, strict=False)
    )
    if not grows:
        raise CorpusError(
            f"{store.corpus_uri}/{PLAN_FILE}: another scan has registered shards meanwhile; scan "
            "again"
        )
    content = {
        "format": PLAN_FORMAT,
        "shards": [shard.model_dump(mode="json") for shard in planned],
        "empty": dict(plan.empty),
    }
    store.put(_plan_path(store), json.dumps(content, ensure_ascii=False).encode())
