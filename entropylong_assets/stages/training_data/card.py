"""The dataset card: README.md of an export, with front matter for the Hugging Face Hub."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import TypeAdapter

from entropylong_assets.stages.diversity import spread_lines
from entropylong_assets.stages.entropy.tokenizer_facts import TokenizerFacts
from entropylong_assets.stages.natural_documents.figures import figure_lines
from entropylong_assets.stages.samples.padding import padding_note
from entropylong_assets.stages.training_data.corpus_facts import cleaning_section
from entropylong_assets.stages.training_data.front_matter import front_matter
from entropylong_assets.stages.training_data.registry import EXPORT_FORMATS, ExportFacts
from entropylong_assets.stages.training_data.split import TRAIN
from entropylong_assets.stages.verification.false_acceptance import ROUGH


def facts_of(content: Mapping[str, Any]) -> ExportFacts:
    """Return the facts that formats need about an export, from its manifest without files."""
    roles, export = content["figures"]["tokens_by_role"], content["settings"]["export"]
    fillers = not export["learn_fillers"] and roles.get("filler")
    tokenizer = {k: v for k, v in content["tokenizer"].items() if k != "dtype"}
    return ExportFacts(
        splits=content["splits"],
        sources=content["sources"],
        has_padding=bool(roles.get("padding") or fillers),
        tokenizer=TypeAdapter(TokenizerFacts).validate_python(tokenizer),
        loss_weights=export["loss_weights"],
        sampling_weights=content.get("sampling_weights"),
    )


def _cell(value: Any) -> str:
    """A value as a table cell; markup in names and licences is escaped."""
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


def _false_acceptance(figures: Mapping[str, Any], rule: str) -> str | None:
    rate = figures["false_acceptance"].get(rule)
    if rate is None:
        return None
    note = f"; {ROUGH}" if rate["is_rough"] else ""
    return f"{rate['rate']:.4g} (95% interval {rate['low']:.4g} to {rate['high']:.4g}{note})"


def _figure_rows(figures: Mapping[str, Any], rule: str) -> list[tuple[str, Any]]:
    per_root, distance = figures["dependencies_per_root"], figures["distance_tokens"]
    return [
        ("samples", figures["samples"]),
        ("tokens", figures["tokens"]),
        ("documents", figures["documents"]),
        ("roots", figures["roots_scored"]),
        ("anchors", figures["anchors"]),
        ("dependencies in samples", figures["dependencies"]),
        *[
            (f"dependencies of kind {kind}", n)
            for kind, n in figures["dependencies_by_kind"].items()
        ],
        ("dependencies per root, mean", per_root["mean"]),
        ("dependencies per root, median", per_root["median"]),
        *spread_lines(figures["diversity"]),
        ("scored pairs that were accepted, share", figures["acceptance_rate"]),
        ("random contexts that the rule accepts, share", _false_acceptance(figures, rule)),
        ("mean ΔI of accepted pairs", figures["mean_gain"]),
        ("mean ΔI* of accepted pairs", figures["mean_calibrated_gain"]),
        ("mean drop of the true token's surprisal (nats)", figures["mean_surprisal_drop_nats"]),
        ("accepted pairs whose surprisal rose, share", figures["accepted_with_surprisal_rise"]),
        ("distance of dependencies, median (tokens)", distance["median"]),
        ("distance, 90th percentile (tokens)", distance["p90"]),
        ("distance beyond 32K tokens, share", distance["share_beyond_32k"]),
        ("distance beyond 64K tokens, share", distance["share_beyond_64k"]),
        ("candidates rejected as near-duplicates", figures["near_duplicates_refused"]),
        *[(f"tokens in role {r}, share", n) for r, n in figures["share_by_role"].items()],
    ]


def _tokenizer_rows(content: Mapping[str, Any]) -> list[tuple[str, Any]]:
    tokenizer = content["tokenizer"]

    def token(name: str) -> str | None:
        token_id, text = tokenizer[f"{name}_id"], tokenizer[f"{name}_token"]
        return None if token_id is None else f"{token_id} ({text})"

    def ids(name: str) -> str | None:
        return ", ".join(map(str, tokenizer[name])) or None

    return [
        ("model whose tokenizer it is", tokenizer["model"]),
        ("vocabulary", tokenizer["vocab_size"]),
        ("padding", token("pad")),
        ("EOS", token("eos")),
        ("BOS", token("bos")),
        ("ids that begin a sample", ids("sample_begins_with")),
        ("ids after every context and root", ids("separator_ids")),
        ("tokens per sample", tokenizer["sample_tokens"]),
        ("type of ids", tokenizer["dtype"]),
    ]


def _sources(figures: Mapping[str, Any]) -> str:
    rows = [
        (name, tokens, "; ".join(sorted(figures["licenses"].get(name, {"unknown": 0}))))
        for name, tokens in figures["tokens_by_source"].items()
    ]
    return _table(["source", "tokens", "licence, as the source gives it"], rows)


def _padding(content: Mapping[str, Any]) -> str:
    """Why most tokens are padding; empty if they are not."""
    note = padding_note(content["figures"]["samples"], content["figures"]["tokens_by_role"])
    return f"\n{note}.\n" if note else ""


def _mixture(content: Mapping[str, Any]) -> str:
    """The parts of a mixture; empty without one."""
    if "mixture" not in content:
        return ""
    head = ["part", "share of tokens wanted", "realised", "samples", "samples available"]
    names = ("share", "realised", "samples", "available")
    rows = [[part, *(row[n] for n in names)] for part, row in content["mixture"].items()]
    weights = content["sampling_weights"]
    groups = [(g, content["sources"][TRAIN][g], f"{w:.9g}") for g, w in weights.items()]
    return (
        "\n## Mixture\n\n"
        + _table(head, rows)
        + "\nNatural samples are windows of long documents, short ones are short documents one "
        "after the other; neither has verified dependencies. All samples have one length, so that "
        "shares of tokens are shares of samples. A trainer that draws samples uniformly gets the "
        "realised shares. With the weights below, one that draws from the sources of each part "
        "gets the wanted shares, for any number of steps. Validation needs no weights.\n\n"
        + _table(["source of a part", "samples in train", "sampling weight"], groups)
        + "\n*Use in trainers* has the weights in the form that each trainer reads.\n"
    )


def _quoted(parts: Sequence[str]) -> str:
    """Text around a place, the place itself in bold, as one table cell."""
    before, text, after = (_cell("".join(c if c.isprintable() else " " for c in p)) for p in parts)
    return f"… {before} **{text or '␣'}** {after} …"


def _natural(content: Mapping[str, Any]) -> str:
    """Figures of the natural windows of a mixture, and one to read; empty without any."""
    figures = content.get("natural")
    if figures is None:
        return ""
    text = (
        "\n## Natural documents\n\nWindows of long documents, kept by information gain "
        "(LongFilter, arXiv 2510.25804): how much better the scoring model knows the text in a "
        "long window than in a short one. A key token needs more than the short window: its "
        "surprisal falls by more than 2 nats, to less than 2 (LongPPL, arXiv 2410.23771). What it "
        "needs is taken to be at the nearest earlier place with the same text. The audits of "
        "anchors and contexts do not apply to these windows.\n\n"
        + _table(["figure", "value"], [(name, value) for name, value, _ in figure_lines(figures)])
    )
    example = figures["example"]
    if example is None:
        return text
    rows = [
        "| "
        + " | ".join(
            [
                f"{t['found_at']:,}: {_quoted(t['found'])}",
                f"{t['position']:,}: {_quoted(t['token'])}",
                _cell(t["distance"]),
                f"{t['surprisal_short']:.2f} → {t['surprisal_long']:.2f}",
            ]
        )
        + " |\n"
        for t in example["tokens"]
    ]
    head = ["what it needs", "key token", "distance (tokens)", "surprisal, short → long (nats)"]
    return (
        f"{text}\nThe window with the highest gain ({example['gain']:.3f} nats), "
        f"`{example['window_id']}` of {_cell(example['source'])}, and some of its "
        f"{example['key_tokens']:,} key tokens:\n\n" + _table(head, []) + "".join(rows)
    )


def _masked_fillers(content: Mapping[str, Any]) -> str:
    """A note for exports whose fillers are not learnt; empty for others."""
    if content["settings"]["export"]["learn_fillers"]:
        return ""
    return (
        "Fillers (role `filler`) are not learnt. ProLong's and EntropyLong's trainers apply the "
        "mask of MDS only with `--apply_instruct_masks`.\n\n"
    )


def _no_table(facts: ExportFacts, formats: Sequence[str]) -> str:
    """A section on `load_dataset` for exports that it can't load; empty for others."""
    if any(EXPORT_FORMATS[name].front_matter(facts).get("configs") for name in formats):
        return ""
    return (
        "\n### Hugging Face `datasets`\n\n`load_dataset` cannot load these formats, and says so. "
        "Export again with `parquet` among `export.formats`.\n"
    )


def license_file(content: Mapping[str, Any]) -> str:
    """The file of an export that lists the licences of its sources."""
    return (
        "# Licences\n\nThe texts in these samples are under the licences of their sources:\n\n"
        + _sources(content["figures"])
    )


_INTRODUCTION = """
# Long-context samples with verified dependencies

Each sample joins root documents with passages of other documents that were shown to lower a \
language model's uncertainty at given positions of the root (EntropyLong, arXiv 2510.02330)."""


def _use_in_trainers(content: Mapping[str, Any], facts: ExportFacts) -> str:
    return (
        "## Use in trainers\n\n"
        + _masked_fillers(content)
        + "\n".join(EXPORT_FORMATS[name].usage(facts) for name in content["formats"])
        + _no_table(facts, content["formats"])
    )


def dataset_card(content: Mapping[str, Any]) -> str:
    """The card of an export, from its manifest without files."""
    figures, splits, made_from = content["figures"], content["splits"], content["made_from"]
    settings, facts = content["settings"], facts_of(content)
    rule, epsilon = settings["verification"]["rule"], settings["verification"].get("epsilon")
    fraction = settings["export"]["validation_fraction"]
    return (
        front_matter(content, facts) + _INTRODUCTION + " Token ids are those that were scored.\n\n"
        "## Figures\n\n"
        + _table(["figure", "value"], _figure_rows(figures, rule))
        + _padding(content)
        + _mixture(content)
        + _natural(content)
        + "\n## Sources\n\n"
        + _sources(figures)
        + cleaning_section(content)
        + "\n## Tokenizer\n\n"
        + _table(["", ""], _tokenizer_rows(content))
        + "\nOnly padding has the padding's id if it is a special token other than EOS and BOS.\n"
        + "\n## Splits\n\n"
        + _table(["split", "samples"], [*splits.items(), ("left out", content["left_out"])])
        + f"\nNo document is in both splits, as root or as context. At most {fraction:g} of the "
        "samples is held out, and less if shared documents link samples. Samples that share "
        "documents with both splits are left out; the figures above count them.\n\n"
        + _use_in_trainers(content, facts)
        + "\n## Made from\n\n"
        + _table(
            ["", ""],
            [
                ("dataset", settings["name"]),
                ("corpus", settings["corpus"]["name"]),
                ("scoring model", made_from["model"]),
                ("index", ", ".join(made_from["indexes"])),
                ("code", made_from["code_version"]),
                ("seed", str(settings["seed"])),
                ("rule", rule if epsilon is None else f"{rule}, ε = {epsilon:g}"),
                ("threshold", _threshold(settings["entropy"])),
            ],
        )
        + "\nThe settings that determine the samples, and the hash of every file, are in "
        "`manifest.json`.\n"
    )


def _threshold(entropy: Mapping[str, Any]) -> str:
    alpha, by_entropy = f"{entropy['alpha']:g}", entropy.get("anchors", "entropy") == "entropy"
    surprising = "" if by_entropy else f"; or surprisal above its own μ + {alpha}·σ"
    return f"τ = μ + {alpha}·σ{surprising}"


def _repacked(counts: Mapping[str, Any]) -> str:
    """A table of what was read, packed and dropped."""
    read, packed = counts["read"], counts["packed"]
    rows = [(name.replace("_", " "), read[name], packed.get(name, 0)) for name in read]
    dropped = [
        (f"{what}: {reason}", n)
        for what in ("roots", "contexts", "dependencies")
        for reason, n in counts[f"{what}_dropped"].items()
    ]
    return _table(["", "read", "packed"], rows) + (
        "\n" + _table(["dropped", "number"], dropped) if dropped else ""
    )


def retokenized_card(content: Mapping[str, Any]) -> str:
    """The card of an export that was packed again, from its manifest without files."""
    figures, splits, made_from = content["figures"], content["splits"], content["made_from"]
    facts = facts_of(content)
    shares = [(f"tokens in role {r}, share", n) for r, n in figures["share_by_role"].items()]
    return (
        front_matter(content, facts)
        + _INTRODUCTION
        + " The samples were packed again for another tokenizer. **Gains and "
        f"entropies were measured by {_cell(made_from['gains_measured_by'])} at its own tokens**; "
        "an anchor is the token that holds the first character of the one that was measured.\n\n"
        "## Figures\n\n"
        + _table(
            ["figure", "value"],
            [("samples", figures["samples"]), ("tokens", figures["tokens"]), *shares],
        )
        + "\n## Packed again\n\n"
        + _repacked(content["repacked"])
        + "\n## Sources\n\n"
        + _sources(figures)
        + "\n## Tokenizer\n\n"
        + _table(["", ""], _tokenizer_rows(content))
        + "\n## Splits\n\n"
        + _table(["split", "samples"], [*splits.items()])
        + "\nRoots and contexts stay in the split that they were in.\n\n"
        + _use_in_trainers(content, facts)
        + "\n## Made from\n\n"
        + _table(
            ["", ""],
            [
                ("export", made_from["export"]),
                ("model that measured gains", made_from["gains_measured_by"]),
                ("tokens per sample before", made_from["sample_tokens"]),
                ("tokenizer", made_from["tokenizer"]),
                ("seed", str(content["settings"]["seed"])),
            ],
        )
        + "\nSettings, counts and the hash of every file are in `manifest.json`.\n"
    )
