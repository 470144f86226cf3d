"""Measuring how much contexts in their place in a sample help the anchors, for every recipe.

Each window (`windows.py`) is scored twice: as it is, and with all contexts replaced by random
passages of the same total length. The scores of the root alone are already stored. For the verified
context of highest priority, the window is also scored with only that context replaced; the scores
given that context directly before the root are already stored. Windows that are too long for the
model are left out and counted.

LongPPL's key tokens (Fang et al., 2024): tokens whose loss drops by more than 2 nats from the short
to the long window, to less than 2 nats. Dependency score (after ProLong, Chen et al., 2024):
relative drop of the mean loss of a root segment given a segment of a context.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from entropylong_assets.audits.root_sample import ScoredRoot
from entropylong_assets.audits.windows import (
    Span,
    Window,
    key_tokens,
    make_window,
    random_tokens,
    replace_contexts,
    root_request,
    segment_pairs,
)
from entropylong_assets.settings.section import Settings
from entropylong_assets.stages.entropy.scoring import PositionScores, Scorer, ScoringRequest
from entropylong_assets.stages.samples.groups import Context, Group
from entropylong_assets.stages.samples.packing import Framing

Scores = Sequence[PositionScores]


@dataclass(frozen=True, eq=False)
class _Job:
    """A window, and the numbers of its requests."""

    window: Window
    root: ScoredRoot
    whole: int
    random: int
    """The window with random passages in place of the contexts."""
    short: int | None
    """The short window, if it begins inside the contexts."""
    short_has_all: bool
    """Whether the short window contains the whole window."""
    segments: list[tuple[int, int]]
    """Pairs: a root segment alone, and given a context segment."""
    single: tuple[Span, int] | None
    """The verified context of highest priority, and the window with only that one replaced."""

    @property
    def skipped(self) -> int:
        """Number of tokens of the root that have no prefix and hence no score."""
        return int((self.window.places < 1).sum())


class LongRange:
    """Windows of some roots under some recipes, their requests, and the rows of the tables."""

    def __init__(self, settings: Settings, framing: Framing, max_positions: int) -> None:
        self._settings = settings
        self._framing = framing
        self._max_positions = max_positions
        self._short_tokens: int = settings.audit.short_tokens
        self._bos = list(framing.bos_ids)
        self._numbers: dict[bytes, int] = {}
        self._jobs: list[_Job] = []
        self.requests: list[ScoringRequest] = []
        self.anchors: list[dict[str, Any]] = []
        self.windows: list[dict[str, Any]] = []
        self.dependencies: list[dict[str, Any]] = []
        self.left_out = 0

    def add(self, recipe: str, root: ScoredRoot, group: Group, drawn: Sequence[Context]) -> None:
        """Plan one root under one recipe, or leave it out.

        drawn: random passages with at least as many tokens as the contexts.
        """
        window = make_window(recipe, group, self._framing, self._settings)
        filling = random_tokens(drawn, window.context_tokens)
        if len(window.token_ids) > self._max_positions or filling is None:
            self.left_out += 1
            return
        self._jobs.append(
            _Job(
                window,
                root,
                whole=self._request(root_request(window, window.token_ids)),
                random=self._request(root_request(window, replace_contexts(window, filling))),
                short=self._request_short(window),
                short_has_all=len(window.token_ids) <= self._short_tokens,
                segments=list(self._request_segments(window)),
                single=self._request_single(window, filling),
            )
        )

    def _request(self, request: ScoringRequest) -> int:
        """Add a request, and return its number. Equal requests are scored once."""
        key = request.token_ids_T.tobytes() + b"|" + request.positions_N.tobytes()
        if key not in self._numbers:
            self._numbers[key] = len(self.requests)
            self.requests.append(request)
        return self._numbers[key]

    def _request_short(self, window: Window) -> int | None:
        cut = len(window.token_ids) - self._short_tokens
        if not 0 < cut < int(window.places[0]) - len(self._bos):
            return None
        tokens = np.concatenate([np.array(self._bos, np.int64), window.token_ids[cut:]])
        places = window.places - cut + len(self._bos)
        return self._request(ScoringRequest(tokens, places))

    def _request_segments(self, window: Window) -> Iterator[tuple[int, int]]:
        audit, seed = self._settings.audit, self._settings.seed
        nothing = np.array([], np.int64)
        for before, segment in segment_pairs(
            window, audit.segment_tokens, audit.segment_pairs, seed
        ):
            alone = self._request(self._segment_request(nothing, segment))
            yield alone, self._request(self._segment_request(before, segment))

    def _segment_request(
        self, before: NDArray[np.int64], segment: NDArray[np.int64]
    ) -> ScoringRequest:
        tokens = np.concatenate([np.array(self._bos, np.int64), before, segment])
        first = len(tokens) - len(segment)
        return ScoringRequest(tokens, np.arange(max(1, first), len(tokens), dtype=np.int64))

    def _request_single(
        self, window: Window, filling: NDArray[np.int64]
    ) -> tuple[Span, int] | None:
        verified = [span for span in window.spans if span.context.dependencies]
        if not verified:
            return None
        best = min(verified, key=lambda span: (-span.context.priority, span.context.chunk_id))
        token_ids = window.token_ids.copy()
        token_ids[best.start : best.end] = filling[: best.end - best.start]
        return best, self._request(root_request(window, token_ids))

    def run(self, scorer: Scorer, on_progress: Callable[[int], None] = lambda _: None) -> None:
        """Score all requests and make the rows.

        on_progress: called with the tokens of each forward pass.
        """
        scores = scorer.score(self.requests, on_progress)
        for job in self._jobs:
            self.anchors += _anchor_rows(job, scores)
            self.windows.append(self._window_row(job, scores))
            self.dependencies += _dependency_rows(job, scores)

    def _window_row(self, job: _Job, scores: Scores) -> dict[str, Any]:
        window, root = job.window, job.root
        long_T = np.full(len(root.token_ids), np.nan, np.float32)
        long_T[job.skipped :] = scores[job.whole].surprisal_N
        short_T = long_T if job.short_has_all else root.surprisals
        if job.short is not None:
            short_T = scores[job.short].surprisal_N
        drops = list(_segment_drops(job, scores))
        return {
            "recipe": window.recipe,
            "root_id": root.root_id,
            "window_tokens": len(window.token_ids),
            "context_tokens": window.context_tokens,
            "root_tokens": len(root.token_ids),
            "short_tokens": min(self._short_tokens, len(window.token_ids)),
            "key_tokens": key_tokens(short_T, long_T),
            "segment_pairs": len(drops),
            "dependency_score": float(np.mean(drops)) if drops else None,
        }


def _segment_drops(job: _Job, scores: Scores) -> Iterator[float]:
    """Relative drop of the mean loss of each root segment given its context segment."""
    for alone, given in job.segments:
        losses = scores[alone].surprisal_N
        before = float(np.mean(losses))
        after = float(np.mean(scores[given].surprisal_N[-len(losses) :]))
        if before > 0:
            yield (before - after) / before


def _anchor_rows(job: _Job, scores: Scores) -> Iterator[dict[str, Any]]:
    root, in_place, random = job.root, scores[job.whole], scores[job.random]
    for anchor in root.anchors:
        at = anchor - job.skipped
        yield {
            "recipe": job.window.recipe,
            "root_id": root.root_id,
            "anchor": anchor,
            "entropy": float(root.entropies[anchor]),
            "surprisal": float(root.surprisals[anchor]),
            "entropy_in_place": float(in_place.entropy_N[at]),
            "surprisal_in_place": float(in_place.surprisal_N[at]),
            "entropy_random": float(random.entropy_N[at]),
            "surprisal_random": float(random.surprisal_N[at]),
        }


def _dependency_rows(job: _Job, scores: Scores) -> Iterator[dict[str, Any]]:
    if job.single is None:
        return
    span, number = job.single
    root, in_place, replaced = job.root, scores[job.whole], scores[number]
    columns = ("chunk_id", "anchor", "entropy_context", "surprisal_context")
    near = {row[:2]: row[2:] for row in root.pairs.select(columns).iter_rows()}
    for dependency in span.context.dependencies:
        anchor = dependency.anchor
        at = anchor - job.skipped
        entropy_near, surprisal_near = near[span.context.chunk_id, anchor]
        yield {
            "recipe": job.window.recipe,
            "root_id": root.root_id,
            "anchor": anchor,
            "chunk_id": span.context.chunk_id,
            "distance": int(job.window.places[anchor]) - span.end,
            "entropy": float(root.entropies[anchor]),
            "surprisal": float(root.surprisals[anchor]),
            "entropy_near": entropy_near,
            "surprisal_near": surprisal_near,
            "entropy_in_place": float(in_place.entropy_N[at]),
            "surprisal_in_place": float(in_place.surprisal_N[at]),
            "entropy_replaced": float(replaced.entropy_N[at]),
            "surprisal_replaced": float(replaced.surprisal_N[at]),
        }
