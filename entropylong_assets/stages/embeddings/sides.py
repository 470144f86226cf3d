"""The two ways into a sentence transformer: for queries and for documents.

They can differ in prompt, task, tokenizer, window and even weights (asymmetric models).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from entropylong_assets.stages.embeddings.prompts import SideName
from entropylong_assets.stages.embeddings.tasks import input_module, resolve_task
from entropylong_assets.stages.embeddings.windows import is_bare, is_unlimited, window_of
from entropylong_assets.stages.embeddings.word_ids import (
    TokenCounter,
    WordByWord,
    tokenizes_words,
)
from entropylong_assets.stages.model_files import ModelError

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

MIN_TEXT_TOKENS = 8
"""Room for text that prompt and special tokens must leave in a window (tokens)."""

_OTHER_KINDS = {
    "sparse_encoder": "a sparse encoder",
    "cross_encoder": "a cross-encoder",
    "multi_vector_encoder": "a multi-vector (late interaction) model",
}


@dataclass(frozen=True, eq=False)
class Side:
    """How queries, or documents, are given to the model."""

    name: SideName
    prompt: str
    task: str | None
    module: Any
    """The model's input module for this task."""
    counter: TokenCounter | None
    """Puts the prompt before a text and returns the ids that `tokenizer` returns without
    truncation, in any number of threads; None if there is none for this model."""
    window_tokens: int
    """Longest text (tokens, prompt and special ones included)."""

    @property
    def task_argument(self) -> dict[str, Any]:
        """The keyword argument with which the model is called for the task, if there is one."""
        return {} if self.task is None else {"task": self.task}

    @property
    def tokenizer(self) -> Any:
        """The tokenizer of `module`."""
        return self.module.tokenizer

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Count the tokens of each text as it is embedded: with prompt and special tokens."""
        if not texts:
            return []
        if renders_messages(self.module):
            return [self._count_rendered(text) for text in texts]
        if self.counter is not None:
            return self.counter.count(texts)
        prompted = [self.prompt + text for text in texts]
        encoded = self.tokenizer(
            prompted, truncation=False, return_attention_mask=False, verbose=False
        )
        return [len(ids) for ids in encoded["input_ids"]]

    def token_ids(self, texts: Sequence[str]) -> list[NDArray[np.int32]] | None:
        """Return the ids of each text as it is embedded, not truncated; their number is the count.

        None without a counter.
        """
        if self.counter is None:
            return None
        return self.counter.ids(texts)

    def _count_rendered(self, text: str) -> int:
        """Count the tokens of a text in the model's chat template."""
        features = self.module.preprocess(
            [text],
            prompt=self.prompt,
            task=self.task,
            processing_kwargs={"text": {"truncation": False}},
        )
        return int(features["attention_mask"].sum())


def renders_messages(module: Any) -> bool:
    """Whether an input module puts texts into a chat template."""
    return "message" in getattr(module, "modality_config", {})


def make_counter(module: Any, prompt: str) -> TokenCounter | None:
    """Return a tokenizer that returns only ids, faster than the module's own, or None.

    It is a copy: transformers sets truncation and padding of its own tokenizer with each call,
    which other threads must not see. None for models whose tokenizer is not of the package
    `tokenizers`, is code of their own, or fills a chat template.
    """
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    tokenizer = module.tokenizer
    if is_bare(tokenizer):
        own, special_as_text = tokenizer, tokenizer.encode_special_tokens
    elif (
        isinstance(tokenizer, PreTrainedTokenizerFast)
        and type(tokenizer)._encode_plus is PreTrainedTokenizerFast._encode_plus
        and not renders_messages(module)
    ):
        own, special_as_text = tokenizer.backend_tokenizer, tokenizer.split_special_tokens
    else:
        return None
    counter = Tokenizer.from_str(own.to_str())
    counter.no_truncation()
    counter.no_padding()
    counter.encode_special_tokens = special_as_text
    kind = WordByWord if tokenizes_words(counter) else TokenCounter
    return kind(counter, not is_bare(tokenizer), prompt)


def read_special_tokens_as_text(module: Any, prompts: Sequence[str]) -> None:
    """Let text that spells a special token be plain text, for its vector and for its length.

    Not if a prompt or the model's chat template contains such a token: it must stay one.
    """
    tokenizer = module.tokenizer
    if is_bare(tokenizer):
        added = tokenizer.get_added_tokens_decoder().values()
        special = [token.content for token in added if token.special]
        tokenizer.encode_special_tokens = not any(s in p for s in special for p in prompts)
    elif not renders_messages(module):
        special = list(getattr(tokenizer, "all_special_tokens", []))
        tokenizer.split_special_tokens = not any(s in p for s in special for p in prompts)


def input_modules(model: SentenceTransformer) -> list[Any]:
    """Return the modules that take texts: one, or one per route of a router.

    Raises ModelError if the model has modules of another kind of encoder, or an input module
    without a tokenizer.
    """
    from sentence_transformers.base.modules import Router

    for module in model.modules():
        package = type(module).__module__.removeprefix("sentence_transformers.").split(".")[0]
        if package in _OTHER_KINDS:
            raise ModelError(
                f"it is {_OTHER_KINDS[package]}, which gives no dense vector per text; name a "
                f"sentence transformer"
            )
    first = model[0]
    modules = [r[0] for r in first.sub_modules.values()] if isinstance(first, Router) else [first]
    modules = [module for module in modules if "text" in getattr(module, "modalities", ["text"])]
    if not modules:
        raise ModelError("it does not embed text; name a sentence transformer for text")
    for module in modules:
        tokenizer = getattr(module, "tokenizer", None)
        if not (is_bare(tokenizer) or callable(tokenizer)):
            raise ModelError(
                f"its input module {type(module).__name__} has no tokenizer that counts tokens; "
                f"name a transformer or static embeddings"
            )
    return modules


def make_side(
    model: SentenceTransformer,
    name: SideName,
    prompt: str,
    chosen_task: str | None,
    chosen_window: int | None,
    other: Side | None = None,
) -> Side:
    """Make a side of the model.

    chosen_task, chosen_window: of the settings; none: the model's own. other: the other side, whose
    counter is shared if module and prompt are the same. Raises ModelError if there is no such task
    or window, or no room for text beside the prompt.
    """
    task = resolve_task(model, chosen_task, name)
    module = input_module(model, task)
    window = window_of(module, name)
    if chosen_window and chosen_window > window and not is_unlimited(module, name):
        raise ModelError(
            f"embedding.chunk_tokens is {chosen_window:,}, but it reads only {window:,} tokens; "
            f"set it to {window:,} or less"
        )
    is_shared = other is not None and (other.module, other.prompt) == (module, prompt)
    counter = other.counter if other and is_shared else make_counter(module, prompt)
    side = Side(name, prompt, task, module, counter, chosen_window or window)
    (taken,) = side.count_tokens([""])
    if side.window_tokens - taken < MIN_TEXT_TOKENS:
        raise ModelError(
            f"embedding.{name}_prompt and special tokens take {taken:,} of the "
            f"{side.window_tokens:,} tokens of its window, which leaves no room for text; shorten "
            f"the prompt, raise embedding.chunk_tokens, or name a model with a longer window"
        )
    return side
