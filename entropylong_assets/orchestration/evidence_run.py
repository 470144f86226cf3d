"""`make evidence`: pipeline, audits and planted truth where they are not current, then the page."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import dagster as dg

from entropylong_assets.audits.audit_tables import Audited
from entropylong_assets.audits.evidence import write_evidence
from entropylong_assets.audits.planted import measure, plant, shortfall, values_of, write_corpus
from entropylong_assets.orchestration.audit_run import run_audits
from entropylong_assets.orchestration.local_run import register_shards, run_pipeline
from entropylong_assets.orchestration.versioning import stays_current
from entropylong_assets.report.run import open_run
from entropylong_assets.settings.model import Settings, make_settings
from entropylong_assets.stages.entropy.model import load_tokenizer
from entropylong_assets.storage.tables import TableStore

FACTS = 12
PLANTED_ALPHA = 1.5
"""Planted facts are looked at with more anchors too: the settings' α may leave most of them out."""


def planted_settings(settings: Settings) -> Settings:
    """The same models and rule over the planted corpus, under `<data_uri>/planted`."""
    values = settings.model_dump()
    values["data_uri"] = f"{settings.data_uri}/planted"
    values["corpus"] |= {
        "sources": [{"name": "planted", "uri": planted_uri(settings)}],
        "root_fraction": 1.0,
        "root_min_tokens": 100,  # the needing documents alone
        "root_max_tokens": 512,
        "min_chars": 20,
    }
    alpha = min(settings.entropy.alpha, PLANTED_ALPHA)
    values["entropy"] |= {"min_anchor_position": 16, "alpha": alpha}
    values["samples"] |= {"tokens": 4096}
    return make_settings(values.pop("profile"), values)


def make_evidence(
    settings: Settings,
    there: dg.DagsterInstance,
    file: str,
    tell: Callable[[str], None] = lambda _: None,
) -> None:
    """Writes the page to `file`. Whatever is current is not made again. Raises RunError."""
    start = time.monotonic()
    run_pipeline(settings, register_shards(settings, there), there)
    tell(f"pipeline: {time.monotonic() - start:.0f} s")
    run_audits(settings, there)
    tell(f"audits: {time.monotonic() - start:.0f} s")
    _run_planted(settings)
    tell(f"planted truth: {time.monotonic() - start:.0f} s")
    page = evidence_page(settings, time.monotonic() - start)
    Path(file).parent.mkdir(parents=True, exist_ok=True)
    Path(file).write_text(page, encoding="utf-8")


def planted_uri(settings: Settings) -> str:
    return f"{settings.data_uri}/planted-corpus/facts.jsonl"


def _run_planted(settings: Settings) -> None:
    planted = planted_settings(settings)
    write_corpus(plant(FACTS, settings.seed), planted_uri(settings))
    store = TableStore(planted.data_uri)
    with dg.DagsterInstance.ephemeral() as other:
        # Of its own: its shards are no partitions of the corpus.
        plan = register_shards(planted, other)
        if not all(_is_there(planted, store, shard.key) for shard in plan.shards):
            run_pipeline(planted, plan, other)


def evidence_page(settings: Settings, seconds: float) -> str:
    """The page from the tables as they are. seconds: what making them took."""
    facts, planted = plant(FACTS, settings.seed), planted_settings(settings)
    store = TableStore(planted.data_uri)
    shards = store.shards("verified_dependencies")
    values = values_of(store, shards, load_tokenizer(settings.scoring), facts)
    alpha = settings.entropy.alpha
    alphas = sorted({alpha, planted.entropy.alpha}, reverse=True)
    made = open_run(settings)
    audited = made.store.shards("long_range_audit")
    summaries = [made.store.require("cross_model_audit", shard).summary for shard in audited]
    return write_evidence(
        Audited(made.store, audited, made.settings),
        date=datetime.now(UTC).date().isoformat(),
        description=made.description,
        second_model=next((s["second_model"] for s in summaries if "second_model" in s), ""),
        planted=[row for at in alphas for row in measure(store, shards, facts, values, at)],
        shortfall=shortfall(values, alpha),
        seconds=seconds,
    )


def _is_there(settings: Settings, store: TableStore, shard: str) -> bool:
    stages = ("corpus_documents", "entropy_scores", "candidate_contexts", "verified_dependencies")
    return all(stays_current(asset, shard, settings, store) for asset in stages)
