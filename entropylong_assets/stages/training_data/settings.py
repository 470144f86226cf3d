"""Settings of the export for trainers."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from entropylong_assets.settings.section import Section, refuse_credentials


class ExportSettings(Section):
    """`training_dataset`: files that trainers load."""

    formats: tuple[Literal["mds", "parquet", "megatron"], ...] = ("mds", "parquet")
    """`mds`: MosaicML Streaming, as ProLong's trainer reads it. `parquet`: Hugging Face datasets.
    `megatron`: Megatron-LM's indexed dataset (.bin and .idx)."""
    destination: str = ""
    """Folder or URI under which each export gets a folder of its own; empty:
    `<data_uri>/exports`."""
    validation_fraction: float = Field(0.01, ge=0, le=0.5)
    """Share of samples held out, at most: samples that share a document stay on one side."""
    max_left_out: float = Field(0.0, ge=0, le=0.5)
    """Share of samples that may be left out of both sides because they share documents with
    both; 0: less is held out instead, on a large corpus perhaps nothing."""
    file_bytes: int = Field(67_108_864, ge=1024, lt=2**31)
    """Most bytes of one MDS shard, and of the token ids in one Parquet file (bytes)."""
    position_weighted: bool = False
    """Add to MDS a weight for each token, `anchor_weight` at anchors and 1 elsewhere."""
    anchor_weight: float = Field(2.0, gt=0, allow_inf_nan=False)
    """Weight of anchors under `position_weighted`."""

    _destination_without_credentials = field_validator("destination")(refuse_credentials)

    @field_validator("formats")
    @classmethod
    def _formats_once(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not value or len(set(value)) != len(value):
            raise ValueError("name at least one format, each once")
        return value
