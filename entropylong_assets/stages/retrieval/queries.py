"""The query of an anchor: the text around it (paper, section 3.2)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

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


def fitting_queries(
    query: Callable[[int, int], str],
    anchors: Sequence[int],
    half_window: int,
    fits: Callable[[Sequence[str]], list[bool]],
) -> tuple[list[str], int]:
    """Return a query per anchor that the embedder sees whole, and how many had to be shortened.

    query: the text around an anchor, given the anchor and the number of tokens on either side.
    A text that is too long is cut on both sides alike, so that the anchor stays in its middle. If
    even the anchor's own token is too long, the embedder sees its beginning.
    """
    queries = [query(anchor, half_window) for anchor in anchors]
    too_long = [i for i, fit in enumerate(fits(queries)) if not fit] if queries else []
    for i in too_long:
        enough, too_much = 0, half_window
        while too_much - enough > 1:
            middle = (enough + too_much) // 2
            if fits([query(anchors[i], middle)])[0]:
                enough = middle
            else:
                too_much = middle
        queries[i] = query(anchors[i], enough)
    return queries, len(too_long)
