"""The table of docs/architectures.md, from the outcomes that the test leaves in a folder.

python -m entropylong_assets_tests.architectures.table <folder> docs/architectures.md
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from entropylong_assets_tests.architectures.outcome import Outcome

BEGIN, END = "<!-- table: make test-architectures -->", "<!-- end of the table -->"


def render(outcomes: Sequence[Outcome]) -> str:
    """Return the table, and a line of totals above it."""
    import torch
    import transformers

    modes = Counter(outcome.mode or "refused" for outcome in outcomes)
    counts = ", ".join(f"{modes[mode]} {mode}" for mode in ("packed", "single", "plain", "refused"))
    worst = max(outcome.difference or 0.0 for outcome in outcomes)
    lines = [
        f"transformers {transformers.__version__}, torch {torch.__version__}, CPU, float32. "
        f"{len(outcomes)} models: {counts}. Largest difference to the plain definition: "
        f"{worst:.1e} nats.",
        "",
        "| model type | class | mode | largest difference (nats), or why it is refused |",
        "|---|---|---|---|",
    ]
    for outcome in sorted(outcomes, key=lambda o: o.name):
        what = outcome.refusal or f"{outcome.difference:.1e}"
        cells = (f"`{outcome.name}`", f"`{outcome.class_name}`", outcome.mode or "refused", what)
        lines.append(f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |")
    return "\n".join(lines)


def main(folder: Path, page: Path) -> None:
    outcomes = [Outcome(**json.loads(f.read_text())) for f in sorted(folder.glob("*.json"))]
    before, rest = page.read_text(encoding="utf-8").split(BEGIN)
    after = rest.split(END)[1]
    table = f"{before}{BEGIN}\n{render(outcomes)}\n{END}{after}"
    page.write_text(table, encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
