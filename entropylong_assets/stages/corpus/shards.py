"""Shards: bounded row ranges of the source files, the partitions of the pipeline.

The plan of shards only grows. A shard keeps its key and its position for ever; files that come
later get the numbers behind, whatever their names. It is kept as `<data_uri>/shards.json`.
"""

from __future__ import annotations

import itertools
import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from pydantic import BaseModel, ConfigDict, ValidationError

from entropylong_assets.settings.model import CorpusSettings, SourceSettings
from entropylong_assets.stages.corpus.errors import CorpusError, one_line
from entropylong_assets.stages.corpus.files import SourceFile, file_version, list_files
from entropylong_assets.stages.corpus.readers import count_rows, read_rows
from entropylong_assets.stages.corpus.rows import Item
from entropylong_assets.storage.schemas import FORMAT_VERSION
from entropylong_assets.storage.tables import TableStore

PLAN_FILE = "shards.json"

# Files looked into at once while rows are counted: most of the time is a remote store's.
_THREADS = 8


class Shard(BaseModel):
    """One partition: rows `first_row` to `first_row + n_rows` of a file, or whole text files."""

    model_config = ConfigDict(frozen=True)

    key: str
    """`<source>-<nnnnn>`, the partition's name."""
    source: str
    kind: str
    files: tuple[str, ...]
    """URIs: one, or for `text` up to `shard_rows` files of one row each."""
    versions: tuple[str, ...]
    """Of each file, as it was when its rows were counted."""
    first_row: int
    n_rows: int
    """Rows planned, a damage that ends the file counted as one (blank lines count, too)."""
    position: int
    """Place in the plan, from 0: the order of registration."""


class ShardPlan(BaseModel):
    """All shards, and what a scan of the sources found."""

    model_config = ConfigDict(frozen=True)

    shards: tuple[Shard, ...] = ()
    """Those known before, in their old order, then the new ones."""
    new: tuple[str, ...] = ()
    """Keys of shards that this scan added."""
    changed: tuple[str, ...] = ()
    """URIs of known files whose version differs from the planned one."""
    gone: tuple[str, ...] = ()
    """URIs of known files that their source no longer names."""

    def shard(self, key: str) -> Shard:
        """The shard of a key. Raises CorpusError where there is none."""
        for shard in self.shards:
            if shard.key == key:
                return shard
        raise CorpusError(f"shard {key}: not in the plan; scan the sources to register it")

    def stale(self) -> tuple[str, ...]:
        """Keys of known shards that hold a changed file: what a rerun would read anew."""
        changed = set(self.changed)
        return tuple(shard.key for shard in self.shards if changed.intersection(shard.files))


def source_of(shard: Shard, corpus: CorpusSettings) -> SourceSettings:
    """Settings of a shard's source. Raises CorpusError where they have none of that name."""
    for source in corpus.sources:
        if source.name == shard.source:
            return source
    raise CorpusError(
        f"shard {shard.key}: the settings have no source '{shard.source}'; put it back under "
        "corpus.sources"
    )


def read_shard(shard: Shard, source: SourceSettings) -> Iterator[Item]:
    """Rows of a shard, file after file, lazily."""
    start, stop = shard.first_row, shard.first_row + shard.n_rows
    for file in shard.files:
        if shard.kind == "text":
            yield from read_rows(file, shard.kind, source)
        else:
            yield from read_rows(file, shard.kind, source, start, stop)


def _cut(rows: int, first: int, most: int) -> Iterator[tuple[int, int]]:
    """Ranges (first row, number of rows) of at most `most` rows from `first` on."""
    for start in range(first, rows, most):
        yield start, min(most, rows - start)


def _recut(shards: list[Shard], file: SourceFile, rows: int, most: int) -> list[Shard]:
    """Known shards of a changed table file: each keeps its first row and takes what now
    lies between it and the next; the last takes up to `most` rows, or as many as it had."""
    shards = sorted(shards, key=lambda shard: shard.first_row)
    result = []
    for shard, after in itertools.zip_longest(shards, shards[1:]):
        room = max(shard.n_rows, most) if after is None else after.first_row - shard.first_row
        n_rows = min(room, max(0, rows - shard.first_row))
        result.append(shard.model_copy(update={"n_rows": n_rows, "versions": (file.version,)}))
    return result


def _renewed_text(shard: Shard, versions: dict[str, str]) -> Shard:
    """A shard of text files as they stand now; members that are gone are left out.

    Where all are gone it stays as it was: to read it is an error, which names the first.
    """
    files = tuple(file for file in shard.files if file in versions)
    if not files:
        return shard
    return shard.model_copy(
        update={
            "files": files,
            "versions": tuple(versions[file] for file in files),
            "n_rows": len(files),
        }
    )


class _SourcePlan:
    """Plans the shards of one source. `known` are those it has already."""

    def __init__(self, source: SourceSettings, known: Sequence[Shard], shard_rows: int) -> None:
        self.source, self.known, self.shard_rows = source, known, shard_rows
        self.planned = {
            file: version
            for shard in known
            for file, version in zip(shard.files, shard.versions, strict=True)
        }
        files = list_files(source)
        if not files and not known:
            raise CorpusError(
                f"source '{source.name}': no file at {source.uri}; put files there or correct "
                "the source's uri"
            )
        self.found = {file.uri: file for file in files}
        self.fresh = [file for file in files if file.uri not in self.planned]
        self.changed = [
            file for file in files if self.planned.get(file.uri, file.version) != file.version
        ]
        self.gone = [uri for uri in self.planned if uri not in self.found]

    def count(self, files: Sequence[SourceFile]) -> list[int]:
        with ThreadPoolExecutor(_THREADS) as pool:
            return list(pool.map(lambda file: count_rows(file.uri, file.kind), files))

    def renew(self) -> tuple[dict[str, Shard], list[tuple[SourceFile, int, int]]]:
        """Known shards brought up to date, by key, and the ranges that fit into none of them."""
        renewed, ranges = {}, []
        tables = [file for file in self.changed if file.kind != "text"]
        for file, rows in zip(tables, self.count(tables), strict=True):
            old = [shard for shard in self.known if shard.files == (file.uri,)]
            new = _recut(old, file, rows, self.shard_rows)
            renewed.update({shard.key: shard for shard in new})
            end = new[-1].first_row + new[-1].n_rows
            ranges += [(file, *cut) for cut in _cut(rows, end, self.shard_rows)]
        versions = {file.uri: file.version for file in self.found.values()}
        for shard in self.known:
            if shard.kind == "text" and any(
                versions.get(file) != version
                for file, version in zip(shard.files, shard.versions, strict=True)
            ):
                renewed[shard.key] = _renewed_text(shard, versions)
        return renewed, ranges

    def add(self, files: Sequence[SourceFile]) -> Iterator[tuple[list[SourceFile], int, int]]:
        """Files, first row and number of rows of each shard of `files`."""
        tables = [file for file in files if file.kind != "text"]
        for file, rows in zip(tables, self.count(tables), strict=True):
            yield from (([file], *cut) for cut in _cut(rows, 0, self.shard_rows))
        texts = [file for file in files if file.kind == "text"]
        for start, n_files in _cut(len(texts), 0, self.shard_rows):
            yield texts[start : start + n_files], 0, n_files


def plan_shards(
    settings: CorpusSettings,
    known: Sequence[Shard] = (),
    *,
    accept_changes: bool = False,
    max_new_files: int | None = None,
) -> ShardPlan:
    """Looks at all sources and appends shards for the files that `known` does not hold.

    Known shards stay as they are, and changed and gone files are only named; with
    `accept_changes` the shards of changed files take in their present rows under their old keys
    (rows for which they have no room get new shards), and text files that are gone leave theirs.
    `max_new_files` bounds the work of one call; the rest comes with the next ones, in the same
    order. Files with damage are planned all the same: their shard reports it.

    Raises CorpusError for a source without any file, and where a source cannot be listed.
    """
    shards = {shard.key: shard for shard in known}
    by_source: dict[str, list[Shard]] = defaultdict(list)
    for shard in known:
        by_source[shard.source].append(shard)
    position = max((shard.position for shard in known), default=-1) + 1
    left = max_new_files
    new, changed, gone = [], [], []

    for source in settings.sources:
        old = by_source.pop(source.name, [])
        plan = _SourcePlan(source, old, settings.shard_rows)
        changed += [file.uri for file in plan.changed]
        gone += plan.gone
        cuts: list[tuple[list[SourceFile], int, int]] = []
        if accept_changes:
            renewed, ranges = plan.renew()
            shards.update(renewed)
            cuts += [([file], first, n_rows) for file, first, n_rows in ranges]
        fresh = plan.fresh[:left]
        left = None if left is None else left - len(fresh)
        cuts += plan.add(fresh)
        number = max((int(shard.key.rpartition("-")[2]) for shard in old), default=-1) + 1
        for files, first, n_rows in cuts:
            shard = Shard(
                key=f"{source.name}-{number:05d}",
                source=source.name,
                kind=files[0].kind,
                files=tuple(file.uri for file in files),
                versions=tuple(file.version for file in files),
                first_row=first,
                n_rows=n_rows,
                position=position,
            )
            shards[shard.key] = shard
            new.append(shard.key)
            number, position = number + 1, position + 1
    # Sources that the settings no longer name.
    gone += [
        file for left_over in by_source.values() for shard in left_over for file in shard.files
    ]
    return ShardPlan(
        shards=tuple(shards.values()),
        new=tuple(new),
        changed=tuple(changed),
        gone=tuple(dict.fromkeys(gone)),
    )


def current_shard(settings: CorpusSettings, plan: ShardPlan, key: str) -> Shard:
    """A shard as its files stand now, so that a repaired or extended file is read as it is.

    The same as planned while its files are; else as `plan_shards` with `accept_changes` makes
    it. To be called before a shard is read. Raises CorpusError where its files are gone.
    """
    shard = plan.shard(key)
    source = source_of(shard, settings)
    if shard.kind == "text":
        return _renewed_text(shard, {file.uri: file.version for file in list_files(source)})
    version = file_version(shard.files[0], shard.kind)
    if version is None:
        raise CorpusError(
            f"shard {key}: {one_line(shard.files[0])} is gone; put it back, or delete the partition"
        )
    if (version,) == shard.versions:
        return shard
    file = SourceFile(shard.files[0], shard.kind, version)
    siblings = [other for other in plan.shards if other.files == shard.files]
    rows = count_rows(file.uri, file.kind)
    renewed_all = _recut(siblings, file, rows, settings.shard_rows)
    return next(other for other in renewed_all if other.key == key)


def load_plan(store: TableStore) -> ShardPlan:
    """The plan as it was last saved; empty where there is none."""
    path = f"{store.root}/{PLAN_FILE}"
    try:
        content = json.loads(store.fs.cat_file(path))
    except FileNotFoundError:
        return ShardPlan()
    except ValueError:
        content = {}
    try:
        if content.get("format") != FORMAT_VERSION:
            raise ValueError
        return ShardPlan(shards=tuple(Shard.model_validate(shard) for shard in content["shards"]))
    except (ValidationError, ValueError, KeyError, AttributeError, TypeError):
        raise CorpusError(
            f"{path}: not a plan of shards in format {FORMAT_VERSION}; restore it from a backup, "
            "or keep the data under another data_uri"
        ) from None


def save_plan(store: TableStore, plan: ShardPlan) -> None:
    """Saves the shards of a plan. Raises CorpusError where the saved plan has others.

    Two scans at once would else give one key to two shards; the second starts again.
    """
    saved, coming = load_plan(store).shards, plan.shards
    same = len(saved) <= len(coming) and all(
        (old.key, old.position) == (new.key, new.position) and set(new.files) <= set(old.files)
        for old, new in zip(saved, coming, strict=False)
    )
    if not same:
        raise CorpusError(
            f"{store.uri}/{PLAN_FILE}: another scan has registered shards meanwhile; scan again"
        )
    content = {
        "format": FORMAT_VERSION,
        "shards": [shard.model_dump(mode="json") for shard in coming],
    }
    store.put(f"{store.root}/{PLAN_FILE}", json.dumps(content, ensure_ascii=False).encode())
