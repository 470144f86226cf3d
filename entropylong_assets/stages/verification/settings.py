"""Settings of the verification of candidates."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from entropylong_assets.settings.section import Section
from entropylong_assets.stages.verification.registry import NO_SCREEN, RULES, SCREENS

AnchorKind = Literal["import", "url", "reference"]

RuleName = Annotated[str, AfterValidator(RULES.check)]
RuleNames = Annotated[tuple[RuleName, ...], AfterValidator(RULES.in_order)]


def _in_order(kinds: tuple[AnchorKind, ...]) -> tuple[AnchorKind, ...]:
    return tuple(sorted(set(kinds)))


def _check_screen(name: str) -> str:
    return name if name == NO_SCREEN else SCREENS.check(name)


class VerificationSettings(Section):
    """`verified_dependencies`: which candidates lower the entropy (paper, section 3.3)."""

    rule: RuleName = "genuine"
    """Rule in force. `plain`: ΔI > ε, as published. `calibrated`: ΔI* > ε, against control
    contexts. `genuine`: the context must also contain the anchor's word, and the wording around it
    must be rare in the corpus (docs/genuine.md). Other packages can add rules
    (docs/extending.md)."""
    compared_rules: RuleNames = ()
    """Rules whose verdicts are stored beside that of the rule in force. Contexts that all these
    rules reject because of their text alone are not scored: `genuine` by itself excludes most.
    `plain` and `calibrated` exclude none, so comparing with them costs 3 to 4 times as many forward
    passes."""
    epsilon: float = Field(0.4, allow_inf_nan=False, lt=1)
    """ε: the gain of an accepted context exceeds this share of the anchor's entropy. The paper:
    0.4."""
    controls: int = Field(2, ge=0, le=32)
    """Control contexts per root: random chunks of other documents, one forward pass each."""
    require_surprisal_drop: bool = True
    """Rule `calibrated`: also reject contexts that do not make the true token likelier."""
    min_calibrated_gain: float = Field(0.0, allow_inf_nan=False, lt=1)
    """Rule `genuine`: lower limit of ΔI*, in place of ε."""
    min_surprisal_gain: float = Field(0.2, allow_inf_nan=False, lt=1)
    """Rule `genuine`: the context must lower the true token's surprisal by more than this share.
    The share is of the surprisal without context or given the controls, whichever is lower."""
    max_phrase_documents: int = Field(8, ge=1)
    """Rule `genuine`: maximum number of documents that contain the three words that end with the
    anchor's word. In more documents, the wording is boilerplate. Beyond 8,000 counted documents the
    limit grows in proportion."""
    max_pair_documents: int = Field(60, ge=1)
    """Rule `genuine`: the same limit for the anchor's word and the next one."""
    excluded_anchors: Annotated[tuple[AnchorKind, ...], AfterValidator(_in_order)] = (
        "import",
        "url",
    )
    """Rule `genuine`: anchors in these places are rejected: a line of imports, a URL, an entry of a
    list of references."""
    evidence: bool = True
    """Find the evidence span of each accepted pair: the sentences of the context that keep the
    gain. This takes further forward passes, for accepted pairs only."""
    max_false_acceptance: float = Field(0.02, ge=0, le=1)
    """A check warns if the rule in force accepts a larger share of a shard's control contexts."""
    max_contexts_per_root: int | None = Field(None, ge=1)
    """Stop scoring the candidates of a root once this many contexts are accepted. `null`: score
    all. Candidates are scored in the order of the number of anchors that nominate them, then
    similarity, then rank."""
    max_forward_tokens_per_root: int | None = Field(None, ge=1)
    """Maximum number of tokens in the forward passes of a root's candidates and controls. `null`:
    no limit. Candidates beyond it are not scored. Passes for evidence spans do not count."""
    screen: Annotated[str, AfterValidator(_check_screen)] = NO_SCREEN
    """Approximation: score all contexts more cheaply first, then exactly only a sample and those
    whose verdict is in doubt. `none` (exact). `bfloat16` and `fp8`: cheaper arithmetic. `splice`:
    only the tokens before each anchor, given keys and values that are computed once; what is not
    scored exactly is rejected (docs/screens.md). `splice_fp8`: both. FP8 needs a CUDA device of
    compute capability 8.9 or later. Other packages can add screens (docs/extending.md)."""
    screen_recall: float = Field(0.995, ge=0.5, lt=1)
    """Screens `splice` and `splice_fp8`: share of the contexts with an accepted pair that must be
    scored exactly. Until a shard has enough of them to choose the threshold with 90% confidence,
    all contexts are scored exactly; the default needs 460."""

    @model_validator(mode="after")
    def _has_controls(self) -> VerificationSettings:
        if self.controls < 2 and RULES[self.rule].needs_controls:
            raise ValueError(
                f"controls must be at least 2 with rule '{self.rule}' (one is held out in turn)"
            )
        return self
