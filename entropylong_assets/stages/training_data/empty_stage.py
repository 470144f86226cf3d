"""Why an export would be empty: the first empty stage of the funnel."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from entropylong_assets.settings.section import Settings
from entropylong_assets.stages.verification.registry import RULES


def first_empty_stage(figures: Mapping[str, Any], settings: Settings) -> str:
    """Return what is missing first, and which settings to change. One line.

    figures: of `dataset_figures`, without a sample. settings: of the dataset.
    """
    n = figures
    roots, retrieval, rule = settings.roots, settings.retrieval, settings.verification
    if not n["documents"]:
        return "there is no document; look at corpus.sources, min_chars and max_chars"
    if not n["documents_drawn"]:
        return (
            f"none of {n['documents']:,} documents was drawn as a root; raise roots.number or "
            "roots.fraction"
        )
    if not n["roots_scored"]:
        return (
            f"none of {n['documents_drawn']:,} drawn documents has between {roots.min_tokens:,} "
            f"and {roots.max_tokens:,} tokens, so that there is no root; change roots.min_tokens "
            "and max_tokens, or raise roots.number"
        )
    if not n["anchors"]:
        return (
            f"no position of {n['roots_scored']:,} roots is an anchor; lower entropy.alpha "
            f"({settings.entropy.alpha:g})"
        )
    if not n["candidates"]:
        return (
            f"no anchor of {n['anchors']:,} has a candidate; the index must contain other "
            "documents than the root"
        )
    if not n["pairs_scored"]:
        return (
            f"none of {n['candidates']:,} candidates was scored: the leak check refused "
            f"{n['near_duplicates_refused']:,}, others are too long for the model, beyond the "
            f"budget or excluded by rule {rule.rule} by their text; raise retrieval.top_k "
            f"({retrieval.top_k}) or retrieval.max_containment ({retrieval.max_containment:g})"
        )
    if not n["pairs_accepted"]:
        more = f"raise roots.number or retrieval.top_k ({retrieval.top_k})"
        if "epsilon" in RULES[rule.rule].settings:
            more = f"lower verification.epsilon ({rule.epsilon:g})"
        return (
            f"rule {rule.rule} accepts none of {n['pairs_scored']:,} scored pairs, so that no root "
            f"has a verified context; {more} or choose another verification.rule "
            "(`entropylong ablate` shows what the evaluated rules would accept)"
        )
    return (
        f"none of {n['pairs_accepted']:,} dependencies fits a sample of "
        f"{settings.samples.tokens:,} tokens; raise samples.tokens or lower roots.max_tokens"
    )
