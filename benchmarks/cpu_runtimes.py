"""Speed of SmolLM2's hidden states on the CPU, with each runtime that is installed.

    python -m benchmarks.cpu_runtimes [--only engine ...] [--out results.json]

Eight sequences of 512 tokens, without a cache. The runtimes take turns; the figures are medians.
Baseline: plain transformers, one sequence per forward pass. Install the runtimes to be compared
beside the project: `pip install openvino onnxruntime onnx onnxscript zentorch`. None of them is a
dependency; benchmarks/RESULTS.md gives the reason.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.claims import Claims
from entropylong_assets.project import make_project
from entropylong_assets.stages.entropy import attention
from entropylong_assets.stages.entropy.engine import PackedScorer
from entropylong_assets.stages.entropy.model import load_scoring_model
from entropylong_assets.stages.entropy.scoring import ScoringRequest

ROUNDS = 5
Pass = Callable[[], Any]


class HiddenStates(torch.nn.Module):
    def __init__(self, decoder: Any) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.decoder(input_ids=ids, use_cache=False).last_hidden_state


def compiled(module: torch.nn.Module, rows: list[torch.Tensor], backend: str) -> Pass:
    """Compile the whole model with `torch.compile`, with its weights frozen into the code."""
    import torch._inductor.config

    if backend == "zentorch":
        __import__("zentorch")
    torch._dynamo.reset()
    fast = torch.compile(module, backend=backend, dynamic=False)

    @torch.no_grad()
    def run() -> list[torch.Tensor]:
        with torch._inductor.config.patch(freezing=True):
            return [fast(row) for row in rows]

    return run


def openvino(module: HiddenStates, rows: list[torch.Tensor], precision: str) -> Pass:
    import openvino

    # Its converter does not support torch's attention with fewer key heads than query heads.
    with torch.no_grad(), attention.implementation(module.decoder, "eager"):
        shape = openvino.PartialShape([1, -1])
        graph = openvino.convert_model(module, example_input=rows[0], input=[shape])
    hints = {
        "INFERENCE_PRECISION_HINT": precision,
        "PERFORMANCE_HINT": "THROUGHPUT",
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
    }
    fast = openvino.Core().compile_model(graph, "CPU", hints)

    def run() -> list[Any]:
        queue = openvino.AsyncInferQueue(fast)
        for row in rows:
            queue.start_async(row.numpy())
        queue.wait_all()
        return list(queue)

    return run


def onnx(module: torch.nn.Module, rows: list[torch.Tensor], folder: Path) -> Pass:
    import onnxruntime

    file = folder / "trunk.onnx"
    with torch.no_grad():
        torch.onnx.export(module, (rows[0],), str(file), dynamo=True, verbose=False)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(file), options, ["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda: [session.run(None, {name: row.numpy()}) for row in rows]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--only", nargs="*", default=[], help="runtimes to compare with transformers"
    )
    parser.add_argument("--out")
    options = parser.parse_args()
    claims = Claims("cpu_runtimes")
    scoring = make_project({"scoring": {"dtype": "float32"}}, "quickstart").dataset.scoring
    loaded = load_scoring_model(scoring)
    draw = np.random.default_rng(0).integers(0, loaded.vocab_size, (8, 512))
    rows = [torch.from_numpy(row)[None] for row in draw]
    requests = [ScoringRequest(np.append(row, 0), np.array([512])) for row in draw]
    module = HiddenStates(loaded.hf_model.get_decoder()).eval()
    scorer = PackedScorer(loaded)

    @torch.inference_mode()
    def plain() -> list[torch.Tensor]:
        return [module(row) for row in rows]

    with tempfile.TemporaryDirectory() as folder:
        makers: dict[str, Callable[[], Pass]] = {
            "transformers": lambda: plain,
            "engine": lambda: lambda: scorer.score(requests),
            "inductor, frozen": lambda: compiled(module, rows, "inductor"),
            "zentorch": lambda: compiled(module, rows, "zentorch"),
            "openvino float32": lambda: openvino(module, rows, "f32"),
            "openvino bfloat16": lambda: openvino(module, rows, "bf16"),
            "onnxruntime": lambda: onnx(module, rows, Path(folder)),
        }
        passes: dict[str, Pass] = {}
        for name, make in makers.items():
            if options.only and name not in ("transformers", *options.only):
                continue
            start = time.perf_counter()
            try:
                run_passes = make()
                run_passes()
            except Exception as error:  # not installed, or can't run the model
                reason = " ".join(f"{type(error).__name__}: {error}".split())[:160]
                claims.note("runtimes", name=name, failed=reason)
                continue
            claims.note("runtimes", name=name, first_s=time.perf_counter() - start)
            passes[name] = run_passes
        seconds: dict[str, list[float]] = {name: [] for name in passes}
        for _ in range(ROUNDS):
            for name, run in passes.items():
                start = time.perf_counter()
                run()
                seconds[name].append(time.perf_counter() - start)
    base = seconds["transformers"]
    for name, taken in seconds.items():
        ratio = statistics.median(a / b for a, b in zip(base, taken, strict=True))
        rate = draw.size / statistics.median(taken)
        claims.note("runtimes", name=name, tokens_per_second=rate, over_transformers=ratio)
    claims.finish(options.out)


if __name__ == "__main__":
    main()
