"""Special tokens that a tokenizer itself puts around a text, for any kind of template.

A template may be a post-processor, flags such as `add_bos_token`, or code of the tokenizer's class,
and may consist of several tokens ([gMASK]<sop>). So it is read from what the tokenizer returns.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_SAMPLES = ("a", "The river is cold.", "7 + 5")
"""Texts whose tokens are compared, with and without the template."""


class TemplateError(ValueError):
    """The tokenizer changes the tokens of the text itself when it adds special tokens."""


def prepended_ids(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Return the special tokens that the tokenizer puts before a text; those after it don't count.

    Raises TemplateError if a text with special tokens does not contain the text without them.
    """
    common: set[tuple[int, ...]] | None = None
    for text in _SAMPLES:
        whole = list(tokenizer(text)["input_ids"])
        bare = list(tokenizer(text, add_special_tokens=False)["input_ids"])
        added = len(whole) - len(bare)
        prefixes = {
            tuple(whole[:start])
            for start in range(added + 1)
            if whole[start : start + len(bare)] == bare
        }
        common = prefixes if common is None else common & prefixes
    if not common:
        raise TemplateError("its special tokens change the tokens of the text itself")
    return min(common, key=len)
