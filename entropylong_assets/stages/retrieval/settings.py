"""Settings of the retrieval of candidate contexts."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field

from entropylong_assets.settings.section import Section
from entropylong_assets.stages.retrieval.registry import LEAK_CHECKS


class RetrievalSettings(Section):
    """`candidate_contexts`: retrieving candidates for anchors (paper, section 3.2)."""

    half_window: int = Field(16, ge=0)
    """w: the query of an anchor at t is the text of tokens t-w .. t+w. The paper: 16."""
    top_k: int = Field(8, ge=1)
    """K: number of candidates per anchor. The paper does not state it."""
    text_candidates: int = Field(0, ge=0)
    """Number of candidates per anchor from full-text search (BM25) with the words around the
    anchor, in addition to the K nearest chunks. A chunk that both find counts once. Needs
    `embedding.text_index`."""
    text_half_window: int = Field(16, ge=0)
    """w of the full-text query: the words of tokens t-w .. t+w."""
    leak_check: Annotated[str, AfterValidator(LEAK_CHECKS.check)] = "word_ngrams"
    """Leak check: how candidates that repeat the root's text are recognised (docs/extending.md)."""
    leak_ngram_words: int = Field(8, ge=1)
    """Words per n-gram of the leak check `word_ngrams`. In scripts without spaces, one ideograph,
    two syllables or three letters count as a word. N-grams of 5 or more words also match if one
    word was edited."""
    max_containment: float = Field(0.2, gt=0, le=1)
    """A candidate is rejected as a near-duplicate if at least this share of it occurs in the root,
    as the leak check measures it."""
