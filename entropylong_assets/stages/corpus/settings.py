"""Settings of a corpus: sources and documents."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, field_validator, model_validator

from entropylong_assets.settings.section import (
    Section,
    Settings,
    beside,
    model_beside,
    refuse_credentials,
)
from entropylong_assets.stages.corpus.evaluation_layouts import layout_of
from entropylong_assets.stages.corpus.filter_registry import DOCUMENT_FILTERS
from entropylong_assets.stages.corpus.registry import SOURCE_FORMATS, is_virtual
from entropylong_assets.stages.corpus.where import parse_where

AUTO = "auto"


def _known_kind(kind: str) -> str:
    if kind != AUTO and kind not in SOURCE_FORMATS:
        known = ", ".join((AUTO, *SOURCE_FORMATS.names()))
        raise ValueError(f"no source format of this name; there are {known}")
    return kind


def _one_character(value: Any) -> Any:
    """Return the character that a setting of CSV names: `\\t` is a tab, and '' means none."""
    if value == "":
        return None
    value = "\t" if value == r"\t" else value
    if isinstance(value, str) and (len(value) > 1 or value in "\r\n\0\ufeff"):
        raise ValueError(r"must be one character, such as ',' or '\t', and no line end")
    return value


Character = Annotated[str | None, BeforeValidator(_one_character)]


class SourceSettings(Section):
    """One source of documents."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_.-]{0,62}$")
    """Prefix of the shard keys, `<name>-<nnnnn>`: lower-case letters, digits, `_`, `.`, `-`."""
    kind: Annotated[str, AfterValidator(_known_kind)] = AUTO
    """Format of the files: `parquet`, `jsonl`, `json`, `csv`, `text`, `python_docs`, or one of
    another package. `auto`: by the names of the files."""
    uri: str = ""
    """Required. A file, folder or pattern, as a path or fsspec URI, e.g. `corpus/*.jsonl.zst` or
    `hf://datasets/<id>/**/*.parquet`. For `python_docs`: a comma-separated list of package
    names."""
    text_field: str = "text"
    """Column or key that holds the text. `meta.text` is the field `text` within `meta`, unless a
    field is named `meta.text` itself."""
    id_field: str | None = None
    """Column or key that holds the source's own id, written as `text_field`. `null`: the row number
    is the id."""
    license: str = "unknown"
    """Licence of the texts, as the source gives it. Written to the data card."""
    metadata_fields: tuple[str, ...] = ()
    """Further columns or keys that are kept with each document, e.g. `[url, dump, score]`, and
    written to the provenance of the samples."""
    where: str | None = None
    """Condition on columns or keys, e.g. `score >= 3 and language == "en"`: only rows that meet it
    are read. Of Parquet files, row groups that cannot contain such a row are skipped."""

    delimiter: Character = None
    """CSV: character between two fields. `null`: a comma, or a tab in files named `.tsv`."""
    quote: Character = '"'
    """CSV: character around a field that contains delimiters or line ends. `null` or `''`: quotes
    are plain characters, and every line is a row."""
    escape: Character = None
    """CSV: character before a quote or delimiter that belongs to the text. `null`: a quote in the
    text is written twice."""
    newlines_in_values: bool | None = None
    """CSV: whether a quoted field may contain line ends. `true`: always. `false`: never, so that a
    quote that is not closed on its line makes only this line a bad row. `null`: it may, unless the
    lines inside the quotes look like rows, which an unclosed quote has joined by mistake."""

    _uri_without_credentials = field_validator("uri")(refuse_credentials)

    def located(self, folder: Path) -> Self:
        uri = self.uri if is_virtual(self.kind) else beside(folder, self.uri)
        return self.with_located(folder, uri=uri)

    @model_validator(mode="after")
    def _has_uri(self) -> SourceSettings:
        if not self.uri:
            raise ValueError(f"source '{self.name}' needs a uri")
        return self

    @field_validator("where")
    @classmethod
    def _is_condition(cls, where: str | None) -> str | None:
        if where is not None:
            parse_where(where)
        return where

    @model_validator(mode="after")
    def _has_distinct_characters(self) -> SourceSettings:
        names = ("delimiter", "quote", "escape")
        given = [value for name in names if (value := getattr(self, name)) is not None]
        if len(set(given)) < len(given):
            raise ValueError(
                f"source '{self.name}': delimiter, quote and escape must be different characters; "
                "leave escape out if quotes are written twice"
            )
        return self


class FilterSettings(Section):
    """A filter of documents."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,62}$")
    """Its name in the reasons of what it drops, `<name>.<reason>`."""
    use: Annotated[str, AfterValidator(DOCUMENT_FILTERS.check)]
    """`callable`, `datatrove`, `datasets`, or a filter of another package."""
    arguments: Mapping[str, Any] = {}
    """Arguments of the filter, as JSON values."""


class EvaluationSet(Section):
    """Texts of an evaluation that documents must not quote."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_.-]{0,62}$")
    """Name in tables and on the data card."""
    uri: str
    """A file, folder or pattern, as of a source; or a benchmark and the folder of its texts:
    `ruler:<folder>`, `helmet:<folder>`, `longbench:<folder>`, `longbench-v2:<folder>`."""
    kind: Annotated[str, AfterValidator(_known_kind)] = AUTO
    """Format of the files, as of a source."""
    fields: tuple[str, ...] = Field(("text",), min_length=1)
    """Columns or keys that hold texts. Each value is a text of its own. Ignored for a benchmark,
    whose own fields are read."""
    tokenizer: str | None = None
    """A model, as in `scoring.model`, or a folder, with a file `tokenizer.json`: n-grams of its
    tokens are compared. `null`: n-grams of words."""
    ngram: int | None = Field(None, ge=3, le=50)
    """Adjacent words that are compared; of scripts without spaces, letters or syllables. With a
    tokenizer: adjacent tokens. `null`: 8 words, or 13 tokens."""
    overlap: float = Field(0.5, gt=0, le=1)
    """Share of the n-grams of a text from which a document quotes it. 40 n-grams of a longer text
    count as all of it."""
    action: Literal["drop", "tag"] = "drop"
    """`drop`: such documents are dropped; `tag`: they are kept, and listed in `contaminated`."""

    _uri_without_credentials = field_validator("uri")(refuse_credentials)

    @property
    def units(self) -> int:
        """Words or tokens of an n-gram."""
        return self.ngram or (8 if self.tokenizer is None else 13)

    def located(self, folder: Path) -> Self:
        layout = layout_of(self.uri)
        inner = layout[1] if layout else self.uri
        uri = self.uri.removesuffix(inner) + beside(folder, inner)
        tokenizer = self.tokenizer and model_beside(folder, self.tokenizer)
        return self.with_located(folder, uri=uri, tokenizer=tokenizer)


class CorpusSettings(Settings):
    """A corpus: its sources, and which of their texts become documents."""

    sources: tuple[SourceSettings, ...] = ()
    """The sources, in the order in which their shards are registered."""
    shard_rows: int = Field(200_000, ge=1)
    """Maximum number of rows of a source file in one shard (one partition)."""
    on_bad_row: Literal["fail", "skip"] = "fail"
    """`fail`: the first bad row fails the shard. `skip`: bad rows are left out, and listed in the
    table `dropped`."""
    max_bad_share: float = Field(0.05, ge=0, le=1)
    """With `on_bad_row: skip`, a blocking check fails if a larger share of the shard's rows is
    bad."""
    min_chars: int = Field(200, ge=1)
    """Minimum length of a document (characters). Shorter ones are dropped."""
    max_chars: int = Field(2_000_000, ge=1)
    """Maximum length of a document (characters). Longer ones are dropped."""
    filters: tuple[FilterSettings, ...] = ()
    """Filters that documents must pass, in this order."""
    decontaminate: tuple[EvaluationSet, ...] = ()
    """Evaluation sets with whose texts all documents are compared."""

    @model_validator(mode="after")
    def _ranges(self) -> CorpusSettings:
        if self.min_chars > self.max_chars:
            raise ValueError("min_chars must not exceed max_chars")
        names = [source.name for source in self.sources]
        if len(set(names)) != len(names):
            raise ValueError("two sources have the same name")
        for place in ("filters", "decontaminate"):
            own = [entry.name for entry in getattr(self, place)]
            if len(set(own)) != len(own):
                raise ValueError(f"{place}: two entries have the same name")
        return self
