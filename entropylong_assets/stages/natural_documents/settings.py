"""Settings of the natural long documents."""

from __future__ import annotations

from pydantic import Field, model_validator

from entropylong_assets.settings.section import Section

SHORT_TOKENS = 4096
"""The short window of LongFilter (tokens)."""


class NaturalSettings(Section):
    """`natural_documents`: windows of long documents, selected by how much distant text helps."""

    keep: float = Field(0.0, ge=0, le=1)
    """Share of a shard's windows that is kept, by information gain, among those within the bounds
    of the gzip ratio. LongFilter: 0.2. With 0, no document is read."""
    min_tokens: int | None = Field(None, ge=16)
    """Minimum length of a document (tokens of the scoring model). `null`: `samples.tokens`."""
    short_tokens: int | None = Field(None, ge=8)
    """Maximum length of the short window (tokens). `null`: 4,096, or a quarter of the long window
    if that is less."""
    min_gzip_ratio: float = Field(0.1, ge=0)
    """Minimum ratio of compressed to uncompressed bytes of a window's text (zlib, level 6). Below
    it are tables, lists and other repetitions."""
    max_gzip_ratio: float = Field(0.6, ge=0)
    """Maximum of the same ratio. Above it are encoded binary data and random strings."""

    @model_validator(mode="after")
    def _range(self) -> NaturalSettings:
        if self.min_gzip_ratio > self.max_gzip_ratio:
            raise ValueError("min_gzip_ratio must not exceed max_gzip_ratio")
        return self
