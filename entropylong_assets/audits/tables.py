"""Tables of this stage, and the summary of a partition."""

from __future__ import annotations

import pyarrow as pa

from entropylong_assets.storage.schemas import (
    ANCHOR,
    BOOL,
    CHUNK_ID,
    FLOAT,
    INT,
    NAMES,
    REASON,
    ROOT_ID,
    Summary,
    TEXT,
    TableSet,
    column,
    entropy_and_surprisal,
)


_KIND = column("kind", TEXT, "`random`, `topical`, `shuffled`")
_RECIPE = column("recipe", TEXT, "which contexts the root got")


class NullCalibrationSummary(Summary):
    """Counts and figures of one partition of `null_calibration`."""


NULL_CALIBRATION = TableSet(
    name="null_calibration",
    scope="dataset",
    main="rates",
    summary=NullCalibrationSummary,
    format_version=2,
    schemas={
        "trials": pa.schema(
            [
                ROOT_ID,
                ANCHOR,
                _KIND,
                column("number", INT, "of the held-out control, from 0"),
                column("chunk_ids", NAMES, "chunks that it was made of"),
                column("n_tokens", INT, "its length", "token"),
                column("entropy", FLOAT, "H_t of the root alone", "nat"),
                column("entropy_context", FLOAT, "H'_t behind it", "nat"),
                column("entropy_control", FLOAT, "stored H^c_t", "nat", True),
                column("surprisal", FLOAT, "I(x_t) of the root alone", "nat"),
                column("surprisal_context", FLOAT, "I(x_t) behind it", "nat"),
                column("surprisal_control", FLOAT, "stored mean I(x_t)", "nat", True),
                column("gain", pa.float64(), "ΔI", null=True),
                column("calibrated_gain", pa.float64(), "ΔI*", null=True),
                column("accepted_plain", BOOL, "passes the published rule"),
                column("accepted_calibrated", BOOL, "passes the calibrated rule"),
            ]
        ),
        "rates": pa.schema(
            [
                column("kind", TEXT, "`retrieved`, `random`, `topical`, `shuffled`"),
                column("rule", TEXT, "`plain` or `calibrated`"),
                column("passed", INT, "trials that pass", "trial"),
                column("total", INT, "trials", "trial"),
                column("rate", pa.float64(), "their share", null=True),
                column("low", pa.float64(), "of the 95% interval"),
                column("high", pa.float64(), "of the 95% interval"),
            ]
        ),
    },
)


class CrossModelAuditSummary(Summary):
    """Counts and figures of one partition of `cross_model_audit`."""


CROSS_MODEL_AUDIT = TableSet(
    name="cross_model_audit",
    scope="dataset",
    main="pairs",
    summary=CrossModelAuditSummary,
    format_version=2,
    schemas={
        "pairs": pa.schema(
            [
                ROOT_ID,
                ANCHOR,
                CHUNK_ID,
                column("accepted_plain", BOOL, "passes the published rule, by the first model"),
                column("accepted_calibrated", BOOL, "passes ours, by the first model"),
                column("gain", pa.float64(), "ΔI of the first model"),
                column("surprisal_drop", pa.float64(), "of x_t, the first model's", "nat"),
                column("second_entropy", FLOAT, "H of the second model, root alone", "nat"),
                column("second_entropy_context", FLOAT, "H' of the second model", "nat"),
                column("second_surprisal", FLOAT, "I of its token there, root alone", "nat"),
                column("second_surprisal_context", FLOAT, "I behind the context", "nat"),
                column("second_gain", pa.float64(), "ΔI of the second model", null=True),
                column("holds", BOOL, "ΔI of the second model > ε"),
            ]
        ),
        "dropped": pa.schema([ROOT_ID, ANCHOR, CHUNK_ID, REASON]),
    },
)


class LongRangeAuditSummary(Summary):
    """Counts and figures of one partition of `long_range_audit`."""


LONG_RANGE_AUDIT = TableSet(
    name="long_range_audit",
    scope="dataset",
    main="recipes",
    summary=LongRangeAuditSummary,
    format_version=2,
    schemas={
        "anchors": pa.schema(
            [_RECIPE, ROOT_ID, ANCHOR, *entropy_and_surprisal(("in_place", "random"))]
        ),
        "windows": pa.schema(
            [
                _RECIPE,
                ROOT_ID,
                column("window_tokens", INT, "contexts and root", "token"),
                column("context_tokens", INT, "contexts", "token"),
                column("root_tokens", INT, "root", "token"),
                column("short_tokens", INT, "short window of the key tokens", "token"),
                column("key_tokens", INT, "LongPPL's key tokens of the root", "token"),
                column("segment_pairs", INT, "pairs of segments scored"),
                column("dependency_score", FLOAT, "mean relative fall of their loss", null=True),
            ]
        ),
        "dependencies": pa.schema(
            [
                _RECIPE,
                ROOT_ID,
                ANCHOR,
                CHUNK_ID,
                column("distance", INT, "from the context's end to the anchor", "token"),
                *entropy_and_surprisal(("near", "in_place", "replaced")),
            ]
        ),
        "recipes": pa.schema(
            [
                _RECIPE,
                column("measure", TEXT, "what was averaged"),
                column("value", pa.float64(), "its mean", null=True),
                column("low", pa.float64(), "of the 95% interval", null=True),
                column("high", pa.float64(), "of the 95% interval", null=True),
                column("trials", INT, "values"),
                column("roots", INT, "clusters"),
            ]
        ),
    },
)
