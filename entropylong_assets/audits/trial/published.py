"""A trial's results beside the tables of its dataset, where the report finds them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from entropylong_assets.audits.audit_tables import as_row, number
from entropylong_assets.audits.trial.folder import TrialFacts
from entropylong_assets.audits.trial.measures import (
    Measure,
    Result,
    by_arm,
    measures_of,
    paired_difference,
    setup_of,
)
from entropylong_assets.storage.tables import TableStore

FOLDER = "training_trial"


def _path(store: TableStore) -> str:
    return f"{store.root}/{store.dataset}/{FOLDER}/results.json"


def publish(store: TableStore, facts: TrialFacts, results: Sequence[Result]) -> None:
    """Write the facts and results of a trial, in place of those of an earlier one."""
    content = {"facts": asdict(facts), "results": list(results)}
    store.put(_path(store), json.dumps(content).encode())


def published(store: TableStore) -> bytes | None:
    """What `publish` wrote, or None."""
    try:
        content: bytes = store.fs.cat_file(_path(store))
    except FileNotFoundError:
        return None
    return content


def identity(store: TableStore) -> str | None:
    """Hash of the published results; None without any."""
    content = published(store)
    return None if content is None else hashlib.sha256(content).hexdigest()[:16]


def trial_figures(store: TableStore, rival: str = "random") -> list[tuple[str, Any, str]]:
    """(name, value, kind) for the report: every arm less the rival, under the setup with the most
    tokens, for the longest answers, the key tokens and the short documents. Empty without results.
    """
    content = published(store)
    results = json.loads(content)["results"] if content else []
    trained = [result for result in results if result["run"]["tokens"]]
    if not trained:
        return []
    largest = max((setup_of(r) for r in trained), key=lambda s: (s.tokens, s.sample_tokens))
    own = [result for result in trained if setup_of(result) == largest]
    arms, measures = by_arm(own), _headline(measures_of(own))
    figures: list[tuple[str, Any, str]] = [
        ("trained models: tokens per run", largest.tokens, "count"),
        ("trained models: tokens per sample", largest.sample_tokens, "count"),
    ]
    if rival not in arms:
        return figures
    return figures + [
        (f"trained on {arm} less {rival}: {measure.name}", _difference(arms, arm, rival, measure),
         "text")
        for arm in arms
        if arm != rival
        for measure in measures
    ]  # fmt: skip


def _headline(measures: Sequence[Measure]) -> list[Measure]:
    answers = [m for m in measures if m.key.startswith("answers-")][-1:]
    return answers + [m for m in measures if m.key in ("natural/key", "short/all")]


def _difference(
    arms: Mapping[str, Sequence[Result]], arm: str, rival: str, measure: Measure
) -> str:
    mean = paired_difference(arms[arm], arms[rival], measure.key)
    return number(as_row(mean), "{:+.4f}")
