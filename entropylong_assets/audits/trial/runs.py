"""The runs of a trial: trains and evaluates them one after the other, and keeps each result.

    python -m entropylong_assets.audits.trial.runs PLAN.json --out RESULTS

RESULTS/results.jsonl has one line per run. A run that has its line is not run again, and an
interrupted one continues at its checkpoint, so that the same command resumes a killed trial.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from entropylong_assets.audits.trial.folder import TrialError, TrialFolder
from entropylong_assets.audits.trial.network import fastest_attention, rope_theta_of
from entropylong_assets.audits.trial.opened import Log, OpenedTrial
from entropylong_assets.audits.trial.plan import Plan, Run, read_plan, read_results
from entropylong_assets.audits.trial.training import Schedule
from entropylong_assets.audits.trial.training_settings import TrainingSettings
from entropylong_assets.stages.entropy.attention import cudnn_is_right_and_fast


class Runner:
    """Runs of one plan in one process: a model is loaded once, an arm uploaded once."""

    def __init__(self, plan: Plan, out: str | Path, log: Log = print, device: str = "") -> None:
        self.plan, self.out, self._log = plan, Path(out), log
        self.device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self._open: tuple[str, OpenedTrial] | None = None

    @property
    def results_file(self) -> Path:
        return self.out / "results.jsonl"

    def take_over(self, results: Iterable[Mapping[str, Any]]) -> None:
        """Keep results of runs of this plan that were made elsewhere; they are not run again."""
        planned = {self._key(run) for run in self.plan.runs}
        done = {row["key"] for row in read_results(self.results_file)}
        for result in results:
            if result["key"] in planned - done:
                self._keep(result)
                done.add(result["key"])

    def _keep(self, result: Mapping[str, Any]) -> None:
        self.out.mkdir(parents=True, exist_ok=True)
        with self.results_file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(result) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def open_runs(self) -> list[Run]:
        """The runs without a result. Raises TrialError if a folder is not a trial's."""
        for folder in {self._folder(run).path for run in self.plan.runs}:
            _ = TrialFolder(folder).facts  # raises if it is not one
        done = {row["key"] for row in read_results(self.results_file)}
        return [run for run in self.plan.runs if self._key(run) not in done]

    @property
    def step_tokens(self) -> int:
        """Tokens of an optimizer step of the plan's own folder and settings."""
        tokens = TrialFolder(self.plan.data).facts.sample_tokens
        return max(1, self.plan.settings.batch_tokens // tokens) * tokens

    def run(
        self,
        on_step: Callable[[int], None] = lambda _: None,
        on_result: Callable[[Mapping[str, Any]], None] = lambda _: None,
    ) -> int:
        """Run what has no result yet; returns the number of runs. Raises TrialError before the
        first one if an arm or its tokens make no run.

        on_step: called with the number of finished steps of a run. on_result: with each result.
        """
        self.out.mkdir(parents=True, exist_ok=True)
        open_runs = self.open_runs()
        self._refuse_impossible(open_runs)
        for number, run in enumerate(open_runs, 1):
            name = f"{run.arm}, seed {run.seed}, {run.tokens:,} tokens"
            self._log(f"run {number} of {len(open_runs)}: {name}")
            cudnn = cudnn_is_right_and_fast(torch.device(self.device))
            with fastest_attention() if cudnn else nullcontext():
                result = self._run(run, on_step)
            self._keep(result)
            on_result(result)
            self._checkpoint(run).unlink(missing_ok=True)
        return len(open_runs)

    def _folder(self, run: Run) -> TrialFolder:
        return TrialFolder(run.data or self.plan.data)

    def _settings(self, run: Run) -> TrainingSettings:
        return replace(self.plan.settings, **run.settings)

    def _refuse_impossible(self, runs: Sequence[Run]) -> None:
        known: dict[tuple[str, str], int] = {}
        for run in runs:
            folder = self._folder(run)
            place = (str(folder.path), run.arm)
            if run.tokens and place not in known:
                known[place] = len(folder.samples(run.arm))
            if run.tokens:
                try:
                    self._schedule(run, known[place], folder.facts.sample_tokens)
                except TrialError as error:
                    raise TrialError(f"run of arm {run.arm}: {error}") from None

    def _schedule(self, run: Run, samples: int, sample_tokens: int) -> Schedule:
        return Schedule.plan(samples, sample_tokens, run.tokens, run.seed, self._settings(run))

    def _key(self, run: Run) -> str:
        """Hash of all that determines the result of a run."""
        own = asdict(run) | {"save": "", "data": self._folder(run).identity}
        settings = asdict(self._settings(run))
        for name in ("micro_batch_tokens", "checkpoint_seconds", "log_steps"):
            settings.pop(name)
        shared = [
            self.plan.model,
            self.plan.rope_theta,
            self.plan.items,
            self.plan.short_window,
        ]
        text = json.dumps([own, settings, shared], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def _checkpoint(self, run: Run) -> Path:
        return self.out / "interrupted" / f"{self._key(run)}.pt"

    def _run(self, run: Run, on_step: Callable[[int], None]) -> dict[str, Any]:
        opened = self._opened(run)
        trainer = opened.trainer
        trainer.settings = self._settings(run)
        start = opened.weights(run.start) if run.start else None
        result: dict[str, Any] = {
            "key": self._key(run),
            "run": asdict(run),
            "settings": asdict(trainer.settings),
            "model": opened.reference,
            "rope_theta": rope_theta_of(opened.network),
            "sample_tokens": opened.facts.sample_tokens,
            "short_window": self.plan.short_window,
            "evaluation": opened.evaluation,
            "device": _device_name(self.device),
        }
        if run.tokens:
            rows = opened.rows(run.arm)
            schedule = self._schedule(run, len(rows), opened.facts.sample_tokens)
            trained = trainer.train(rows, schedule, self._checkpoint(run), on_step, start)
            result["training"] = asdict(trained)
        else:
            trainer.masters.reset(start)
        begun = time.monotonic()
        result["scores"] = opened.evaluate()
        result["evaluation_seconds"] = time.monotonic() - begun
        if run.save:
            opened.save(self.out / "checkpoints" / run.save)
        self._log(_summary(result))
        return result

    def _opened(self, run: Run) -> OpenedTrial:
        """The model and evaluation for a run's folder: the last one stays open."""
        place = str(self._folder(run).path)
        if self._open is None or self._open[0] != place:
            self._open = None
            self._open = (place, OpenedTrial(self._folder(run), self.plan, self.device, self._log))
        return self._open[1]


def _device_name(device: str) -> str:
    return torch.cuda.get_device_name() if device.startswith("cuda") else "CPU"


def _summary(result: Mapping[str, Any]) -> str:
    """One line of a run's means."""
    parts = []
    for name, measures in result["scores"].items():
        for measure in ("log_likelihood", "all", "key"):
            values = [v for v in measures.get(measure, []) if v is not None]
            if values:
                parts.append(f"{name} {measure} {sum(values) / len(values):.3f}")
    speed = ""
    if training := result.get("training"):
        speed = f"{training['tokens'] / max(training['seconds'], 1e-9):,.0f} tokens/s; "
    return f"{speed}evaluated in {result['evaluation_seconds']:.0f} s; " + ", ".join(parts)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Run the trainings of a plan.")
    parser.add_argument("plan", help="JSON file of the plan")
    parser.add_argument("--out", required=True, help="folder of results.jsonl and checkpoints")
    given = parser.parse_args(arguments)
    begun = time.monotonic()

    def log(line: str) -> None:
        print(f"{time.monotonic() - begun:7.0f} s  {line}", flush=True)

    try:
        Runner(read_plan(given.plan), given.out, log).run()
    except TrialError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
