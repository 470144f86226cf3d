"""The dataset card: README.md of an export, with front matter for the Hugging Face Hub."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

_SIZES = ((10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M"))


def _front_matter(
    figures: Mapping[str, Any], formats: Sequence[str], splits: Mapping[str, int]
) -> str:
    licenses = {name for by_name in figures["licenses"].values() for name in by_name}
    plain = [name.lower() for name in licenses if re.fullmatch(r"[A-Za-z0-9.+-]+", name)]
    one = plain[0] if len(licenses) == 1 and plain and plain[0] != "unknown" else "other"
    size = next((name for limit, name in _SIZES if figures["samples"] < limit), "n>1M")
    fields: dict[str, Any] = {
        "pretty_name": "Long-context samples with verified dependencies",
        "license": one,
        "task_categories": ["text-generation"],
        "tags": ["long-context", "pre-training", "entropylong"],
        "size_categories": [size],
    }
    if "parquet" in formats:
        files = [{"split": s, "path": f"parquet/{s}-*.parquet"} for s, n in splits.items() if n]
        fields["configs"] = [{"config_name": "default", "data_files": files}]
    return f"---\n{yaml.safe_dump(fields, sort_keys=False)}---\n"


def _cell(value: Any) -> str:
    """A value as a table's cell, whatever characters a name or licence holds."""
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.0f}"
    if isinstance(value, int):
        return f"{value:,}"
    return re.sub(r"([\\`*_|<>\[\]&])", r"\\\1", " ".join(str(value).split()))


def _table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    lines = [head, ["---"] * len(head), *[[_cell(value) for value in row] for row in rows]]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def _chance(figures: Mapping[str, Any], rule: str) -> str | None:
    rate = figures["false_acceptance"].get(rule)
    return rate and f"{rate['rate']:.4g} (95% interval {rate['low']:.4g} to {rate['high']:.4g})"


def _figure_rows(figures: Mapping[str, Any], rule: str) -> list[tuple[str, Any]]:
    per_root, distance = figures["dependencies_per_root"], figures["distance_tokens"]
    return [
        ("samples", figures["samples"]),
        ("tokens", figures["tokens"]),
        ("documents", figures["documents"]),
        ("roots", figures["roots"]),
        ("anchors", figures["anchors"]),
        ("dependencies in samples", figures["dependencies"]),
        ("dependencies a root, mean", per_root["mean"]),
        ("dependencies a root, median", per_root["median"]),
        ("scored pairs that were accepted, share", figures["acceptance_rate"]),
        ("random contexts that pass the same rule, share", _chance(figures, rule)),
        ("mean ΔI of accepted pairs", figures["mean_gain"]),
        ("mean ΔI* of accepted pairs", figures["mean_calibrated_gain"]),
        ("mean drop of the true token's surprisal (nats)", figures["mean_surprisal_drop_nats"]),
        ("accepted pairs whose surprisal rose, share", figures["accepted_with_surprisal_rise"]),
        ("distance of dependencies, median (tokens)", distance["median"]),
        ("distance, 90th percentile (tokens)", distance["p90"]),
        ("distance beyond 32K tokens, share", distance["share_beyond_32k"]),
        ("distance beyond 64K tokens, share", distance["share_beyond_64k"]),
        ("candidates refused as near-duplicates", figures["near_duplicates_refused"]),
        *[(f"tokens in role {r}, share", n) for r, n in figures["share_by_role"].items()],
    ]


_USE = {
    "mds": """**MosaicML Streaming** (`mds/<split>/<source>/`): `input_ids`, `indices`, `length`,
`domain`, `provenance`{mask}. `indices` is one span over the whole sample: spans by document would
keep roots from attending to their contexts.
""",
    "parquet": """**Hugging Face datasets** (`parquet/`): `load_dataset("<this folder>")`. Columns:
`input_ids`, `loss_mask` (0 at padding), `segments` (role, span, documents), `dependencies` (anchor
position, context span, distance in tokens, gains). Positions run from 0 over the whole sample.
""",
    "megatron": """**Megatron-LM** (`megatron/<split>-<source>.bin`, `.idx`): int32 ids, one
sample a document. Leave `--reset-position-ids` and `--reset-attention-mask` off. The format holds
no mask.
""",
}


def dataset_card(manifest: Mapping[str, Any]) -> str:
    """The card of an export, from its manifest without files."""
    figures, splits, made = manifest["figures"], manifest["splits"], manifest["made_from"]
    formats = manifest["formats"]
    settings = manifest["settings"]
    mask = ", `mask` (0 at padding)" if figures["tokens_by_role"].get("padding") else ""
    sources = [
        (name, tokens, "; ".join(sorted(figures["licenses"].get(name, {"unknown": 0}))))
        for name, tokens in figures["tokens_by_source"].items()
    ]
    rule = settings["verification"]["rule"]
    wished = settings["export"]["validation_fraction"]
    return (
        _front_matter(figures, formats, splits)
        + "\n# Long-context samples with verified dependencies\n\n"
        "Each sample joins root documents with passages of other documents that were shown to "
        "lower a language model's uncertainty at given positions of the root (EntropyLong, "
        "arXiv 2510.02330). Token ids are those that were scored.\n\n"
        "## Figures\n\n"
        + _table(["figure", "value"], _figure_rows(figures, rule))
        + "\n## Sources\n\n"
        + _table(["source", "tokens", "licence, as the source gives it"], sources)
        + "\n## Splits\n\n"
        + _table(["split", "samples"], [*splits.items(), ("left out", manifest["left_out"])])
        + f"\nNo document stands in both splits, as root or as context; at most {wished:g} of the "
        "samples is held out, less where shared documents tie samples together. Left out are "
        "samples that share documents with both sides; the figures above count them.\n\n"
        "## Reading it\n\n"
        + "\n".join(_USE[name].replace("{mask}", mask) for name in formats)
        + "\n## Made from\n\n"
        + _table(
            ["", ""],
            [
                ("scoring model", made["model"]),
                ("index", ", ".join(made["indexes"])),
                ("code", made["code_version"]),
                ("seed", str(settings["seed"])),
                ("rule", f"{rule}, ε = {settings['verification']['epsilon']:g}"),
                ("threshold", f"τ = μ + {settings['entropy']['alpha']:g}·σ"),
                ("profile", settings["profile"]),
            ],
        )
        + "\nAll settings, and the hash of every file, are in `manifest.json`.\n"
    )
