"""Text that somebody else wrote, made harmless for a terminal."""

from __future__ import annotations

import unicodedata

__all__ = ["harmless"]

TURNS_WRITING = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
"""Marks that reorder what stands on a line, so that it reads otherwise than it is."""


def harmless(text: str) -> str:
    r"""The text with everything that a terminal would obey spelled out: escape sequences, bells, reordering marks.

    Line breaks and tabs stay.

    Example:
        >>> harmless("red \x1b[31m and \u202eback")
        'red \\x1b[31m and \\u202eback'
    """
    return "".join(map(_shown, text.replace("\r\n", "\n")))


def _shown(character: str) -> str:
    if character in "\n\t":
        return character
    commands = unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp")
    if not commands and character not in TURNS_WRITING:
        return character
    return f"\\x{ord(character):02x}" if ord(character) < 0x100 else f"\\u{ord(character):04x}"
