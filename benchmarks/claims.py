"""Shared by the benchmarks: a description of the machine, median times, and claims."""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any


def machine() -> dict[str, Any]:
    """Return date, device and package versions, under which a figure holds."""
    import torch

    description: dict[str, Any] = {
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "cpu": _cpu(),
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
    }
    if torch.cuda.is_available():
        description["gpu"] = torch.cuda.get_device_name()
    for package in ("torch", "transformers", "triton", "fa3-fwd"):
        try:
            description[package] = version(package)
        except PackageNotFoundError:
            continue
    return description


def _cpu() -> str:
    flags = {"amx_tile", "avx512_bf16", "avx512f", "avx2"}
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    about = dict(line.split(":", 1) for line in lines if ":" in line)
    about = {key.strip(): value.strip() for key, value in about.items()}
    has = sorted(flags & set(about.get("flags", "").split()))
    return f"{about.get('model name', platform.machine())} ({', '.join(has)})"


def median_seconds(work: Callable[[], Any], repeats: int = 5, warm_up: int = 1) -> float:
    """Return the median wall-clock seconds of `work`; waits for the device before and after."""
    for _ in range(warm_up):
        work()
    seconds = []
    for _ in range(repeats):
        _wait()
        start = time.perf_counter()
        work()
        _wait()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def _wait() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


class Claims:
    """Prints figures and claims, and collects them for a JSON file."""

    def __init__(self, name: str, out: str | None = None) -> None:
        """out: a JSON file that is written with every figure, so that a killed run leaves them."""
        self._out = out
        self._found: dict[str, Any] = {"benchmark": name, "machine": machine(), "claims": []}
        self._lines: list[str] = []
        print(json.dumps(self._found["machine"]), flush=True)

    def note(self, section: str, **figures: Any) -> None:
        """Report figures that have no target."""
        kept = {k: float(f"{v:.5g}") if isinstance(v, float) else v for k, v in figures.items()}
        self._found.setdefault(section, []).append(kept)
        self._write(self._out)
        print(section, json.dumps(kept), flush=True)

    def claim(
        self, name: str, ratio: float, target: float, differences: int, at_most: bool = False
    ) -> None:
        """Report a measured ratio and its target. at_most: the target is an upper bound."""
        met = ratio <= target if at_most else ratio >= target
        shown = f"{ratio:.4f}"
        self._lines.append(
            f"claim name={name} ratio={shown} target={target} differences={differences} "
            f"{'met' if met else 'NOT-MET'}"
        )
        self._found["claims"].append(
            {"name": name, "ratio": ratio, "target": target, "differences": differences, "met": met}
        )

    def finish(self, out: str | None) -> None:
        """Write the JSON file if `out` names one, then print one line per claim."""
        self._write(out)
        for line in self._lines:
            print(line, flush=True)

    def _write(self, out: str | None) -> None:
        if out:
            Path(out).write_text(json.dumps(self._found, indent=1) + "\n")
