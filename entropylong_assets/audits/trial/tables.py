"""Tables of the training trial, and the summary of its partition."""

from __future__ import annotations

import pyarrow as pa

from entropylong_assets.storage.schemas import BOOL, INT, TEXT, Summary, TableSet, column

_DOUBLE, _LONG = pa.float64(), pa.int64()
_ARM = column("arm", TEXT, "name of the arm in `trial.arms`")
_SETUP = column("setup", INT, "runs with the same number are compared, from 0")


class TrainingTrialSummary(Summary):
    """Counts of the partition of `training_trial`."""

    skipped: str = ""
    """Why there is no trial; else empty."""
    model: str = ""
    """The model that was trained."""
    device: str = ""
    """Where it was trained."""
    arms: int = 0
    """Arms that were trained."""
    runs: int = 0
    """Trainings: one per arm and seed."""
    learnt_tokens: int = 0
    """Tokens of all trainings."""
    training_seconds: float = 0.0
    """Time of all trainings, without the evaluation."""
    clear_differences: int = 0
    """Differences whose 95% interval does not contain zero."""
    differences: int = 0
    """All differences."""


TRAINING_TRIAL = TableSet(
    name="training_trial",
    scope="dataset",
    main="differences",
    summary=TrainingTrialSummary,
    schemas={
        "differences": pa.schema(
            [
                _SETUP,
                column("tokens", _LONG, "tokens per run", "token"),
                column("sample_tokens", INT, "length of the samples", "token"),
                _ARM,
                column("rival", TEXT, "arm that it is compared with, or `start`: without training"),
                column("measure", TEXT, "key of the measure, e.g. `short/all`"),
                column("name", TEXT, "the measure in words"),
                column("higher_is_better", BOOL, "whether a positive difference is better"),
                column("value", _DOUBLE, "mean of the arm less the rival", "", True),
                column("low", _DOUBLE, "lower end of its 95% interval", "", True),
                column("high", _DOUBLE, "upper end of its 95% interval", "", True),
                column("seeds", INT, "seeds that both have"),
                column("items", INT, "items or documents that both have"),
            ]
        ),
        "runs": pa.schema(
            [
                _SETUP,
                _ARM,
                column("seed", INT, "of the order of samples"),
                column("tokens", _LONG, "tokens to learn; 0: the model as it starts", "token"),
                column("sample_tokens", INT, "length of the samples", "token"),
                column("steps", INT, "optimizer steps"),
                column("learnt_tokens", _LONG, "tokens of all steps", "token"),
                column("repeats", _DOUBLE, "mean number of times that a sample was learnt"),
                column("last_loss", _DOUBLE, "mean loss of the last steps", "nat", True),
                column("seconds", _DOUBLE, "time of the training", "second"),
                column("device", TEXT, "where it was trained"),
                column("result", TEXT, "the run's line of results.jsonl, with all scores"),
            ]
        ),
        "arms": pa.schema(
            [
                _ARM,
                column("recipe", TEXT, "recipe; null: what the rule verified", "", True),
                column("rule", TEXT, "rule in force"),
                column("layout", TEXT, "as `samples.layout`"),
                column("fill", TEXT, "as `samples.fill`"),
                column("loss_weights", TEXT, "as `export.loss_weights`"),
                column("samples", INT, "samples that were packed"),
                column("learnt_tokens", _LONG, "tokens of them that can be learnt", "token"),
                column("roots", INT, "roots in them"),
                column("dependencies", INT, "verified dependencies in them"),
                column("median_distance", _DOUBLE, "of the dependencies", "token", True),
            ]
        ),
    },
)
