"""What the report shows of natural documents."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from entropylong_assets.report.text import visible
from entropylong_assets.stages.entropy.model import Tokenizer
from entropylong_assets.stages.natural_documents.figures import figure_lines, natural_figures
from entropylong_assets.storage.tables import TableStore


def natural_section(
    store: TableStore, shards: Sequence[str], tokenizer: Tokenizer
) -> dict[str, Any] | None:
    """Return `figures` and an `example` of the kept windows; None if there is none."""
    figures = natural_figures(store, shards, tokenizer)
    if figures is None:
        return None
    example = figures["example"]
    if example is not None:
        example = example | {
            "source": visible(example["source"]),
            "tokens": [
                token
                | {name: [visible(part) for part in token[name]] for name in ("token", "found")}
                for token in example["tokens"]
            ],
        }
    return {
        "figures": [(visible(name), value, kind) for name, value, kind in figure_lines(figures)],
        "example": example,
    }
