"""Settings of the samples."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from entropylong_assets.settings.section import Section


class SampleSettings(Section):
    """`long_context_samples`: order and packing (paper, section 3.4)."""

    tokens: int = Field(131_072, ge=16)
    """Exact length of a sample (tokens). The paper: 131,072."""
    order: Literal["shuffle", "sequence"] = "shuffle"
    """Order of a root's contexts: random, or by the position of the anchor they serve."""
    layout: Literal["grouped", "interleaved"] = "grouped"
    """`grouped`: each root after its own contexts. `interleaved`: all contexts of the sample's
    roots first, then the roots, so that dependencies span the window."""
    fill: Literal["verified_only", "hard_negatives"] = "hard_negatives"
    """What stands between verified contexts: nothing (the rest of the sample is padding, masked
    from the loss), or candidates of the same roots that failed verification."""
    recipe: str | None = None
    """How a root's contexts are chosen (`samples/recipes.py`), out of as many tokens as the rule
    in force verified for that root; none: just what that rule verified."""
    meta_chunk_tokens: int = Field(256, ge=1)
    """Longest piece that recipe `nextlong` cuts a root into (tokens)."""
