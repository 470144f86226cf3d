"""Work of verification by screen: tokens and floating-point operations, counted, and GPU hours.

Operations are counted as the engine counts its own (`ModelCost`), for Llama-3-8B's shape, so that a
measured rate in FLOP/s holds for sequences of any length. Rates are the quotes of RESULTS.md, or
those of JSON files that the benchmarks wrote (`load_rates`).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from entropylong_assets.stages.entropy.usage import ModelCost

if TYPE_CHECKING:
    from entropylong_assets.report.capacity import Workload

HOUR = 3600.0
SPLICE_WINDOW, BARE_WINDOW = 64, 128
"""Tokens before an anchor that the screen `splice` computes again (`stages/entropy/splice.py`)."""

LLAMA_8B = ModelCost(
    flop_per_token=2.0 * 32 * (2 * 4096 * 4096 + 2 * 4096 * 1024 + 3 * 4096 * 14_336),
    flop_per_pair=4.0 * 4096 * 32,
    flop_per_position=2.0 * 4096 * 128_256,
)
"""Llama-3-8B: 32 layers of width 4,096 with 8 heads of keys, and a vocabulary of 128,256."""

Screen = Literal["none", "fp8", "splice", "splice_fp8"]


class RatesError(ValueError):
    """A file of rates can't be used. The message is one line and names it."""


@dataclass(frozen=True)
class PlanRate:
    """A number that the plan is computed from. source: words of RESULTS.md; empty: assumed."""

    value: float
    unit: str
    meaning: str
    source: str = ""
    file: str = ""
    """The benchmark's JSON file, if the rate is from one."""


@dataclass(frozen=True)
class Rates:
    """Rates of scoring on one GPU."""

    scoring: PlanRate = PlanRate(
        665e12, "FLOP/s", "scoring, Llama-3-8B's shape on an H100", "665 TFLOP/s"
    )
    fp8: PlanRate = PlanRate(1.38, "times", "the FP8 screen over the exact pass", "1.38 |")
    splice: Mapping[tuple[str, int], PlanRate] = field(default_factory=dict)
    """The screens `splice` and `splice_fp8` over the exact pass, by screen and length of the root;
    empty: never measured."""


PUBLISHED = Rates()
"""The rates that RESULTS.md reports."""

RESCORED = PlanRate(
    0.135, "per context", "contexts that `splice` sends to exact scoring, for a recall of 99.5%"
)
CUT = PlanRate(2 / 3, "of a root", "scored given a context: up to the last anchor that needs it")


def load_rates(files: Iterable[Path]) -> Rates:
    """Return rates with those of JSON files that `benchmarks.verification_gpu` and `.splice` wrote.

    Raises RatesError if a file is not one of them, or was not measured on a GPU.
    """
    rates = PUBLISHED
    for file in files:
        try:
            content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
            claims = {claim["name"]: float(claim["ratio"]) for claim in content["claims"]}
            gpu = content["machine"].get("gpu")
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise RatesError(
                f"{file}: not the JSON of a benchmark ({type(error).__name__}); write one with "
                "python -m benchmarks.verification_gpu --out or benchmarks.splice --out"
            ) from None
        if gpu is None:
            raise RatesError(f"{file}: was not measured on a GPU; measure with --device cuda")
        rates = _with(rates, content, claims, str(gpu), file.name)
    return rates


def _with(
    rates: Rates, content: Mapping[str, Any], claims: Mapping[str, float], gpu: str, file: str
) -> Rates:
    scoring, fp8, splice = rates.scoring, rates.fp8, dict(rates.splice)
    for note in content.get("shape", ()):
        if "tflop_per_second" in note:
            meaning = f"scoring, Llama-3-8B's shape on {gpu}"
            scoring = PlanRate(note["tflop_per_second"] * 1e12, "FLOP/s", meaning, file=file)
    if "screen_over_exact" in claims:
        fp8 = PlanRate(claims["screen_over_exact"], "times", fp8.meaning, file=file)
    for name, ratio in claims.items():
        head, _, tokens = name.rpartition("_root_")
        if head in ("splice", "splice_fp8") and tokens.isdigit():
            meaning = f"the screen `{head}` over the exact pass, roots of {int(tokens):,} tokens"
            rate = PlanRate(ratio, "times", f"{meaning}, on {gpu}", file=file)
            splice[head, int(tokens)] = rate
    return Rates(scoring, fp8, splice)


@dataclass(frozen=True)
class Work:
    """Forward tokens, and floating-point operations."""

    tokens: float = 0.0
    flop: float = 0.0

    def __add__(self, other: Work) -> Work:
        return Work(self.tokens + other.tokens, self.flop + other.flop)

    def times(self, number: float) -> Work:
        return Work(self.tokens * number, self.flop * number)

    def hours(self, rate: PlanRate) -> float:
        return self.flop / rate.value / HOUR


def sequence(tokens: float, positions: float) -> Work:
    """One forward pass over a sequence, which scores some positions."""
    pairs = tokens * (tokens + 1) / 2
    cost = LLAMA_8B
    return Work(
        tokens,
        tokens * cost.flop_per_token
        + pairs * cost.flop_per_pair
        + positions * cost.flop_per_position,
    )


def continuation(tokens: float, kept: float, positions: float) -> Work:
    """Tokens that follow kept keys: each attends to all of these and to the tokens before it."""
    return sequence(tokens, positions) + Work(0.0, tokens * kept * LLAMA_8B.flop_per_pair)


def of_roots_alone(work: Workload) -> Work:
    return sequence(work.root_tokens, work.root_tokens).times(work.roots)


def of_controls(work: Workload) -> Work:
    """Passes over whole roots given the controls."""
    pass_of_one = sequence(work.chunk_tokens + work.root_tokens, work.anchors)
    return pass_of_one.times(work.roots * work.controls)


def contexts(work: Workload, distinct: float) -> float:
    """Distinct (root, chunk). distinct: per pair of an anchor and a chunk."""
    return work.roots * work.anchors * work.top_k * distinct


def of_candidates(work: Workload, distinct: float, screen: Screen) -> Work:
    """Passes of the candidates. FP8 is the same passes in cheaper arithmetic.

    Of `splice`, an upper bound: a chunk counts once per root that nominates it, although up to
    eight roots share it, and windows of one context that overlap count apart.
    """
    root_tokens, per_pair = CUT.value * work.root_tokens, 1 / distinct
    number = contexts(work, distinct)
    if screen in ("none", "fp8"):
        return sequence(work.chunk_tokens + root_tokens, per_pair).times(number)
    before = work.chunk_tokens + work.root_tokens / 2  # of an anchor in the middle of its root
    windows = continuation(min(SPLICE_WINDOW, root_tokens), before, 1) + continuation(
        min(BARE_WINDOW, root_tokens), work.chunk_tokens, 1
    )
    of_context = (
        sequence(work.chunk_tokens, 0)
        + windows.times(per_pair)
        + continuation(root_tokens, work.chunk_tokens, per_pair).times(RESCORED.value)
    )
    return of_context.times(number) + sequence(work.root_tokens, 0).times(work.roots)


def candidate_hours(work: Workload, distinct: float, screen: Screen, rates: Rates) -> float | None:
    """GPU hours of the candidates; None if the rate was never measured for roots of this length."""
    exact = of_candidates(work, distinct, "none").hours(rates.scoring)
    if screen == "none":
        return exact
    if screen == "fp8":
        return exact / rates.fp8.value
    rate = rates.splice.get((screen, work.root_tokens))
    return None if rate is None else exact / rate.value
