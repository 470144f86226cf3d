"""A trial's results as the tables of `training_trial`, whoever made them: asset or command."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import polars as pl

from entropylong_assets.audits.root_sample import Mean
from entropylong_assets.audits.trial.folder import TrialFacts
from entropylong_assets.audits.trial.measures import (
    Measure,
    Result,
    Setup,
    by_arm,
    measures_of,
    paired_difference,
    setup_of,
)
from entropylong_assets.audits.trial.tables import TRAINING_TRIAL, TrainingTrialSummary
from entropylong_assets.settings.section import fingerprint
from entropylong_assets.storage.partition_writer import RowWriter
from entropylong_assets.storage.tables import WHOLE, TableStore

RIVALS = ("random", "no_verify")
"""Arms that every other is compared with."""
START = "start"
"""The model as it starts, as a rival."""

_DETERMINANTS = "determinants.json"


def stored_results(store: TableStore) -> list[Result]:
    """Results of the trial that was published last; empty without one."""
    if store.manifest(TRAINING_TRIAL) is None:
        return []
    return [json.loads(line) for line in store.read(TRAINING_TRIAL, WHOLE, "runs")["result"]]


def setups_of(results: Sequence[Result]) -> dict[Setup, list[Result]]:
    """The trained results of each setup, ordered by length and tokens."""
    trained = [result for result in results if result["run"]["tokens"]]
    found: dict[Setup, list[Result]] = {}
    for result in trained:
        found.setdefault(setup_of(result), []).append(result)
    return dict(sorted(found.items(), key=lambda entry: (entry[0].sample_tokens, entry[0].tokens)))


def start_of(setup: Setup, results: Sequence[Result]) -> list[Result]:
    """Results of the model as it starts, under a setup: at most one."""
    start = [result for result in results if not result["run"]["tokens"]]
    return [result for result in start if setup_of(result).is_of_same_start(setup)][-1:]


def compared(
    arms: Mapping[str, Sequence[Result]], start: Sequence[Result], measures: Sequence[Measure]
) -> Iterator[tuple[str, str, Measure, Mean]]:
    """Arm, rival, measure and difference of all arms under one setup.

    The model as it starts is compared under every seed of the arm.
    """
    for rival in (*RIVALS, START):
        for arm, results in arms.items():
            theirs: Sequence[Result] = (
                arms.get(rival, ()) if rival != START else _every(start, results)
            )
            if arm == rival or not theirs:
                continue
            for measure in measures:
                yield arm, rival, measure, paired_difference(results, theirs, measure.key)


def _every(start: Sequence[Result], results: Sequence[Result]) -> list[Result]:
    seeds = sorted({result["run"]["seed"] for result in results})
    return [{**one, "run": {**one["run"], "seed": seed}} for one in start for seed in seeds]


def write_trial(
    writer: RowWriter, facts: TrialFacts, results: Sequence[Result]
) -> tuple[TrainingTrialSummary, pl.DataFrame]:
    """Write the tables; returns the summary and the differences."""
    setups = setups_of(results)
    differences, runs = [], []
    for number, (setup, own) in enumerate(setups.items()):
        arms, start = by_arm(own), start_of(setup, results)
        differences += [
            {
                "setup": number,
                "tokens": setup.tokens,
                "sample_tokens": setup.sample_tokens,
                "arm": arm,
                "rival": rival,
                "measure": measure.key,
                "name": measure.name,
                "higher_is_better": measure.higher_is_better,
                "value": mean.value,
                "low": mean.low,
                "high": mean.high,
                "seeds": mean.trials // max(1, mean.clusters),
                "items": mean.clusters,
            }
            for arm, rival, measure, mean in compared(arms, start, measures_of(own))
        ]
        runs += [_run_row(number, result) for result in chain(start, *arms.values())]
    rows = [{"arm": name, **figures} for name, figures in facts.arms.items()]
    frame = pl.DataFrame(differences, schema=pl.Schema(TRAINING_TRIAL.schemas["differences"]))
    writer.append("differences", frame)
    writer.append("runs", runs)
    writer.append("arms", rows)
    trained = [row for row in runs if row["tokens"]]
    clear = frame.filter((pl.col("low") > 0) | (pl.col("high") < 0))
    summary = TrainingTrialSummary(
        model=str(results[0]["model"]),
        device=", ".join(sorted({row["device"] for row in runs})),
        arms=len({row["arm"] for row in trained}),
        runs=len(trained),
        learnt_tokens=sum(row["learnt_tokens"] for row in trained),
        training_seconds=sum(row["seconds"] for row in trained),
        clear_differences=len(clear),
        differences=len(frame),
    )
    return summary, frame


def _run_row(setup: int, result: Result) -> dict[str, Any]:
    run, training = result["run"], result.get("training", {})
    return {
        "setup": setup,
        **{name: run[name] for name in ("arm", "seed", "tokens")},
        "sample_tokens": result["sample_tokens"],
        "steps": training.get("steps", 0),
        "learnt_tokens": training.get("tokens", 0),
        "repeats": training.get("repeats", 0.0),
        "last_loss": (training.get("losses") or [None])[-1],
        "seconds": training.get("seconds", 0.0),
        "device": result["device"],
        "result": json.dumps(result),
    }


def headline(differences: pl.DataFrame) -> pl.DataFrame:
    """What the report shows first: under the setup with the most tokens, every arm less the first
    rival of which there is an arm, for the longest answers, key tokens and short documents.
    """
    trained = differences.filter(pl.col("rival") != START)
    largest = trained.sort("tokens", "sample_tokens", "setup")["setup"].tail(1)
    own = trained.filter(pl.col("setup").is_in(largest.implode()))
    rival = own["rival"].head(1)
    answers = own.filter(pl.col("measure").str.starts_with("answers-"))["measure"].tail(1)
    shown = [*answers, "natural/key", "short/all"]
    return own.filter(pl.col("rival").is_in(rival.implode()) & pl.col("measure").is_in(shown)).sort(
        pl.col("measure").replace_strict(shown, range(len(shown))), maintain_order=True
    )


def remember_determinants(folder: str | Path, made_from: Mapping[str, Any]) -> None:
    """Keep what determines the samples of a trial's folder, for `publish`."""
    (Path(folder) / _DETERMINANTS).write_text(json.dumps(made_from), encoding="utf-8")


def determinants_of(folder: str | Path) -> dict[str, Any] | None:
    """What determines the samples of a folder; None if its preparation did not keep it."""
    try:
        found: dict[str, Any] = json.loads((Path(folder) / _DETERMINANTS).read_text("utf-8"))
    except FileNotFoundError:
        return None
    return found


def publish(
    store: TableStore,
    made_from: Mapping[str, Any],
    facts: TrialFacts,
    results: Sequence[Result],
) -> None:
    """Publish a trial that was run outside its asset as the asset's partition.

    made_from: its determinants, when its samples were packed.
    """
    with store.write(
        TRAINING_TRIAL, WHOLE, fingerprint=fingerprint(made_from), determinants=dict(made_from)
    ) as writer:
        writer.summary = write_trial(writer, facts, results)[0].model_dump(mode="json")
