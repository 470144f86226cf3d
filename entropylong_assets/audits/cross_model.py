"""Pairs that both rules, the plain one alone, or neither accepts, scored again by a model of
another family, which had no part in the choice.

The second model has its own tokens: text is what both share. Its position for an anchor is the
token that holds the anchor's first character. A pair holds where the second model's own ΔI
exceeds ε there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from scipy.stats import spearmanr

from entropylong_assets.audits.root_sample import ScoredRoot, clustered_mean
from entropylong_assets.settings.model import ScoringModelSettings, Settings
from entropylong_assets.stages.entropy.model import Tokenizer
from entropylong_assets.stages.entropy.scoring import Scorer, ScoringRequest
from entropylong_assets.stages.samples.ordering import hash_key
from entropylong_assets.stages.verification.false_acceptance import acceptance_rate

GROUPS = {
    "both_rules": "accepted by both rules",
    "plain_rule_alone": "accepted by the plain rule alone",
    "neither_rule": "accepted by neither rule",
}
"""Name and words; the calibrated rule accepts nothing that the plain one does not."""

INSIDE_CHARACTER, TOO_LONG, NO_PREFIX = "inside_a_character", "too_long_for_model", "no_prefix"


@dataclass(frozen=True)
class Second:
    """The second model, as this audit uses it."""

    tokenizer: Tokenizer
    scorer: Scorer
    max_positions: int


def second_settings(settings: Settings) -> ScoringModelSettings | None:
    """The second model's settings: the first one's under its name; None where none is named."""
    name = settings.audit.model
    return settings.scoring.model_copy(update={"model": name}) if name else None


def group_of() -> pl.Expr:
    """A key of GROUPS, from accepted_plain and accepted_calibrated."""
    both, plain, neither = (pl.lit(name) for name in GROUPS)
    plain_alone = pl.when("accepted_plain").then(plain).otherwise(neither)
    return pl.when("accepted_calibrated").then(both).otherwise(plain_alone)


def choose_pairs(roots: Sequence[ScoredRoot], most: int, seed: int) -> list[dict[str, Any]]:
    """At most `most` pairs of each group, by hash, in the order of the tables."""
    rows = [
        row
        for root in roots
        for row in root.pairs.with_columns(group=group_of()).iter_rows(named=True)
    ]

    def key(row: dict[str, Any]) -> bytes:
        return hash_key(seed, "pair", row["root_id"], str(row["anchor"]), row["chunk_id"])

    chosen = []
    for group in GROUPS:
        chosen += sorted((r for r in rows if r["group"] == group), key=key)[:most]
    return sorted(chosen, key=lambda r: (r["root_id"], r["anchor"], r["chunk_id"]))


def offsets(tokenizer: Tokenizer, text: str) -> tuple[list[int], list[tuple[int, int]]]:
    """Token ids of a text without special ones, and the characters that each stands for."""
    made = tokenizer.hf_tokenizer(
        text, add_special_tokens=False, split_special_tokens=True, return_offsets_mapping=True
    )
    return list(made["input_ids"]), [tuple(pair) for pair in made["offset_mapping"]]


def position_of(character: int, spans: Sequence[tuple[int, int]]) -> int | None:
    """The token that holds this character."""
    return next((i for i, (start, end) in enumerate(spans) if start <= character < end), None)


def audit(
    roots: Sequence[ScoredRoot],
    pairs: Sequence[dict[str, Any]],
    context_text: Callable[[str], str],
    first: Tokenizer,
    second: Second,
    separator: str,
    epsilon: float,
    on_progress: Callable[[int], None] = lambda _: None,
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Rows of `pairs` and of `dropped`. context_text: text of a chunk."""
    by_id = {root.root_id: root for root in roots}
    texts = {root_id: first.decode(root.token_ids) for root_id, root in by_id.items()}
    encoded = {root_id: offsets(second.tokenizer, text) for root_id, text in texts.items()}
    bos = list(second.tokenizer.bos_ids)
    dropped: list[dict[str, Any]] = []
    planned: list[tuple[dict[str, Any], int, int]] = []
    requests: list[ScoringRequest] = []

    def ask(context: Sequence[int], root_ids: Sequence[int], position: int) -> int:
        tokens = [*bos, *context, *root_ids[: position + 1]]
        requests.append(
            ScoringRequest(np.array(tokens, np.int64), np.array([len(tokens) - 1], np.int64))
        )
        return len(requests) - 1

    for pair in pairs:
        root = by_id[pair["root_id"]]
        before = first.decode(root.token_ids[: pair["anchor"]])
        where = {name: pair[name] for name in ("root_id", "anchor", "chunk_id")}
        if not texts[root.root_id].startswith(before) or before.endswith(
            "\N{REPLACEMENT CHARACTER}"
        ):
            dropped.append(where | {"reason": INSIDE_CHARACTER})
            continue
        ids, spans = encoded[root.root_id]
        position = position_of(len(before), spans)
        context = second.tokenizer.encode([context_text(pair["chunk_id"]) + separator])[0]
        if position is None or position + len(bos) < 1:
            dropped.append(where | {"reason": NO_PREFIX})
        elif len(bos) + len(context) + position + 1 > second.max_positions:
            dropped.append(where | {"reason": TOO_LONG})
        else:
            planned.append((pair, ask([], ids, position), ask(context, ids, position)))
    scores = second.scorer.score(requests, on_progress)
    rows = []
    for pair, alone, behind in planned:
        entropy, after = float(scores[alone].entropy_N[0]), float(scores[behind].entropy_N[0])
        gain = (entropy - after) / entropy if entropy > 0 else None
        rows.append(
            {
                "root_id": pair["root_id"],
                "anchor": pair["anchor"],
                "chunk_id": pair["chunk_id"],
                "accepted_plain": pair["accepted_plain"],
                "accepted_calibrated": pair["accepted_calibrated"],
                "gain": pair["gain"],
                "surprisal_drop": pair["surprisal"] - pair["surprisal_context"],
                "second_entropy": entropy,
                "second_entropy_context": after,
                "second_surprisal": float(scores[alone].surprisal_N[0]),
                "second_surprisal_context": float(scores[behind].surprisal_N[0]),
                "second_gain": gain,
                "holds": gain is not None and gain > epsilon,
            }
        )
    return rows, dropped


def summarise(rows: pl.DataFrame) -> dict[str, Any]:
    """Share that holds, and mean fall of surprisal, by group, with 95% intervals over roots; rank
    correlation of both models' gains."""
    figures: dict[str, Any] = {"pairs": len(rows)}
    for name in GROUPS:
        part = rows.filter(group_of() == name)
        holds = acceptance_rate(part, "holds")
        figures |= {
            f"{name}_holds": holds.value if holds.total else None,
            f"{name}_holds_low": holds.low if holds.total else None,
            f"{name}_holds_high": holds.high if holds.total else None,
        }
        fall = (part["second_surprisal"] - part["second_surprisal_context"]).to_list()
        mean = clustered_mean(fall, part["root_id"].to_list())
        figures |= {
            f"{name}_surprisal_drop": mean.value,
            f"{name}_surprisal_drop_low": mean.low,
            f"{name}_surprisal_drop_high": mean.high,
        }
        figures[f"{name}_pairs"] = len(part)
    both = rows.drop_nulls(["gain", "second_gain"])
    if len(both) > 2 and both["gain"].n_unique() > 1 and both["second_gain"].n_unique() > 1:
        found = spearmanr(both["gain"].to_numpy(), both["second_gain"].to_numpy())
        figures["gain_rank_correlation"] = float(found.statistic)
    return figures
