"""Tables of this stage, and the summary of a partition."""

from __future__ import annotations

import pyarrow as pa

from entropylong_assets.storage.schemas import (
    ANCHOR,
    BOOL,
    CHUNK_ID,
    DOC_ID,
    END,
    FLOAT,
    IDS,
    INT,
    NAMES,
    ROOT_ID,
    SHARD,
    SOURCE,
    START,
    Summary,
    TEXT,
    TableSet,
    column,
)


class VerifiedDependenciesSummary(Summary):
    """Counts and figures of one partition of `verified_dependencies`."""


VERIFIED_DEPENDENCIES = TableSet(
    name="verified_dependencies",
    scope="dataset",
    main="pairs",
    summary=VerifiedDependenciesSummary,
    format_version=2,
    schemas={
        "pairs": pa.schema(
            [
                ROOT_ID,
                ANCHOR,
                column("rank", INT, "of the candidate, from 1"),
                CHUNK_ID,
                column("similarity", FLOAT, "cosine of query and chunk"),
                column("entropy", FLOAT, "H_t of the root alone", "nat"),
                column("entropy_context", FLOAT, "H'_t behind the context", "nat", null=True),
                column("entropy_control", FLOAT, "H^c_t, mean behind controls", "nat", null=True),
                column("surprisal", FLOAT, "I(x_t) of the root alone", "nat"),
                column("surprisal_context", FLOAT, "I(x_t) behind it", "nat", null=True),
                column("surprisal_control", FLOAT, "mean I(x_t) behind controls", "nat", True),
                column("gain", pa.float64(), "ΔI = (H - H') / H", null=True),
                column("calibrated_gain", pa.float64(), "ΔI* = (min(H, H^c) - H') / H", null=True),
                column("accepted_plain", BOOL, "verdict of the published rule"),
                column("accepted_calibrated", BOOL, "verdict of the calibrated rule"),
                column("accepted", BOOL, "verdict of the rule in force"),
                column("verdict", TEXT, "`accepted` or why not"),
            ]
        ),
        "contexts": pa.schema(
            [
                CHUNK_ID,
                DOC_ID,
                SHARD,
                SOURCE,
                START,
                END,
                column("token_ids", IDS, "tokens as scored, the separator's included"),
            ]
        ),
        "controls": pa.schema(
            [
                ROOT_ID,
                column("control", INT, "number of the control context, from 0"),
                ANCHOR,
                column("entropy", FLOAT, "H of the anchor behind this control", "nat"),
                column("surprisal", FLOAT, "I(x_t) behind this control", "nat"),
            ]
        ),
        "control_contexts": pa.schema(
            [
                ROOT_ID,
                column("control", INT, "number of the control context, from 0"),
                column("chunk_ids", NAMES, "chunks that it was cut from"),
                column("token_ids", IDS, "tokens as scored, the separator's included"),
            ]
        ),
    },
)
