"""The method of the paper in NumPy and float64, as an oracle: it shares no code with the pipeline.

A Llama written by hand computes all logits in one forward pass of the whole [C; D] per pair.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file


class Llama:
    """A Llama's forward pass from its saved weights, float64 throughout."""

    def __init__(self, folder: str) -> None:
        self.config = json.loads((Path(folder) / "config.json").read_text())
        saved = load_file(Path(folder) / "model.safetensors")
        self.weights = {name: weight.astype(np.float64) for name, weight in saved.items()}

    def _norm(self, x: np.ndarray, name: str) -> np.ndarray:
        scale = np.sqrt((x**2).mean(-1, keepdims=True) + self.config["rms_norm_eps"])
        return x / scale * self.weights[name]

    def _rotate(self, x_HTd: np.ndarray) -> np.ndarray:
        length, width = x_HTd.shape[1:]
        config = self.config
        theta = config.get("rope_theta") or config["rope_parameters"]["rope_theta"]
        angles = np.arange(length)[:, None] * theta ** (-np.arange(0, width, 2) / width)
        cos, sin = np.cos(angles), np.sin(angles)
        a, b = x_HTd[..., : width // 2], x_HTd[..., width // 2 :]
        return np.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)

    def logits(self, ids: Sequence[int]) -> np.ndarray:
        c, w = self.config, self.weights
        heads, kv_heads = c["num_attention_heads"], c["num_key_value_heads"]
        width, length = c["hidden_size"] // heads, len(ids)
        x = w["model.embed_tokens.weight"][list(ids)]
        mask = np.triu(np.full((length, length), -np.inf), 1)
        for layer in range(c["num_hidden_layers"]):
            p = f"model.layers.{layer}."
            h = self._norm(x, p + "input_layernorm.weight")

            def split(name: str, n: int, p: str = p, h: np.ndarray = h) -> np.ndarray:
                projected = h @ w[f"{p}self_attn.{name}_proj.weight"].T
                return projected.reshape(length, n, width).transpose(1, 0, 2)

            q, k = self._rotate(split("q", heads)), self._rotate(split("k", kv_heads))
            k = np.repeat(k, heads // kv_heads, axis=0)
            v = np.repeat(split("v", kv_heads), heads // kv_heads, axis=0)
            scores = q @ k.transpose(0, 2, 1) / np.sqrt(width) + mask
            scores = np.exp(scores - scores.max(-1, keepdims=True))
            mixed = (scores / scores.sum(-1, keepdims=True)) @ v
            mixed = mixed.transpose(1, 0, 2).reshape(length, -1)
            x = x + mixed @ w[p + "self_attn.o_proj.weight"].T
            h = self._norm(x, p + "post_attention_layernorm.weight")
            gate = h @ w[p + "mlp.gate_proj.weight"].T
            up = h @ w[p + "mlp.up_proj.weight"].T
            x = x + (gate / (1 + np.exp(-gate)) * up) @ w[p + "mlp.down_proj.weight"].T
        return self._norm(x, "model.norm.weight") @ w["lm_head.weight"].T

    def scores(self, ids: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """Entropy and surprisal of each token after the first; index 0 is NaN."""
        logits = self.logits(ids)[:-1]
        logits -= logits.max(-1, keepdims=True)
        log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        entropy = -(np.exp(log_p) * log_p).sum(-1)
        surprisal = -log_p[np.arange(len(log_p)), list(ids[1:])]
        return np.append(np.nan, entropy), np.append(np.nan, surprisal)


def anchors(entropies: np.ndarray, alpha: float, first: int) -> list[int]:
    """Section 2.1: positions above μ + α·σ of the root."""
    threshold = np.nanmean(entropies) + alpha * np.nanstd(entropies)
    return [t for t, h in enumerate(entropies) if t >= first and h > threshold]


def nearest(query: np.ndarray, vectors: dict[str, np.ndarray], own: str, k: int) -> list[str]:
    """Section 2.2: the K chunks of other documents with the largest cosine, ties by id."""
    ranked = sorted((-float(query @ v), c) for c, v in vectors.items() if not c.startswith(own))
    return [c for _, c in ranked[:k]]


Scores = Callable[[tuple[int, ...]], tuple[np.ndarray, np.ndarray]]


def is_rare(texts: list[str], root: str, end: int) -> bool:
    """Whether the three words that end at a character of a root are in at most 8 texts, and the
    last of them and the next word in at most 60. A text consists of words, spaces and points."""
    before, after = re.findall(r"\w+|\.", root[:end]), re.findall(r"\w+|\.", root[end:])

    def documents(phrase: list[str]) -> int:
        count = 0
        for text in texts:
            words, n = re.findall(r"\w+|\.", text), len(phrase)
            count += any(words[k : k + n] == phrase for k in range(len(words)))
        return count

    return documents(before[-3:]) <= 8 and documents([before[-1], *after[:1]]) <= 60


def verdict(
    scores: Scores,
    bos: list[int],
    root: list[int],
    anchor: int,
    context: list[int],
    controls: list[list[int]],
    epsilon: float,
) -> dict[str, Any]:
    """Section 2.3 with controls: gains and both verdicts of one pair, and whether entropy and
    surprisal fall as rule `genuine` asks.

    `scores`: `Llama.scores`, or a memo of it.
    """

    def at_anchor(prefix: list[int]) -> tuple[float, float]:
        entropy, surprisal = scores((*bos, *prefix, *root))
        place = len(bos) + len(prefix) + anchor
        return float(entropy[place]), float(surprisal[place])

    h, i = at_anchor([])
    h_context, i_context = at_anchor(context)
    given_controls = [at_anchor(control) for control in controls]
    h_control = float(np.mean([e for e, _ in given_controls]))
    i_control = float(np.mean([s for _, s in given_controls]))
    gain = (h - h_context) / h
    calibrated = (min(h, h_control) - h_context) / h
    lower = min(i, i_control)
    return {
        "lowers_both": calibrated > 0 and (lower - i_context) / lower > 0.2,
        "gain": gain,
        "calibrated_gain": calibrated,
        "accepted_plain": gain > epsilon,
        "accepted_calibrated": calibrated > epsilon and i_context < min(i, i_control),
    }
