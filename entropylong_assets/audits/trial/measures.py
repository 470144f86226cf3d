"""Results of a trial compared: means of each arm, and paired differences with their intervals."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t as student

from entropylong_assets.audits.audit_tables import recipe_order
from entropylong_assets.audits.root_sample import Mean
from entropylong_assets.audits.trial.folder import TrialError

Result = Mapping[str, Any]

POWER_FACTOR = 2.8
"""Standard errors at which a true difference is found in 80% of trials, at the 5% level."""


@dataclass(frozen=True)
class Measure:
    """A figure of a model: a value per item or document."""

    key: str
    name: str
    """As the head of a column."""
    higher_is_better: bool


@dataclass(frozen=True)
class Setup:
    """What runs must share to be compared."""

    tokens: int
    sample_tokens: int
    settings: str
    """Settings of the training and first weights, as JSON."""
    model: str
    rope_theta: float
    evaluation: tuple[str, int, int]
    """Identity of the items and documents, scored items per task, and the short window."""

    def is_of_same_start(self, other: Setup) -> bool:
        """Whether both evaluate one model on the same texts, whatever is trained."""
        mine, theirs = (
            (setup.sample_tokens, setup.model, setup.rope_theta, setup.evaluation)
            for setup in (self, other)
        )
        return mine == theirs


def setup_of(result: Result) -> Setup:
    own = {k: v for k, v in result["settings"].items() if k not in _WITHOUT_EFFECT}
    own["start"] = result["run"]["start"]
    tasks = [scores for name, scores in result["scores"].items() if "-" in name]
    scored = max((len(scores["log_likelihood"]) for scores in tasks), default=0)
    return Setup(
        result["run"]["tokens"],
        result["sample_tokens"],
        json.dumps(own, sort_keys=True),
        result["model"],
        result["rope_theta"],
        (result["evaluation"], scored, result["short_window"]),
    )


_WITHOUT_EFFECT = ("micro_batch_tokens", "checkpoint_seconds", "log_steps")


def by_arm(results: Sequence[Result]) -> dict[str, list[Result]]:
    """Results of each arm under one setup, in the order for tables.

    Of two results of one arm and seed the later counts: the folder was prepared again between them.
    Raises TrialError if they are of two folders.
    """
    latest: dict[tuple[str, int], Result] = {}
    for result in results:
        run = result["run"]
        earlier = latest.get((run["arm"], run["seed"]), result)["run"]
        if earlier.get("data") != run.get("data"):
            raise TrialError(
                f"two results of arm {run['arm']} with seed {run['seed']}: give the arms of "
                "several folders different names"
            )
        latest[run["arm"], run["seed"]] = result
    names = recipe_order({arm for arm, _ in latest})
    return {name: [r for (arm, _), r in latest.items() if arm == name] for name in names}


def task_lengths(results: Iterable[Result]) -> list[int]:
    """Lengths of the synthetic items (tokens), ascending."""
    names = {name for result in results for name in result["scores"] if "-" in name}
    return sorted({int(name.rpartition("-")[2]) for name in names})


def measures_of(results: Sequence[Result]) -> list[Measure]:
    """The measures that these results have, in the order of the page."""
    found = []
    for tokens in task_lengths(results):
        short = f"{tokens // 1024}K" if tokens % 1024 == 0 else f"{tokens}"
        found.append(Measure(f"answers-{tokens}", f"answers at {short} (nats)", True))
    groups = {name for result in results for name in result["scores"].get("natural", {})}
    far = sorted((int(g[5:]) for g in groups if g.startswith("from_")), reverse=True)
    if "key" in groups:
        found.append(Measure("natural/key", "loss at key tokens", False))
    found += [
        Measure(f"natural/from_{edge}", f"loss, needed from {edge:,} back", False)
        for edge in far
        if edge >= 2048
    ]
    if "context_gain" in groups:
        found.append(Measure("natural/context_gain", "gain of the long context", True))
    if "all" in groups:
        found.append(Measure("natural/all", "loss on long documents", False))
    if any("short" in result["scores"] for result in results):
        found.append(Measure("short/all", "loss on short documents", False))
    return found


def values_of(result: Result, key: str) -> dict[tuple[str, int], float]:
    """Values of a measure by item; without items that have none.

    key: `<text>/<group>`; `answers-<tokens>` or `exact-<tokens>` for the items of all tasks of one
    length, or `<task>-<tokens>` for the log-likelihood of one task's answers.
    """
    scores = result["scores"]
    if "/" in key:
        text, _, group = key.partition("/")
        lists = {text: scores.get(text, {}).get(group, [])}
    else:
        kind, _, tokens = key.rpartition("-")
        measure = "exact" if kind == "exact" else "log_likelihood"
        wanted = (
            [name for name in scores if name.endswith(f"-{tokens}")]
            if kind in ("answers", "exact")
            else [key]
        )
        lists = {name: scores.get(name, {}).get(measure, []) for name in wanted}
    return {
        (name, item): value
        for name, values in lists.items()
        for item, value in enumerate(values)
        if value is not None
    }


def grid(
    results: Iterable[Result], key: str
) -> tuple[list[int], list[tuple[str, int]], NDArray[np.float64]]:
    """Seeds, items and values [seeds, items] of one arm: the items that every seed has."""
    by_seed = {result["run"]["seed"]: values_of(result, key) for result in results}
    seeds = sorted(by_seed)
    shared = set.intersection(*(set(by_seed[seed]) for seed in seeds)) if seeds else set()
    items = sorted(shared)
    values = [[by_seed[seed][item] for item in items] for seed in seeds]
    return seeds, items, np.array(values, np.float64).reshape(len(seeds), len(items))


def paired_difference(ours: Sequence[Result], theirs: Sequence[Result], key: str) -> Mean:
    """Mean of ours minus theirs over the seeds and items that both have, with its 95% interval."""
    our_seeds, our_items, our_values = grid(ours, key)
    their_seeds, their_items, their_values = grid(theirs, key)
    seeds = sorted(set(our_seeds) & set(their_seeds))
    items = sorted(set(our_items) & set(their_items))
    rows = [
        values[[known.index(seed) for seed in seeds]][:, [places[item] for item in items]]
        for known, places, values in (
            (our_seeds, {item: i for i, item in enumerate(our_items)}, our_values),
            (their_seeds, {item: i for i, item in enumerate(their_items)}, their_values),
        )
    ]
    return crossed_mean(rows[0] - rows[1])


def crossed_mean(values_SI: NDArray[np.float64]) -> Mean:
    """Mean of values of crossed seeds and items, with its 95% interval.

    Both are taken to be random: the variance of the mean is that of a two-way layout with one value
    per cell, (MS_seeds + MS_items - MS_rest) / (S·I), with Satterthwaite's degrees of freedom, but
    at least that over the items. With one seed the interval is over the items alone.

    The interval is None for fewer than two items. trials: seeds times items; clusters: items.
    """
    seeds, items = values_SI.shape
    if not values_SI.size:
        return Mean(None, None, None, 0, 0)
    mean = float(values_SI.mean())
    if items < 2:
        return Mean(mean, None, None, values_SI.size, items)
    by_item, by_seed = values_SI.mean(0), values_SI.mean(1)
    square_items = seeds * float(by_item.var(ddof=1))
    if seeds < 2:
        error, freedom = (square_items / items) ** 0.5, items - 1.0
    else:
        square_seeds = items * float(by_seed.var(ddof=1))
        rest = values_SI - by_item - by_seed[:, None] + mean
        square_rest = float((rest**2).sum()) / ((seeds - 1) * (items - 1))
        both = _sum_of_squares(square_seeds, square_items, square_rest, (seeds - 1, items - 1))
        total, freedom = max((square_items, items - 1.0), both)
        error = (total / values_SI.size) ** 0.5
    reach = float(student.ppf(0.975, freedom)) * error
    return Mean(mean, mean - reach, mean + reach, values_SI.size, items)


def _sum_of_squares(
    of_seeds: float, of_items: float, of_rest: float, freedom: tuple[int, int]
) -> tuple[float, float]:
    """MS_seeds + MS_items - MS_rest, and its degrees of freedom by Satterthwaite."""
    total = of_seeds + of_items - of_rest
    if total <= 0:
        return 0.0, 1.0
    spread = (
        of_seeds**2 / freedom[0] + of_items**2 / freedom[1] + of_rest**2 / (freedom[0] * freedom[1])
    )
    return total, total**2 / spread if spread else 1.0


def smallest_found(difference: Mean) -> float | None:
    """True difference that would be found in 80% of such trials; None without an interval."""
    if difference.low is None or difference.high is None or difference.clusters < 2:
        return None
    # The half width is about two standard errors; more with few degrees of freedom.
    return POWER_FACTOR / 1.96 * (difference.high - difference.low) / 2
