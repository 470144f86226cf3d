"""Estimates for a run over the sources: counts, storage, time and cost, each with its interval."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from entropylong_assets.report import capacity
from entropylong_assets.report.corpus_sample import Sample
from entropylong_assets.report.replicates import Totals

REPLICATES = 400
FULLNESS = 0.97
"""Share of a full sample that roots and verified contexts take (stages/samples/packing.py)."""
PARTLY_FULL = 0.5
"""Mean share of a shard's last sample that is empty."""
HOUR = 3600.0


class SizeError(ValueError):
    """A size can't be read or used. The message is one line and says what is allowed."""


@dataclass(frozen=True)
class Size:
    """A size to estimate for, instead of that of the sources."""

    value: float
    unit: str
    """A key of `UNITS`."""


UNITS = ("documents", "roots", "samples", "tokens", "dependencies")
"""Units of a size. `tokens` are those of the samples."""


def parse_size(text: str) -> Size:
    """Read e.g. `1e9 documents` or `20_000 roots`. Raises SizeError."""
    match = re.fullmatch(r"\s*([\d.,_]+(?:[eE][+-]?\d+)?)\s*([a-z]+)\s*", text)
    try:
        value = float(match[1].replace(",", "").replace("_", "")) if match else 0.0
    except ValueError:
        value = 0.0
    if match is None or match[2] not in UNITS or value <= 0:
        raise SizeError(
            f"--at {text}: not a size; write 'paper', a number and one of {', '.join(UNITS)} "
            "(e.g. '1e9 documents'), or figures of the capacity plan (e.g. 'roots=20000')"
        )
    return Size(value, match[2])


@dataclass(frozen=True)
class Figure:
    """One line of an estimate, with its 95% interval."""

    name: str
    value: float
    low: float
    high: float
    unit: str = ""
    """`bytes`, `hours` or `money`; empty: a count."""


@dataclass(frozen=True)
class Estimate:
    """An estimate, and warnings about it."""

    figures: list[Figure]
    warnings: list[str]

    def figure(self, name: str) -> Figure:
        """Return the figure of a name."""
        return next(figure for figure in self.figures if figure.name == name)


def make_estimate(
    sample: Sample, size: Size | None = None, hour_price: float | None = None
) -> Estimate:
    """Estimate all figures.

    size: None for the sources as they are. hour_price: price of an hour of this machine, in any
    currency.
    """
    point = sample.point()
    documents, roots = _factors(sample, point, size)
    of_point = _figures(sample, point, documents, roots, hour_price)
    columns: dict[str, list[float]] = {name: [] for name in of_point}
    for totals in sample.replicates(REPLICATES):
        for name, (value, _) in _figures(sample, totals, documents, roots, hour_price).items():
            columns[name].append(value)
    figures = []
    for name, (value, unit) in of_point.items():
        known = [v for v in (*columns[name], value) if not math.isnan(v)]
        low, high = np.quantile(known, [0.025, 0.975]) if known else (math.nan, math.nan)
        figures.append(Figure(name, value, min(low, value), max(high, value), unit))
    return Estimate(figures, warnings_of(sample, point, documents, roots))


def _factors(sample: Sample, point: Totals, size: Size | None) -> tuple[float, float]:
    """Return the factors by which documents, and roots per document, exceed those of the corpus."""
    if size is None:
        return 1.0, 1.0
    if size.unit == "documents":
        documents = size.value / max(point.documents, 1)
        wished = sample.settings.roots.wished_number is not None
        return documents, (1 / documents if wished else 1.0)
    per_root = {"roots": point.drawn, "dependencies": point.dependencies}
    if not (point.drawn if size.unit == "roots" else point.dependencies):
        raise SizeError(
            f"--at {size.value:g} {size.unit}: these settings yield none on the sample, so that "
            "it can't be scaled; raise roots.number"
        )
    if size.unit in per_root:
        return 1.0, size.value / per_root[size.unit]
    tokens = sample.settings.samples.tokens if size.unit == "tokens" else 1
    return 1.0, _roots_for(sample, point, size.value / tokens)


def _roots_for(sample: Sample, point: Totals, samples: float) -> float:
    """Return the factor of the number of roots that makes this many samples, by binary search."""
    low, high = 1e-12, 1e12
    for _ in range(100):
        middle = (low * high) ** 0.5
        if _samples(sample, point, 1.0, middle) < samples:
            low = middle
        else:
            high = middle
    return high


def _samples(sample: Sample, t: Totals, documents: float, roots: float) -> float:
    """Number of samples. Each shard is packed separately, and its last sample is partly full."""
    times = documents * roots
    shards = max(1.0, len(sample.shard_rows) * documents)
    per_sample = FULLNESS * sample.settings.samples.tokens
    accepted = max(sample.verified.total("contexts_accepted"), 1)
    context = sample.verified.total("context_tokens") / accepted or sample.measured.context_tokens
    tokens = t.tokens_of_roots_with_dependency + t.contexts_accepted * context
    with_samples = shards * -np.expm1(-t.roots_with_dependency * times / shards)
    return float(max(times * tokens / per_sample + PARTLY_FULL * with_samples, with_samples))


def _figures(
    sample: Sample, t: Totals, documents: float, roots: float, hour_price: float | None
) -> dict[str, tuple[float, str]]:
    """Value and unit of each figure. documents, roots: as `_factors` returns them."""
    times = documents * roots
    chunks = t.chars * documents * sample.chunks_per_char
    dependencies = t.dependencies * times
    samples = _samples(sample, t, documents, roots)
    tokens = times * (
        t.root_tokens
        + t.pass_tokens
        + t.control_tokens
        + t.dependencies * sample.evidence_tokens_per_dependency
    )
    rates = {name: max(rate, 1e-9) for name, rate in sample.rates.items()}
    hours = {
        "embedding": chunks / rates["chunks"] / HOUR,
        "retrieval": t.anchors * times / rates["anchors"] / HOUR,
        "scoring": tokens / rates["tokens"] / HOUR,
    }
    total = sum(hours.values())
    text = t.chars * documents
    storage = (
        text * (1 + capacity.PARQUET.value)
        + chunks * (4 * sample.dimension + capacity.LOOKUP_BYTES.value)
        + t.pairs * times * capacity.PAIR_BYTES.value
        + t.passes * times * sample.measured.context_tokens * capacity.CONTEXT_BYTES.value
        + 2 * samples * sample.settings.samples.tokens * capacity.EXPORT_BYTES.value
    )
    figures = {
        "documents": (t.documents * documents, ""),
        "chunks": (chunks, ""),
        "roots": (t.drawn * times, ""),
        "anchors": (t.anchors * times, ""),
        "pairs scored (anchor, context)": (t.pairs * times, ""),
        "distinct contexts scored": (t.passes * times, ""),
        "forward tokens": (tokens, ""),
        "verified dependencies": (dependencies, ""),
        "samples": (samples, ""),
        "storage": (storage, "bytes"),
        **{name: (value, "hours") for name, value in hours.items()},
        "total time": (total, "hours"),
        "time per sample": (total / samples if samples else np.nan, "hours"),
        "time per million dependencies": (
            1e6 * total / dependencies if dependencies else np.nan,
            "hours",
        ),
    }
    if hour_price is not None:
        for name in ("total time", "time per sample", "time per million dependencies"):
            cost = figures[name][0] * hour_price
            figures[name.replace("total time", "cost").replace("time", "cost")] = (cost, "money")
    return figures


def warnings_of(sample: Sample, point: Totals, documents: float, roots: float) -> list[str]:
    """Return warnings for the reader: no roots, few documents, nothing accepted."""
    settings = sample.settings.roots
    n = len(sample.lengths.tokens)
    warnings = []
    lost = 1 - n / max(sample.chosen_rows, 1)
    if lost > 0.2:
        warnings.append(
            f"{lost:.0%} of {sample.chosen_rows:,} rows looked at become no document (bad rows, "
            "copies, or outside corpus.min_chars and max_chars)"
        )
    short = sum(count < settings.min_tokens for count in sample.lengths.tokens.values())
    long = n - short - len(sample.lengths.eligible)
    of_length = (
        f"{short:,} of {n:,} documents looked at have fewer tokens than roots.min_tokens "
        f"({settings.min_tokens:,}), {long:,} more than roots.max_tokens "
        f"({settings.max_tokens:,}) or the model allow"
    )
    drawn = point.drawn * documents * roots
    if not sample.lengths.eligible:
        warnings.append(f"No root: {of_length}. Change these limits")
    elif drawn < 1:
        warnings.append(
            f"No root, or hardly any: {drawn:.2f} are expected. Raise roots.number or "
            f"roots.fraction; {of_length}"
        )
    else:
        warnings += _warn_of_shards(sample, drawn, documents)
        if len(sample.lengths.eligible) < n / 2:
            warnings.append(f"Few documents can be roots: {of_length}")
    contexts, accepted = sample.verified.total("contexts"), sample.verified.total("accepted")
    if contexts and not accepted:
        warnings.append(
            f"None of {contexts:,} contexts looked at was accepted, so that dependencies, samples "
            "and cost per each are little more than upper limits; `entropylong pilot` verifies "
            "more"
        )
    return warnings


def _warn_of_shards(sample: Sample, drawn: float, documents: float) -> Sequence[str]:
    shares = np.array(sample.shard_rows) / max(sum(sample.shard_rows), 1)
    empty = float(np.exp(-drawn * shares / max(documents, 1)).sum())
    if empty < 0.5:
        return []
    return [
        f"About {empty:,.0f} of {len(shares):,} shards will have no root: {drawn:,.0f} roots are "
        "expected in all. Raise roots.number or roots.fraction, or corpus.shard_rows"
    ]
