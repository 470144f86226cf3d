"""Settings of the export for trainers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, field_validator

from entropylong_assets.settings.section import Section, beside, refuse_credentials
from entropylong_assets.stages.training_data.registry import EXPORT_FORMATS

PARTS = ("constructed", "natural", "short")

Share = Annotated[float, Field(ge=0, le=1)]


def check_shares(value: Mapping[str, float]) -> Mapping[str, float]:
    """Return the shares of a mixture. Raises ValueError for unknown parts or another sum than 1."""
    if unknown := sorted({*value} - {*PARTS}):
        raise ValueError(f"no part '{unknown[0]}'; the parts are {', '.join(PARTS)}")
    if abs(sum(value.values()) - 1) > 1e-6:
        raise ValueError(f"the shares must add up to 1, not {sum(value.values()):g}")
    return value


Shares = Annotated[Mapping[str, Share], AfterValidator(check_shares)]
"""Shares of a mixture by part."""


class ExportSettings(Section):
    """`training_dataset`: files that trainers load."""

    formats: tuple[Annotated[str, AfterValidator(EXPORT_FORMATS.check)], ...] = ("mds", "parquet")
    """`mds`: MosaicML Streaming, as ProLong's trainer reads it. `parquet`: Hugging Face datasets.
    `megatron`: Megatron-LM's indexed dataset (.bin and .idx). `olmo`: arrays with label masks for
    OLMo-core. `nanotron`: datatrove's .ds files. `jsonl`: text with roles and dependencies, for
    another tokenizer (`entropylong retokenize`). Other packages can add formats."""
    learn_fillers: bool = True
    """Whether the tokens of fillers (`samples.fill: corpus`) count in the loss. If false, formats
    with a mask exclude them like padding, and formats without one are refused. ProLong's trainer
    applies the mask of MDS only with `--apply_instruct_masks`."""
    destination: str = ""
    """Folder or URI in which each export gets a folder of its own. Empty:
    `<data_uri>/<dataset>/exports`."""
    validation_fraction: float = Field(0.01, ge=0, le=0.5)
    """Maximum share of samples that are held out for validation. Samples that share a document are
    in the same split."""
    max_left_out: float = Field(0.0, ge=0, le=0.5)
    """Maximum share of samples that are left out because they share documents with both splits.
    With 0, fewer samples are held out instead, in a large corpus possibly none."""
    file_bytes: int = Field(67_108_864, ge=1024, lt=2**31)
    """Maximum size of one MDS shard, and of the token ids in one Parquet file (bytes)."""
    loss_weights: Literal["uniform", "anchors", "distance"] = "uniform"
    """Weights of tokens in the loss. `uniform`: no weights are written. `anchors`: `anchor_weight`
    at every anchor with a verified dependency. `distance`: 1 + (`anchor_weight` - 1) * log2(1 + d)
    / log2(1 + T) at such an anchor, if its farthest context ends d tokens before it in a sample of
    T tokens (docs/trainers.md). All other tokens have weight 1, padding has 0."""
    anchor_weight: float = Field(2.0, gt=0, allow_inf_nan=False)
    """Weight of anchors with `loss_weights: anchors`. With `distance`: the weight at a distance of
    one sample length."""

    mixture: Shares | None = None
    """Shares of tokens, which add up to 1: `constructed` samples, windows of `natural` long
    documents (`natural.keep`), `short` documents packed to the length of a sample. The part with
    the fewest samples for its share limits the total. `null`: all constructed samples."""
    mixture_repeat: int = Field(1, ge=1)
    """Maximum number of times a sample is used in a mixture. Above 1, a small part limits the total
    less."""

    _destination_without_credentials = field_validator("destination")(refuse_credentials)

    def located(self, folder: Path) -> Self:
        return self.with_located(folder, destination=beside(folder, self.destination))

    @field_validator("formats")
    @classmethod
    def _formats_once(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not value or len(set(value)) != len(value):
            raise ValueError("name at least one format, each once")
        return EXPORT_FORMATS.in_order(value)
