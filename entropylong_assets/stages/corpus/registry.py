"""Source formats: the kinds of files, and other places, that documents can be read from.

To add a format, write one class and register it, here or in another package:

    @SOURCE_FORMATS.register("markers")
    class Markers(SourceFormat):
        suffixes = (".markers",)

        def count_rows(self, file):
            return len(Path(file).read_bytes().split(b"%%"))

        def read_rows(self, file, source, start):
            for row, text in enumerate(Path(file).read_bytes().split(b"%%")):
                if row >= start:
                    yield make_item(file, row, text, None)

A source then names it by `kind: markers`; with `kind: auto` it is chosen by the suffix. Another
package declares the entry point `markers = "its_package.markers:Markers"` in the group
`entropylong_assets.source_formats` instead of the decorator.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, ClassVar

from entropylong_assets.settings.registry import Registry

if TYPE_CHECKING:
    from entropylong_assets.stages.corpus.rows import Item
    from entropylong_assets.stages.corpus.settings import SourceSettings

COMPRESSIONS = (".gz", ".zst", ".bz2", ".xz")
"""Suffixes of compressed files, which `streams.read_chunks` decompresses."""


class SourceFormat(ABC):
    """Reads the rows of files of one format. A row becomes a document or is dropped.

    Row numbers count from 0 and never change for an unchanged file, so that a shard is a range of
    them. Instances are made per use and keep no state between calls.
    """

    suffixes: ClassVar[tuple[str, ...]] = ()
    """Suffixes of file names, in lower case, by which `kind: auto` recognizes the format."""
    accepted_suffixes: ClassVar[tuple[str, ...]] = ()
    """Further suffixes that a source of this `kind` reads, but that `auto` does not recognize."""
    compressions: ClassVar[tuple[str, ...]] = COMPRESSIONS
    """Suffixes that may follow, e.g. `.gz` in `.jsonl.gz`."""
    has_fields: ClassVar[bool] = False
    """Whether rows have fields besides the text, and `read_rows` applies the source's `where` and
    `metadata_fields` with `rows.make_record_item`."""
    one_row_per_file: ClassVar[bool] = False
    """Whether a file is one row. Several files then share a shard."""
    edition: ClassVar[int] = 1
    """Increase it if a change of the code gives rows other numbers. Every file of the format then
    counts as changed, so that its rows are counted again."""

    @abstractmethod
    def count_rows(self, file: str, /) -> int:
        """Return one past the last row number that `read_rows` yields.

        file: URI. A damaged file must not raise: count the rows up to the damage, and one for the
        damage itself.
        """

    @abstractmethod
    def read_rows(self, file: str, source: SourceSettings, start: int, /) -> Iterator[Item]:
        """Yield rows from number `start` on, in order, lazily and in bounded memory.

        Yield a `BadRow` in the place of a row that can't be read. The caller stops when it has
        enough rows. Do not catch errors of the file system: the step is retried after them.
        """

    def recognizes(self, name: str) -> bool:
        """Whether a source of this `kind` reads files of such a name below a folder."""
        return self._decompressed(name).endswith((*self.suffixes, *self.accepted_suffixes))

    def length_of_suffix(self, name: str) -> int:
        """Return the length of the longest suffix of the format in a file name, or 0."""
        name = self._decompressed(name)
        return max((len(suffix) for suffix in self.suffixes if name.endswith(suffix)), default=0)

    def _decompressed(self, name: str) -> str:
        name = name.lower()
        for compression in self.compressions:
            name = name.removesuffix(compression)
        return name


class VirtualFormat(SourceFormat):
    """A format without files on a file system, e.g. installed packages: it lists its own URIs."""

    @abstractmethod
    def list_files(self, source: SourceSettings) -> Sequence[str]:
        """Return the URIs that a source stands for, in the order of their shards.

        Raises CorpusError if the source names something that does not exist.
        """

    @abstractmethod
    def version(self, file: str) -> str | None:
        """Return a string that changes whenever the rows of the URI do; None if it is missing."""


SOURCE_FORMATS: Registry[type[SourceFormat]] = Registry(
    "source format", "entropylong_assets.source_formats", "entropylong_assets.stages.corpus.formats"
)


def source_format(kind: str) -> SourceFormat:
    """Return the format of a name. Raises ExtensionError if it is unknown or can't be loaded."""
    return SOURCE_FORMATS[kind]()


def is_virtual(kind: str) -> bool:
    """Whether sources of this kind name something other than files."""
    return kind in SOURCE_FORMATS.names() and isinstance(source_format(kind), VirtualFormat)


def kind_of(name: str) -> str | None:
    """Name of the format of a file by its name, or None if no format has its suffix.

    If several have one, the longest suffix decides, then the order of registration.
    """
    lengths = {kind: source_format(kind).length_of_suffix(name) for kind in SOURCE_FORMATS.names()}
    best = max(lengths, key=lengths.__getitem__)
    return best if lengths[best] else None
