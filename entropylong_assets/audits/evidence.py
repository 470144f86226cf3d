"""docs/evidence.md: what the audits found, whatever it is, with settings and date."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl

from entropylong_assets.audits.ablation import Scores, judged
from entropylong_assets.audits.cross_model import summarise
from entropylong_assets.audits.material import Mean, clustered_mean
from entropylong_assets.audits.null_calibration import KINDS, epsilon_for, lift, rates
from entropylong_assets.audits.shard import measures
from entropylong_assets.settings import Settings
from entropylong_assets.storage.tables import TableStore
from entropylong_assets.verification.false_acceptance import acceptance_rate
from entropylong_assets.verification.gain import judge

_ORDER = ("calibrated", "entropylong", "policylong", "no_verify", "quest", "nextlong", "random")


_PAGE = """# Evidence

Written by `make evidence` on {date}. The last call took {minutes}; stages that an earlier call had
finished are not made again. Intervals are 95%, and trials of one root count as one cluster. A
sample of this size shows large effects only.

## Recipes, on the same roots, index and budget of tokens

Each root's anchors behind the contexts that the recipe chose, against random passages of the same
length in their place.

{recipes}
`calibrated` against each rival, on the anchors' surprisal drop over random, anchor by anchor:

{verdicts}

The verified recipes chose their contexts by the same model's scores of the same anchors, one
context at a time: what they gain here is partly choice. The second model and the planted truth are
free of that.

Anchors that a verified context was chosen for (the context worth most of each root), surprisal
drop in nats:

{served}
The same for `calibrated`, by distance:

{distances}
## Chance

{null}
{null_words}

`shuffled` contexts say the same in another order of sentences: that many still pass is no fault of
the rule, but tells how little of the gain hangs on order.

## What moves acceptance and chance

Share of pairs that pass, at the settings below where nothing else is said. `controls` 0: the
calibrated rule against the root alone.

{movement}
## Another model

{second}
## Planted truth

Invented facts, each stated in one document and needed in another, among decoys of the same form.
Pairs at other anchors are neither true nor false: the facts share their wording.

{planted}
{shortfall}

## Settings

{settings}"""


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [list(head), ["---"] * len(head), *[list(row) for row in rows]]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def number(row: Mapping[str, Any] | None, form: str = "{:.3f}") -> str:
    """Value and interval of a row with value (or rate), low and high."""
    if row is None:
        return "–"
    value = row.get("value", row.get("rate"))
    if value is None:
        return "–"
    shown = form.format(value)
    if row.get("low") is None or row.get("high") is None:
        return shown
    return f"{shown} ({form.format(row['low'])} to {form.format(row['high'])})"


def _as_row(mean: Mean) -> dict[str, Any]:
    return {"value": mean.value, "low": mean.low, "high": mean.high}


class Audited:
    """All audit tables of some shards, one below the other."""

    def __init__(self, store: TableStore, shards: Sequence[str], settings: Settings) -> None:
        def read(asset: str, name: str) -> pl.DataFrame:
            return pl.concat(store.read(asset, shard, name) for shard in shards)

        self.settings = settings
        self.trials = read("null_calibration", "trials")
        self.anchors = read("long_range_audit", "anchors")
        self.windows = read("long_range_audit", "windows")
        self.dependencies = read("long_range_audit", "dependencies")
        self.second = read("cross_model_audit", "pairs")
        sampled = self.trials["root_id"].unique().to_list()
        pairs = read("verified_dependencies", "pairs")
        scored = pairs.filter(pl.col("entropy_context").is_not_null())
        self.pairs = scored.filter(pl.col("root_id").is_in(sampled))
        self.contexts = read("verified_dependencies", "contexts").unique("chunk_id")
        self.roots = read("entropy_scores", "roots").unique("root_id")
        self.controls = read("verified_dependencies", "controls")
        self.scores = Scores(self.roots, pairs, self.contexts, self.controls)

    def recipe_rows(self) -> dict[tuple[str, str], dict[str, Any]]:
        rows = measures(
            self.anchors.to_dicts(), self.windows.to_dicts(), self.dependencies.to_dicts()
        )
        return {(row["recipe"], row["measure"]): row for row in rows}

    def difference(self, ours: str, theirs: str, score: str) -> Mean:
        """Mean of ours minus theirs in the fall of a score, anchor by anchor: both saw the same
        random contexts, so what is left is the contexts' own."""
        keys = ["root_id", "anchor"]
        falls = self.anchors.select(
            "recipe", *keys, (pl.col(f"{score}_random") - pl.col(f"{score}_in_place")).alias("fall")
        )
        both = falls.filter(recipe=ours).join(falls.filter(recipe=theirs), on=keys, suffix="_b")
        both = both.sort(keys)
        values = (both["fall"] - both["fall_b"]).cast(pl.Float64).to_list()
        return clustered_mean(values, both["root_id"].to_list())


def recipe_table(audited: Audited) -> str:
    rows, chance = audited.recipe_rows(), {}
    for row in rates(audited.trials, audited.pairs):
        if row["kind"] == "random":
            chance[row["rule"]] = number(row, "{:.2%}")
    rule = audited.settings.verification.rule
    by_recipe = {
        "entropylong": chance.get("plain", "–"),
        "calibrated": chance.get("calibrated", "–"),
        "policylong": chance.get(rule, "–"),
    }
    lines = []
    for recipe in _ORDER:
        if (recipe, "context_tokens") not in rows:
            continue

        def cell(measure: str, form: str = "{:.3f}", recipe: str = recipe) -> str:
            return number(rows.get((recipe, measure)), form)

        lines.append(
            [
                recipe,
                str(rows[recipe, "context_tokens"]["roots"]),
                f"{rows[recipe, 'context_tokens']['value']:.0f}",
                cell("entropy_drop_over_random"),
                cell("surprisal_drop_over_random"),
                by_recipe.get(recipe, "no rule: all"),
                cell("key_token_density", "{:.2%}"),
                cell("dependency_score"),
            ]
        )
    head = (
        "recipe",
        "roots",
        "context tokens a root",
        "anchors' entropy drop over random (nats)",
        "anchors' surprisal drop over random (nats)",
        "random contexts its rule accepts",
        "key tokens",
        "dependency score",
    )
    return table(head, lines)


def served_table(audited: Audited) -> str:
    rows, lines = audited.recipe_rows(), []
    for recipe in ("calibrated", "entropylong", "policylong"):
        if (recipe, "served_surprisal_drop_near") in rows:
            names = ("near", "in_place", "over_replaced")
            cells = [number(rows[recipe, f"served_surprisal_drop_{n}"]) for n in names]
            lines.append(
                [recipe, str(rows[recipe, "served_surprisal_drop_near"]["trials"]), *cells]
            )
    head = (
        "recipe",
        "dependencies",
        "directly before the root",
        "in its place",
        "over a random one",
    )
    return table(head, lines)


def verdict_lines(audited: Audited) -> list[str]:
    """Whether `calibrated` beats each rival on the anchors' surprisal drop, in words."""
    lines = []
    known = set(audited.anchors["recipe"].unique().to_list())
    for rival in _ORDER[1:]:
        if rival not in known or "calibrated" not in known:
            continue
        mean = audited.difference("calibrated", rival, "surprisal")
        if mean.value is None:
            continue
        if mean.low is not None and mean.low > 0:
            word = "beats"
        elif mean.high is not None and mean.high < 0:
            word = "**is worse than**"
        else:
            word = "**is not shown to beat**"
        shown = number(_as_row(mean), "{:+.3f}")
        lines.append(f"- `calibrated` {word} `{rival}`: {shown} nats an anchor.")
    return lines


def null_table(audited: Audited) -> str:
    found = rates(audited.trials, audited.pairs)
    lines = []
    for kind in ("retrieved", *KINDS):
        both = {row["rule"]: row for row in found if row["kind"] == kind}
        total = str(both["plain"]["total"])
        lines.append(
            [kind, total, *(number(both[rule], "{:.2%}") for rule in ("plain", "calibrated"))]
        )
    return table(("contexts", "trials", "pass the plain rule", "pass the calibrated rule"), lines)


def null_words(audited: Audited) -> list[str]:
    lines = []
    wished = audited.settings.audit.wished_false_acceptance
    for rule in ("plain", "calibrated"):
        chosen = audited.settings.verification.model_copy(update={"rule": rule})
        held = epsilon_for(audited.trials, chosen, wished, audited.settings.seed)
        words = {
            name: "any" if held[name] is None else f"{held[name]:.2f}"
            for name in ("epsilon_for_rate", "epsilon_low", "epsilon_high")
        }
        up = lift(audited.trials, audited.pairs, rule)
        times = (
            "not bounded above: no random context passed"
            if up["lift"] is None
            else (f"{up['lift']:.1f}")
        )
        low = "–" if up["lift_low"] is None else f"{up['lift_low']:.1f}"
        high = "no bound" if up["lift_high"] is None else f"{up['lift_high']:.1f}"
        lines.append(
            f"- {rule}: ε that holds {wished:.0%}: {words['epsilon_for_rate']} "
            f"({words['epsilon_low']} to {words['epsilon_high']}); lift of retrieval over chance: "
            f"{times} (95% interval {low} to {high})."
        )
    return lines


def _moves(
    audited: Audited, name: str, bins: pl.Expr, trial_bins: pl.Expr | None
) -> list[list[str]]:
    """A line a bin: acceptance of retrieved and of random contexts, both rules."""
    pairs = audited.pairs.with_columns(bins.alias("bin"))
    trials = audited.trials.filter(kind="random")
    trials = trials.with_columns((bins if trial_bins is None else trial_bins).alias("bin"))
    lines = []
    for value in sorted(pairs["bin"].drop_nulls().unique().to_list()):
        cells = []
        for rule in ("plain", "calibrated"):
            for frame in (pairs, trials):
                part = frame.filter(bin=value)
                rate = acceptance_rate(part, f"accepted_{rule}")
                shown = {"rate": rate.value if rate.total else None}
                cells.append(number(shown | {"low": rate.low, "high": rate.high}, "{:.1%}"))
        lines.append([name, str(value), *cells])
    return lines


def movement_table(audited: Audited) -> str:
    """How acceptance and chance move with ε, position, root length, chunk length."""
    lines = []
    for epsilon in (0.2, 0.3, 0.4, 0.5, 0.6, 0.8):
        cells = []
        for rule in ("plain", "calibrated"):
            at = audited.settings.verification.model_copy(update={"epsilon": epsilon, "rule": rule})
            refused = pl.lit(None, pl.String).alias("refusal")
            random_trials = audited.trials.filter(kind="random").with_columns(refused)
            for frame in (judged(audited.pairs, at), judge(random_trials, at)):
                rate = acceptance_rate(frame)
                shown = {"rate": rate.value if rate.total else None}
                cells.append(number(shown | {"low": rate.low, "high": rate.high}, "{:.1%}"))
        lines.append(["ε", f"{epsilon:g}", *cells])

    def binned(column: pl.Expr, edges: Sequence[int]) -> pl.Expr:
        labels = [f"below {edges[0]:05d}"]
        labels += [f"from {edge:05d}" for edge in edges]
        return column.cut(list(edges), labels=labels, left_closed=True).cast(pl.String)

    lines += _moves(audited, "anchor's position", binned(pl.col("anchor"), (64, 128, 256)), None)
    lengths = dict(
        audited.roots.select("root_id", pl.col("token_ids").list.len().cast(pl.Int32)).iter_rows()
    )
    root_length = pl.col("root_id").replace_strict(lengths, return_dtype=pl.Int32)
    lines += _moves(audited, "root length (tokens)", binned(root_length, (256, 384)), None)
    sizes = dict(
        audited.contexts.select(
            "chunk_id", pl.col("token_ids").list.len().cast(pl.Int32)
        ).iter_rows()
    )
    chunk = pl.col("chunk_id").replace_strict(sizes, return_dtype=pl.Int32)
    lines += _moves(
        audited,
        "context length (tokens)",
        binned(chunk, (96, 160)),
        binned(pl.col("n_tokens"), (96, 160)),
    )
    for count in range(audited.settings.verification.controls + 1):
        lines.append(["controls", str(count), *_controls(audited, count)])
    head = (
        "knob",
        "value",
        "plain: retrieved",
        "plain: random",
        "calibrated: retrieved",
        "calibrated: random",
    )
    text = table(head, lines)
    for edge in ("00064", "00128", "00256", "00384", "00096", "00160"):
        text = text.replace(edge, str(int(edge)))
    return text


def _controls(audited: Audited, count: int) -> list[str]:
    """Rates when the calibrated rule knows the first `count` stored controls alone."""
    means = (
        audited.controls.filter(pl.col("control") < count)
        .group_by("root_id", "anchor")
        .agg(
            pl.col("entropy").cast(pl.Float64).mean().cast(pl.Float32).alias("entropy_control"),
            pl.col("surprisal").cast(pl.Float64).mean().cast(pl.Float32).alias("surprisal_control"),
        )
    )
    cells = []
    for rule in ("plain", "calibrated"):
        at = audited.settings.verification.model_copy(update={"rule": rule})
        for frame in (audited.pairs, audited.trials.filter(kind="random")):
            known = frame.drop("entropy_control", "surprisal_control")
            known = known.join(means, on=["root_id", "anchor"], how="left", maintain_order="left")
            if not count:
                # Without controls the calibrated rule measures against the root alone.
                known = known.with_columns(
                    entropy_control=pl.col("entropy"), surprisal_control=pl.col("surprisal")
                )
            known = known.with_columns(pl.lit(None, pl.String).alias("refusal"))
            rate = acceptance_rate(judge(known, at))
            shown = {"rate": rate.value if rate.total else None}
            cells.append(number(shown | {"low": rate.low, "high": rate.high}, "{:.1%}"))
    return cells


def distance_table(audited: Audited) -> str:
    """Verified contexts by the distance to their anchors."""
    ours = audited.dependencies.filter(recipe="calibrated").with_columns(
        bin=pl.col("distance").cut([128, 256, 512], labels=["0", "128", "256", "512"])
    )
    lines = []
    for edge in ("0", "128", "256", "512"):
        part = ours.filter(pl.col("bin").cast(pl.String) == edge)
        if not len(part):
            continue
        cells = []
        for a, b in (("", "near"), ("", "in_place"), ("replaced", "in_place")):
            before = part[f"surprisal_{a}" if a else "surprisal"]
            fall = (before - part[f"surprisal_{b}"]).cast(pl.Float64).to_list()
            cells.append(number(_as_row(clustered_mean(fall, part["root_id"].to_list()))))
        lines.append([f"from {edge}", str(len(part)), *cells])
    head = ("distance (tokens)", "dependencies", "near", "in place", "over a random one")
    return table(head, lines)


def second_words(audited: Audited, model: str) -> str:
    if not len(audited.second):
        return (
            "No second model was named (`audit.model`), so nothing is known here of what another "
            "model would say.\n"
        )
    found = summarise(audited.second)
    lines = [f"Second model: `{model}`.\n"]
    rows = []
    for name in ("accepted", "rejected"):
        cells = []
        for measure, form in (("holds", "{:.1%}"), ("surprisal_drop", "{:.3f}")):
            key = f"{name}_{measure}"
            row = {"value": found[key], "low": found[f"{key}_low"], "high": found[f"{key}_high"]}
            cells.append(number(row, form))
        rows.append([name, str(found[f"{name}_pairs"]), *cells])
    lines.append(table(("pairs", "number", "hold there", "surprisal drop there (nats)"), rows))
    if "gain_rank_correlation" in found:
        lines.append(
            f"Rank correlation of both models' gains: {found['gain_rank_correlation']:.2f}."
        )
    return "\n".join(lines) + "\n"


def planted_table(rows: Sequence[Mapping[str, Any]]) -> str:
    lines = [
        [
            row["measure"],
            f"{row['alpha']:g}",
            row["rule"],
            f"{row['passed']} of {row['total']}",
            number(row, "{:.0%}"),
        ]
        for row in rows
    ]
    return table(("planted truth", "α", "rule", "count", "share"), lines)


def shortfall_words(nats: float | None, alpha: float) -> str:
    if nats is None:
        return "No needing document was a root."
    side = "below" if nats > 0 else "above"
    return (
        f"The highest entropy in a fact's value lies {abs(nats):.2f} nats {side} its root's τ at "
        f"α = {alpha:g}, in the median."
    )


def write_evidence(
    audited: Audited,
    *,
    date: str,
    description: Sequence[tuple[str, str]],
    second_model: str,
    planted: Sequence[Mapping[str, Any]],
    shortfall: float | None,
    seconds: float,
) -> str:
    """The page. Figures and the words that follow from them; nothing is left out."""
    settings = table(("setting", "value"), [[n, str(v).replace("|", "/")] for n, v in description])
    minutes = f"{seconds / 60:.0f} minutes"
    return _PAGE.format(
        date=date,
        minutes=minutes,
        recipes=recipe_table(audited),
        verdicts="\n".join(verdict_lines(audited)),
        served=served_table(audited),
        distances=distance_table(audited),
        null=null_table(audited),
        null_words="\n".join(null_words(audited)),
        movement=movement_table(audited),
        second=second_words(audited, second_model),
        planted=planted_table(planted),
        shortfall=shortfall_words(shortfall, audited.settings.entropy.alpha),
        settings=settings,
    )
