"""Settings of the export for trainers."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, field_validator

from entropylong_assets.settings.section import Section, refuse_credentials
from entropylong_assets.stages.training_data.registry import EXPORT_FORMATS


class ExportSettings(Section):
    """`training_dataset`: files that trainers load."""

    formats: tuple[Annotated[str, AfterValidator(EXPORT_FORMATS.check)], ...] = ("mds", "parquet")
    """`mds`: MosaicML Streaming, as ProLong's trainer reads it. `parquet`: Hugging Face datasets.
    `megatron`: Megatron-LM's indexed dataset (.bin and .idx). `olmo`: arrays with label masks for
    OLMo-core. `nanotron`: datatrove's .ds files. `jsonl`: text with roles and dependencies, for
    another tokenizer (`entropylong retokenize`). Other packages can add formats."""
    learn_fillers: bool = True
    """Learn the tokens of fillers (`samples.fill: corpus`). If not, formats with a mask keep them
    from the loss as they do with padding, and formats without one are refused. ProLong's trainer
    applies the mask of MDS only with `--apply_instruct_masks`."""
    destination: str = ""
    """Folder or URI in which each export gets a folder of its own; empty:
    `<data_uri>/<dataset>/exports`."""
    validation_fraction: float = Field(0.01, ge=0, le=0.5)
    """Maximum share of samples held out. Samples that share a document stay in one split."""
    max_left_out: float = Field(0.0, ge=0, le=0.5)
    """Maximum share of samples that may be left out of both splits because they share documents
    with both. With 0, less is held out instead; on a large corpus perhaps nothing."""
    file_bytes: int = Field(67_108_864, ge=1024, lt=2**31)
    """Maximum size of one MDS shard, and of the token ids in one Parquet file (bytes)."""
    loss_weights: Literal["uniform", "anchors", "distance"] = "uniform"
    """Weight of each token in the loss; all others have 1, padding has 0.

    `uniform`: no weights are written. `anchors`: `anchor_weight` at every anchor with a verified
    dependency. `distance`: 1 + (`anchor_weight` - 1) * log2(1 + d) / log2(1 + T) at such an anchor,
    whose farthest context ends d tokens before it in a sample of T tokens: the farther the evidence
    of a token, the more it counts, after EXACT (arXiv 2605.10544), which weights by the length of
    the visible context instead, as it knows of no evidence."""
    anchor_weight: float = Field(2.0, gt=0, allow_inf_nan=False)
    """Weight of anchors with `loss_weights: anchors`; with `distance`, that of evidence as far back
    as a sample is long."""

    _destination_without_credentials = field_validator("destination")(refuse_credentials)

    @field_validator("formats")
    @classmethod
    def _formats_once(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not value or len(set(value)) != len(value):
            raise ValueError("name at least one format, each once")
        return EXPORT_FORMATS.in_order(value)
