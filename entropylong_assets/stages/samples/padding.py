"""Why samples can consist mostly of padding, as a line for people."""

from __future__ import annotations

from collections.abc import Mapping

MANY = 0.5
"""Share of padding above which it is explained."""


def padding_note(samples: int, tokens_by_role: Mapping[str, int]) -> str | None:
    """Say why most tokens are padding, and what to do; None if at most `MANY` of them are.

    samples: their number; all have one length. tokens_by_role: tokens of all samples. The suggested
    length is the next power of two above the mean content of a sample.
    """
    total, padding = sum(tokens_by_role.values()), tokens_by_role.get("padding", 0)
    if padding <= MANY * total:
        return None
    sample_tokens, content = total // samples, (total - padding) // samples
    length = 1 << max(content, 16).bit_length()
    remedies = ["draw more roots (roots.number)"]
    if length < sample_tokens:
        remedies.append(f"set samples.tokens to a smaller number, e.g. {length}")
    return (
        f"{padding / total:.1%} of the tokens are padding: a sample holds {sample_tokens:,}, but "
        f"the roots of a shard and their contexts fill only {content:,}"
        f"{' on average' if samples > 1 else ''}. To have less, {' or '.join(remedies)}"
    )
