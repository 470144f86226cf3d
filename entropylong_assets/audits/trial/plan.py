"""What a trial runs, and the results that it keeps.

A plan is a JSON file:

    {"data": "trial", "model": "model-folder",
     "settings": {"learning_rate": 2e-4, "batch_tokens": 131072},
     "compile": true,
     "runs": [{"arm": "random", "seed": 0, "tokens": 0},
              {"arm": "random", "seed": 0, "tokens": 15000000},
              {"arm": "calibrated", "seed": 0, "tokens": 15000000, "save": "calibrated-0"}]}

A run without tokens evaluates the model as it starts. A run can set `data` (a folder with another
length), `start` (first weights: a folder that `save` wrote), `settings` (for this run) and `save`.
The result of each run is one line of `results.jsonl`; a run that has its line is not run again,
and an interrupted one continues at its checkpoint.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from entropylong_assets.audits.trial.folder import TrialError
from entropylong_assets.audits.trial.training_settings import TrainingSettings


@dataclass(frozen=True, kw_only=True)
class Run:
    """One training: an arm's samples in the order of a seed."""

    arm: str
    seed: int = 0
    tokens: int = 0
    """Tokens to learn; 0: the model as it starts is evaluated."""
    data: str = ""
    """Folder of the trial, if not the plan's."""
    start: str = ""
    """Folder of the first weights, if not the model's."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Fields of TrainingSettings that differ from the plan's."""
    save: str = ""
    """Name of the folder under `checkpoints` for the trained model; empty: it is not kept."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    data: str
    runs: tuple[Run, ...]
    model: str = ""
    """The model to train; empty: that of the trial's folder."""
    rope_theta: float | None = None
    """Rotary base; None: raised by the length (`network.raised_base`)."""
    settings: TrainingSettings = field(default_factory=TrainingSettings)
    compile: bool = False
    """Compile the layers, on CUDA."""
    items: int | None = None
    """Number of items per task and length that are scored; None: all."""
    short_window: int = 1024
    """The short context of key tokens (tokens)."""
    dtype: str = ""
    """`bfloat16` or `float32`; empty: bfloat16 on CUDA."""


def read_plan(file: str | Path) -> Plan:
    """Raises TrialError if the file is not a plan."""
    try:
        values = json.loads(Path(file).read_text(encoding="utf-8"))
        return make_plan(values)
    except (OSError, ValueError, TypeError) as error:
        raise TrialError(f"plan {file}: {error}; see the fields of Plan and Run") from None


def make_plan(values: Mapping[str, Any]) -> Plan:
    """Raises TypeError for a field that does not exist."""
    own = dict(values)
    own["settings"] = TrainingSettings(**own.get("settings", {}))
    own["runs"] = tuple(Run(**run) for run in own["runs"])
    return Plan(**own)


def read_results(file: str | Path) -> list[dict[str, Any]]:
    """Results in the order in which they were made; a last line cut by a kill is left out."""
    path = Path(file)
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")
    whole, cut = lines[:-1], lines[-1]
    if cut:  # take it off, so that the next line does not continue it
        path.write_text("".join(line + "\n" for line in whole), encoding="utf-8")
    return [json.loads(line) for line in whole if line]
