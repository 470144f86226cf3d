"""Shards: bounded row ranges of the source files, the partitions of a corpus.

The plan of shards only grows. A shard keeps its key and its position for ever; files that are added
later get the next numbers, whatever their names. The plan is stored as
`<data_uri>/<corpus>/shards.json`.
"""

from __future__ import annotations

import itertools
import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from pydantic import BaseModel, ConfigDict, ValidationError

from entropylong_assets.settings.section import Settings
from entropylong_assets.stages.corpus.errors import CorpusError, one_line
from entropylong_assets.stages.corpus.files import SourceFile
from entropylong_assets.stages.corpus.listing import file_version, list_files
from entropylong_assets.stages.corpus.readers import count_rows, read_rows
from entropylong_assets.stages.corpus.registry import source_format
from entropylong_assets.stages.corpus.rows import Item
from entropylong_assets.stages.corpus.settings import SourceSettings
from entropylong_assets.storage.tables import TableStore

PLAN_FILE, PLAN_FORMAT = "shards.json", 1

# Files whose rows are counted at once: most of the time is spent waiting for a remote store.
_THREADS = 8


class Shard(BaseModel):
    """One partition: rows `first_row` to `first_row + n_rows` of a file, or whole files.

    Whole files, of a format with one row per file.
    """

    model_config = ConfigDict(frozen=True)

    key: str
    """`<source>-<nnnnn>`, the partition's name."""
    source: str
    kind: str
    """Name of the source format."""
    files: tuple[str, ...]
    """URIs: one, or up to `shard_rows` files of one row each."""
    versions: tuple[str, ...]
    """Of each file, as it was when its rows were counted."""
    first_row: int
    n_rows: int
    """Rows planned, blank lines included. Damage that ends the file counts as one row."""
    position: int
    """Place in the plan, from 0: the order of registration."""

    @property
    def has_whole_files(self) -> bool:
        return source_format(self.kind).one_row_per_file


class ShardPlan(BaseModel):
    """All shards, and what a scan of the sources found."""

    model_config = ConfigDict(frozen=True)

    shards: tuple[Shard, ...] = ()
    """The known shards in their old order, then the new ones."""
    new: tuple[str, ...] = ()
    """Keys of shards that this scan added."""
    changed: tuple[str, ...] = ()
    """URIs of known files whose version differs from the planned one."""
    gone: tuple[str, ...] = ()
    """URIs of known files that their source no longer has."""

    def shard(self, key: str) -> Shard:
        """Return the shard of a key. Raises CorpusError if there is none."""
        for shard in self.shards:
            if shard.key == key:
                return shard
        raise CorpusError(f"shard {key}: not in the plan; scan the sources to register it")

    def stale(self) -> tuple[str, ...]:
        """Keys of known shards with a changed file, which another run would read again."""
        changed = set(self.changed)
        return tuple(shard.key for shard in self.shards if changed.intersection(shard.files))


def source_of(shard: Shard, settings: Settings) -> SourceSettings:
    """Return the settings of a shard's source. Raises CorpusError if the corpus has none such."""
    sources: tuple[SourceSettings, ...] = settings.sources
    for source in sources:
        if source.name == shard.source:
            return source
    raise CorpusError(
        f"shard {shard.key}: the settings have no source '{shard.source}'; put it back under "
        "corpus.sources"
    )


def read_shard(shard: Shard, source: SourceSettings) -> Iterator[Item]:
    """Yield the rows of a shard, file after file, lazily."""
    start, stop = shard.first_row, shard.first_row + shard.n_rows
    for file in shard.files:
        if shard.has_whole_files:
            yield from read_rows(file, shard.kind, source)
        else:
            yield from read_rows(file, shard.kind, source, start, stop)


def _cut(rows: int, first: int, most: int) -> Iterator[tuple[int, int]]:
    """Yield ranges (first row, number of rows) of at most `most` rows, from row `first` on."""
    for start in range(first, rows, most):
        yield start, min(most, rows - start)


def _recut(shards: list[Shard], file: SourceFile, rows: int, most: int) -> list[Shard]:
    """Cut a changed file again: each of its shards keeps its first row, and ends at the next one's.

    The last takes up to `most` rows, or as many as it had.
    """
    shards = sorted(shards, key=lambda shard: shard.first_row)
    result = []
    for shard, after in itertools.zip_longest(shards, shards[1:]):
        room = max(shard.n_rows, most) if after is None else after.first_row - shard.first_row
        n_rows = min(room, max(0, rows - shard.first_row))
        result.append(shard.model_copy(update={"n_rows": n_rows, "versions": (file.version,)}))
    return result


def _with_present_files(shard: Shard, versions: dict[str, str]) -> Shard:
    """Return a shard of whole files as they are now, without those that no longer exist.

    If none exists it stays as it was: reading it is then an error that names the first.
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
    """Plans the shards of one source. known: its shards so far."""

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
        """Return the known shards of changed files, by key, and the ranges that fit into none."""
        renewed, ranges = {}, []
        tables = [f for f in self.changed if not source_format(f.kind).one_row_per_file]
        for file, rows in zip(tables, self.count(tables), strict=True):
            old = [shard for shard in self.known if shard.files == (file.uri,)]
            new = _recut(old, file, rows, self.shard_rows)
            renewed.update({shard.key: shard for shard in new})
            end = new[-1].first_row + new[-1].n_rows
            ranges += [(file, *cut) for cut in _cut(rows, end, self.shard_rows)]
        versions = {file.uri: file.version for file in self.found.values()}
        for shard in self.known:
            if shard.has_whole_files and any(
                versions.get(file) != version
                for file, version in zip(shard.files, shard.versions, strict=True)
            ):
                renewed[shard.key] = _with_present_files(shard, versions)
        return renewed, ranges

    def add(self, files: Sequence[SourceFile]) -> Iterator[tuple[list[SourceFile], int, int]]:
        """Yield files, first row and number of rows of each new shard."""
        whole = {kind for kind in {f.kind for f in files} if source_format(kind).one_row_per_file}
        tables = [file for file in files if file.kind not in whole]
        for file, rows in zip(tables, self.count(tables), strict=True):
            yield from (([file], *cut) for cut in _cut(rows, 0, self.shard_rows))
        for kind in sorted(whole):
            members = [file for file in files if file.kind == kind]
            for start, n_files in _cut(len(members), 0, self.shard_rows):
                yield members[start : start + n_files], 0, n_files


def plan_shards(
    settings: Settings,
    known: Sequence[Shard] = (),
    *,
    accept_changes: bool = False,
    max_new_files: int | None = None,
) -> ShardPlan:
    """List all sources and add shards for the files that `known` does not contain.

    settings: of the corpus. Known shards stay as they are; changed and missing files are only
    named. With `accept_changes` the shards of changed files get their present rows under their old
    keys (rows for which they have no room get new shards), and missing files leave shards of whole
    files. max_new_files: maximum number of new files per call; the next calls continue in the same
    order. Damaged files are planned too: their shard reports the damage.

    Raises CorpusError if a source has no file at all or can't be listed.
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
    # Sources that are no longer in the settings.
    gone += [
        file for left_over in by_source.values() for shard in left_over for file in shard.files
    ]
    return ShardPlan(
        shards=tuple(shards.values()),
        new=tuple(new),
        changed=tuple(changed),
        gone=tuple(dict.fromkeys(gone)),
    )


def current_shard(settings: Settings, plan: ShardPlan, key: str) -> Shard:
    """Return a shard as its files are now, so that a corrected or longer file is read as it is.

    An unchanged shard is returned as planned, others as `plan_shards` with `accept_changes` plans
    them. Call it before reading a shard. Raises CorpusError if its files no longer exist.
    """
    shard = plan.shard(key)
    source = source_of(shard, settings)
    if shard.has_whole_files:
        return _with_present_files(shard, {file.uri: file.version for file in list_files(source)})
    version = file_version(shard.files[0], shard.kind)
    if version is None:
        raise CorpusError(
            f"shard {key}: {one_line(shard.files[0])} does not exist; put it back, or delete the "
            "partition"
        )
    if (version,) == shard.versions:
        return shard
    file = SourceFile(shard.files[0], shard.kind, version)
    siblings = [other for other in plan.shards if other.files == shard.files]
    rows = count_rows(file.uri, file.kind)
    renewed_all = _recut(siblings, file, rows, settings.shard_rows)
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
        return ShardPlan(shards=tuple(Shard.model_validate(shard) for shard in content["shards"]))
    except (ValidationError, ValueError, KeyError, AttributeError, TypeError):
        raise CorpusError(
            f"{store.corpus_uri}/{PLAN_FILE}: not a plan of shards in format {PLAN_FORMAT}; "
            "restore it from a backup, or choose another name for the corpus"
        ) from None


def save_plan(store: TableStore, plan: ShardPlan) -> None:
    """Save the shards of a plan. Raises CorpusError if the saved plan has others.

    Otherwise two scans at once could give one key to two shards; the second has to start again.
    """
    saved, planned = load_plan(store).shards, plan.shards
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
    }
    store.put(_plan_path(store), json.dumps(content, ensure_ascii=False).encode())
