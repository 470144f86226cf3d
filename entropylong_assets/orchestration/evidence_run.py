"""`make evidence`: updates pipeline, audits and planted facts, then writes the page."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import dagster as dg

from entropylong_assets.audits.audit_tables import AuditTables
from entropylong_assets.audits.evidence import TRIAL_PAGE, write_evidence
from entropylong_assets.audits.planted import measure_facts, scored_pairs, values_of
from entropylong_assets.audits.planted_facts import plant, write_corpus
from entropylong_assets.audits.tables import CROSS_MODEL_AUDIT, LONG_RANGE_AUDIT
from entropylong_assets.orchestration.local_run import (
    register_shards,
    run_audits,
    run_project,
)
from entropylong_assets.project import Project, make_project, open_store
from entropylong_assets.report.run import open_dataset
from entropylong_assets.settings.section import Settings
from entropylong_assets.stages.entropy.model import load_tokenizer
from entropylong_assets.stages.verification.registry import evaluated_rules
from entropylong_assets.stages.verification.tables import VERIFIED_DEPENDENCIES

FACTS = 108
PLANTED_ALPHA = 1.5
"""Lower α for the planted facts: at the dataset's own α, most of them may not be anchors."""


def planted_project(settings: Settings) -> Project:
    """The same models and rule over the planted corpus, under `<dataset>/planted`."""
    own = settings.model_dump(
        mode="json", exclude={"name", "corpus", "data_uri", "roots", "seed", "trial"}
    )
    alpha = min(settings.entropy.alpha, PLANTED_ALPHA)
    # Anchors are chosen by entropy: the audit measures whether that finds the planted facts.
    own["entropy"] |= {"min_anchor_position": 16, "alpha": alpha, "anchors": "entropy"}
    own["samples"] |= {"tokens": 4096}
    return make_project(
        {
            **own,
            "data_uri": f"{open_store(settings).dataset_uri}/planted",
            "seed": settings.seed,
            "corpus": {
                "sources": [{"name": "planted", "uri": planted_uri(settings)}],
                "min_chars": 20,
            },
            "embedding": settings.corpus.embedding.model_dump(mode="json"),
            # These lengths make roots of the documents that need a fact, and of no others.
            "roots": {"fraction": 1.0, "min_tokens": 100, "max_tokens": 512},
        }
    )


def make_evidence(
    project: Project,
    settings: Settings,
    instance: dg.DagsterInstance,
    file: str,
    report: Callable[[str], None] = lambda _: None,
) -> None:
    """Write the page to `file` after materializing what is stale. Raises RunError."""
    start = time.monotonic()
    register_shards(settings.corpus, instance)
    run_project(project, instance, datasets=[settings.name])
    report(f"pipeline: {time.monotonic() - start:.0f} s")
    run_audits(project, settings, instance)
    report(f"audits: {time.monotonic() - start:.0f} s")
    _run_planted(settings)
    report(f"planted facts: {time.monotonic() - start:.0f} s")
    has_trial = (Path(file).parent / TRIAL_PAGE).exists()
    page = evidence_page(settings, time.monotonic() - start, TRIAL_PAGE if has_trial else "")
    Path(file).parent.mkdir(parents=True, exist_ok=True)
    Path(file).write_text(page, encoding="utf-8")


def planted_uri(settings: Settings) -> str:
    return f"{open_store(settings).dataset_uri}/planted-corpus/facts.jsonl"


def _run_planted(settings: Settings) -> None:
    write_corpus(plant(FACTS, settings.seed), planted_uri(settings))
    project = planted_project(settings)
    with dg.DagsterInstance.ephemeral() as other:
        # In an instance of its own, because its shards are no partitions of the corpus.
        register_shards(project.corpus, other)
        run_project(project, other, with_export=False)


def evidence_page(settings: Settings, seconds: float, trial_page: str = "") -> str:
    """The page from the tables as they are.

    seconds: how long making them took. trial_page: as for `write_evidence`.
    """
    facts, planted = plant(FACTS, settings.seed), planted_project(settings).dataset
    store = open_store(planted)
    shards = store.shards(VERIFIED_DEPENDENCIES)
    values = values_of(store, shards, load_tokenizer(settings.scoring), facts)
    figures = measure_facts(
        scored_pairs(store, shards, facts, values),
        values,
        [settings.entropy.alpha, planted.entropy.alpha],
        list(evaluated_rules(planted.verification)),
    )
    dataset = open_dataset(settings, open_store(settings))
    audited = dataset.store.shards(LONG_RANGE_AUDIT)
    models = [
        dataset.store.summary(CROSS_MODEL_AUDIT, shard).second_model
        for shard in dataset.store.shards(CROSS_MODEL_AUDIT)
    ]
    return write_evidence(
        AuditTables(dataset.store, audited, dataset.settings),
        date=datetime.now(UTC).date().isoformat(),
        description=dataset.description,
        second_model=next(filter(None, models), ""),
        planted=figures,
        seconds=seconds,
        trial_page=trial_page,
    )
