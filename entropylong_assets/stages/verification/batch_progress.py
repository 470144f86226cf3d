"""Finished share of a batch of roots: scoring of candidates and controls, then evidence spans."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

EVIDENCE_PER_TOKEN = 1 / 3
"""Assumed tokens of the search for evidence spans per token of the scoring, until a batch is
finished. In the demo 0.28 if all rules are evaluated, 0.69 with rule `genuine` alone."""

BeginRound = Callable[[int], Callable[[int], None]]
"""Takes the tokens of a round of passes. Returns the function that counts those of each pass."""


@dataclass
class SearchProgress:
    """Reports the tokens of each forward pass, and the finished share of a search for evidence.

    A pair needs an unknown number of rounds. Each round counts as half of what is left of it, and
    a pair whose span is found counts as a whole.
    """

    report: Callable[[int, float], None]
    pairs: int
    rounds: int = 0

    def begin_round(self, pending: int, planned: int) -> Callable[[int], None]:
        """Return the function that counts the tokens of the passes of the next round.

        pending: pairs without a span. planned: tokens of the round.
        """
        done, before = 0, self.rounds
        self.rounds += 1

        def count(tokens: int) -> None:
            nonlocal done
            done += tokens
            rounds = before + min(done / planned, 1.0)
            self.report(tokens, 1.0 - pending / self.pairs * 0.5**rounds)

        return count


@dataclass
class BatchProgress:
    """Reports the tokens of each forward pass, and the finished share of a batch.

    The share is that of the tokens. Those of the scoring are planned. Those of the search are
    estimated: from earlier batches at first, then from the search itself. The share never falls.
    """

    report: Callable[[int, float], None]
    planned: int
    """Tokens of all planned passes."""
    known: int = 0
    """Tokens of those passes whose scores are known: they take no time."""
    evidence_per_token: float = EVIDENCE_PER_TOKEN
    """Tokens of the search per token of the scoring; 0 if there is no search."""
    tokens: int = 0
    evidence_tokens: int = 0
    share: float = 0.0

    def count(self, tokens: int) -> None:
        """Count tokens of the scoring, known ones too."""
        self.tokens += tokens
        work = max(self.planned - self.known, self._scored)
        self._report(tokens, self._scored, work * (1 + self.evidence_per_token))

    def count_evidence(self, tokens: int, searched: float) -> None:
        """Count tokens of the search. searched: the finished share of the search."""
        self.evidence_tokens += tokens
        done = self._scored + self.evidence_tokens
        all_evidence = self.evidence_tokens / searched if searched else 0.0
        self._report(tokens, done, self._scored + all_evidence if all_evidence else 0.0)

    @property
    def _scored(self) -> int:
        return max(self.tokens - self.known, 0)

    def _report(self, tokens: int, done: float, work: float) -> None:
        if work:
            self.share = max(self.share, min(done / work, 1.0))
        self.report(tokens, self.share)
