"""Ablations over stored scores: effects of α, ε, K, order and verification, without a forward pass.

Entropies of all tokens are stored, so anchors can be counted at any α. Pairs were scored only for
the anchors, queries and candidates of the present α, w and K: the tables do not contain the
dependencies at a lower α, another w or a larger K. Such rows have a note and no figures.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from entropylong_assets.settings.section import Settings
from entropylong_assets.stages.entropy.anchors import is_anchor
from entropylong_assets.stages.entropy.settings import EntropySettings
from entropylong_assets.stages.entropy.tables import ENTROPY_SCORES
from entropylong_assets.stages.samples.packing import Framing, lay_out, pack
from entropylong_assets.stages.samples.selection import choose_groups
from entropylong_assets.stages.samples.use_limits import drop_uses, uses_over_limits
from entropylong_assets.stages.verification.false_acceptance import (
    acceptance_rate,
    false_acceptance,
)
from entropylong_assets.stages.verification.gain import judge
from entropylong_assets.stages.verification.registry import evaluated_rules
from entropylong_assets.stages.verification.settings import VerificationSettings
from entropylong_assets.stages.verification.tables import VERIFIED_DEPENDENCIES
from entropylong_assets.storage.tables import TableStore

ALPHAS = (1.5, 2.0, 2.5)
EPSILONS = (0.2, 0.4, 0.6, 0.8)
CANDIDATES = (1, 2, 4, 8, 16, 32)

_MOMENTS = ("mean", "std", "surprisal_mean", "surprisal_std")
"""Columns of a root that determine its anchors at any α."""

PAPER_RULE = "plain"
PAPER = {
    ("alpha", "1.5"): 913.0,
    ("alpha", "2"): 292.0,
    ("alpha", "2.5"): 83.0,
    ("epsilon", "0.2"): 62.0,
    ("epsilon", "0.4"): 46.0,
    ("epsilon", "0.6"): 29.0,
    ("epsilon", "0.8"): 13.0,
}
"""The paper's figures under its rule: anchors per root by α, dependencies per root by ε
(Llama-3-8B)."""

SCHEMA = pl.Schema(
    {
        "knob": pl.String,
        "value": pl.String,
        "rule": pl.String,
        "roots": pl.Int64,
        "anchors_per_root": pl.Float64,
        "dependencies_per_root": pl.Float64,
        "acceptance": pl.Float64,
        "acceptance_low": pl.Float64,
        "acceptance_high": pl.Float64,
        "false_acceptance": pl.Float64,
        "false_acceptance_low": pl.Float64,
        "false_acceptance_high": pl.Float64,
        "false_acceptance_is_rough": pl.Boolean,
        "mean_gain": pl.Float64,
        "mean_surprisal_drop": pl.Float64,
        "median_distance": pl.Float64,
        "paper": pl.Float64,
        "note": pl.String,
    }
)


@dataclass(frozen=True)
class Scores:
    """Stored scores of some shards, as one table each."""

    roots: pl.DataFrame
    pairs: pl.DataFrame
    contexts: pl.DataFrame
    controls: pl.DataFrame

    @property
    def n_roots(self) -> int:
        return len(self.roots)


def read_scores(store: TableStore, shards: Sequence[str]) -> Scores:
    """Read all that an ablation needs. Raises TableError if a table is missing."""
    columns = ["root_id", "token_ids", "entropies", "surprisals", *_MOMENTS]
    roots = store.read_all(ENTROPY_SCORES, shards, "roots", columns)
    contexts = store.read_all(VERIFIED_DEPENDENCIES, shards, "contexts")
    return Scores(
        # A document may be a root in two shards, with the same scores: it counts once.
        roots=roots.unique("root_id", maintain_order=True),
        pairs=store.read_all(VERIFIED_DEPENDENCIES, shards, "pairs"),
        contexts=contexts.unique("chunk_id", keep="first", maintain_order=True),
        controls=store.read_all(VERIFIED_DEPENDENCIES, shards, "controls"),
    )


def anchors_per_root(roots: pl.DataFrame, settings: EntropySettings, alpha: float) -> float | None:
    """Anchors per root at another α; None without roots.

    roots: entropies, surprisals, and their means and deviations.
    """
    if not len(roots):
        return None
    first = settings.min_anchor_position
    positions = roots.select(
        pl.col("entropies").list.slice(first).alias("entropy"),
        pl.col("surprisals").list.slice(first).alias("surprisal"),
        *_MOMENTS,
    ).explode("entropy", "surprisal")
    return len(positions.filter(is_anchor(settings, alpha))) / len(roots)


def judge_again(pairs: pl.DataFrame, settings: VerificationSettings) -> pl.DataFrame:
    """Judge stored pairs by other settings. Pairs that were not scored keep their verdict."""
    refused = pl.when(pl.col("entropy_context").is_null()).then(pl.col("verdict"))
    return judge(pairs.with_columns(refused.alias("refusal")), settings)


def under_rule(settings: VerificationSettings, rule: str) -> VerificationSettings:
    """Return the settings with another rule in force, the only one evaluated.

    They are not validated: a rule may need controls that the settings do not draw, because stored
    scores are judged.
    """
    return settings.model_copy(update={"rule": rule, "compared_rules": ()})


def _cut(scores: Scores, keep: pl.Expr) -> Scores:
    """Return the scores of some pairs, and of the controls of their anchors.

    keep: condition on the columns of `pairs` and `_MOMENTS` of their root.
    """
    moments = scores.roots.select("root_id", *_MOMENTS)
    pairs = scores.pairs.join(moments, on="root_id", maintain_order="left").filter(keep)
    anchors = pairs.select("root_id", "anchor").unique()
    controls = scores.controls.join(anchors, on=["root_id", "anchor"], how="semi")
    return Scores(scores.roots, pairs.drop(_MOMENTS), scores.contexts, controls)


def _verdict_figures(scores: Scores, settings: VerificationSettings) -> dict[str, Any]:
    """Figures of the pairs under the rule in force and its ε."""
    verdicts = judge_again(scores.pairs, settings)
    scored = verdicts.filter(pl.col("entropy_context").is_not_null())
    accepted = scored.filter("accepted")
    rate = acceptance_rate(scored)
    figures: dict[str, Any] = {
        "dependencies_per_root": len(accepted) / scores.n_roots if scores.n_roots else None,
        "acceptance": rate.value if rate.total else None,
        "acceptance_low": rate.low,
        "acceptance_high": rate.high,
        "mean_gain": accepted["gain"].mean(),
        "mean_surprisal_drop": (accepted["surprisal"] - accepted["surprisal_context"]).mean(),
    }
    if len(scores.controls):
        anchors = scores.pairs.select("root_id", "anchor", "entropy", "surprisal").unique()
        random = false_acceptance(anchors, scores.controls, settings)[settings.rule]
        figures |= {
            "false_acceptance": random.value if random.total else None,
            "false_acceptance_low": random.low,
            "false_acceptance_high": random.high,
            "false_acceptance_is_rough": random.is_rough,
        }
    return figures


def _distance(scores: Scores, settings: Settings) -> float | None:
    """Median distance from context to anchor (tokens), in samples packed again in memory.

    The samples have no fillers from the corpus: they would have to be drawn again for each variant.
    """
    samples = settings.samples
    if samples.fill == "corpus":
        samples = samples.model_copy(update={"fill": "verified_only"})
    roots = scores.roots.select("root_id", "token_ids")
    groups, _ = choose_groups(roots, scores.pairs, scores.contexts, settings)
    groups, _ = drop_uses(groups, uses_over_limits(groups, settings.samples))
    framing = Framing(bos_ids=(), separator_ids=(), pad_id=0)
    distances: list[int] = []
    for members in pack(groups, framing, samples, settings.seed)[0]:
        position = 0
        root_starts: dict[str, int] = {}
        contexts = []
        for segment in lay_out(members, framing, samples, settings.seed):
            end = position + len(segment.token_ids)
            if segment.role == "verified" and segment.context is not None:
                contexts.append((segment.context, end))
            elif segment.role == "root" and segment.group is not None:
                root_starts[segment.group.root_id] = position
            position = end
        distances += [
            root_starts[context.root_id] + dependency.anchor - end
            for context, end in contexts
            for dependency in context.dependencies
        ]
    return float(pl.Series(distances).median()) if distances else None  # type: ignore[arg-type]


Row = dict[str, Any]


class _Ablation:
    """The rows of an ablation, one varied setting after the other."""

    def __init__(self, scores: Scores, settings: Settings) -> None:
        self._scores = scores
        self._settings = settings
        self._verification: VerificationSettings = settings.verification
        self._rules: dict[str, VerificationSettings] = {}
        self._missing: dict[str, str] = {}
        """Why a rule can't be applied."""
        has_controls = scores.pairs["entropy_control"].count() > 0 or not len(scores.pairs)
        for name, rule in evaluated_rules(self._verification).items():
            self._rules[name] = under_rule(self._verification, name)
            if rule.needs_controls and not has_controls:
                self._missing[name] = "scored without controls"

    def rows(self) -> Iterator[Row]:
        yield from self._alpha()
        yield from self._epsilon()
        yield from self._top_k()
        yield from self._verification_off()
        yield from self._order()
        yield from self._window()

    def _row(self, knob: str, value: object, rule: str, figures: Mapping[str, Any]) -> Row:
        shown = f"{value:g}" if isinstance(value, float) else str(value)
        paper = PAPER.get((knob, shown)) if rule == PAPER_RULE else None
        row = {"knob": knob, "value": shown, "rule": rule, "paper": paper}
        return {"roots": self._scores.n_roots, **row, **figures}

    def _figures(self, rule: str, scores: Scores, **changes: Any) -> dict[str, Any]:
        """Figures under a rule with changed settings, or a note that says why there are none."""
        if rule in self._missing:
            return {"note": self._missing[rule]}
        return _verdict_figures(scores, self._rules[rule].model_copy(update=changes))

    def _alpha(self) -> Iterator[Row]:
        entropy: EntropySettings = self._settings.entropy
        alpha = entropy.alpha
        for value in sorted({*ALPHAS, alpha}):
            count = {"anchors_per_root": anchors_per_root(self._scores.roots, entropy, value)}
            for rule in self._rules:
                if value < alpha:
                    note = {"note": f"anchors only: pairs were scored for α = {alpha:g}"}
                    yield self._row("alpha", value, rule, count | note)
                else:
                    figures = self._figures(rule, _cut(self._scores, is_anchor(entropy, value)))
                    yield self._row("alpha", value, rule, count | figures)

    def _epsilon(self) -> Iterator[Row]:
        for value in sorted({*EPSILONS, self._verification.epsilon}):
            for rule in self._rules:
                figures = self._figures(rule, self._scores, epsilon=value)
                yield self._row("epsilon", value, rule, figures)

    def _top_k(self) -> Iterator[Row]:
        top_k = self._settings.retrieval.top_k
        for count in [*(k for k in CANDIDATES if k < top_k), top_k, 2 * top_k]:
            for rule in self._rules:
                if count > top_k:
                    figures: dict[str, Any] = {
                        "note": f"not retrieved: K was {top_k}; raise retrieval.top_k"
                    }
                else:
                    figures = self._figures(rule, _cut(self._scores, pl.col("rank") <= count))
                yield self._row("K", count, rule, figures)

    def _verification_off(self) -> Iterator[Row]:
        for rule in self._rules:
            yield self._row("verification", "on", rule, self._figures(rule, self._scores))
            off = self._figures(rule, self._scores, epsilon=-1e9, require_surprisal_drop=False)
            yield self._row("verification", "off", rule, off)

    def _order(self) -> Iterator[Row]:
        for order in ("shuffle", "sequence"):
            samples = self._settings.samples.model_copy(update={"order": order})
            changed = self._settings.model_copy(update={"samples": samples})
            figures = {
                "median_distance": _distance(self._scores, changed),
                "note": "verdicts don't depend on it",
            }
            yield self._row("order", order, self._verification.rule, figures)

    def _window(self) -> Iterator[Row]:
        rule, width = self._verification.rule, self._settings.retrieval.half_window
        yield self._row("w", width, rule, self._figures(rule, self._scores))
        note = "another w makes other queries: retrieve and verify again"
        yield self._row("w", "others", "", {"note": note})


def ablate(scores: Scores, settings: Settings) -> pl.DataFrame:
    """Make one row per varied setting, value and evaluated rule, with the columns of `SCHEMA`.

    settings: those that the scores were made with.
    """
    return pl.DataFrame(list(_Ablation(scores, settings).rows()), schema=SCHEMA)
