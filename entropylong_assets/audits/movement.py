"""How acceptance of retrieved and of random contexts depends on settings and lengths."""

from __future__ import annotations

from collections.abc import Sequence

import polars as pl

from entropylong_assets.audits.ablation import judge_again, under_rule
from entropylong_assets.audits.audit_tables import AuditTables, rate_cell, table
from entropylong_assets.stages.verification.false_acceptance import acceptance_rate
from entropylong_assets.stages.verification.gain import accepted_by, judge

EPSILONS = (0.2, 0.3, 0.4, 0.5, 0.6, 0.8)
POSITIONS = (64, 128, 256)
ROOT_LENGTHS = (256, 384)
CONTEXT_LENGTHS = (96, 160)

_NOT_REFUSED = pl.lit(None, pl.String).alias("refusal")


def movement_table(audited: AuditTables) -> str:
    """Acceptance by ε, anchor position, root length, context length and number of controls."""
    lengths = dict(audited.roots.select("root_id", _n_tokens()).iter_rows())
    root_length = pl.col("root_id").replace_strict(lengths, return_dtype=pl.Int32)
    sizes = dict(audited.contexts.select("chunk_id", _n_tokens()).iter_rows())
    chunk_length = pl.col("chunk_id").replace_strict(sizes, return_dtype=pl.Int32)
    lines = _by_epsilon(audited)
    for name, edges, of_pair, of_trial in (
        ("anchor's position", POSITIONS, pl.col("anchor"), pl.col("anchor")),
        ("root length (tokens)", ROOT_LENGTHS, root_length, root_length),
        ("context length (tokens)", CONTEXT_LENGTHS, chunk_length, pl.col("n_tokens")),
    ):
        lines += _by_bin(audited, name, edges, (of_pair, of_trial))
    for count in range(audited.settings.verification.controls + 1):
        lines.append(["controls", str(count), *_by_controls(audited, count)])
    head = [f"{rule}: {kind}" for rule in audited.rules for kind in ("retrieved", "random")]
    return table(("knob", "value", *head), lines)


def _n_tokens() -> pl.Expr:
    return pl.col("token_ids").list.len().cast(pl.Int32)


def _by_epsilon(audited: AuditTables) -> list[list[str]]:
    random = audited.trials.filter(kind="random").with_columns(_NOT_REFUSED)
    lines = []
    for epsilon in EPSILONS:
        cells = []
        for rule in audited.rules:
            settings = under_rule(audited.settings.verification, rule)
            settings = settings.model_copy(update={"epsilon": epsilon})
            for frame in (judge_again(audited.pairs, settings), judge(random, settings)):
                cells.append(rate_cell(acceptance_rate(frame)))
        lines.append(["ε", f"{epsilon:g}", *cells])
    return lines


def _by_bin(
    audited: AuditTables, name: str, edges: Sequence[int], binned: tuple[pl.Expr, pl.Expr]
) -> list[list[str]]:
    """One line per bin. binned: expressions for the binned value of a pair and of a trial."""
    labels = [f"below {edges[0]}", *(f"from {edge}" for edge in edges)]
    frames = [
        frame.with_columns(bin=value.cut(list(edges), labels=labels, left_closed=True))
        for frame, value in zip(
            (audited.pairs, audited.trials.filter(kind="random")), binned, strict=True
        )
    ]
    lines = []
    for label in labels:
        parts = [frame.filter(pl.col("bin").cast(pl.String) == label) for frame in frames]
        if len(parts[0]):
            cells = [
                rate_cell(acceptance_rate(part, accepted_by(rule)))
                for rule in audited.rules
                for part in parts
            ]
            lines.append([name, label, *cells])
    return lines


def _by_controls(audited: AuditTables, count: int) -> list[str]:
    """Rates if only the first `count` stored controls are known."""
    means = (
        audited.controls.filter(pl.col("control") < count)
        .group_by("root_id", "anchor")
        .agg(
            pl.col("entropy").cast(pl.Float64).mean().cast(pl.Float32).alias("entropy_control"),
            pl.col("surprisal").cast(pl.Float64).mean().cast(pl.Float32).alias("surprisal_control"),
        )
    )
    cells = []
    for rule in audited.rules:
        settings = under_rule(audited.settings.verification, rule)
        for frame in (audited.pairs, audited.trials.filter(kind="random")):
            known = frame.drop("entropy_control", "surprisal_control")
            known = known.join(means, on=["root_id", "anchor"], how="left", maintain_order="left")
            if not count:
                # Without controls, a rule that needs them compares with the root alone.
                known = known.with_columns(
                    entropy_control=pl.col("entropy"), surprisal_control=pl.col("surprisal")
                )
            judged = judge(known.with_columns(_NOT_REFUSED), settings)
            cells.append(rate_cell(acceptance_rate(judged)))
    return cells
