"""The report at the end of the suite, also written to the path ENTROPYLONG_FAULTS_REPORT."""

from __future__ import annotations

import json
import os
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

SEED = int(os.environ.get("ENTROPYLONG_FAULTS_SEED", "6"))
PROPERTY = "faults"
"""Name of the pytest property with a test's figures; pytest-xdist passes properties on."""


class FaultRecord:
    """Faults that one test caused, and what it observed; the fixture `record`."""

    def __init__(self) -> None:
        self.kills: Counter[str] = Counter()
        self.faults: Counter[str] = Counter()
        self.recoveries = self.looks = self.whole_seen = 0
        self.differences: list[str] = []

    def figures(self) -> dict[str, Any]:
        """All figures above 0, in types that pytest-xdist can send."""
        return {
            name: dict(value) if isinstance(value, Counter) else value
            for name, value in vars(self).items()
            if value
        }


def _gather(reporter: Any) -> tuple[FaultRecord, int, int]:
    """Sum up all records; return also the numbers of tests with a record, passed and failed."""
    whole, counts = FaultRecord(), Counter[str]()
    for outcome in ("passed", "failed"):
        for report in reporter.stats.get(outcome, []):
            for name, figures in getattr(report, "user_properties", []):
                if name != PROPERTY or report.when != "call":
                    continue
                counts[outcome] += 1
                whole.kills.update(figures.get("kills", {}))
                whole.faults.update(figures.get("faults", {}))
                whole.recoveries += figures.get("recoveries", 0)
                whole.looks += figures.get("looks", 0)
                whole.whole_seen += figures.get("whole_seen", 0)
                whole.differences += figures.get("differences", [])
                if outcome == "failed" and not figures.get("differences"):
                    whole.differences.append(f"{report.nodeid} failed")
    return whole, counts["passed"], counts["failed"]


def _markdown(whole: FaultRecord, passed: int, failed: int) -> str:
    lines = [
        f"{datetime.now(UTC).date().isoformat()}, seed {SEED}: {passed} tests passed, "
        f"{failed} failed.",
        "",
        "| | |",
        "|---|---|",
        f"| kills | {whole.kills.total()} |",
        *(f"| … of {name} | {n} |" for name, n in sorted(whole.kills.items())),
        f"| other faults | {whole.faults.total()} |",
        *(f"| … {name} | {n} |" for name, n in sorted(whole.faults.items())),
        f"| recoveries: reruns that ended with the undisturbed tables | {whole.recoveries} |",
        f"| times that a reader read all data meanwhile | {whole.looks} |",
        f"| … complete partitions, exports and shards that it read | {whole.whole_seen} |",
        f"| differences | {len(whole.differences) or 'none'} |",
        *(f"| … | {one} |" for one in whole.differences),
    ]
    return "\n".join(lines) + "\n"


def pytest_terminal_summary(terminalreporter: Any) -> None:
    whole, passed, failed = _gather(terminalreporter)
    if not passed + failed:
        return
    text = _markdown(whole, passed, failed)
    terminalreporter.section("faults")
    terminalreporter.write(text)
    path = os.environ.get("ENTROPYLONG_FAULTS_REPORT")
    if path:
        figures = whole.figures() | {"seed": SEED, "passed": passed, "failed": failed}
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).with_suffix(".md").write_text(text, encoding="utf-8")
        Path(path).with_suffix(".json").write_text(json.dumps(figures, indent=1), encoding="utf-8")
