"""Settings of the roots, the scoring model and the anchors."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from entropylong_assets.settings.section import Section, model_beside
from entropylong_assets.stages.dtypes import Dtype

DEFAULT_NUMBER = 100
"""Documents drawn as roots if the settings give neither a number nor a share: enough to look at."""


class RootSettings(Section):
    """Which documents of the corpus become roots."""

    number: int | None = Field(None, ge=1)
    """Wished number of documents drawn as roots from the whole corpus; those of an unsuitable
    length drop out. A document is drawn with the probability number / rows of the corpus when its
    shard was registered, so that a new shard changes no earlier one. A corpus that grows n times
    has up to 1 + ln n times as many roots. Takes precedence over `fraction`. None: `fraction`
    decides; if that is none too, the number is 100."""
    fraction: float | None = Field(None, ge=0, le=1)
    """Share of documents drawn as roots, if their length allows; none: `number` decides. The paper:
    100,000 of over a billion."""
    fraction_by_source: Mapping[str, Annotated[float, Field(ge=0, le=1)]] = {}
    """Fraction for single sources, by name. `number` or `fraction` applies to all others."""
    min_tokens: int = Field(256, ge=2)
    """Minimum length of a root (tokens of the scoring model)."""
    max_tokens: int = Field(4096, ge=2)
    """Maximum length of a root (tokens of the scoring model). Longer documents are still retrieved
    as contexts."""

    @property
    def wished_number(self) -> int | None:
        """Number of documents to draw from the corpus; None if a share is given instead."""
        if self.number is not None:
            return self.number
        return DEFAULT_NUMBER if self.fraction is None else None

    @model_validator(mode="after")
    def _range(self) -> RootSettings:
        if self.min_tokens > self.max_tokens:
            raise ValueError("min_tokens must not exceed max_tokens")
        return self


class ScoringModelSettings(Section):
    """The causal language model M whose uncertainty is measured."""

    model: str = "HuggingFaceTB/SmolLM2-135M"
    """Hub id, folder, GGUF file, or `pkg://<package>/<file or folder>`. `./folder` is relative to
    the settings file. A hub id may name a revision: `model@<commit, tag or branch>`. The commit is
    recorded with every table."""
    trust_remote_code: bool = False
    """Run Python code from the model's repository. If false, a model that needs it is refused."""
    device: str = "auto"
    """`auto`, `cpu`, `cuda`, `cuda:1`, ..."""
    dtype: Dtype = "auto"
    """Type of weights and activations. `auto`: bfloat16 on CUDA, float32 elsewhere. Entropies are
    always computed in float32 from the logits."""
    bos: Literal["auto", "always", "never"] = "auto"
    """Special tokens at the beginning of every scored sequence and every sample. `auto`: those that
    the model's tokenizer puts before a text, usually BOS or none. `always`: the same, or BOS if the
    tokenizer puts none. `never`: none."""
    separator: str = "\n\n"
    """Text after every context and every root, when scored and when packed."""
    max_forward_tokens: int = Field(8192, ge=16)
    """Maximum length of a scored sequence (tokens), within the model's own maximum. A sequence is
    the BOS token, a context or none, and the whole root, up to this length."""
    pack_tokens: int | None = Field(None, ge=16)
    """Maximum number of tokens per forward pass, over all its sequences. `null`: chosen for the
    device. More tokens use a larger device better and take more of its memory."""

    def located(self, folder: Path) -> Self:
        return self.with_located(folder, model=model_beside(folder, self.model))


class EntropySettings(Section):
    """`entropy_scores`: high-entropy positions (paper, section 3.1)."""

    alpha: float = Field(2.0, allow_inf_nan=False)
    """α of the threshold τ = μ + α·σ, where μ and σ are the mean and the standard deviation of the
    root's entropies. The paper: 2.0."""
    anchors: Literal["entropy", "both"] = "entropy"
    """`entropy`: positions with H > τ, as in the paper. `both`: also positions with a surprising
    token, whose surprisal is above μ + α·σ of the root's surprisals, if H exceeds `min_entropy`."""
    min_entropy: float = Field(1.0, ge=0, allow_inf_nan=False)
    """Entropy that an anchor by surprisal must exceed (nats). Below it the model is sure of another
    token, so that no context can lower the entropy much."""
    min_anchor_position: int = Field(32, ge=0)
    """First position that can be an anchor (tokens). Before it, any context lowers the entropy."""
