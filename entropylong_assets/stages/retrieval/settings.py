"""Settings of the retrieval of candidate contexts."""

from __future__ import annotations

from pydantic import Field

from entropylong_assets.settings.section import Section


class RetrievalSettings(Section):
    """`candidate_contexts`: nominating contexts for anchors (paper, section 3.2)."""

    half_window: int = Field(16, ge=0)
    """Query of anchor t: the text of tokens t-w .. t+w. The paper: 16."""
    top_k: int = Field(8, ge=1)
    """Candidates an anchor. K is not in our sources."""
    leak_ngram_words: int = Field(8, ge=1)
    """Words in the n-grams of the leak guard."""
    max_containment: float = Field(0.2, gt=0, le=1)
    """A candidate with at least this share of its word n-grams in the root is refused as a copy."""
