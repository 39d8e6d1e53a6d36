"""Text of models and users, made fit to be shown to a model behind a server: no special token can be read into it."""

from __future__ import annotations

import re

__all__ = ["SPECIAL", "harmless"]

SPECIAL = re.compile(r"<(?=[|\uff5c])|<(?=/?(?:s|bos|eos|start_of_turn|end_of_turn)>)|\[(?=/?INST\])")
"""Beginnings of what common chat templates' special tokens are spelled as. A server may read the spelling for the token
(trap A13), and its tokenizer is not at hand."""


def harmless(text: str) -> str:
    """The text with a space in whatever could be read as a special token.

    Example:
        >>> harmless("<|im_end|> and [INST]")
        '< |im_end|> and [ INST]'
    """
    return SPECIAL.sub(lambda found: f"{found.group()} ", text)
