"""Exact search over millions of vectors, and the rate of encoders, on one GPU.

    python -m benchmarks.search_gpu [--rows 10000000] [--queries 32768] [--out FILE]

Exact search: clustered synthetic vectors in host memory are copied to the GPU in blocks and
searched by the code of the pipeline (`stages/embeddings/exact.py`): on one GPU, and if there are
others on all of them. Baselines in the same run: the matrix products alone with everything on the
device, and the same search on the CPU over a sixteenth of the rows. Neighbours of 64 queries are
compared with float64 on the device.

Encoders: the shapes of all-MiniLM-L6-v2 and jina-embeddings-v3 with random weights, in bfloat16,
without tokenizer and transfer; texts of equal length. Baseline: the count of their matrix products,
at the device's measured peak.

Needs only torch and NumPy.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator

import numpy as np
import torch

from benchmarks.claims import Claims, median_seconds
from benchmarks.vectors import Mixture
from entropylong_assets.stages.embeddings.exact import Block, devices_of, nearest

BLOCK, K, E = 65_536, 24, 384

ENCODERS = {
    # layers, hidden, heads, feed-forward, tokens per text
    "all-MiniLM-L6-v2, 256 tokens": (6, 384, 12, 1536, 256),
    "jina-embeddings-v3, 512 tokens": (24, 1024, 16, 4096, 512),
    "jina-embeddings-v3, 2,048 tokens": (24, 1024, 16, 4096, 2048),
}


def blocks(vectors_NE: np.ndarray, rows: int) -> Iterator[Block]:
    for start in range(0, rows, BLOCK):
        part = vectors_NE[start : min(rows, start + BLOCK)]
        yield np.arange(start, start + len(part)), part


def exactly(vectors_NE: np.ndarray, queries_QE: np.ndarray, device: str) -> np.ndarray:
    """Return the similarity of the K-th nearest vector in float64, [Q]."""
    queries = torch.from_numpy(queries_QE).to(device).double()
    best = queries.new_full((len(queries), 0), -torch.inf)
    for _, part in blocks(vectors_NE, len(vectors_NE)):
        similarities = queries @ torch.from_numpy(part).to(device).double().T
        best = torch.cat([best, similarities], 1).topk(min(K, best.shape[1] + len(part))).values
    return best[:, -1].cpu().numpy()


def search(claims: Claims, rows: int, n_queries: int, devices: list[str]) -> None:
    device = devices[0]
    mixture = Mixture(topics=2_000, groups=200_000, dimension=E)
    vectors_NE = np.empty((rows, E), np.float32)
    for number, start in enumerate(range(0, rows, 250_000)):
        vectors_NE[start : start + 250_000] = mixture.draw(min(250_000, rows - start), number)
    queries_QE = mixture.draw(n_queries, 1_000_003)

    def products() -> None:
        queries = torch.from_numpy(queries_QE).to(device)
        block = torch.from_numpy(vectors_NE[:BLOCK]).to(device)
        size = max(1, 2**28 // BLOCK)
        for _ in range(16):
            for start in range(0, n_queries, size):
                torch.mm(queries[start : start + size], block.T)

    product_rate = 16 * BLOCK * n_queries * 2 * E / median_seconds(products, 3) / 1e12
    for queries in sorted({min(1_024, n_queries), min(8_192, n_queries), n_queries}):
        nearest(queries_QE[:queries], blocks(vectors_NE, BLOCK), K, devices)
        start = time.perf_counter()
        rows_QK, _ = nearest(queries_QE[:queries], blocks(vectors_NE, rows), K, devices)
        seconds = time.perf_counter() - start
        claims.note(
            "exact_search",
            devices=len(devices),
            rows=rows,
            queries=queries,
            seconds=seconds,
            queries_per_second=queries / seconds,
            tflops=rows * queries * 2 * E / seconds / 1e12,
            products_alone_tflops=product_rate,
        )
    worst_Q = exactly(vectors_NE, queries_QE[:64], device)
    pairs = np.einsum(
        "qe,qke->qk",
        queries_QE[:64].astype(np.float64),
        vectors_NE[rows_QK[:64]].astype(np.float64),
    )
    wrong = int((pairs < worst_Q[:, None] - 1e-6).sum())
    rate = queries / seconds
    few = rows // 16
    start = time.perf_counter()
    nearest(queries_QE[:1_024], blocks(vectors_NE, few), K, ["cpu"])
    on_cpu = 1_024 / (time.perf_counter() - start) / 16
    claims.note("exact_search_cpu", rows=few, queries=1_024, queries_per_second_at_all_rows=on_cpu)
    claims.claim("exact_search_gpu_over_cpu", rate / on_cpu, 10, wrong)


class Encoder(torch.nn.Module):
    def __init__(self, layers: int, hidden: int, heads: int, inner: int) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList(
            torch.nn.TransformerEncoderLayer(
                hidden, heads, inner, 0.0, "gelu", batch_first=True, norm_first=False
            )
            for _ in range(layers)
        )

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            hidden = layer(hidden)
        return torch.nn.functional.normalize(hidden.mean(1).float(), dim=-1)


def encoders(claims: Claims, device: str, tokens: int) -> None:
    kind = torch.bfloat16
    square = torch.randn(8192, 8192, device=device, dtype=kind)
    peak = 2 * 8192**3 / median_seconds(lambda: square @ square, 10) / 1e12
    for name, (layers, hidden, heads, inner, length) in ENCODERS.items():
        model = Encoder(layers, hidden, heads, inner).to(device, kind).eval()
        texts = max(1, tokens // length)
        given = torch.randn(texts, length, hidden, device=device, dtype=kind)
        with torch.inference_mode():
            eager = median_seconds(lambda m=model, x=given: m(x), 5)  # type: ignore[misc]
        flops = layers * (2 * (4 * hidden**2 + 2 * hidden * inner) + 4 * length * hidden)
        claims.note(
            "encoder",
            name=name,
            texts_per_batch=texts,
            chunks_per_second=texts / eager,
            tokens_per_second=texts * length / eager,
            share_of_peak=texts * length * flops / eager / 1e12 / peak,
            peak_tflops=peak,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--queries", type=int, default=32_768)
    parser.add_argument("--tokens", type=int, default=131_072, help="tokens per batch of texts")
    parser.add_argument("--out")
    args = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    claims = Claims("search_gpu")
    encoders(claims, device, args.tokens)
    devices = devices_of("auto")
    for used in [devices[:1], *([devices] if len(devices) > 1 else [])]:
        search(claims, args.rows, args.queries, used)
    claims.finish(args.out)


if __name__ == "__main__":
    main()
