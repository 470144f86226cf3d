"""Settings of the samples."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from entropylong_assets.settings.section import Section
from entropylong_assets.stages.samples.registry import RECIPES

BUILT_IN_RECIPES = (
    "entropylong",
    "calibrated",
    "genuine",
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
    """Order of a root's contexts. `shuffle`: random. `sequence`: by the position of the first
    anchor that each context resolves."""
    layout: Literal["grouped", "interleaved"] = "interleaved"
    """`interleaved`: first the contexts of all roots of the sample, then the roots, so that
    dependencies span the sample. `grouped`: each root directly after its own contexts, as in the
    paper. That is enough if a root and its contexts nearly fill a sample. If many groups share one,
    their dependencies are only as long as a group."""
    fill: Literal["verified_only", "hard_negatives", "corpus"] = "hard_negatives"
    """How the rest of a sample is filled. `hard_negatives`: with candidates of the same roots that
    were rejected, then padding. `verified_only`: with padding alone. `corpus`: with random chunks
    of the corpus (role `filler`), to the last token. Padding is masked from the loss; fillers are
    learnt unless `export.learn_fillers` is false."""
    recipe: Annotated[str, AfterValidator(RECIPES.check)] | None = None
    """How a root's contexts are chosen: `entropylong`, `calibrated`, `genuine`,
    `no_verify`, `random`, `quest`, `nextlong`, `policylong`, or a recipe of another package
    (docs/extending.md). Each takes at most as many tokens as the contexts that the rule in force
    accepts for that root. `null`: these contexts."""
    max_uses_per_context: int | None = Field(None, ge=1)
    """Maximum number of roots of a shard that use the same context. `null`: no limit. This limit
    and the next two keep the contexts with the highest sum of gains and drop the others."""
    max_uses_per_document: int | None = Field(None, ge=1)
    """Maximum number of contexts from one document in the samples of a shard, counted once per
    root. `null`: no limit."""
    max_contexts_per_root: int | None = Field(None, ge=1)
    """Maximum number of contexts per root. `null`: no limit. In contrast,
    `verification.max_contexts_per_root` saves forward passes and keeps the contexts that were
    scored first."""
    meta_chunk_tokens: int = Field(256, ge=1)
    """Recipe `nextlong`: maximum length of the pieces that a root is cut into (tokens)."""
