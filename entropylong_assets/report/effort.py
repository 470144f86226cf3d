"""How much an estimate or a pilot measures: fixed limits, and a limit of time.

Within a limit of time, the speed of both models is measured first, on a few texts. Then each part
gets a share of the time that is left: so the parts need no interruption.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from entropylong_assets.report.verified_sample import FEW, Budget
from entropylong_assets.settings.section import Settings
from entropylong_assets.stages.embeddings.embedder import load_embedder
from entropylong_assets.stages.entropy.anchors import root_request
from entropylong_assets.stages.entropy.engine import load_scorer
from entropylong_assets.stages.entropy.model import ScoringModel
from entropylong_assets.stages.verification.batch_progress import EVIDENCE_PER_TOKEN

PARTS = {"embedding": 0.25, "roots": 0.1, "verification": 0.5}
"""Shares of the time that is left. The rest is for index, retrieval and checks."""
_PROBED_CHUNKS, _PROBED_TOKENS, _FIRST_TOKENS = 16, 512, 32


@dataclass(frozen=True)
class Effort:
    """Limits on what an estimate reads and scores."""

    rows: int = 1024
    """Rows chosen from the sources; their texts are tokenized."""
    pool_chars: int = 1_000_000
    """Characters of the documents that are embedded and searched."""
    roots: int = 24
    """Maximum number of measured roots."""
    root_tokens: int = 24_000
    """Maximum number of tokens of the measured roots; at least 6 roots are measured."""
    verified: Budget = FEW
    """Candidates that are verified."""
    seed: int = 0
    """Seed of the choice of rows."""
    minutes: float | None = None
    """Limit of time, from the start, with the loading of the models; None: no limit."""


DEFAULT_EFFORT = Effort()


class Clock:
    """The time that is left of a limit (seconds)."""

    def __init__(self, minutes: float | None) -> None:
        self._end = None if minutes is None else time.monotonic() + 60 * minutes

    @property
    def left(self) -> float | None:
        """Seconds left, at least 0; None without a limit."""
        return None if self._end is None else max(0.0, self._end - time.monotonic())


@dataclass(frozen=True)
class Speed:
    """Rates of both models, from a few texts."""

    chunks: float
    """Chunks embedded per second."""
    chars: float
    """Characters embedded per second."""
    tokens: float
    """Tokens scored per second."""


def measure_speed(settings: Settings, model: ScoringModel, texts: Sequence[str]) -> Speed:
    """Time the embedder and the scoring model on parts of these texts, after a first pass each."""
    embedder = load_embedder(settings.corpus.embedding)
    chunk = 4 * embedder.window_tokens
    chunks = [text[:chunk] for text in texts[:_PROBED_CHUNKS]]
    embedder.embed_documents(chunks[:1])
    start = time.monotonic()
    embedder.embed_documents(chunks)
    embedding = max(time.monotonic() - start, 1e-6)

    scorer = load_scorer(model, settings.scoring.pack_tokens)
    length = min(_PROBED_TOKENS, model.max_positions - len(model.tokenizer.bos_ids))
    ids = [token for part in model.tokenizer.encode(list(texts[:64])) for token in part][:length]
    scorer.score([root_request(ids[:_FIRST_TOKENS], model.tokenizer.bos_ids)])
    start = time.monotonic()
    scorer.score([root_request(ids, model.tokenizer.bos_ids)])
    scoring = max(time.monotonic() - start, 1e-6)
    return Speed(len(chunks) / embedding, sum(map(len, chunks)) / embedding, len(ids) / scoring)


def fit_effort(effort: Effort, seconds: float, speed: Speed, is_embedded: bool) -> Effort:
    """Return the effort with limits that fit the time. The fewest roots may take longer.

    is_embedded: whether the corpus is embedded already, so that all time is for the scoring.
    """
    shares: Mapping[str, float] = PARTS
    if is_embedded:
        rest = 1 + PARTS["embedding"] / (PARTS["roots"] + PARTS["verification"])
        shares = {"embedding": 0.0, **{p: rest * PARTS[p] for p in ("roots", "verification")}}
    tokens = int(shares["verification"] * seconds * speed.tokens / (1 + EVIDENCE_PER_TOKEN))
    return replace(
        effort,
        pool_chars=min(effort.pool_chars, int(shares["embedding"] * seconds * speed.chars)),
        root_tokens=min(effort.root_tokens, int(shares["roots"] * seconds * speed.tokens)),
        verified=replace(effort.verified, tokens=min(effort.verified.tokens, tokens)),
    )


def describe_cut(effort: Effort, measured: Mapping[str, tuple[float, float]]) -> str | None:
    """Say what a limit of time has left out; None if there is nothing.

    measured: what was measured and what would have been without the limit, by its name.
    """
    cut = [
        f"{done:,.0f} of {wished:,.0f} {name}"
        for name, (done, wished) in measured.items()
        if np.ceil(done) < np.floor(wished)
    ]
    if effort.minutes is None or not cut:
        return None
    return (
        f"Stopped by --minutes {effort.minutes:g}: {', '.join(cut)}. More minutes narrow the "
        "intervals"
    )
