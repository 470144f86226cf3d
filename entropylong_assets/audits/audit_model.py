"""The model that an audit scores with."""

from __future__ import annotations

from dataclasses import dataclass

from entropylong_assets.stages.entropy.model import Tokenizer
from entropylong_assets.stages.entropy.scoring import Scorer
from entropylong_assets.stages.entropy.settings import ScoringModelSettings


@dataclass(frozen=True)
class AuditModel:
    """A loaded scoring model, as the audits use it."""

    tokenizer: Tokenizer
    scorer: Scorer
    max_positions: int
    """Maximum length of a scored sequence (tokens)."""
    identity: str = ""
    """Reference, content hash and dtype."""


def load_audit_model(settings: ScoringModelSettings) -> AuditModel:
    """Load a scoring model. Raises ModelError if the model or its device is not available."""
    from entropylong_assets.stages.entropy.engine import load_scorer
    from entropylong_assets.stages.entropy.model import load_scoring_model

    model = load_scoring_model(settings)
    scorer = load_scorer(model, settings.pack_tokens)
    return AuditModel(model.tokenizer, scorer, model.max_positions, model.identity)
