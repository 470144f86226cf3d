"""A shard, and the plan of all shards of a corpus."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import BaseModel, ConfigDict

from entropylong_assets.settings.section import Settings
from entropylong_assets.stages.corpus.errors import CorpusError, MissingSourceError
from entropylong_assets.stages.corpus.listing import PassedOver
from entropylong_assets.stages.corpus.registry import source_format
from entropylong_assets.stages.corpus.settings import SourceSettings


class Shard(BaseModel):
    """One partition: rows `first_row` to `first_row + n_rows` (not included) of a file.

    In a format with one row per file, a shard is a number of whole files.
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
    """Version of each file when its rows were counted."""
    first_row: int
    n_rows: int
    """Rows planned, blank lines included. Damage that ends the file counts as one row."""
    position: int
    """Place in the plan, from 0: the order of registration."""
    revision: int = 0
    """Number of scans that found its files changed."""
    corpus_rows: int = 0
    """Rows of all shards when this one was registered, itself included. It does not change when
    the corpus grows. 0 in plans of earlier versions: see `ShardPlan.corpus_rows`."""

    @property
    def has_whole_files(self) -> bool:
        return source_format(self.kind).one_row_per_file


class ShardPlan(BaseModel):
    """All shards, and what a scan of the sources found."""

    model_config = ConfigDict(frozen=True)

    shards: tuple[Shard, ...] = ()
    """The known shards in their old order, then the new ones; without retired ones."""
    retired: tuple[Shard, ...] = ()
    """Shards that are retired, or whose source is. Their keys and files are not used again."""
    retired_sources: tuple[str, ...] = ()
    """Names of sources that are not scanned."""
    new: tuple[str, ...] = ()
    """Keys of shards that this scan added."""
    changed: tuple[str, ...] = ()
    """URIs of known files whose version differs from the planned one."""
    missing: tuple[str, ...] = ()
    """URIs of known files that their source no longer has. Their shards keep their data."""
    missing_shards: tuple[str, ...] = ()
    """Keys of shards none of whose files their source still has."""
    shared: tuple[str, ...] = ()
    """URIs of files that several sources have."""
    empty: Mapping[str, str] = {}
    """Versions of the files without rows, by URI: they have no shard until they change."""
    passed_over: PassedOver = {}
    """URIs of what is not read, by reason, a key of `listing.REASONS`."""

    @property
    def known(self) -> tuple[Shard, ...]:
        """All shards, also retired ones, in the order of registration."""
        return tuple(sorted((*self.shards, *self.retired), key=lambda shard: shard.position))

    def shard(self, key: str) -> Shard:
        """Return the shard of a key. Raises CorpusError if there is none or it is retired."""
        for shard in self.shards:
            if shard.key == key:
                return shard
        if any(shard.key == key for shard in self.retired):
            raise CorpusError(
                f"shard {key}: it is retired; bring it back with `entropylong retire {key} --undo`"
            )
        raise CorpusError(
            f"shard {key}: no shard of the corpus has this name; delete the partition, and "
            "register new files with `entropylong scan` or the job `scan` of the corpus"
        )

    def corpus_rows(self, key: str) -> int:
        """Return the number of rows of the corpus when this shard was registered.

        Shards of plans that did not record it count as registered together. Raises CorpusError if
        there is no such shard.
        """
        recorded = self.shard(key).corpus_rows
        return recorded or sum(shard.n_rows for shard in self.shards if not shard.corpus_rows)

    def stale(self) -> tuple[str, ...]:
        """Keys of known shards with a changed file, which another run would read again."""
        changed = set(self.changed)
        return tuple(shard.key for shard in self.shards if changed.intersection(shard.files))


def source_of(shard: Shard, settings: Settings) -> SourceSettings:
    """Return the settings of a shard's source. Raises MissingSourceError if there are none."""
    sources: tuple[SourceSettings, ...] = settings.sources
    for source in sources:
        if source.name == shard.source:
            return source
    raise MissingSourceError(
        f"shard {shard.key}: the settings have no source '{shard.source}'; put it back under "
        f"corpus.sources, or take it out with `entropylong retire {shard.source}`"
    )
