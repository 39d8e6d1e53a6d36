"""Are two tokenizers the same? Asked of what they do, never of their names or of the width of a model's logits."""

from __future__ import annotations

from typing import Any

from lightning_dadpo.data.chat import render_prompt, render_response
from lightning_dadpo.data.rows import Message
from lightning_dadpo.errors import DataError

__all__ = ["tokenizer_difference"]

PROBES = (
    "The quick brown fox doesn't jump over 12345 lazy dogs.",
    "  two spaces,\ttabs\n\n\nand lines \n end",
    "def area(radius: float) -> float:\n    return 3.14159 * radius ** 2\n",
    "Zürich, naïve, Ελλάδα, привет, 日本語, 한국어, العربية, 🙂👩‍🔬",
    "ALLCAPS camelCase snake_case http://example.org/?q=1&r=2 [INST] {} <b>",
)
"""Where tokenizers part: digits, blanks, contractions, code, scripts, capitals, brackets."""


def tokenizer_difference(ours: Any, theirs: Any) -> str | None:
    """Why ids of one tokenizer are other words to another one, in a few words; None where they are the same.

    The same id must be the same token wherever both know it, they must split text alike, and the other must know what
    the first one's chat template prints. Tokens that one of them has beyond that, padding for example, change nothing.

    Args:
        ours: whose ids they are.
        theirs: of the model that would read them.
    """
    if ours is theirs:
        return None
    known = {index: token for token, index in theirs.get_vocab().items()}
    for token, index in sorted(ours.get_vocab().items(), key=lambda item: item[1]):
        if known.get(index, token) != token:
            return f"id {index} is {token!r} to one and {known[index]!r} to the other"
    for text in PROBES:
        if ours.encode(text, add_special_tokens=False) != theirs.encode(text, add_special_tokens=False):
            return f"they split {text[:20]!r} into other tokens"
    strange = [index for index in _conversation(ours) if index not in known]
    return f"the other has no token {ours.convert_ids_to_tokens(strange[0])!r}" if strange else None


def _conversation(tokenizer: Any) -> list[int]:
    """What the chat template prints around a question and its answer, if there is a template."""
    question = [Message("user", "Hi")]
    try:
        return render_prompt(tokenizer, question) + render_response(tokenizer, question, "Ho")
    except DataError:
        return []
