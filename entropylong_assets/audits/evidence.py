"""The page docs/evidence.md: all findings of the audits, with settings and date."""

from __future__ import annotations

from collections.abc import Sequence

from entropylong_assets.audits.ablation import PAPER, PAPER_RULE, ablate
from entropylong_assets.audits.audit_tables import AuditTables, table
from entropylong_assets.audits.evidence_pairs import (
    forms_table,
    null_table,
    null_words,
    planted_table,
    second_words,
    shortfall_words,
)
from entropylong_assets.audits.evidence_recipes import (
    distance_table,
    overlap_words,
    pieces_words,
    recipe_table,
    selection_words,
    served_table,
    verdict_lines,
)
from entropylong_assets.audits.movement import movement_table
from entropylong_assets.audits.planted import PlantedFigures
from entropylong_assets.stages.verification.false_acceptance import ASSUMED_CORRELATION

TRIAL_PAGE = "training-trial.md"
"""Name of the page of a training trial, in the folder of this one."""

_TRAINED = """
Nothing is trained here. What training on the samples of each recipe does to a small model:
[training trial]({page}).
"""

_PAGE = """# Evidence

Written by `entropylong evidence` on {date}, under the settings at the end. The last call took
{minutes}; stages that an earlier call had finished were not materialized again. Intervals are 95%.
Trials of one root count as one cluster. `rough` marks an interval of a share that rests on too
few roots: it assumes a correlation of {correlation:g} between the trials of a root.
{trained}
## Recipes, on the same roots, index and budget of tokens

Each root's anchors given the contexts that the recipe chose, compared with random passages of the
same length in their place.

{recipes}
`calibrated` compared with each rival, on the anchors' surprisal drop over random contexts, anchor
by anchor:

{verdicts}

{selection}

{overlap}

{pieces}

The verified recipes chose their contexts by the same model's scores of the same anchors, one
context at a time: part of their gain here is selection. The second model and the planted facts
had no part in it.

Surprisal drop, in nats, of anchors that a verified context was chosen for (the context of highest
priority of each root):

{served}
The same for `calibrated`, by distance:

{distances}
## Contexts that should not help

{null}
{null_words}

`shuffled` contexts contain the same statements in another order of sentences. That many still pass
is no fault of the rule; it shows how little of the gain depends on the order.

## The paper's tables, on this corpus

Anchors per root by α, verified dependencies per root by ε. The paper: Llama-3-8B, roots of
FineWeb-Edu and Cosmopedia, which are longer.

{shape}
## What moves acceptance

Share of pairs that pass, under the settings below unless the line says otherwise. `controls` 0: the
root alone takes the place of the controls.

{movement}
## Another model

{second}
## Planted facts

Invented facts, each stated in one document and needed in another, among decoys of the same form: a
statement about another name, and a document about the same place without the fact. Pairs at other
anchors are neither true nor false, since the facts share their wording.

{planted}
{shortfall}

Facts by form, at α = {forms_alpha}: how many there are, how many have an anchor in the value, for
how many of these the stating document was retrieved, and how many of those each rule accepts.

{forms}
## Settings

{settings}"""


_SHAPE = {"alpha": ("2", "anchors_per_root"), "epsilon": ("0.4", "dependencies_per_root")}
"""By knob: the paper's value, and the figure that it moves."""


def shape_table(audited: AuditTables) -> str:
    """Anchors by α and dependencies by ε next to the paper's figures.

    Each is also given as a share of the figure at the paper's own α or ε.
    """
    rows = ablate(audited.scores, audited.settings).iter_rows(named=True)
    by_key = {(row["knob"], row["value"], row["rule"]): row for row in rows}
    lines = []
    for knob, value in PAPER:
        default, figure = _SHAPE[knob]
        cells = []
        for rule in audited.rules:
            own, reference = (by_key[knob, at, rule][figure] for at in (value, default))
            cells.append(_with_share(own, reference))
        cells.append(_with_share(PAPER[knob, value], PAPER[knob, default]))
        lines.append([f"{knob} {value}", *cells])
    rules = [f"rule {rule}" for rule in audited.rules]
    return table(("setting", *rules, f"paper, rule {PAPER_RULE}"), lines)


def _with_share(value: float | None, reference: float | None) -> str:
    return f"{value:.4g} ({value / reference:.0%})" if value and reference else "–"


def _minutes(seconds: float) -> str:
    minutes = round(seconds / 60)
    return "1 minute" if minutes == 1 else f"{minutes} minutes"


def _one_line(value: str) -> str:
    """Return the value as a cell of a Markdown table, with escaped line ends and bars."""
    return value.replace("\n", r"\n").replace("|", "/")


def write_evidence(
    audited: AuditTables,
    *,
    date: str,
    description: Sequence[tuple[str, str]],
    second_model: str,
    planted: PlantedFigures,
    seconds: float,
    trial_page: str = "",
) -> str:
    """Return the page: all figures, and the sentences that follow from them.

    description: name and value of what the dataset was made with. second_model: its identity; empty
    if there is none. seconds: duration of the last call. trial_page: link to the page of a training
    trial, from this page; empty if there is none.
    """
    settings = [[name, _one_line(value)] for name, value in description]
    return _PAGE.format(
        correlation=ASSUMED_CORRELATION,
        trained=_TRAINED.format(page=trial_page) if trial_page else "",
        date=date,
        minutes=_minutes(seconds),
        recipes=recipe_table(audited),
        verdicts="\n".join(verdict_lines(audited)),
        selection=selection_words(audited),
        overlap=overlap_words(audited.pairs, audited.rules),
        pieces=pieces_words(audited),
        served=served_table(audited),
        distances=distance_table(audited),
        null=null_table(audited),
        null_words="\n".join(null_words(audited)),
        shape=shape_table(audited),
        movement=movement_table(audited),
        second=second_words(audited, second_model),
        planted=planted_table(planted.rows),
        forms_alpha=f"{planted.forms_alpha:g}",
        forms=forms_table(planted.forms),
        shortfall=shortfall_words(planted.shortfall, audited.settings.entropy.alpha),
        settings=table(("setting", "value"), settings),
    )
