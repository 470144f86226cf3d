"""Everything that the report shows of one run of the pipeline."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from entropylong_assets.report.details import (
    choose_roots,
    choose_samples,
    root_details,
    sample_details,
)
from entropylong_assets.report.distributions import Rows, distributions, open_tables
from entropylong_assets.report.funnel import funnel
from entropylong_assets.report.proof import gather_proof
from entropylong_assets.report.text import visible
from entropylong_assets.settings.model import ScoringModelSettings, Settings
from entropylong_assets.stages.entropy.model import Tokenizer
from entropylong_assets.stages.training_data.figures import dataset_figures
from entropylong_assets.stages.training_data.manifest import without_secrets
from entropylong_assets.storage.tables import TableError, TableStore

TokenizerFor = Callable[[ScoringModelSettings], Tokenizer]

_MADE = ("entropy_scores", "candidate_contexts", "verified_dependencies", "long_context_samples")


@dataclass(frozen=True)
class RunSource:
    """Where a run's tables are, and the settings that they were made with."""

    store: TableStore
    shards: tuple[str, ...]
    settings: Settings
    description: list[tuple[str, str]]
    """Name and value of what determines the run; several values where shards differ."""


def _values(manifests: Sequence[Any], section: str, name: str) -> list[Any]:
    """Distinct values of a recorded setting over all manifests."""
    found = []
    for manifest in manifests:
        settings = manifest.determinants.get("settings", {})
        value = settings if section == "" else settings.get(section, {})
        if isinstance(value, dict) and name in value and value[name] not in found:
            found.append(value[name])
    return found


_DESCRIBED = (
    ("scoring model", "entropy_scores", "scoring", "model"),
    ("α (τ = μ + α·σ)", "entropy_scores", "entropy", "alpha"),
    ("first position that can be an anchor", "entropy_scores", "entropy", "min_anchor_position"),
    ("K, candidates an anchor", "candidate_contexts", "retrieval", "top_k"),
    ("leak guard, most containment", "candidate_contexts", "retrieval", "max_containment"),
    ("rule", "verified_dependencies", "verification", "rule"),
    ("ε", "verified_dependencies", "verification", "epsilon"),
    ("controls a root", "verified_dependencies", "verification", "controls"),
    ("surprisal must fall", "verified_dependencies", "verification", "require_surprisal_drop"),
    ("sample length (tokens)", "long_context_samples", "samples", "tokens"),
    ("order", "long_context_samples", "samples", "order"),
    ("layout", "long_context_samples", "samples", "layout"),
    ("fill", "long_context_samples", "samples", "fill"),
    ("seed", "long_context_samples", "", "seed"),
)


def open_run(
    settings: Settings, shards: Sequence[str] | None = None, data_uri: str | None = None
) -> RunSource:
    """A run by its settings, or another one by the URI of its data.

    What a run was made with is read from its tables' manifests; `settings` fills in what they
    don't tell. Without `shards`: all that have samples. Raises TableError where there are none.
    """
    store = TableStore(data_uri or settings.data_uri)
    shards = tuple(shards if shards is not None else store.shards("long_context_samples"))
    if not shards:
        raise TableError(f"{store.uri}: no samples there; run the pipeline first")
    manifests = {asset: [store.require(asset, shard) for shard in shards] for asset in _MADE}
    shown = without_secrets(store.uri)
    description = [("data", str(shown)), ("shards", f"{len(shards):,}")]
    recorded: dict[str, dict[str, Any]] = {}
    for label, asset, section, name in _DESCRIBED:
        values = _values(manifests[asset], section, name)
        description.append((label, " | ".join(str(value) for value in values) or "not recorded"))
        if section and values:
            recorded.setdefault(section, {})[name] = values[0]
    for label, asset, key in (
        ("model as loaded", "entropy_scores", "model"),
        ("index", "candidate_contexts", "index"),
    ):
        seen = sorted({str(m.summary[key]) for m in manifests[asset] if key in m.summary})
        description.append((label, " | ".join(seen) or "not recorded"))
    made = settings.model_dump()
    for section, known in recorded.items():
        made[section] |= known
    return RunSource(store, shards, Settings.model_validate(made), description)


def choose(source: RunSource) -> dict[str, str]:
    """Roots of this run that the report shows, and why each."""
    with open_tables(source.store, source.shards) as session:
        return choose_roots(session)


def _figures(figures: dict[str, Any], rule: str) -> list[tuple[str, Any, str]]:
    """(name, value, kind) of the headline figures; kind: `count`, `share`, `number` or `text`."""
    distance, chance = figures["distance_tokens"], figures["false_acceptance"].get(rule, {})
    per_root = figures["dependencies_per_root"]
    interval = f"{chance['low']:.2%} to {chance['high']:.2%}" if chance else None
    return [
        ("samples", figures["samples"], "count"),
        ("tokens", figures["tokens"], "count"),
        ("roots scored", figures["roots_scored"], "count"),
        ("anchors", figures["anchors"], "count"),
        ("dependencies in samples", figures["dependencies"], "count"),
        ("dependencies a root, mean", per_root["mean"], "number"),
        ("scored pairs accepted", figures["acceptance_rate"], "share"),
        ("random contexts that pass the same rule", chance.get("rate"), "share"),
        ("… 95% interval", interval, "text"),
        ("mean ΔI of accepted pairs", figures["mean_gain"], "number"),
        ("mean ΔI* of accepted pairs", figures["mean_calibrated_gain"], "number"),
        ("mean surprisal drop (nats)", figures["mean_surprisal_drop_nats"], "number"),
        ("accepted, but surprisal rose", figures["accepted_with_surprisal_rise"], "share"),
        ("distance, median (tokens)", distance["median"], "count"),
        ("distance, 90th percentile (tokens)", distance["p90"], "count"),
        ("distance beyond 32K", distance["share_beyond_32k"], "share"),
        ("distance beyond 64K", distance["share_beyond_64k"], "share"),
        ("refused as near-duplicates", figures["near_duplicates_refused"], "count"),
        *[(f"tokens: {role}", share, "share") for role, share in figures["share_by_role"].items()],
    ]


def gather_run(
    source: RunSource, label: str, roots: dict[str, str], tokenizer_for: TokenizerFor
) -> tuple[dict[str, Any], dict[str, Rows]]:
    """What the page shows of a run, as JSON values, and the rows of its charts.

    roots: ids to show, of either run. tokenizer_for: loads the tokenizer of a scoring model.
    """
    tokenizer = tokenizer_for(source.settings.scoring)
    figures = dataset_figures(source.store, source.shards, source.settings)
    with open_tables(source.store, source.shards) as session:
        charts = distributions(session)
        steps = funnel(session)
        shown, passages = root_details(session, roots, tokenizer)
        samples = sample_details(session, source.store, choose_samples(session), tokenizer)
    proof, proof_rows = gather_proof(source.store, source.shards, source.settings)
    sources = sorted(
        {root["source"] for root in shown}
        | {passage["source"] for passage in passages.values()}
        | {s["source"] for sample in samples for s in sample["segments"] if s["source"]}
    )
    page = {
        "label": label,
        "description": [(name, visible(value)) for name, value in source.description],
        "epsilon": source.settings.verification.epsilon,
        "rule": source.settings.verification.rule,
        "figures": _figures(figures, source.settings.verification.rule),
        "proof": [(name, visible(v) if isinstance(v, str) else v, kind) for name, v, kind in proof],
        "funnel": [step.as_dict() for step in steps],
        "sources": sources,
        "roots": shown,
        "passages": passages,
        "samples": samples,
        "n_samples": figures["samples"],
        "n_roots": figures["roots_scored"],
    }
    return page, charts | proof_rows
