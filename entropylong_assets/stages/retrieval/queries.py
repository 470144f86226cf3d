"""The query of an anchor: the text around it (paper, section 3.2)."""

from __future__ import annotations

from collections.abc import Sequence

from entropylong_assets.stages.entropy.model import Tokenizer


def anchor_query(
    tokenizer: Tokenizer, token_ids: Sequence[int], anchor: int, half_window: int
) -> str:
    """Return the text of the tokens anchor-w .. anchor+w, cut at the ends of the root.

    A window can begin or end within a character of several tokens; the rest of such a character is
    removed.
    """
    first = max(0, anchor - half_window)
    text = tokenizer.decode(token_ids[first : anchor + half_window + 1])
    return text.strip("\N{REPLACEMENT CHARACTER}").strip()
