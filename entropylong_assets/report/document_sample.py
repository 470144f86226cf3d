"""A sample of the documents of a corpus: rows from the whole range of its shards, chosen by hash.

The first rows of a shard do not represent the others, because files are often sorted by date, site
or length. The amount of reading is bounded: a shard of up to `SCANNED_ROWS` rows is read as a
whole, and the rows with the lowest hashes are chosen. Larger shards are read in windows whose
places are drawn by hash.
"""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from entropylong_assets.settings.section import Settings
from entropylong_assets.stages.corpus.documents import canonical_texts, document_id
from entropylong_assets.stages.corpus.errors import MissingSourceError
from entropylong_assets.stages.corpus.fields_check import field_fault
from entropylong_assets.stages.corpus.readers import read_rows
from entropylong_assets.stages.corpus.rows import Item, NotSelected, Row
from entropylong_assets.stages.corpus.settings import SourceSettings
from entropylong_assets.stages.corpus.shards import Shard, ShardPlan, read_shard, source_of

SCANNED_ROWS = 20_000
"""Shards with more rows are read in windows."""
WINDOWS = 8
"""Number of windows per large shard, one in each equal part of it."""
SHARDS = 16
"""Number of shards read per corpus, divided among its sources; at least two of each are read."""
MIN_ROWS = 32
"""Minimum number of rows chosen per source, if it has as many."""

T = TypeVar("T")


@dataclass(frozen=True)
class SampledDocument:
    """A canonical document of the sample."""

    doc_id: str
    text: str
    source: str
    shard: str


@dataclass(frozen=True)
class SourceSample:
    """The rows chosen from one source, by shard."""

    source: str
    rows: int
    """Rows of the whole source."""
    shards: int
    """Shards of the whole source."""
    chosen: dict[str, int]
    """Rows chosen from each shard that was read, bad rows included."""
    documents: dict[str, list[SampledDocument]]
    """Documents among them, by shard."""

    @property
    def chosen_rows(self) -> int:
        return sum(self.chosen.values())

    @property
    def is_complete(self) -> bool:
        """Whether every row of the source was read."""
        return self.chosen_rows >= self.rows

    @property
    def weight(self) -> float:
        """Rows of the source per chosen row."""
        return self.rows / max(self.chosen_rows, 1)

    def all_documents(self) -> Iterator[SampledDocument]:
        for documents in self.documents.values():
            yield from documents


def spread(items: Sequence[T], limit: int) -> list[T]:
    """Return all items, or `limit` of them at even distances, in their order."""
    n = len(items)
    return [items[(2 * i + 1) * n // (2 * limit)] for i in range(limit)] if n > limit else [*items]


def hash_of(*parts: object) -> int:
    """Return a 64-bit hash of the parts."""
    text = ":".join(str(part) for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest())


def sample_documents(
    corpus: Settings,
    plan: ShardPlan,
    rows: int,
    seed: int,
    on_shard: Callable[[str], None] = lambda _: None,
) -> list[SourceSample]:
    """Choose about `rows` rows of a corpus, of each source in proportion to its rows.

    A document that is in the sample twice is kept once. on_shard: called with the key of each shard
    before it is read. Raises CorpusError if a source lacks its text field or can't be read; shards
    whose files are missing are passed over.
    """
    by_source: dict[str, list[Shard]] = {}
    for shard in plan.shards:
        if shard.key not in plan.missing_shards:
            by_source.setdefault(shard.source, []).append(shard)
    total = sum(shard.n_rows for shards in by_source.values() for shard in shards)
    n_shards = sum(len(shards) for shards in by_source.values())
    seen: set[str] = set()
    samples = []
    for shards in by_source.values():
        source = source_of(shards[0], corpus)
        of_source = sum(shard.n_rows for shard in shards)
        wanted = of_source
        if total > rows:
            wanted = min(of_source, max(MIN_ROWS, round(rows * of_source / total)))
        # A source that is read as a whole is read in all its shards.
        limit = max(1, round(SHARDS * len(shards) / n_shards))
        read = shards if wanted == of_source else spread(shards, max(limit, 2))
        samples.append(_sample_source(corpus, source, shards, read, (wanted, seed), seen, on_shard))
    return samples


def _sample_source(
    corpus: Settings,
    source: SourceSettings,
    shards: Sequence[Shard],
    read: Sequence[Shard],
    wanted: tuple[int, int],
    seen: set[str],
    on_shard: Callable[[str], None],
) -> SourceSample:
    """Sample one source. wanted: number of rows, and the seed."""
    rows, seed = wanted
    in_read = sum(shard.n_rows for shard in read)
    chosen: dict[str, int] = {}
    documents: dict[str, list[SampledDocument]] = {}
    looked_at: list[Item] = []
    for shard in read:
        on_shard(shard.key)
        n = min(shard.n_rows, max(1, round(rows * shard.n_rows / max(in_read, 1))))
        items = choose_rows(shard, source, n, seed)
        looked_at += items
        # Blank lines are rows of the plan, but no items: they count as chosen.
        chosen[shard.key] = n
        kept = documents.setdefault(shard.key, [])
        for text in canonical_texts([item.text for item in items if isinstance(item, Row)]):
            doc_id = document_id(text)
            if corpus.min_chars <= len(text) <= corpus.max_chars and doc_id not in seen:
                seen.add(doc_id)
                kept.append(SampledDocument(doc_id, text, source.name, shard.key))
    if fault := field_fault(source, looked_at):
        raise fault
    return SourceSample(
        source.name, sum(shard.n_rows for shard in shards), len(shards), chosen, documents
    )


def choose_rows(shard: Shard, source: SourceSettings, n: int, seed: int) -> list[Item]:
    """Return `n` rows of a shard (fewer if it has blank lines), from its whole range, by hash.

    Raises MissingSourceError if a file does not exist any more.
    """
    try:
        if shard.has_whole_files:
            files = heapq.nsmallest(n, shard.files, key=lambda f: hash_of(seed, f))
            return [item for file in files for item in read_rows(file, shard.kind, source)]
        if shard.n_rows <= SCANNED_ROWS:
            key = _row_hash(seed)
            return heapq.nsmallest(n, _row_by_row(read_shard(shard, source)), key=key)
        return [
            item
            for start, stop in windows(shard, n, seed)
            for item in read_rows(shard.files[0], shard.kind, source, start, stop)
        ]
    except FileNotFoundError as error:
        raise MissingSourceError(
            f"shard {shard.key}: {error.filename or shard.files[0]} does not exist; put it back"
        ) from None


def _row_by_row(items: Iterable[Item]) -> Iterator[Item]:
    """Yield the items, and each row that the source's `where` leaves out as an item of its own."""
    for item in items:
        if isinstance(item, NotSelected):
            yield from (NotSelected(item.file, item.row + i, 1) for i in range(item.n_rows))
        else:
            yield item


def _row_hash(seed: int) -> Callable[[Item], int]:
    return lambda item: hash_of(seed, item.file, item.row)


def windows(shard: Shard, n: int, seed: int) -> list[tuple[int, int]]:
    """Return ranges (start, stop) with `n` rows in total, one in each equal part of the shard."""
    count = min(WINDOWS, n)
    ranges = []
    for i in range(count):
        low, high = (shard.n_rows * j // count for j in (i, i + 1))
        length = min(high - low, n * (i + 1) // count - n * i // count)
        offset = hash_of(seed, shard.key, i) % (high - low - length + 1)
        start = shard.first_row + low + offset
        ranges.append((start, start + length))
    return ranges
