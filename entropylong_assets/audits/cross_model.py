"""Scoring pairs again with a model of another family, whose scores did not choose them.

The second model has its own tokenizer, so the two models share only text. Its position for an
anchor is the token that contains the anchor's first character. A pair holds if the second model's
ΔI at that token exceeds ε. Pairs are grouped by the compared rules that accept them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl
from scipy.stats import spearmanr

from entropylong_assets.audits.audit_model import AuditModel
from entropylong_assets.audits.root_sample import ScoredRoot, clustered_mean
from entropylong_assets.stages.entropy.model import Tokenizer
from entropylong_assets.stages.entropy.scoring import PositionScores, ScoringRequest
from entropylong_assets.stages.samples.ordering import hash_key
from entropylong_assets.stages.verification.false_acceptance import acceptance_rate
from entropylong_assets.stages.verification.requests import context_request

NO_RULE = "none"
"""Name of the group of pairs that no compared rule accepts."""

INSIDE_CHARACTER, TOO_LONG, NO_PREFIX = "inside_a_character", "too_long_for_model", "no_prefix"


def group_rows(pairs: pl.DataFrame) -> dict[str, pl.DataFrame]:
    """Split pairs by the compared rules that accept them; groups of most rules first.

    The name of a group consists of the names of its rules, joined by commas, or `none`. pairs:
    accepted_by.
    """
    rules = pl.col("accepted_by").list
    named = pairs.with_columns(group=pl.when(rules.len() > 0).then(rules.join(", ")))
    groups = {
        name: rows.drop("group")
        for (name,), rows in named.with_columns(pl.col("group").fill_null(NO_RULE))
        .group_by("group", maintain_order=True)
    }  # fmt: skip
    return {name: groups[name] for name in sorted(groups, key=_by_size)}


def _by_size(group: str) -> tuple[int, str]:
    return (0 if group == NO_RULE else -len(group.split(", ")), group)


def group_label(group: str) -> str:
    """The group in words, after "pairs"."""
    if group == NO_RULE:
        return "accepted by no rule"
    rules = group.split(", ")
    return f"accepted by {' and '.join(rules)}" + (" alone" if len(rules) == 1 else "")


def choose_pairs(
    roots: Sequence[ScoredRoot], max_per_group: int, seed: int
) -> list[dict[str, Any]]:
    """Choose pairs of each group by hash; in the order of root, anchor and chunk."""

    def key(row: Mapping[str, Any]) -> bytes:
        return hash_key(seed, "pair", row["root_id"], str(row["anchor"]), row["chunk_id"])

    chosen: list[dict[str, Any]] = []
    if roots:
        for rows in group_rows(pl.concat(root.pairs for root in roots)).values():
            chosen += sorted(rows.iter_rows(named=True), key=key)[:max_per_group]
    return sorted(chosen, key=lambda r: (r["root_id"], r["anchor"], r["chunk_id"]))


def offsets(tokenizer: Tokenizer, text: str) -> tuple[list[int], list[tuple[int, int]]]:
    """Return the token ids of a text, without special tokens, and the character span of each."""
    encoded = tokenizer.hf_tokenizer(
        text, add_special_tokens=False, split_special_tokens=True, return_offsets_mapping=True
    )
    return list(encoded["input_ids"]), [tuple(pair) for pair in encoded["offset_mapping"]]


def position_of(character: int, spans: Sequence[tuple[int, int]]) -> int | None:
    """Return the position of the token that contains this character, or None."""
    return next((i for i, (start, end) in enumerate(spans) if start <= character < end), None)


@dataclass(frozen=True)
class _Planned:
    """A pair and the numbers of its two requests: the root alone, and given the context."""

    pair: Mapping[str, Any]
    alone: int
    given: int


class SecondAudit:
    """Scores pairs with a second model. `rows` and `dropped` are the rows of the audit's tables."""

    def __init__(
        self, roots: Sequence[ScoredRoot], first: Tokenizer, second: AuditModel, separator: str
    ) -> None:
        """first: tokenizer of the model that scored the roots. separator: text after a context."""
        self._first, self._second, self._separator = first, second, separator
        self._roots = {root.root_id: root for root in roots}
        self._texts = {i: first.decode(root.token_ids) for i, root in self._roots.items()}
        self._encoded = {i: offsets(second.tokenizer, text) for i, text in self._texts.items()}
        self._planned: list[_Planned] = []
        self._requests: list[ScoringRequest] = []
        self.rows: list[dict[str, Any]] = []
        self.dropped: list[dict[str, Any]] = []

    def add(self, pair: Mapping[str, Any], context_text: str) -> None:
        """Plan the requests of a pair, or drop it. context_text: text of its chunk."""
        reason = self._plan(pair, context_text)
        if reason:
            names = ("root_id", "anchor", "chunk_id")
            self.dropped.append({name: pair[name] for name in names} | {"reason": reason})

    def _plan(self, pair: Mapping[str, Any], context_text: str) -> str | None:
        """Plan the requests of a pair; returns why it can't be scored, or None."""
        root_id, tokenizer = pair["root_id"], self._second.tokenizer
        before = self._first.decode(self._roots[root_id].token_ids[: pair["anchor"]])
        is_whole = not before.endswith("\N{REPLACEMENT CHARACTER}")
        if not is_whole or not self._texts[root_id].startswith(before):
            return INSIDE_CHARACTER
        ids, spans = self._encoded[root_id]
        position, n_bos = position_of(len(before), spans), len(tokenizer.bos_ids)
        if position is None or position + n_bos < 1:
            return NO_PREFIX
        context = tokenizer.encode([context_text + self._separator])[0]
        if n_bos + len(context) + position + 1 > self._second.max_positions:
            return TOO_LONG
        alone, given = self._request([], ids, position), self._request(context, ids, position)
        self._planned.append(_Planned(pair, alone, given))
        return None

    def _request(self, context: Sequence[int], root: Sequence[int], position: int) -> int:
        """Request the scores of one position of the root; returns the number of the request."""
        bos_ids, longest = self._second.tokenizer.bos_ids, self._second.max_positions
        self._requests.append(context_request(bos_ids, context, root, [position], longest))
        return len(self._requests) - 1

    def run(self, epsilon: float, on_progress: Callable[[int], None] = lambda _: None) -> None:
        """Score all planned pairs. on_progress: called with the tokens of each forward pass."""
        scores = self._second.scorer.score(self._requests, on_progress)
        for planned in self._planned:
            alone, given = scores[planned.alone], scores[planned.given]
            self.rows.append(_row(planned.pair, alone, given, epsilon))


def _row(
    pair: Mapping[str, Any], alone: PositionScores, given: PositionScores, epsilon: float
) -> dict[str, Any]:
    entropy, lowered = float(alone.entropy_N[0]), float(given.entropy_N[0])
    gain = (entropy - lowered) / entropy if entropy > 0 else None
    return {
        "root_id": pair["root_id"],
        "anchor": pair["anchor"],
        "chunk_id": pair["chunk_id"],
        "accepted_by": pair["accepted_by"],
        "gain": pair["gain"],
        "surprisal_drop": pair["surprisal"] - pair["surprisal_context"],
        "second_entropy": entropy,
        "second_entropy_context": lowered,
        "second_surprisal": float(alone.surprisal_N[0]),
        "second_surprisal_context": float(given.surprisal_N[0]),
        "second_gain": gain,
        "holds": gain is not None and gain > epsilon,
    }


_SECOND_DROP = pl.col("second_surprisal").cast(pl.Float64) - pl.col("second_surprisal_context")


def summarize(rows: pl.DataFrame) -> dict[str, Any]:
    """Figures of `CrossModelAuditSummary` that follow from the audited pairs, by name.

    Intervals are over roots; the rank correlation is None if there are fewer than three gains.
    """
    groups = group_rows(rows)
    holds = {name: acceptance_rate(part, "holds") for name, part in groups.items()}
    drops = {
        name: clustered_mean(
            part.select(_SECOND_DROP).to_series().to_list(), part["root_id"].to_list()
        )
        for name, part in groups.items()
    }
    return {
        "pairs": len(rows),
        "pairs_by_group": {name: len(part) for name, part in groups.items()},
        "holds": {name: rate.value for name, rate in holds.items()},
        "holds_low": {name: rate.low for name, rate in holds.items()},
        "holds_high": {name: rate.high for name, rate in holds.items()},
        "surprisal_drop": _known({name: mean.value for name, mean in drops.items()}),
        "surprisal_drop_low": _known({name: mean.low for name, mean in drops.items()}),
        "surprisal_drop_high": _known({name: mean.high for name, mean in drops.items()}),
        "gain_rank_correlation": _rank_correlation(rows.drop_nulls(["gain", "second_gain"])),
    }


def _known(figures: Mapping[str, float | None]) -> dict[str, float]:
    return {name: value for name, value in figures.items() if value is not None}


def _rank_correlation(rows: pl.DataFrame) -> float | None:
    if len(rows) < 3 or rows["gain"].n_unique() < 2 or rows["second_gain"].n_unique() < 2:
        return None
    return float(spearmanr(rows["gain"].to_numpy(), rows["second_gain"].to_numpy()).statistic)
