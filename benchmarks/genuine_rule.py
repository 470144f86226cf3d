"""Rules against 640 labelled pairs: what share of what they accept is genuine, and what they miss.

    python -m benchmarks.genuine_rule

The pairs, their labels and how they were drawn: benchmarks/genuine/README.md. Thresholds of rule
`genuine` were chosen on the half `tuning`; the half `held out` was looked at once.

- precision: genuine pairs among those that a rule accepts;
- recall: accepted pairs among the genuine ones;
- both again for all scored pairs of the corpora with a measurable effect: every pair has as weight
  the number of scored pairs that it represents. Pairs of the stratum `rest` are left out: each
  represents hundreds, and they have no effect that a rule could measure.

Intervals are 95%, by a bootstrap over root documents.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import polars as pl

from entropylong_assets.stages.verification.gain import TEXT_COLUMNS, accepted_by, judge
from entropylong_assets.stages.verification.settings import VerificationSettings

PAIRS = Path(__file__).parent / "genuine" / "pairs.jsonl"
RULES = ("plain", "calibrated", "genuine")
HALVES = ("tuning", "held out")
DRAWS = 1000

CHANGES: dict[str, dict[str, object]] = {
    "as it is": {},
    "ΔI* above 0.2": {"min_calibrated_gain": 0.2},
    "ΔI* above 0.4": {"min_calibrated_gain": 0.4},
    "any drop of the surprisal": {"min_surprisal_gain": 0.0},
    "a drop of the surprisal by half": {"min_surprisal_gain": 0.5},
    "any number of documents with the word and the next": {"max_pair_documents": 10**6},
    "any number of documents with the three words": {"max_phrase_documents": 10**6},
    "any wording": {"max_phrase_documents": 10**6, "max_pair_documents": 10**6},
    "imports and URLs too": {"excluded_anchors": ()},
    "no references to literature": {"excluded_anchors": ("import", "url", "reference")},
}
"""Changes of rule `genuine` that are compared on the half `tuning`."""

_SCORES = ("entropy", "entropy_context", "entropy_control")
_SCORES += ("surprisal", "surprisal_context", "surprisal_control")


def read_pairs(**changes: object) -> pl.DataFrame:
    """Return the labelled pairs with the verdicts of all rules. changes: of `verification`."""
    pairs = pl.read_ndjson(PAIRS, infer_schema_length=None).cast(
        {**dict.fromkeys(_SCORES, pl.Float32), **TEXT_COLUMNS}
    )
    chosen = {"rule": "genuine", "compared_rules": RULES} | changes
    settings = VerificationSettings.model_validate(chosen)
    judged = judge(pairs.with_columns(refusal=pl.lit(None, pl.String)), settings)
    return judged.with_columns(genuine=pl.col("label").str.starts_with("genuine"))


def precision(pairs: pl.DataFrame, rule: str) -> float:
    accepted = pairs.filter(accepted_by(rule))
    return float(accepted["genuine"].sum() / max(len(accepted), 1))


def recall(pairs: pl.DataFrame, rule: str) -> float:
    genuine = pairs.filter("genuine")
    return float(genuine.select(accepted_by(rule).sum()).item() / max(len(genuine), 1))


def weighted_precision(pairs: pl.DataFrame, rule: str) -> float:
    accepted = pairs.filter(accepted_by(rule), pl.col("stratum") != "rest")
    return float(accepted.filter("genuine")["weight"].sum() / accepted["weight"].sum())


def weighted_recall(pairs: pl.DataFrame, rule: str) -> float:
    genuine = pairs.filter("genuine", pl.col("stratum") != "rest")
    return float(genuine.filter(accepted_by(rule))["weight"].sum() / genuine["weight"].sum())


Figure = Callable[[pl.DataFrame, str], float]
FIGURES: dict[str, Figure] = {
    "precision": precision,
    "recall": recall,
    "precision, all pairs with an effect": weighted_precision,
    "recall, all pairs with an effect": weighted_recall,
}


def interval(pairs: pl.DataFrame, figure: Figure, rule: str) -> tuple[float, float]:
    """Return the 95% interval of a figure."""
    roots = [part for _, part in pairs.group_by("text", "root", maintain_order=True)]
    draw = np.random.default_rng(0)
    values = []
    for _ in range(DRAWS):
        drawn = draw.integers(0, len(roots), len(roots))
        values.append(figure(pl.concat([roots[i] for i in drawn]), rule))
    low, high = np.nanpercentile(values, [2.5, 97.5])
    return float(low), float(high)


def kappa(first: list[str], second: list[str]) -> float:
    """Return Cohen's kappa of two annotators."""
    count, names = len(first), set(first) | set(second)
    agreed = sum(a == b for a, b in zip(first, second, strict=True)) / count
    by_chance = sum(first.count(name) * second.count(name) for name in names) / count**2
    return (agreed - by_chance) / (1 - by_chance)


def _lines(pairs: pl.DataFrame) -> Iterator[str]:
    for kinds in ("two kinds", "seven labels"):
        labels = [pairs[f"label_{number}"] for number in (1, 2)]
        if kinds == "two kinds":
            labels = [series.str.starts_with("genuine").cast(pl.String) for series in labels]
        yield f"agreement of the two passes, {kinds}: kappa {kappa(*map(list, labels)):.2f}"
    for half in HALVES:
        part = pairs.filter(half=half)
        genuine = part["genuine"].sum()
        yield f"\n{half}: {len(part)} pairs, {genuine} genuine\n"
        yield "| rule | accepted | " + " | ".join(FIGURES) + " |"
        yield "| --- " * (2 + len(FIGURES)) + "|"
        for rule in RULES:
            cells = []
            for figure in FIGURES.values():
                low, high = interval(part, figure, rule)
                cells.append(f"{figure(part, rule):.2f} ({low:.2f} to {high:.2f})")
            accepted = part.select(accepted_by(rule).sum()).item()
            yield f"| `{rule}` | {accepted} | " + " | ".join(cells) + " |"
        yield "\n| text | genuine | " + " | ".join(f"`{rule}`" for rule in RULES) + " |"
        yield "| --- " * (2 + len(RULES)) + "|"
        for (text,), rows in part.group_by("text", maintain_order=True):
            cells = [f"{precision(rows, r):.2f} / {recall(rows, r):.2f}" for r in RULES]
            yield f"| {text} | {rows['genuine'].sum()} of {len(rows)} | " + " | ".join(cells) + " |"


def _changes() -> Iterator[str]:
    yield "\nrule `genuine`, changed; half `tuning`\n"
    yield "| rule | accepted | precision | recall |"
    yield "| --- | --- | --- | --- |"
    for name, change in CHANGES.items():
        part = read_pairs(**change).filter(half="tuning")
        accepted = part.select(accepted_by("genuine").sum()).item()
        figures = f"{precision(part, 'genuine'):.2f} | {recall(part, 'genuine'):.2f}"
        yield f"| {name} | {accepted} | {figures} |"


if __name__ == "__main__":
    print("\n".join([*_lines(read_pairs()), *_changes()]))
