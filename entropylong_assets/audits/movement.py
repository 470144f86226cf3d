"""How acceptance and chance move with the settings, over stored scores."""

from __future__ import annotations

from collections.abc import Sequence

import polars as pl

from entropylong_assets.audits.ablation import judged
from entropylong_assets.audits.audit_tables import Audited, rate_cell, table
from entropylong_assets.stages.verification.false_acceptance import acceptance_rate
from entropylong_assets.stages.verification.gain import judge


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
                cells.append(rate_cell(acceptance_rate(part, f"accepted_{rule}")))
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
                cells.append(rate_cell(acceptance_rate(frame)))
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
            cells.append(rate_cell(acceptance_rate(judge(known, at))))
    return cells
