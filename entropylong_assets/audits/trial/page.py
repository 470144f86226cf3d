"""docs/training-trial.md: what the trial found, whatever it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any

from entropylong_assets.audits.audit_tables import as_row, number, recipe_order, table
from entropylong_assets.audits.root_sample import Mean
from entropylong_assets.audits.trial.folder import TrialError, TrialFacts
from entropylong_assets.audits.trial.measures import (
    Measure,
    Result,
    Setup,
    by_arm,
    grid,
    measures_of,
    paired_difference,
    smallest_found,
    task_lengths,
)
from entropylong_assets.audits.trial.record import START, compared, setups_of, start_of
from entropylong_assets.audits.trial.tasks import TASKS

PAPER_ORDER = ("entropylong", "no_verify", "quest", "random")
"""From best to worst in the paper."""

_PAGE = """# Training trial

Written by `entropylong trial` on {date}. A small model is trained further on the samples of each
arm, with the same number of tokens, order of sample numbers, learning rate and length. Then all
models are evaluated on the same items and documents. "As it starts" is the model before this
training. It is the scoring model of the dataset:
{model}.

Intervals are 95% intervals of differences, paired by item and seed. They treat items and seeds as
random samples; with one seed, they are over the items alone.

{setups}
## Samples of the arms

An arm is a recipe, or a recipe with other settings. All are packed from the same stored tables.

{arms}
## How it was measured

- **Answers**: synthetic tasks after RULER ({tasks}), in held-out text of the corpus. The
  figure is the mean log-likelihood per token of the true answer. The percentage beside it is the
  share of answers in which every token is the likeliest one given the tokens before it. Nothing is
  generated. RULER's questions are left out, because their texts can't be shipped.
- **Loss on long documents**: whole held-out documents. *Key tokens* are those of LongPPL: the model
  as it starts predicts them better by more than 2 nats given the whole text than given its last
  {short_window} tokens, with a loss under 2 nats. *Needed from n back*: the token and the one
  before it last occurred together n or more tokens ago.
- **Gain of the long context**: loss given the last {short_window} tokens less the loss given all.
- **Held-out text**: {decontamination}

## Limitations

- One small model and one corpus. A difference that is not shown here can exist at more tokens or in
  a larger model, and the other way round.
- Synthetic tasks ask for copies; they don't show whether a dependency is understood.
"""

_SETUP = """## {tokens} tokens per run, samples of {sample_tokens}

{note}{means}
### Difference from each rival

Positive is better in the columns of answers and of the context's gain, negative in those of losses.

{differences}
### The paper's order

{order}

### Answers by task and length

Mean log-likelihood per token (nats), and the share answered exactly.

{tasks}
"""


def write_page(file: str | Path, facts: TrialFacts, results: Sequence[Result]) -> None:
    """Write the page of a trial's results. Raises TrialError if no run was trained."""
    path = Path(file)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(trial_page(facts, results), "utf-8")


def trial_page(facts: TrialFacts, results: Sequence[Result], date: str = "") -> str:
    """The page: all figures, and the words that follow from them. date: empty for today.

    Raises TrialError if no run was trained.
    """
    setups = setups_of(results)
    if not setups:
        raise TrialError("no run of the trial has a result yet; run `entropylong trial` first")
    trained = [result for own in setups.values() for result in own]
    sections = [_section(setup, own, start_of(setup, results)) for setup, own in setups.items()]
    return _PAGE.format(
        date=date or datetime.now(UTC).date().isoformat(),
        model=trained[0]["model"].rpartition("/")[2],
        setups="\n".join(sections),
        short_window="{:,} to {:,}".format(*_short_window(trained[0])),
        arms=arms_table(facts),
        tasks=", ".join(task.replace("_", " ") for task in TASKS),
        decontamination=_decontamination_words(facts),
    )


def _short_window(result: Result) -> tuple[int, int]:
    """Fewest and most tokens of the short context."""
    return result["short_window"], 2 * result["short_window"] - 1


def _section(setup: Setup, results: Sequence[Result], start: Sequence[Result]) -> str:
    measures, arms = measures_of(results), by_arm(results)
    return _SETUP.format(
        tokens=f"{setup.tokens:,}",
        sample_tokens=f"{setup.sample_tokens:,}",
        note=_note(results),
        means=means_table(measures, arms, start),
        differences=differences_table(measures, arms, start),
        order=order_words(measures, arms),
        tasks=tasks_table(arms, start),
    )


def _note(results: Sequence[Result]) -> str:
    first = results[0]
    settings, training = first["settings"], [r["training"] for r in results]
    speeds = [t["tokens"] / t["seconds"] for t in training if t["seconds"]]
    repeats = {r["run"]["arm"]: r["training"]["repeats"] for r in results}
    repeated = [f"`{arm}` {value:.1f} times" for arm, value in repeats.items() if value > 1]
    words = (
        f"{training[0]['steps']:,} steps of {settings['batch_tokens']:,} tokens, learning rate "
        f"{settings['learning_rate']:g} (warm-up {settings['warmup']:.0%}, then a cosine to zero), "
        f"rotary base {first['rope_theta']:,.0f}, on {first['device']}"
    )
    if speeds:
        words += f" at {sum(speeds) / len(speeds):,.0f} tokens/s"
    if repeated:
        words += f". Samples are learnt more than once by {', '.join(repeated)}, on average"
    return f"{words}.\n\n"


def means_table(
    measures: Sequence[Measure], arms: Mapping[str, Sequence[Result]], start: Sequence[Result]
) -> str:
    """Mean of each measure by arm, over seeds and items."""
    rows = [["as it starts", "–", *(_mean_cell(start, m) for m in measures)]] if start else []
    for name, results in arms.items():
        seeds = str(len({result["run"]["seed"] for result in results}))
        rows.append([f"`{name}`", seeds, *(_mean_cell(results, m) for m in measures)])
    return table(["arm", "seeds", *(m.name for m in measures)], rows)


def _mean_cell(results: Sequence[Result], measure: Measure) -> str:
    values = grid(results, measure.key)[2]
    return f"{values.mean():.3f}" if values.size else "–"


def differences_table(
    measures: Sequence[Measure], arms: Mapping[str, Sequence[Result]], start: Sequence[Result]
) -> str:
    found = compared(arms, start, measures)
    rows = []
    for (arm, rival), group in groupby(found, key=lambda entry: entry[:2]):
        less = "the model as it starts" if rival == START else f"`{rival}`"
        cells = [number(as_row(mean), "{:+.4f}") for *_, mean in group]
        rows.append([f"`{arm}` less {less}", *cells])
    if not rows:
        return "No arm to compare with was trained.\n"
    return table(["difference", *(m.name for m in measures)], rows)


def order_words(measures: Sequence[Measure], arms: Mapping[str, Sequence[Result]]) -> str:
    """Whether the paper's order holds, pair by pair, on answers at the longest length and on the
    loss of far tokens."""
    judged = [m for m in measures if m.key.startswith("answers-")][-1:]
    judged += [m for m in measures if m.key == "natural/key"]
    judged += [m for m in measures if m.key.startswith("natural/from_")][:1]
    lines = []
    for better, worse in pairwise(name for name in PAPER_ORDER if name in arms):
        for measure in judged:
            mean = paired_difference(arms[better], arms[worse], measure.key)
            lines.append(f"- `{better}` and `{worse}`, {measure.name}: {verdict(mean, measure)}")
    return "\n".join(lines) or "Fewer than two of the paper's recipes were trained."


def verdict(mean: Mean, measure: Measure) -> str:
    """The difference in words, and if it is not shown, which one would have been found."""
    shown = number(as_row(mean), "{:+.4f}")
    if mean.value is None or mean.low is None or mean.high is None:
        return f"{shown}, not enough items to tell."
    if mean.low > 0 or mean.high < 0:
        is_better = (mean.value > 0) == measure.higher_is_better
        return f"{shown}, {'**better**' if is_better else '**worse**'}."
    least = smallest_found(mean)
    return (
        f"{shown}, no difference shown; a true one of {least:.4f} would be found in four of five "
        "such trials."
    )


def tasks_table(arms: Mapping[str, Sequence[Result]], start: Sequence[Result]) -> str:
    """Log-likelihood and share of exact answers by arm, task and length."""
    everything = [result for results in arms.values() for result in results]
    names = sorted({name for r in everything for name in r["scores"] if "-" in name}, key=_place)
    rows = []
    shown = {**({"as it starts": list(start)} if start else {}), **arms}
    for task, group in groupby(names, key=lambda name: name.rpartition("-")[0]):
        lengths = [name.rpartition("-")[2] for name in group]
        for arm, results in shown.items():
            cells = [_task_cell(results, f"{task}-{tokens}") for tokens in lengths]
            rows.append([task.replace("_", " "), arm, *cells])
    return table(["task", "arm", *(f"{tokens:,}" for tokens in task_lengths(everything))], rows)


def _place(name: str) -> tuple[int, int]:
    task, _, tokens = name.rpartition("-")
    return TASKS.index(task) if task in TASKS else len(TASKS), int(tokens)


def _task_cell(results: Sequence[Result], name: str) -> str:
    values = [r["scores"][name] for r in results if name in r["scores"]]
    means = [
        sum(sum(v[key]) / len(v[key]) for v in values) / len(values)
        for key in ("log_likelihood", "exact")
        if values
    ]
    return f"{means[0]:.3f} ({means[1]:.0%})" if means else "–"


def arms_table(facts: TrialFacts) -> str:
    head = (
        "arm",
        "recipe",
        "rule in force",
        "layout",
        "fill",
        "loss weights",
        "samples",
        "roots",
        "dependencies",
        "median distance (tokens)",
        "tokens by role",
    )
    rows = []
    for name in recipe_order(facts.arms):
        arm: dict[str, Any] = facts.arms[name]
        total = max(1, sum(arm["tokens"].values()))
        roles = {role.replace("_", " "): n / total for role, n in arm["tokens"].items() if n}
        distance = arm["median_distance"]
        rows.append(
            [
                f"`{name}`",
                arm["recipe"] or "–",
                arm["rule"],
                arm["layout"],
                arm["fill"],
                arm["loss_weights"],
                f"{arm['samples']:,}",
                f"{arm['roots']:,}",
                f"{arm['dependencies']:,}",
                "–" if distance is None else f"{distance:,.0f}",
                ", ".join(f"{role} {share:.0%}" for role, share in roles.items()),
            ]
        )
    return table(head, rows)


def _decontamination_words(facts: TrialFacts) -> str:
    found = facts.decontamination
    if not found:
        return "its origin is not recorded."
    return (
        f"documents of which at most {found['max_shared']:.0%} of the runs of "
        f"{found['gram_tokens']} tokens are in any arm's samples; {found['left_out']:,} of "
        f"{found['documents']:,} were left out, and the largest share kept is "
        f"{found['largest_shared_kept']:.1%}. {found['natural']} long documents, "
        f"{found['short']} short ones."
    )
