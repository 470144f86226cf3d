"""The stage `training_trial`: a small model trained on each arm's samples, as an audit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import polars as pl

from entropylong_assets.audits.trial.settings import TrialSettings
from entropylong_assets.audits.trial.tables import TRAINING_TRIAL, TrainingTrialSummary
from entropylong_assets.settings.cluster import GPU_STEP
from entropylong_assets.settings.section import Settings, fingerprint
from entropylong_assets.stages.embeddings.tables import EMBEDDING_INDEX
from entropylong_assets.stages.entropy.stage import ENTROPY_SCORES_STAGE
from entropylong_assets.stages.natural_documents.tables import NATURAL_DOCUMENTS
from entropylong_assets.stages.retrieval.tables import CANDIDATE_CONTEXTS
from entropylong_assets.stages.samples.selection import needs_pool
from entropylong_assets.stages.samples.stage import LONG_CONTEXT_SAMPLES_STAGE
from entropylong_assets.stages.stage import Check, Job, Markdown, Partition, Result, Stage, Step
from entropylong_assets.stages.verification.stage import VERIFIED_DEPENDENCIES_STAGE
from entropylong_assets.stages.verification.tables import VERIFIED_DEPENDENCIES
from entropylong_assets.storage.checkpoints import Batch
from entropylong_assets.storage.duck import View
from entropylong_assets.storage.folders import locked, temporary_folder

_NO_ARMS = "trial.arms names no arm; name the arms to compare to have this audit"
_OF_CHECKS = ("max_short_loss",)


def _arm_settings(settings: Settings) -> list[Settings]:
    """The dataset's settings under each arm. Raises TrialError."""
    from entropylong_assets.audits.trial.arms import settings_of

    trial = settings.trial
    return [settings_of(arm, settings, trial.sample_tokens) for arm in trial.arms.values()]


def _determined_by(settings: Settings) -> Sequence[str]:
    if not settings.trial.arms:
        return ("trial.arms",)
    # An arm is made by the stage of samples; what it always replaces does not count.
    of_arms = {
        path
        for of_arm in _arm_settings(settings)
        for path in LONG_CONTEXT_SAMPLES_STAGE.determined_by(of_arm)
    }
    own = {f"trial.{name}" for name in TrialSettings.model_fields if name not in _OF_CHECKS}
    return sorted(of_arms - {"samples.recipe", "samples.tokens"} | own)


def _identify(partition: Partition) -> Mapping[str, Any]:
    from entropylong_assets.audits.trial.held_out import texts_version
    from entropylong_assets.stages.embeddings.embedder import query_identity
    from entropylong_assets.stages.entropy.model import model_identity

    settings, store = partition.settings, partition.store
    if not settings.trial.arms:
        return {}
    found: dict[str, Any] = {"model": model_identity(settings.scoring)}
    if any(map(needs_pool, _arm_settings(settings))):
        shards = store.shards(CANDIDATE_CONTEXTS)
        searched = {store.summary(CANDIDATE_CONTEXTS, shard).index for shard in shards}
        found |= {**query_identity(partition.corpus.embedding), "indexes": sorted(searched)}
    parts = {p for arm in settings.trial.arms.values() for p, s in (arm.mixture or {}).items() if s}
    if "natural" in parts:
        shards = store.shards(NATURAL_DOCUMENTS)
        found["natural"] = {s: store.require(NATURAL_DOCUMENTS, s).data_version for s in shards}
    if "short" in parts:  # all documents in the index that no sample has
        found["index"] = store.require(EMBEDDING_INDEX).data_version
    if settings.trial.evaluation:
        found["evaluation"] = texts_version(settings.trial.evaluation, store)
    return found


def _validate(settings: Settings) -> None:
    """Reject arms that can't be made, and samples that can't hold a root."""
    trial = settings.trial
    if trial.arms and settings.roots.max_tokens >= trial.sample_tokens:
        raise ValueError(
            f"trial.sample_tokens ({trial.sample_tokens}) must be larger than the longest root, "
            f"roots.max_tokens ({settings.roots.max_tokens})"
        )
    _arm_settings(settings)


def _skip_reason(partition: Partition) -> str | None:
    return None if partition.settings.trial.arms else _NO_ARMS


@contextmanager
def _work_folder(step: Step, key: str) -> Iterator[Path]:
    """The folder of this trial's samples, results and interrupted runs.

    Beside the partition if that is on a local disk, where publishing removes it; else in this
    machine's temporary folder, where it stays until another run of the same trial ends.
    """
    store = step.store
    parent = Path(step.checkpoints(key).folder) if store.is_local else temporary_folder()
    folder = parent / f"trial-{key}"
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder):
        yield folder


def _compute(step: Step) -> Result:
    from entropylong_assets.audits.trial.folder import TrialFolder
    from entropylong_assets.audits.trial.page import trial_page
    from entropylong_assets.audits.trial.plan import read_plan, read_results
    from entropylong_assets.audits.trial.prepare import prepare
    from entropylong_assets.audits.trial.record import stored_results, write_trial
    from entropylong_assets.audits.trial.runs import Runner

    if not step.settings.trial.arms:
        return Result(TrainingTrialSummary(skipped=_NO_ARMS))
    key = fingerprint(step.determinants)
    finished = step.checkpoints(key)
    with _work_folder(step, key) as folder:
        if not (folder / "trial.json").exists():
            shards = step.input_shards(VERIFIED_DEPENDENCIES)
            prepare(step.settings, step.store, folder, shards, log=step.log)
        plan = read_plan(folder / "plan.json")
        device = step.settings.scoring.device
        runner = Runner(plan, folder / "results", step.log, "" if device == "auto" else device)
        kept = [finished.load(number) for number in range(len(plan.runs))]
        runner.take_over([batch.figures for batch in kept if batch])
        runner.take_over(stored_results(step.store))
        open_runs = runner.open_runs()
        step.progress.total = sum(run.tokens for run in open_runs)
        places = {(run.arm, run.seed, run.tokens): n for n, run in enumerate(plan.runs)}
        step_tokens = runner.step_tokens
        runner.run(
            lambda _: step.progress(step_tokens),
            lambda result: finished.save(_place(places, result), Batch({}, result)),
        )
        facts, results = TrialFolder(folder).facts, read_results(runner.results_file)
    summary, differences = write_trial(step.writer, facts, results)
    return Result(summary, _metadata(differences, trial_page(facts, results)))


def _place(places: Mapping[tuple[str, int, int], int], result: Mapping[str, Any]) -> int:
    run = result["run"]
    return places[run["arm"], run["seed"], run["tokens"]]


def _metadata(differences: pl.DataFrame, page: str) -> dict[str, Any]:
    from entropylong_assets.audits.trial.record import headline
    from entropylong_assets.stages.charts import intervals

    metadata: dict[str, Any] = {"preview": differences, "page": Markdown(page)}
    for measure, rows in headline(differences).group_by("name", maintain_order=True):
        named = rows.select("value", "low", "high", name="arm").to_dicts()
        label = f"{measure[0]}, less {rows['rival'][0]}"
        metadata[label] = Markdown(intervals(named, label))
    return metadata


def _planned(partition: Partition) -> pl.DataFrame:
    """Arms and seeds that the partition was made to train: arm, seed."""
    made = partition.store.require(TRAINING_TRIAL).determinants.get("settings", {})
    arms, seeds = made.get("trial.arms", {}), made.get("trial.seeds", [])
    rows = [{"arm": arm, "seed": seed} for arm in arms for seed in seeds]
    return pl.DataFrame(rows, schema={"arm": pl.String, "seed": pl.Int64})


def _views(partition: Partition) -> Mapping[str, View]:
    return {
        "planned": lambda: _planned(partition),
        **{n: (TRAINING_TRIAL, [partition.shard], n) for n in ("runs", "differences")},
    }


def _check_parameters(partition: Partition) -> Mapping[str, Any]:
    return {"max_short_loss": partition.settings.trial.max_short_loss}


TRAINING_TRIAL_STAGE = Stage(
    tables=TRAINING_TRIAL,
    description="""A small model, trained further on the samples of each arm, and what it learnt.

All arms learn the same number of tokens in the same order of sample numbers, and all models are
evaluated on the same held-out items and documents. The tables hold every difference with its
interval; the metadata has the whole page. Finished runs are kept if the step is stopped. Skipped if
`trial.arms` names no arm. `entropylong trial` makes the same in a folder.""",
    compute=_compute,
    inputs=(VERIFIED_DEPENDENCIES_STAGE, ENTROPY_SCORES_STAGE),
    partitioned=False,
    sections={"trial": TrialSettings},
    determined_by=_determined_by,
    identify=_identify,
    validate=_validate,
    skip_reason=_skip_reason,
    code_version=1,
    check_folder=Path(__file__).parent / "checks",
    checks=(
        Check("every_run_present", "Every arm was trained with every seed.", blocking=False),
        Check(
            "arms_learnt_equally",
            "Runs that are compared learnt equally many tokens, under the same seeds.",
            blocking=False,
        ),
        Check(
            "intervals_sound",
            "Differences are finite and inside their intervals.",
            blocking=False,
        ),
        Check(
            "short_documents_kept",
            "No arm's loss on short documents rose by more than `trial.max_short_loss`.",
            blocking=False,
            warns=True,
        ),
    ),
    views=_views,
    check_parameters=_check_parameters,
    job=Job("trial", "Train a small model on the samples of each arm, and compare.", hours=24),
    resources=GPU_STEP,
    pool="gpu",
    unit="tokens",
    kinds=frozenset({"pytorch", "parquet"}),
    group="audits",
)
