"""Rules, which accept or reject scored pairs, and screens, which score them more cheaply."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol

from entropylong_assets.settings.registry import Registry

if TYPE_CHECKING:
    import polars as pl

    from entropylong_assets.stages.entropy.model import ScoringModel
    from entropylong_assets.stages.entropy.scoring import PositionScores, Scorer
    from entropylong_assets.stages.verification.requests import ContextRequest
    from entropylong_assets.stages.verification.settings import VerificationSettings

NO_SCREEN = "none"
"""Value of `verification.screen` for no screen."""

GainColumn = Literal["gain", "calibrated_gain"]


class Rule(Protocol):
    """Decides which scored pairs (anchor, context) are dependencies.

    To write a rule, write a class with these attributes and methods and register an instance: in
    this package with `RULES.register("my_rule")(MyRule())`, in another package through an entry
    point of the group `entropylong_assets.rules` that names the instance. It is then available as
    `verification.rule: my_rule`, and in `verification.compared_rules`.

    A rule that rejects some pairs because of their text alone, whatever their scores, can say so in
    a third method, `possible(settings)`: whether a pair can be accepted, from the columns `word` to
    `counted_documents` below. Contexts without such a pair are not scored, unless another evaluated
    rule could accept one.

    The methods return Polars expressions over the columns of a pair:

    - `entropy`, `surprisal`: H and I(x_t) of the root alone;
    - `entropy_context`, `surprisal_context`: given the context;
    - `entropy_control`, `surprisal_control`: means over the control contexts, null without any;
    - `gain`, `calibrated_gain`: ΔI and ΔI*, null where undefined;
    - `word`: the word at the anchor, null if it has no letter or digit; `has_word`: whether the
      context contains it; `anchor_kind`: `symbol`, `import`, `url`, `reference` or null;
    - `phrase_documents`: documents of the corpus with the three words that end with `word`;
      `pair_documents`: with `word` and the next one; `counted_documents`: documents counted.

    Scores are float32 nats, gains float64. To Polars, not-a-number is larger than any number. The
    rule decides on each pair by itself, and must not reject a pair for a lower entropy or surprisal
    given its context: screens rely on it.
    """

    needs_controls: bool
    """Whether it compares with control contexts. If so, `verification.controls` must be at least
    2: one control is held out in turn to measure the false-acceptance rate."""
    gain: GainColumn
    """The gain that it measures. It ranks the contexts of a sample. A pair whose gain is undefined
    is never accepted."""
    settings: tuple[str, ...]
    """Fields of `verification` that it reads: changing one of them makes verdicts stale."""

    def accepts(self, settings: VerificationSettings, /) -> pl.Expr:
        """Return whether a pair is accepted (Boolean; null counts as rejected)."""
        ...

    def reason(self, settings: VerificationSettings, /) -> pl.Expr:
        """Return why a pair is rejected (String, one word with underscores); used for pairs that
        are not accepted."""
        ...


Key = tuple[str, str]
"""(root_id, chunk_id)."""


class EstimatedContexts(Protocol):
    """Some contexts of a batch with their estimates."""

    estimates: Mapping[str, Mapping[Key, PositionScores]]
    """Scores of every context, by name of the estimate."""
    alone: Mapping[str, Mapping[Key, PositionScores]]
    """Scores of the same anchors without the context, of estimates by another model. The others are
    compared with the scores of the scoring model."""

    def score_exactly(self, keys: Sequence[Key]) -> dict[Key, PositionScores]:
        """Return the exact scores of some of the contexts."""
        ...


class Estimator(ABC):
    """Makes estimates that are too inaccurate to store as scores, but show which contexts need
    exact ones. `calibration.py` learns this from pairs that were scored both ways.

    It may use the scoring model in another way, or another model with the same tokenizer.
    """

    @abstractmethod
    def estimate(
        self,
        requests: Mapping[Key, ContextRequest],
        exact: Scorer,
        on_progress: Callable[[int], None],
    ) -> Iterator[EstimatedContexts]:
        """Yield the contexts group by group, as many at once as memory allows.

        Every request is in one group, whose exact scores are asked for before the next group.
        exact: the scorer of the exact pass. on_progress: gets the tokens of each forward pass.
        """
        ...


class LoadScreener(Protocol):
    """Makes the cheaper scorer of a screen.

    To write a screen, write a function of this kind and register it: in this package with
    `@SCREENS.register("my_screen")`, in another package through an entry point of the group
    `entropylong_assets.screens`. It is then available as `verification.screen: my_screen`.
    """

    def __call__(self, model: ScoringModel, pack_tokens: int | None) -> Scorer | Estimator:
        """Return the scorer. Raises ModelError, in one line, if the device or the model can't do
        it or would gain nothing from it.

        Scores of a Scorer are kept if no verdict could change within its margin (`screen.py`).
        Estimates are never kept: contexts that are not scored exactly are rejected. pack_tokens:
        `scoring.pack_tokens`.
        """
        ...


RULES: Registry[Rule] = Registry(
    "rule", "entropylong_assets.rules", "entropylong_assets.stages.verification.rules"
)
"""Rules by name."""

SCREENS: Registry[LoadScreener] = Registry(
    "screen", "entropylong_assets.screens", "entropylong_assets.stages.verification.screens"
)
"""Screens by name."""


class GainLimit(NamedTuple):
    """The gain that a pair must exceed."""

    name: str
    value: float

    def __str__(self) -> str:
        return f"{self.name} {self.value:g}"


def gain_limit(settings: VerificationSettings) -> GainLimit | None:
    """Return the limit of the rule in force; None for a rule that reads none of the built-in
    ones."""
    read = RULES[settings.rule].settings
    if "epsilon" in read:
        return GainLimit("ε", settings.epsilon)
    if "min_calibrated_gain" in read:
        return GainLimit("least ΔI*", settings.min_calibrated_gain)
    return None


def evaluated_rules(settings: VerificationSettings) -> dict[str, Rule]:
    """Return the rules whose verdicts are stored: the compared ones and the rule in force.

    They are in the order of `RULES.names()`: which of them is in force does not change it.
    """
    return {name: RULES[name] for name in RULES.in_order((*settings.compared_rules, settings.rule))}
