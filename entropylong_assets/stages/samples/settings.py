"""Settings of the samples."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from entropylong_assets.settings.section import Section
from entropylong_assets.stages.samples.registry import RECIPES

BUILT_IN_RECIPES = (
    "entropylong",
    "calibrated",
    "no_verify",
    "random",
    "quest",
    "nextlong",
    "policylong",
)


class SampleSettings(Section):
    """`long_context_samples`: order and packing (paper, section 3.4)."""

    tokens: int = Field(131_072, ge=16)
    """Exact length of a sample (tokens). The paper: 131,072."""
    order: Literal["shuffle", "sequence"] = "shuffle"
    """Order of a root's contexts: random, or by the position of the first anchor that each
    serves."""
    layout: Literal["grouped", "interleaved"] = "grouped"
    """`grouped`: each root directly after its own contexts. `interleaved`: first the contexts of
    all roots of the sample, then the roots, so that dependencies span the sample."""
    fill: Literal["verified_only", "hard_negatives", "corpus"] = "hard_negatives"
    """How the rest of a sample is filled: `hard_negatives` with candidates of the same roots that
    failed verification, then padding; `verified_only` with padding alone; `corpus` with random
    chunks of the corpus as distractors (role `filler`), to the last token. Padding is masked from
    the loss; fillers are learnt unless `export.learn_fillers` is false."""
    recipe: Annotated[str, AfterValidator(RECIPES.check)] | None = None
    """How a root's contexts are chosen, within as many tokens as the rule in force verified for
    that root (`stages/samples/recipes.py`, docs/extending.md); none: the contexts that the rule in
    force verified."""
    max_uses_per_context: int | None = Field(None, ge=1)
    """Maximum number of roots of a shard that one context serves; none: no limit. This and the next
    two limits keep the contexts of the highest priority, the sum of the gains of their
    dependencies; the others are dropped."""
    max_uses_per_document: int | None = Field(None, ge=1)
    """Maximum number of contexts in the samples of a shard that are cut from one document, counted
    once per root; none: no limit."""
    max_contexts_per_root: int | None = Field(None, ge=1)
    """Maximum number of contexts per root; none: no limit. `verification.max_contexts_per_root`
    saves forward passes instead: it keeps the contexts that were tried first."""
    meta_chunk_tokens: int = Field(256, ge=1)
    """Recipe `nextlong`: maximum length of the pieces that a root is cut into (tokens)."""
