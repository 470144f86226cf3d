"""Share of a sample's tokens that are not padding, and seconds to pack, on generated groups.

python -m benchmarks.packing_utilisation [--roots 5 20 200 2000]
"""

from __future__ import annotations

import argparse
import time

import numpy as np

from entropylong_assets.stages.samples.groups import Context, Dependency, Group
from entropylong_assets.stages.samples.packing import Framing, lay_out, pack
from entropylong_assets.stages.samples.settings import SampleSettings

FRAMING = Framing(bos_ids=(1,), separator_ids=(2,), pad_id=0)
DEPENDENCY = Dependency(
    anchor=1, rank=1, gain=0.6, calibrated_gain=0.5, entropy=5.0, entropy_context=2.0
)


def make_groups(n_roots: int, rng: np.random.Generator) -> list[Group]:
    """Return groups: roots of 256-4,096 tokens with, on average, 46 verified contexts and 100 hard
    negatives of 64-512 tokens."""

    def contexts(root_id: str, role: str, count: int) -> tuple[Context, ...]:
        return tuple(
            Context(
                root_id=root_id,
                chunk_id=f"{root_id}-{role}-{i}",
                doc_id=f"{root_id}-{role}",
                source="web",
                token_ids=np.zeros(rng.integers(64, 513), np.uint32),
                dependencies=(DEPENDENCY,) if role == "v" else (),
                priority=0.5,
                first_anchor=1,
                first_rank=1,
                similarity=float(rng.random()),
            )
            for i in range(count)
        )

    return [
        Group(
            root_id=f"{i:08d}",
            token_ids=np.zeros(rng.integers(256, 4097), np.uint32),
            chosen=contexts(f"{i:08d}", "v", max(1, rng.poisson(46))),
            negatives=contexts(f"{i:08d}", "n", rng.poisson(100)),
        )
        for i in range(n_roots)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--roots", type=int, nargs="+", default=[5, 20, 200, 2000])
    options = parser.parse_args()
    print("roots  fill            samples  utilisation  all but the last  seconds")
    for n_roots in options.roots:
        groups = make_groups(n_roots, np.random.default_rng(0))
        for fill in ("verified_only", "hard_negatives"):
            settings = SampleSettings(fill=fill)
            start = time.perf_counter()
            samples, _ = pack(groups, FRAMING, settings, seed=0)
            used = []
            for members in samples:
                segments = lay_out(members, FRAMING, settings, seed=0)
                padding = sum(len(s.token_ids) for s in segments if s.role == "padding")
                used.append(1 - padding / settings.tokens)
            seconds = time.perf_counter() - start
            best = np.mean(sorted(used)[1:]) if len(used) > 1 else float("nan")
            print(
                f"{n_roots:5d}  {fill:14s}  {len(samples):7d}  {np.mean(used):11.4f}"
                f"  {best:16.4f}  {seconds:7.2f}"
            )


if __name__ == "__main__":
    main()
