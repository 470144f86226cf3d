"""How long the texts may be that an input module of a sentence transformer reads."""

from __future__ import annotations

import math
from typing import Any

from entropylong_assets.stages.embeddings.prompts import SideName

UNLIMITED_WINDOW = 512
"""Window (tokens) of a model that takes texts of any length, such as static embeddings."""

_MAX_RESERVED = 2
"""Positions that RoBERTa reserves. sentence-transformers counts them as part of the window if the
model's files state none, which is no fault of the files."""


def is_bare(tokenizer: Any) -> bool:
    """Whether it is a tokenizer of the package `tokenizers`, as static embeddings have it."""
    from tokenizers import Tokenizer

    return isinstance(tokenizer, Tokenizer)


def position_limit(module: Any) -> int | None:
    """Return the number of positions that a transformer was made for; None if it has no limit."""
    config = getattr(module, "config", None) or getattr(
        getattr(module, "auto_model", None), "config", None
    )
    if config is None:
        return None
    config = config.get_text_config() if hasattr(config, "get_text_config") else config
    positions = getattr(config, "max_position_embeddings", None)
    if not isinstance(positions, int) or positions <= 0:
        return None
    scaling = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None)
    kinds = scaling.values() if scaling and "rope_type" not in scaling else [scaling]
    if any(isinstance(k, dict) and k.get("rope_type", "default") != "default" for k in kinds):
        return None  # scaled beyond the positions of its training
    return positions - _reserved_positions(module)


def _reserved_positions(module: Any) -> int:
    """Return the rows of the position table before the first token's (RoBERTa and its kin)."""
    for name, table in module.named_modules():
        if name.endswith("position_embeddings") and getattr(table, "padding_idx", None) is not None:
            return int(table.padding_idx) + 1
    return 0


def fit_window(module: Any) -> str | None:
    """Let an input module read no more tokens than it has positions; return a note if it did."""
    if is_bare(module.tokenizer):
        return None
    module.tokenizer.truncation_side = "right"  # the prompt is never cut off
    limit, declared = position_limit(module), getattr(module, "max_seq_length", None)
    if limit is None or declared is None or declared <= limit:
        return None
    module.max_seq_length = limit
    if declared - limit <= _MAX_RESERVED:
        return None
    return (
        f"its files declare windows of {declared:,} tokens, but it has {limit:,} positions; "
        f"windows of {limit:,} are used"
    )


def window_of(module: Any, side: SideName) -> int:
    """Return the longest text of a side (tokens, prompt and special ones included)."""
    return min(_limits(module, side), default=UNLIMITED_WINDOW)


def is_unlimited(module: Any, side: SideName) -> bool:
    """Whether the module takes texts of any length: the window is our choice."""
    return not _limits(module, side)


def _limits(module: Any, side: SideName) -> list[int]:
    text = (getattr(module, "processing_kwargs", None) or {}).get("text", {})
    limits = [
        getattr(module, "max_seq_length", None),
        getattr(module, f"{side}_length", None),
        text.get("max_length"),
    ]
    if is_bare(module.tokenizer):
        limits.append((module.tokenizer.truncation or {}).get("max_length"))
    # A tokenizer without a limit states one of 10**30.
    return [int(n) for n in limits if n is not None and math.isfinite(n) and n < 10**9]
