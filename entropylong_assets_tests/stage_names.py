"""Names of the stages, and of their assets in a project with the default names."""

from __future__ import annotations

from entropylong_assets.pipeline import STAGES
from entropylong_assets.stages.stage import Stage

BY_NAME: dict[str, Stage] = {stage.name: stage for stage in STAGES}
AUDITS = tuple(
    stage.name for stage in STAGES if stage.automation == "by_hand" and stage.scope == "dataset"
)
FOLLOWING = tuple(stage.name for stage in STAGES if stage.automation != "by_hand")
"""All stages that run by themselves, in the order in which data flows."""
SHARDWISE = [name for name in FOLLOWING if BY_NAME[name].partitioned]
"""Those with a partition per shard."""


def path_of(name: str) -> list[str]:
    """Asset key of a stage in a project whose corpus and dataset have the default names."""
    return [BY_NAME[name].scope, name]
