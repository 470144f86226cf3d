"""Export formats: how samples are written for a trainer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from entropylong_assets.settings.registry import Registry

if TYPE_CHECKING:  # the settings check their formats with this registry
    import polars as pl

    from entropylong_assets.settings.section import Settings
    from entropylong_assets.stages.entropy.tokenizer_facts import TokenizerFacts
    from entropylong_assets.stages.training_data.publication import HashedFile, Publication
    from entropylong_assets.stages.training_data.samples import Sample


ID_DTYPE = "int32"
"""Type of token ids in every format whose file says it: PyTorch embeds it, and -100 fits in it."""


@dataclass(frozen=True)
class ExportFacts:
    """Facts about an export that are known before its first sample is written."""

    splits: Mapping[str, int]
    """Samples per split."""
    sources: Mapping[str, Mapping[str, int]]
    """Samples per split and source, in the order in which they are written. In a mixture, a source
    is one of a part: `<part>-<source>`, as `Sample.group`."""
    has_padding: bool
    """Whether any sample contains tokens that must be excluded from the loss: padding, or fillers
    that are not learnt."""
    tokenizer: TokenizerFacts
    """Vocabulary, padding, EOS, BOS, separator, and length of the samples. The manifest has the
    same as `tokenizer`, with `dtype`, the type of ids in all formats: ID_DTYPE."""
    loss_weights: str
    """`export.loss_weights` of the settings."""
    sampling_weights: Mapping[str, float] | None = None
    """Weights with which a trainer draws from the sources of the split `train`, so that the parts
    have the wanted shares; they add up to 1. None without a mixture."""


@dataclass(frozen=True)
class FormatFolder:
    """The folder of one format in an export that is being written."""

    publication: Publication
    name: str

    def file(self, path: str) -> AbstractContextManager[HashedFile]:
        """Open a new file for writing; `path` is relative to the folder."""
        return self.publication.file(f"{self.name}/{path}")


@dataclass(frozen=True)
class FormatFiles:
    """The files of one format in a finished export."""

    fs: Any
    folder: str
    paths: tuple[str, ...]
    """Relative to the folder."""

    def open(self, path: str) -> Any:
        """Open a file for reading bytes."""
        return self.fs.open(f"{self.folder}/{path}", "rb")

    def read(self, path: str) -> bytes:
        content: bytes = self.fs.cat_file(f"{self.folder}/{path}")
        return content


class ExportFormat(ABC):
    """Writes the samples of one export in one format.

    To add a format, derive a class and register it: in this package with
    `@EXPORT_FORMATS.register("my_format")`, in another package through an entry point of the group
    `entropylong_assets.export_formats`. It is then available as `export.formats: [my_format]`.

    One object is made per export. Its `write` receives every sample of both splits, ordered by
    the part of a mixture, source, shard and id, then `close` is called. The files lie in a folder
    named like the format. Equal samples and settings must give equal bytes: no dates, no random
    names. Memory must not grow with the number of samples.
    """

    description: ClassVar[str]
    """What the format is and who reads it, in a few words."""
    needs_provenance: ClassVar[bool] = False
    """Whether `write` reads `Sample.provenance`; otherwise it is None."""
    has_mask: ClassVar[bool] = True
    """Whether the files can exclude any single token from the loss."""
    needs_texts: ClassVar[bool] = False
    """Whether `write` reads `Sample.texts`; otherwise it is None."""

    def __init__(self, folder: FormatFolder, settings: Settings, facts: ExportFacts) -> None:
        """settings: of the dataset; those of exports are `settings.export`."""
        self.folder, self.settings, self.facts = folder, settings, facts

    @abstractmethod
    def write(self, sample: Sample, split: str) -> None:
        """Add a sample. split: `train` or `validation`."""

    @abstractmethod
    def close(self) -> None:
        """Finish all files. Called once, after the last sample."""

    @classmethod
    @abstractmethod
    def count_samples(cls, files: FormatFiles) -> Iterator[tuple[str, int]]:
        """Read from the files how many samples they contain: (split, samples) per part.

        Used by the check `every_sample_exported`.
        """

    @classmethod
    def read_documents(cls, files: FormatFiles) -> Iterator[tuple[str, pl.Series]]:
        """Read from the files which documents they contain: (split, ids) per part.

        Used by the check `no_document_in_both_splits`; yields nothing if the format does not store
        document ids.
        """
        del files
        yield from ()

    @classmethod
    def usage(cls, facts: ExportFacts) -> str:
        """Return Markdown for the dataset card: under a heading (`###`) per trainer, the files and
        exactly the commands and settings with which that trainer reads this export."""
        del facts
        return f"### {cls.description}\n"

    @classmethod
    def front_matter(cls, facts: ExportFacts) -> Mapping[str, Any]:
        """Return fields to add to the card's front matter, by which the Hugging Face Hub loads the
        files."""
        del facts
        return {}


EXPORT_FORMATS: Registry[type[ExportFormat]] = Registry(
    "export format",
    "entropylong_assets.export_formats",
    "entropylong_assets.stages.training_data.built_in_formats",
)
"""Export formats by name."""
