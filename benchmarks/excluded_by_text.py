"""What rule `genuine` saves by not scoring contexts that it rejects because of their text.

    python -m benchmarks.excluded_by_text [--data data/quickstart] [--rounds 2] [--out FILE]

Every verified shard of the demo (`make demo`) is verified again in a copy of its data, in turn with
the rule alone and with all three rules, for which all contexts are scored: the baseline. CPU
seconds of the stage, evidence spans included. Differences: pairs that rule `genuine` accepts in one
and not in the other.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.claims import Claims
from entropylong_assets.project import make_project, open_store
from entropylong_assets.stages.execution import materialize
from entropylong_assets.stages.stage import Partition
from entropylong_assets.stages.verification.stage import VERIFIED_DEPENDENCIES_STAGE as STAGE
from entropylong_assets.stages.verification.tables import VERIFIED_DEPENDENCIES

RULES = {"genuine": [], "all rules": ["plain", "calibrated"]}


def verify(data: Path, compared: list[str]) -> dict[str, Any]:
    """Verify all shards; return what it took, and the pairs that the rule accepts."""
    values = {"data_uri": str(data), "verification": {"compared_rules": compared}}
    settings = make_project(values, "quickstart").dataset
    store = open_store(settings)
    shards = store.shards(VERIFIED_DEPENDENCIES)
    shutil.rmtree(data / settings.name / VERIFIED_DEPENDENCIES.name)  # no stored scores
    start = time.process_time()
    for shard in shards:
        materialize(STAGE, Partition(settings, store, shard))
    seconds = time.process_time() - start
    summaries = [store.summary(VERIFIED_DEPENDENCIES, shard) for shard in shards]
    pairs = store.read_all(VERIFIED_DEPENDENCIES, shards, "pairs").filter("accepted")
    return {
        "cpu_seconds": seconds,
        "contexts_scored": sum(s.contexts_scored for s in summaries),
        "forward_tokens": sum(s.forward_tokens for s in summaries),
        "evidence_tokens": sum(s.evidence_tokens for s in summaries),
        "accepted": set(pairs.select("root_id", "anchor", "chunk_id").iter_rows()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("data/quickstart"))
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--out")
    options = parser.parse_args()
    claims = Claims("excluded_by_text")
    seconds: dict[str, list[float]] = {name: [] for name in RULES}
    accepted: dict[str, set[Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data"
        shutil.copytree(options.data, data)
        verify(data, [])  # loads the model, and tests its fast ways
        for _ in range(options.rounds):
            for name, compared in RULES.items():
                found = verify(data, compared)
                accepted[name] = found.pop("accepted")
                seconds[name].append(found["cpu_seconds"])
                claims.note(name, accepted=len(accepted[name]), **found)
    ratio = median(seconds["all rules"]) / median(seconds["genuine"])
    differences = accepted["genuine"] ^ accepted["all rules"]
    claims.claim("times_as_fast", ratio, 1.7, len(differences))
    claims.finish(options.out)


if __name__ == "__main__":
    main()
