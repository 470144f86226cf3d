"""Everything that the report shows of one dataset."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from entropylong_assets.report.details import (
    choose_roots,
    choose_samples,
    root_details,
    sample_details,
)
from entropylong_assets.report.distributions import Rows, distributions, open_tables
from entropylong_assets.report.examples import examples
from entropylong_assets.report.funnel import funnel
from entropylong_assets.report.natural import natural_section
from entropylong_assets.report.proof import audit_coverage, gather_proof, trial_table
from entropylong_assets.report.recorded_settings import RecordedSettings, as_text
from entropylong_assets.report.text import visible
from entropylong_assets.settings.section import Settings
from entropylong_assets.stages.diversity import spread_lines
from entropylong_assets.stages.entropy.model import Tokenizer
from entropylong_assets.stages.entropy.settings import ScoringModelSettings
from entropylong_assets.stages.samples.padding import padding_note
from entropylong_assets.stages.samples.tables import LONG_CONTEXT_SAMPLES
from entropylong_assets.stages.training_data.figures import dataset_figures
from entropylong_assets.stages.training_data.manifest import without_secrets
from entropylong_assets.stages.training_data.tables import TRAINING_DATASET
from entropylong_assets.stages.verification.false_acceptance import ROUGH
from entropylong_assets.stages.verification.registry import gain_limit
from entropylong_assets.storage.manifest import TableError
from entropylong_assets.storage.tables import TableStore

TokenizerFor = Callable[[ScoringModelSettings], Tokenizer]


@dataclass(frozen=True)
class RunSource:
    """A dataset: its tables, and the settings that they were made with."""

    store: TableStore
    shards: tuple[str, ...]
    settings: Settings
    """The settings that the tables were made with: the recorded ones, and others from the file."""
    recorded: Mapping[str, Sequence[Any]]
    """Distinct recorded values of each setting, by dotted path; several if shards differ."""
    description: list[tuple[str, str]]
    """Name and value of the settings and models that determined the dataset, as text."""

    @property
    def name(self) -> str:
        return self.settings.name


def open_dataset(
    settings: Settings, store: TableStore | None = None, shards: Sequence[str] | None = None
) -> RunSource:
    """Open a dataset by its settings.

    Its manifests record the settings that it was made with; `settings` supplies the others. store:
    its tables; None: those under `settings.data_uri`. shards: None for all that have samples.
    Raises TableError if there are none.
    """
    store = store or TableStore(settings.data_uri, settings.corpus.name, settings.name)
    if shards is None:
        shards = store.shards(LONG_CONTEXT_SAMPLES)
    if not shards:
        raise TableError(
            f"{store.dataset_uri}: dataset {settings.name} has no samples; make some with "
            f"`entropylong run`, or materialize {LONG_CONTEXT_SAMPLES.name}"
        )
    recorded = RecordedSettings(store, shards)
    description = [
        ("dataset", settings.name),
        ("corpus", settings.corpus.name),
        ("shards", f"{len(shards):,}"),
    ]
    for values in (recorded.identities, recorded.values):
        description += [
            (name, as_text(without_secrets(distinct))) for name, distinct in values.items()
        ]
    return RunSource(
        store, tuple(shards), recorded.laid_over(settings), recorded.values, description
    )


def export_of(source: RunSource) -> str | None:
    """Return the version of the export of exactly the present data of these shards, or None."""
    store, name = source.store, LONG_CONTEXT_SAMPLES.name
    manifest = store.manifest(TRAINING_DATASET)
    if manifest is None:
        return None
    exported = manifest.determinants.get("inputs", {}).get(name)
    now = {
        shard: store.require(LONG_CONTEXT_SAMPLES, shard).data_version for shard in source.shards
    }
    return str(manifest.summary["version"]) if exported == now else None


def choose(source: RunSource) -> dict[str, str]:
    """Choose the roots of this dataset that the report shows. Returns id to reason."""
    with open_tables(source.store, source.shards) as session:
        return choose_roots(session)


def _interval(low: float, high: float, is_rough: bool, **_: float) -> str:
    note = f" ({ROUGH})" if is_rough else ""
    return f"{low:.2%} to {high:.2%}{note}"


def _headline(figures: Mapping[str, Any], rule: str) -> list[tuple[str, Any, str]]:
    """(name, value, kind) of the headline figures; kind: `count`, `share`, `number` or `text`."""
    distance, by_chance = figures["distance_tokens"], figures["false_acceptance"].get(rule, {})
    per_root = figures["dependencies_per_root"]
    interval = _interval(**by_chance) if by_chance else None
    return [
        ("samples", figures["samples"], "count"),
        ("tokens", figures["tokens"], "count"),
        ("roots scored", figures["roots_scored"], "count"),
        ("anchors", figures["anchors"], "count"),
        ("dependencies in samples", figures["dependencies"], "count"),
        *[
            (f"dependencies: {kind.replace('_', ' ')}", n, "count")
            for kind, n in figures["dependencies_by_kind"].items()
        ],
        ("dependencies per root, mean", per_root["mean"], "number"),
        *((name, text, "text") for name, text in spread_lines(figures["diversity"])),
        ("scored pairs accepted", figures["acceptance_rate"], "share"),
        ("false-acceptance rate", by_chance.get("rate"), "share"),
        ("… 95% interval", interval, "text"),
        ("mean ΔI of accepted pairs", figures["mean_gain"], "number"),
        ("mean ΔI* of accepted pairs", figures["mean_calibrated_gain"], "number"),
        ("mean surprisal drop (nats)", figures["mean_surprisal_drop_nats"], "number"),
        ("accepted, but surprisal rose", figures["accepted_with_surprisal_rise"], "share"),
        ("distance, median (tokens)", distance["median"], "count"),
        ("distance, 90th percentile (tokens)", distance["p90"], "count"),
        ("distance beyond 32K", distance["share_beyond_32k"], "share"),
        ("distance beyond 64K", distance["share_beyond_64k"], "share"),
        ("rejected as near-duplicates", figures["near_duplicates_refused"], "count"),
        *[(f"tokens: {role}", share, "share") for role, share in figures["share_by_role"].items()],
    ]


_KEY_FIGURES = (
    "samples",
    "tokens",
    "roots scored",
    "dependencies in samples",
    "dependencies per root, mean",
    "scored pairs accepted",
    "distance, median (tokens)",
)
"""Headline figures at the top of the page; the interval of the false-acceptance rate follows."""


def _key_figures(headline: list[tuple[str, Any, str]]) -> list[tuple[str, Any, str]]:
    key = [figure for figure in headline if figure[0] in _KEY_FIGURES]
    intervals = [value for name, value, _ in headline if name == "… 95% interval"]
    # A rate of zero would mislead without its interval.
    shown = [value.partition(" (")[0] for value in intervals if value]
    return key + [("false acceptance, 95% interval", value, "text") for value in shown]


def gather_run(
    source: RunSource, label: str, roots: dict[str, str], tokenizer_for: TokenizerFor
) -> tuple[dict[str, Any], dict[str, Rows]]:
    """Return what the page shows of a dataset, as JSON values, and the rows of its charts.

    roots: ids to show, of either dataset. tokenizer_for: loads the tokenizer of a scoring model.
    """
    tokenizer = tokenizer_for(source.settings.scoring)
    figures = dataset_figures(source.store, source.shards, source.settings)
    with open_tables(source.store, source.shards) as session:
        charts = distributions(session)
        steps = funnel(session)
        best = examples(session, source.store, tokenizer)
        shown, passages = root_details(session, roots, tokenizer)
        samples = sample_details(session, source.store, choose_samples(session), tokenizer)
    proof, proof_rows = gather_proof(source.store, source.shards, source.settings)
    sources = sorted(
        {root["source"] for root in shown}
        | {passage["source"] for passage in passages.values()}
        | {s["source"] for sample in samples for s in sample["segments"] if s["source"]}
    )
    limit = gain_limit(source.settings.verification)
    headline = _headline(figures, source.settings.verification.rule)
    page = {
        "label": label,
        "dataset": source.settings.name,
        "corpus": source.settings.corpus.name,
        "shards": len(source.shards),
        "export": export_of(source),
        "description": [(name, visible(value)) for name, value in source.description],
        "limit": str(limit) if limit else "",
        "rule": source.settings.verification.rule,
        "key": _key_figures(headline),
        "roles": figures["share_by_role"],
        "padding": padding_note(figures["samples"], figures["tokens_by_role"]),
        "figures": headline,
        "examples": best,
        "audits": audit_coverage(source.store, source.shards),
        "proof": [(name, visible(v) if isinstance(v, str) else v, kind) for name, v, kind in proof],
        "trial": trial_table(source.store),
        "natural": natural_section(source.store, source.shards, tokenizer),
        "funnel": [step.as_dict() for step in steps],
        "sources": sources,
        "roots": shown,
        "passages": passages,
        "samples": samples,
        "n_samples": figures["samples"],
        "n_roots": figures["roots_scored"],
    }
    return page, charts | proof_rows
