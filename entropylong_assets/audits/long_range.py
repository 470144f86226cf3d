"""What contexts do where they lie: anchors of finished layouts, under every recipe.

A window is `[BOS?, contexts, root]` as the recipe's samples hold it, without filler, from the
first context to the end of the root. Each is scored whole; with all contexts replaced by random
passages of the same total length; and without any (stored). For verified contexts also with the
one context replaced in its place, and with everything between it and its root removed (stored).
Windows longer than the model takes are left out and counted.

LongPPL's key tokens (Fang et al., 2024): gain over 2 nats from the short to the long window, and
a loss under 2 nats in the long one. Dependency score (after ProLong, Chen et al., 2024): relative
fall of a root segment's mean loss when a segment of a context stands before it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from entropylong_assets.audits.root_sample import ScoredRoot
from entropylong_assets.settings.model import Settings
from entropylong_assets.stages.entropy.scoring import PositionScores, Scorer, ScoringRequest
from entropylong_assets.stages.samples.groups import Context, Group
from entropylong_assets.stages.samples.ordering import hash_key
from entropylong_assets.stages.samples.packing import Framing, lay_out

KEY_GAIN = KEY_LOSS = 2.0
"""Nats; the paper's values."""


@dataclass
class Window:
    """A root with its contexts. places: position in token_ids of each token of the root, [T].
    spans: (context, start, end) of each context."""

    recipe: str
    group: Group
    token_ids: NDArray[np.int64]
    places: NDArray[np.int64]
    spans: list[tuple[Context, int, int]] = field(default_factory=list)

    @property
    def context_tokens(self) -> int:
        return sum(end - start for _, start, end in self.spans)


def make_window(recipe: str, group: Group, framing: Framing, settings: Settings) -> Window:
    """The group as its sample lays it out, without padding and filler."""
    total = len(framing.root_ids(group)) + framing.bos_tokens
    total += sum(len(context.token_ids) for context in group.chosen)
    samples = settings.samples.model_copy(update={"tokens": total, "fill": "verified_only"})
    token_ids: list[int] = []
    places: list[int] = []
    window = Window(recipe, group, np.array([]), np.array([]))
    for segment in lay_out([group], framing, samples, settings.seed):
        start = len(token_ids)
        token_ids.extend(int(i) for i in segment.token_ids)
        if segment.role == "root":
            places.extend(range(start, len(token_ids)))
        elif segment.context is not None:
            window.spans.append((segment.context, start, len(token_ids)))
    window.token_ids = np.array(token_ids, np.int64)
    window.places = np.array(places[: len(group.token_ids)], np.int64)
    return window


def random_tokens(contexts: Sequence[Context], length: int) -> NDArray[np.int64] | None:
    """The first `length` tokens of random passages one behind the other; None: too few."""
    joined = [int(i) for context in contexts for i in context.token_ids]
    return np.array(joined[:length], np.int64) if len(joined) >= length else None


def replaced(window: Window, filling: NDArray[np.int64]) -> NDArray[np.int64]:
    """The window's tokens with every context overwritten, piece by piece, by `filling`."""
    token_ids, used = window.token_ids.copy(), 0
    for _, start, end in window.spans:
        token_ids[start:end] = filling[used : used + end - start]
        used += end - start
    return token_ids


def whole_root(window: Window, token_ids: NDArray[np.int64]) -> ScoringRequest:
    """Every token of the root that has a prefix, up to the root's last."""
    positions = window.places[window.places >= 1]
    return ScoringRequest(token_ids[: positions[-1] + 1], positions)


def key_tokens(short_T: NDArray[np.float32], long_T: NDArray[np.float32]) -> int:
    """Tokens whose surprisal falls by more than 2 nats, to less than 2. NaN counts as none."""
    return int(((short_T - long_T > KEY_GAIN) & (long_T < KEY_LOSS)).sum())


def segment_pairs(
    window: Window, length: int, count: int, seed: int
) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Sampled (context segment, root segment) of `length` tokens each, contexts before roots."""
    root = window.token_ids[window.places]
    starts = [s for _, a, b in window.spans for s in range(a, b - length + 1, length)]
    ends = list(range(0, len(root) - length + 1, length))
    pairs = [(s, e) for s in starts for e in ends if window.places[e] > s]
    ranked = sorted(
        pairs, key=lambda p: hash_key(seed, window.group.root_id, window.recipe, str(p))
    )
    return [(window.token_ids[s : s + length], root[e : e + length]) for s, e in ranked[:count]]


def _segment_request(
    bos: Sequence[int], before: NDArray[np.int64], segment: NDArray[np.int64]
) -> ScoringRequest:
    tokens = np.concatenate([np.array(bos, np.int64), before, segment])
    first = len(tokens) - len(segment)
    return ScoringRequest(tokens, np.arange(max(1, first), len(tokens), dtype=np.int64))


class LongRange:
    """Windows of some roots under some recipes, their requests, and the rows made of the scores."""

    def __init__(
        self, settings: Settings, framing: Framing, max_positions: int, short_tokens: int
    ) -> None:
        self._settings = settings
        self._framing = framing
        self._max_positions = max_positions
        self._short_tokens = short_tokens
        self.requests: list[ScoringRequest] = []
        self._keys: dict[bytes, int] = {}
        self._jobs: list[Callable[[Sequence[PositionScores]], None]] = []
        self.anchors: list[dict[str, Any]] = []
        self.windows: list[dict[str, Any]] = []
        self.dependencies: list[dict[str, Any]] = []
        self.left_out = 0

    def _ask(self, request: ScoringRequest) -> int:
        """Number of the request; the same one is asked once."""
        key = request.token_ids_T.tobytes() + b"|" + request.positions_N.tobytes()
        if key not in self._keys:
            self._keys[key] = len(self.requests)
            self.requests.append(request)
        return self._keys[key]

    def add(self, recipe: str, root: ScoredRoot, group: Group, drawn: Sequence[Context]) -> None:
        """One root under one recipe. drawn: random passages, at least as long as the contexts."""
        window = make_window(recipe, group, self._framing, self._settings)
        filling = random_tokens(drawn, window.context_tokens)
        if len(window.token_ids) > self._max_positions or filling is None:
            self.left_out += 1
            return
        control_ids = replaced(window, filling)
        here = self._ask(whole_root(window, window.token_ids))
        control = self._ask(whole_root(window, control_ids))
        cut = len(window.token_ids) - self._short_tokens
        bos = [] if self._framing.bos_id is None else [self._framing.bos_id]
        short = None
        if 0 < cut < int(window.places[0]) - len(bos):
            tokens = np.concatenate([np.array(bos, np.int64), window.token_ids[cut:]])
            places = window.places - cut + len(bos)
            short = self._ask(ScoringRequest(tokens[: places[-1] + 1], places))
        length, count = self._settings.audit.segment_tokens, self._settings.audit.segment_pairs
        pairs = []
        for before, segment in segment_pairs(window, length, count, self._settings.seed):
            alone = self._ask(_segment_request(bos, np.array([], np.int64), segment))
            pairs.append((alone, self._ask(_segment_request(bos, before, segment))))
        single = self._one_replaced(window, filling)

        def rows(scores: Sequence[PositionScores]) -> None:
            skip = int((window.places < 1).sum())
            inside, random_ = scores[here], scores[control]
            for anchor in root.anchors:
                at = anchor - skip
                self.anchors.append(
                    {
                        "recipe": recipe,
                        "root_id": root.root_id,
                        "anchor": anchor,
                        "entropy": float(root.entropies[anchor]),
                        "surprisal": float(root.surprisals[anchor]),
                        "entropy_in_place": float(inside.entropy_N[at]),
                        "surprisal_in_place": float(inside.surprisal_N[at]),
                        "entropy_random": float(random_.entropy_N[at]),
                        "surprisal_random": float(random_.surprisal_N[at]),
                    }
                )
            long_T = np.full(len(root.token_ids), np.nan, np.float32)
            long_T[skip:] = inside.surprisal_N
            short_T = root.surprisals
            if short is not None:
                short_T = scores[short].surprisal_N
            elif cut <= 0:
                short_T = long_T  # the short window holds all
            scored = [
                (float(np.mean(scores[a].surprisal_N)), float(np.mean(scores[b].surprisal_N[-n:])))
                for a, b in pairs
                for n in [len(scores[a].surprisal_N)]
            ]
            falls = [(alone - behind) / alone for alone, behind in scored if alone > 0]
            self.windows.append(
                {
                    "recipe": recipe,
                    "root_id": root.root_id,
                    "window_tokens": len(window.token_ids),
                    "context_tokens": window.context_tokens,
                    "root_tokens": len(root.token_ids),
                    "short_tokens": min(self._short_tokens, len(window.token_ids)),
                    "key_tokens": key_tokens(short_T, long_T),
                    "segment_pairs": len(falls),
                    "dependency_score": float(np.mean(falls)) if falls else None,
                }
            )
            for context, end, number in single:
                self._dependency_rows(window, root, context, end, inside, scores[number], skip)

        self._jobs.append(rows)

    def _one_replaced(
        self, window: Window, filling: NDArray[np.int64]
    ) -> list[tuple[Context, int, int]]:
        """(context, its end, request) of the verified context worth most, replaced in place."""
        verified = [span for span in window.spans if span[0].dependencies]
        best = sorted(verified, key=lambda span: (-span[0].worth, span[0].chunk_id))[:1]
        asked = []
        for context, start, end in best:
            token_ids = window.token_ids.copy()
            token_ids[start:end] = filling[: end - start]
            asked.append((context, end, self._ask(whole_root(window, token_ids))))
        return asked

    def _dependency_rows(
        self,
        window: Window,
        root: ScoredRoot,
        context: Context,
        end: int,
        inside: PositionScores,
        without: PositionScores,
        skip: int,
    ) -> None:
        behind = {
            (c, a): (h, s)
            for c, a, h, s in root.pairs.select(
                "chunk_id", "anchor", "entropy_context", "surprisal_context"
            ).iter_rows()
        }
        for dependency in context.dependencies:
            at = dependency.anchor - skip
            near = behind[context.chunk_id, dependency.anchor]
            self.dependencies.append(
                {
                    "recipe": window.recipe,
                    "root_id": root.root_id,
                    "anchor": dependency.anchor,
                    "chunk_id": context.chunk_id,
                    "distance": int(window.places[dependency.anchor]) - end,
                    "entropy": float(root.entropies[dependency.anchor]),
                    "surprisal": float(root.surprisals[dependency.anchor]),
                    "entropy_near": near[0],
                    "surprisal_near": near[1],
                    "entropy_in_place": float(inside.entropy_N[at]),
                    "surprisal_in_place": float(inside.surprisal_N[at]),
                    "entropy_replaced": float(without.entropy_N[at]),
                    "surprisal_replaced": float(without.surprisal_N[at]),
                }
            )

    def run(self, scorer: Scorer, on_progress: Callable[[int], None] = lambda _: None) -> None:
        """Scores all requests and makes the rows."""
        scores = scorer.score(self.requests, on_progress)
        for job in self._jobs:
            job(scores)
