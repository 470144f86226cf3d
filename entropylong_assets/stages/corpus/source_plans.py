"""Planning the shards of one source: which files are new, changed, missing or without rows."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from entropylong_assets.settings.section import Settings
from entropylong_assets.stages.corpus.errors import CorpusError, MissingSourceError, one_line
from entropylong_assets.stages.corpus.files import SourceFile
from entropylong_assets.stages.corpus.listing import describe_passed_over, list_source
from entropylong_assets.stages.corpus.readers import count_rows
from entropylong_assets.stages.corpus.registry import source_format
from entropylong_assets.stages.corpus.settings import SourceSettings
from entropylong_assets.stages.corpus.shard_plan import Shard

# Number of files counted in parallel: most of the time is spent waiting for a remote store.
_THREADS = 8


class Range(NamedTuple):
    """Content of a shard: rows of one file, or whole files."""

    files: list[SourceFile]
    first_row: int
    n_rows: int


def _cut(rows: int, first: int, most: int) -> Iterator[tuple[int, int]]:
    """Yield ranges (first row, number of rows) of at most `most` rows, from row `first` on."""
    for start in range(first, rows, most):
        yield start, min(most, rows - start)


def recut(shards: list[Shard], file: SourceFile, rows: int, most: int) -> list[Shard]:
    """Cut a changed file again: each shard keeps its first row, and ends where the next one begins.

    The last shard gets up to `most` rows, or as many as it had.
    """
    shards = sorted(shards, key=lambda shard: shard.first_row)
    result = []
    for shard, after in itertools.zip_longest(shards, shards[1:]):
        room = max(shard.n_rows, most) if after is None else after.first_row - shard.first_row
        n_rows = min(room, max(0, rows - shard.first_row))
        result.append(
            shard.model_copy(
                update={
                    "n_rows": n_rows,
                    "versions": (file.version,),
                    "revision": shard.revision + 1,
                }
            )
        )
    return result


def with_present_files(shard: Shard, versions: Mapping[str, str]) -> Shard:
    """Return a shard of whole files with their present versions, without missing files.

    versions: of the files of its source, by URI. Raises MissingSourceError if none exists.
    """
    files = tuple(file for file in shard.files if file in versions)
    if not files:
        raise MissingSourceError(
            f"shard {shard.key}: {one_line(shard.files[0])}: the file does not exist; put it "
            f"back, or take the shard out with `entropylong retire {shard.key}`"
        )
    return shard.model_copy(
        update={
            "files": files,
            "versions": tuple(versions[file] for file in files),
            "n_rows": len(files),
        }
    )


class SourcePlan:
    """Plans the shards of one source.

    known: its shards so far. empty: versions of files that had no rows, by URI. settings: of the
    corpus. retired: its retired shards, whose files stay out.
    """

    def __init__(
        self,
        source: SourceSettings,
        known: Sequence[Shard],
        empty: Mapping[str, str],
        settings: Settings,
        retired: Sequence[Shard] = (),
    ) -> None:
        self._known, self._retired, self._shard_rows = known, retired, settings.shard_rows
        out = {file for shard in retired for file in shard.files}
        planned = {
            file: version
            for shard in known
            for file, version in zip(shard.files, shard.versions, strict=True)
        }
        files, passed_over = list_source(source, settings.data_uri)
        if not files and not known and not retired:
            shown = f" (passed over: {describe_passed_over(passed_over)})" if passed_over else ""
            raise CorpusError(
                f"source '{source.name}': no file at {source.uri}; put files there or correct the "
                f"source's uri{shown}"
            )
        self.found = {file.uri: file.version for file in files}
        self.empty = {uri: found for uri, found in self.found.items() if empty.get(uri) == found}
        self.changed = [f for f in files if planned.get(f.uri, f.version) != f.version]
        self.missing = [uri for uri in planned if uri not in self.found]
        self.missing_shards = [s.key for s in known if self.found.keys().isdisjoint(s.files)]
        self.forbidden = list[str]()
        """Files that could not be opened to count their rows."""
        taken = {*planned, *out, *self.empty}
        self.waiting = [f for f in files if f.uri not in taken]
        """New files whose rows have not been counted."""
        self._passed_over = passed_over

    @property
    def passed_over(self) -> dict[str, list[str]]:
        """URIs of what is not read, by reason."""
        result = {reason: list(uris) for reason, uris in self._passed_over.items()}
        result["forbidden"] = [*result.get("forbidden", []), *self.forbidden]
        result["empty"] = sorted(self.empty)
        return result

    def _count(self, files: Sequence[SourceFile]) -> list[tuple[SourceFile, int]]:
        """Count the rows of files, without those that can't be opened; 1 for a whole file."""

        def count(file: SourceFile) -> int | None:
            if source_format(file.kind).one_row_per_file:
                return int(file.size != 0)
            try:
                return max(0, count_rows(file.uri, file.kind))
            except CorpusError:  # no permission, or removed since the source was listed
                self.forbidden.append(file.uri)
                return None

        with ThreadPoolExecutor(_THREADS) as pool:
            counts = list(pool.map(count, files))
        return [(file, n) for file, n in zip(files, counts, strict=True) if n is not None]

    def renew(self) -> tuple[dict[str, Shard], list[Range]]:
        """Return the renewed shards of changed files, by key, and ranges that fit into none."""
        renewed, ranges = dict[str, Shard](), list[Range]()
        tables = [f for f in self.changed if not source_format(f.kind).one_row_per_file]
        for file, rows in self._count(tables):
            known = [*self._known, *self._retired]
            old = [shard for shard in known if shard.files == (file.uri,)]
            new = recut(old, file, rows, self._shard_rows)
            # Retired shards are cut as well, so that no other shard gets their rows.
            retired = {shard.key for shard in self._retired}
            renewed.update({shard.key: shard for shard in new if shard.key not in retired})
            end = new[-1].first_row + new[-1].n_rows
            ranges += [Range([file], *cut) for cut in _cut(rows, end, self._shard_rows)]
        changed = {file.uri for file in self.changed}
        for shard in self._known:
            if shard.has_whole_files and changed.intersection(shard.files):
                present = with_present_files(shard, self.found)
                renewed[shard.key] = present.model_copy(update={"revision": shard.revision + 1})
        return renewed, ranges

    def add(self, limit: int | None) -> list[Range]:
        """Take up to `limit` new files and return the ranges of those that have rows.

        Files that can't be opened do not count towards the limit: otherwise every call would stop
        at the same files.
        """
        counted = list[tuple[SourceFile, int]]()
        while self.waiting and (limit is None or len(counted) < limit):
            end = len(self.waiting) if limit is None else limit - len(counted)
            taken, self.waiting = self.waiting[:end], self.waiting[end:]
            counted += self._count(taken)
        self.empty |= {file.uri: file.version for file, rows in counted if rows == 0}
        whole = {f.kind for f, _ in counted if source_format(f.kind).one_row_per_file}
        ranges = [
            Range([file], *cut)
            for file, rows in counted
            if file.kind not in whole
            for cut in _cut(rows, 0, self._shard_rows)
        ]
        for kind in sorted(whole):
            members = [file for file, rows in counted if file.kind == kind and rows]
            ranges += [
                Range(members[start : start + n_files], 0, n_files)
                for start, n_files in _cut(len(members), 0, self._shard_rows)
            ]
        return ranges
