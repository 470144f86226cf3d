"""The arms of a trial: a dataset's stored tables, packed by another recipe, rule or layout."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import yaml
from pydantic import ValidationError

from entropylong_assets.audits.trial.arm_mixture import mix
from entropylong_assets.audits.trial.folder import Rows, TrialError, compact
from entropylong_assets.audits.trial.settings import Arm, TrialSettings
from entropylong_assets.settings.section import Settings, one_line
from entropylong_assets.stages.entropy.tables import ENTROPY_SCORES
from entropylong_assets.stages.entropy.tokenizer_facts import TokenizerFacts, tokenizer_facts
from entropylong_assets.stages.samples.registry import RECIPES
from entropylong_assets.stages.samples.selection import has_verdicts, needs_pool
from entropylong_assets.stages.samples.settings import SampleSettings
from entropylong_assets.stages.samples.shard_inputs import open_tables, stored
from entropylong_assets.stages.samples.shard_packing import pack_shard
from entropylong_assets.stages.samples.tables import LONG_CONTEXT_SAMPLES
from entropylong_assets.stages.stage import Partition
from entropylong_assets.stages.training_data.samples import Sample
from entropylong_assets.stages.training_data.settings import ExportSettings
from entropylong_assets.stages.verification.registry import RULES, evaluated_rules
from entropylong_assets.stages.verification.tables import VERIFIED_DEPENDENCIES

ROLES = (
    "root",
    "verified",
    "hard_negative",
    "unverified",
    "filler",
    "natural",
    "short",
    "padding",
)


_SAMPLE = {
    name: pl.Schema(LONG_CONTEXT_SAMPLES.schemas["samples"])[name]
    for name in ("sample_id", "input_ids", "n_padding")
}
"""Columns of a sample that an arm needs, and their types."""

DEFAULT_ARMS: Mapping[str, Arm] = {
    **{
        name: Arm(recipe=name)
        for name in (
            "random",
            "quest",
            "nextlong",
            "no_verify",
            "entropylong",
            "calibrated",
            "policylong",
        )
    },
    "genuine": Arm(rule="genuine"),
}
"""What the paper's claim is compared on: rivals, the ablation, the paper's rule and ours."""


def default_arms(settings: Settings) -> Mapping[str, Arm]:
    """Those of `DEFAULT_ARMS` by rules whose verdicts are stored."""
    return {
        name: arm
        for name, arm in DEFAULT_ARMS.items()
        if has_verdicts(RECIPES[arm.recipe].rule if arm.recipe else arm.rule, settings)
    }


def read_arms(file: str | Path) -> Mapping[str, Arm]:
    """Read arms from a YAML file: the content of `trial.arms`. Raises TrialError."""
    try:
        content = yaml.safe_load(Path(file).read_text(encoding="utf-8"))
        return TrialSettings.model_validate({"arms": content}).arms
    except ValidationError as error:
        raise TrialError(f"arms {file}: {one_line(error)}") from None
    except (OSError, yaml.YAMLError) as error:
        raise TrialError(f"arms {file}: {' '.join(str(error).split())}") from None


def settings_of(arm: Arm, settings: Settings, sample_tokens: int) -> Settings:
    """The dataset's settings under an arm. Raises TrialError if the arm's values are not allowed,
    or the verdicts of its rule are not stored."""
    values = {**settings.samples.model_dump(), **arm.samples}
    try:
        samples = SampleSettings.model_validate(
            values | {"recipe": arm.recipe, "tokens": sample_tokens}
        )
    except ValidationError as error:
        raise TrialError(one_line(error, "samples")) from None
    rule = arm.rule or settings.verification.rule
    if rule not in evaluated_rules(settings.verification):
        raise TrialError(
            f"the verdicts of the rule '{rule}' are not stored; add it to "
            f"verification.compared_rules (rules: {', '.join(RULES.names())})"
        )
    verification = settings.verification.model_copy(update={"rule": rule})
    return settings.model_copy(update={"samples": samples, "verification": verification})


@dataclass
class _Collector:
    """Takes the rows of samples that `pack_shard` writes."""

    samples: list[pl.DataFrame] = field(default_factory=list)
    segments: list[dict[str, Any]] = field(default_factory=list)
    dependencies: list[dict[str, Any]] = field(default_factory=list)

    def append(self, table: str, rows: pl.DataFrame | list[dict[str, Any]]) -> None:
        if isinstance(rows, pl.DataFrame):
            if table == "samples":
                self.samples.append(rows)
        elif table == "segments":
            self.segments += rows
        elif table == "dependencies":
            self.dependencies += rows


@dataclass
class PackedArm:
    """Samples of an arm, and figures of them."""

    rows: Rows
    documents: set[str]
    """Ids of all documents that a sample holds a part of."""
    figures: dict[str, Any]


def facts_of_tokenizer(partition: Partition, sample_tokens: int) -> TokenizerFacts:
    from entropylong_assets.stages.entropy.model import load_tokenizer

    scoring = partition.settings.scoring
    return tokenizer_facts(
        load_tokenizer(scoring),
        scoring,
        vocab_size=partition.store.summary(ENTROPY_SCORES, partition.shard).vocab_size,
        sample_tokens=sample_tokens,
    )


def pack_arm(
    arm: Arm, dataset: Partition, shards: list[str], sample_tokens: int, max_samples: int | None
) -> PackedArm:
    """Pack the stored tables of these shards, until there are `max_samples`.

    dataset: settings and tables; its shard is not read. Raises TrialError if nothing is packed.
    """
    settings = settings_of(arm, dataset.settings, sample_tokens)
    collected = _Collector()
    packed_shards = 0
    constructs = arm.mixture is None or arm.mixture.get("constructed")
    for shard in shards if constructs else ():
        if max_samples is not None and sum(map(len, collected.samples)) >= max_samples:
            break
        packed_shards += 1
        _pack_shard(Partition(settings, dataset.store, shard), arm, collected)
    frames = [
        frame.select(pl.col(name).cast(kind) for name, kind in _SAMPLE.items())
        for frame in collected.samples
    ]
    if not frames and constructs:
        raise TrialError(
            "no root has a context under this arm, so there are no samples; leave the arm out"
        )
    samples = pl.concat([pl.DataFrame(schema=_SAMPLE), *frames])
    if arm.mixture is None:
        samples = samples[:max_samples]
    else:
        samples, collected.segments = mix(
            arm,
            Partition(settings, dataset.store),
            shards,
            (samples, collected.segments),
            max_samples,
        )
    kept = set(samples["sample_id"])
    segments = [row for row in collected.segments if row["sample_id"] in kept]
    dependencies = [row for row in collected.dependencies if row["sample_id"] in kept]
    ids_NT = compact(np.stack(list(samples["input_ids"].to_numpy())))
    lengths_N = (sample_tokens - samples["n_padding"].to_numpy()).astype(np.int32)
    tokens = dict.fromkeys(ROLES, 0)
    for row in segments:
        if row["role"] in tokens:
            tokens[row["role"]] += row["end"] - row["start"]
    roots = {row["root_id"] for row in segments if row["role"] == "root"}
    distances = [row["distance"] for row in dependencies]
    return PackedArm(
        Rows(ids_NT, lengths_N, _weights(arm, samples, lengths_N, dependencies)),
        {row["doc_id"] for row in segments if row.get("doc_id")},
        {
            "recipe": arm.recipe,
            "rule": settings.verification.rule,
            "layout": settings.samples.layout,
            "fill": settings.samples.fill,
            "loss_weights": arm.loss_weights,
            "mixture": arm.mixture and dict(arm.mixture),
            "samples": len(samples),
            "shards": packed_shards,
            "learnt_tokens": int((lengths_N - 1).sum()),
            "roots": len(roots),
            "dependencies": len(dependencies),
            "median_distance": float(np.median(distances)) if distances else None,
            "tokens": tokens,
        },
    )


def _pack_shard(partition: Partition, arm: Arm, collected: _Collector) -> None:
    from entropylong_assets.stages.samples.pool import open_pool

    settings, store, shard = partition.settings, partition.store, partition.shard
    views = dict(stored(shard))
    if arm.rule is not None:
        # `accepted` is the verdict of the rule that was in force when the pairs were verified.
        accepted = pl.col("accepted_by").list.contains(arm.rule)
        views["pairs"] = lambda: store.read(VERIFIED_DEPENDENCIES, shard, "pairs").with_columns(
            accepted=accepted
        )
    with open_tables(store, views) as tables:
        pack_shard(
            tables,
            settings=settings,
            shard=shard,
            tokenizer=facts_of_tokenizer(partition, settings.samples.tokens),
            writer=collected,
            pool=open_pool(partition) if needs_pool(settings) else None,
        )


def _weights(
    arm: Arm, samples: pl.DataFrame, lengths_N: np.ndarray[Any, Any], dependencies: list[Any]
) -> np.ndarray[Any, Any] | None:
    """The weights of an export's samples; None if each token counts 1."""
    if arm.loss_weights == "uniform":
        return None
    export = ExportSettings(loss_weights=arm.loss_weights, anchor_weight=arm.anchor_weight)
    by_sample: dict[str, list[Any]] = {}
    for row in dependencies:
        by_sample.setdefault(row["sample_id"], []).append(row)
    rows = []
    for (sample_id, ids), length in zip(
        samples.select("sample_id", "input_ids").iter_rows(), lengths_N, strict=True
    ):
        own = by_sample.get(sample_id, [])
        sample = Sample(
            sample_id=sample_id,
            shard="",
            token_ids_T=np.asarray(ids, np.int32),
            details=pl.DataFrame(),
            provenance=None,
            padding=[(int(length), len(ids))],
            anchors=(),
            dependency_anchors=[row["anchor_position"] for row in own],
            dependency_distances=[row["distance"] for row in own],
        )
        rows.append(sample.weights(export).astype(np.float16))
    return np.stack(rows)
