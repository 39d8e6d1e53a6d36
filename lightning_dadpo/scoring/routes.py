"""Which way a model is given the pairs: their ids, or their text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from unicodedata import normalize

from lightning_dadpo.data.chat import render_prompt
from lightning_dadpo.data.pairing import read_pairs
from lightning_dadpo.data.row_store import RowStore
from lightning_dadpo.data.rows import FinishReason, PairRow, ResponseRow
from lightning_dadpo.data.tokenizers import tokenizer_difference
from lightning_dadpo.errors import ConfigError, DataError
from lightning_dadpo.models.loading import load_tokenizer
from lightning_dadpo.models.spec import ModelSpec
from lightning_dadpo.scoring.audit import audit_rows
from lightning_dadpo.scoring.reading import Route, read_pair
from lightning_dadpo.scoring.text_pairs import TextPairs

__all__ = ["rows_to_read", "as_text", "check_reads_the_same_text", "check_own_words", "check_same_tokenizer"]

LOOKED_AT = 32
"""Pairs that are asked which tokenizer their ids belong to."""


def rows_to_read(
    pairs: str, model: ModelSpec, own: ModelSpec | None, read: Route | None, say: bool
) -> RowStore[PairRow]:
    """The pairs of an artefact in the ids that a model reads, and one printed line that says which way.

    Args:
        pairs: the folder.
        model: who reads them.
        own: whose ids they hold; None where nobody said.
        read: the way that a person chose; by default ids where the tokenizers are the same, and text elsewhere.
        say: whether this process prints.

    Raises:
        ConfigError: the text is to be read, and nobody said whose ids the pairs hold.
        DataError: ids were asked for and are other words to the model; or see `TextPairs`.
    """
    tokenizer = load_tokenizer(model)
    owns = None if own is None else load_tokenizer(own)
    rows = read_pairs(pairs)
    difference = _difference(tokenizer, owns, rows)
    if read == "ids" or (read is None and difference is None):
        check_reads_the_same_text(tokenizer, model.path, rows)
        if say:
            print(f"{model.path} reads the ids of the pairs{_other_template(tokenizer, rows)}")
        return rows
    why = difference or "as asked"
    if own is None:
        raise ConfigError(
            f"model {model.path!r} reads the text of {pairs} under its own tokenizer ({why}); so that it can be "
            "counted which ids survive that, say whose they are, the student's: --tokenizer.path FOLDER"
        )
    if _read_otherwise(owns, rows) is not None:
        raise ConfigError(
            f"tokenizer {own.path!r}: the ids of {pairs} are other words to it; expected whose ids they are"
        )
    text = TextPairs(pairs, tokenizer, owns, model.path)
    if say:
        print(_said(text, model.path, why))
    return text


def as_text(model: ModelSpec, pairs: Sequence[PairRow]) -> list[PairRow]:
    """A few pairs in the ids that a model reads for their text; those that it cannot read are missing."""
    tokenizer = load_tokenizer(model)
    found = [read_pair(tokenizer, pair) for pair in pairs]
    return [pair for pair in found if isinstance(pair, PairRow)]


def _difference(tokenizer: Any, own: Any | None, pairs: Sequence[PairRow]) -> str | None:
    """Why the pairs' ids are other words to a model; None where they are not."""
    if own is not None:
        return tokenizer_difference(own, tokenizer)
    stranger = _read_otherwise(tokenizer, pairs)
    return None if stranger is None else f"the ids of pair {stranger.pair_id} are other words to it"


def _said(text: TextPairs, name: str, why: str) -> str:
    changed = text.changed_ids
    left_out = text.read - len(text)
    return (
        f"{name} reads the text of the pairs under its own tokenizer and template ({why}): one tokenisation, a lower "
        f"bound on the text's probability; "
        f"{len(text)} pairs, left out {left_out}{f' ({text.reasons()})' if left_out else ''}; of {text.read} pairs the "
        f"ids of {changed['chosen']} chosen and {changed['rejected']} rejected responses do not survive decoding"
    )


def _other_template(tokenizer: Any, pairs: Sequence[PairRow]) -> str:
    """What to say where the model's own chat template prints the pairs' prompts otherwise (trap A10)."""
    looked_at = audit_rows(pairs, LOOKED_AT)
    try:
        other = sum(render_prompt(tokenizer, pair.messages) != pair.prompt_token_ids for pair in looked_at)
    except DataError:
        return ""
    return (
        f"; its own chat template prints {other} of {len(looked_at)} prompts otherwise (`read: text` uses that one)"
        if other
        else ""
    )


def check_reads_the_same_text(tokenizer: Any, name: str, pairs: Sequence[PairRow]) -> None:
    """Refuse a model to which these token ids are other words: its scores would be finite and mean nothing.

    Args:
        tokenizer: the model's own.
        name: the model, for the message.
        pairs: some of them are decoded and compared with their text.

    Raises:
        DataError: most of them read otherwise.
    """
    if (other := _read_otherwise(tokenizer, pairs)) is not None:
        raise DataError(
            f"model {name!r}: its tokenizer reads the ids of pair {other.pair_id} (prompt {other.prompt_id}) as other "
            "text than theirs; leave `read` out or set it to text, and it scores the text under its own tokenizer"
        )


def _read_otherwise(tokenizer: Any, pairs: Sequence[PairRow]) -> PairRow | None:
    """A pair whose ids say something else than its text, where that is so for most of those that are looked at."""
    looked_at = audit_rows(pairs, LOOKED_AT)
    special = {index for index, token in tokenizer.added_tokens_decoder.items() if token.special}

    def fits(ids: list[int], text: str, finish: FinishReason) -> bool:
        return _says(tokenizer, ids, text) and (finish == "length" or ids[-1] in special)

    other = [
        pair
        for pair in looked_at
        if not fits(pair.chosen_token_ids, pair.chosen_text, pair.chosen_finish_reason)
        or not fits(pair.rejected_token_ids, pair.rejected_text, pair.rejected_finish_reason)
    ]
    return other[0] if 2 * len(other) > len(looked_at) else None


def _says(tokenizer: Any, ids: list[int], text: str) -> bool:
    """Whether ids are this text; white space and forms of one character, which tokenizers may change, aside."""
    wanted, found = (
        "".join(normalize("NFKC", said).split()) for said in (text, tokenizer.decode(ids, skip_special_tokens=True))
    )
    return wanted in found


def check_own_words(student: ModelSpec, rows: Sequence[PairRow] | Sequence[ResponseRow], place: str) -> None:
    """Refuse to train a student on another tokenizer's ids: the losses would be finite, and it would learn other words.

    Args:
        student: the model that is trained.
        rows: some of them are decoded and compared with their text.
        place: what they are, for the message: `data.train`.

    Raises:
        DataError: most of them read otherwise; the message names one.
    """
    if (tokenizer := _tokenizer_of(student)) is None:
        return
    looked_at = [rows[at] for at in range(0, len(rows), -(-len(rows) // LOOKED_AT))]
    other = [row for row in looked_at if not all(_says(tokenizer, *said) for said in _responses(row))]
    if 2 * len(other) > len(looked_at):
        raise DataError(
            f"{place}: to {student.path!r} the ids of the response to prompt {other[0].prompt_id!r} are other words "
            "than their text; another tokenizer made them: give what `dadpo reread` makes of the responses"
        )


def _tokenizer_of(model: ModelSpec) -> Any | None:
    """A model's tokenizer; None where its folder holds none: bare weights that somebody gives ids to can be trained."""
    try:
        return load_tokenizer(model)
    except DataError:
        return None


def _responses(row: PairRow | ResponseRow) -> list[tuple[list[int], str]]:
    if isinstance(row, ResponseRow):
        return [(row.token_ids, row.text)]
    return [(row.chosen_token_ids, row.chosen_text), (row.rejected_token_ids, row.rejected_text)]


SCORE_FIRST = "score the text to disk first (dadpo score) and give `scores: FOLDER`"


def check_same_tokenizer(ours: ModelSpec, theirs: ModelSpec, name: str, instead: str = SCORE_FIRST) -> None:
    """Refuse to keep a model in memory that would read the student's ids as other words.

    Args:
        ours: the student, whose ids the batches hold.
        theirs: the model that is to be asked about them.
        name: what it is in the configuration, for the message: `model.anchors.teacher`.
        instead: what a person can do.

    Raises:
        ConfigError: naming both, in what they differ, and what to do.
    """
    if ours.resolved() == theirs.resolved():
        return
    one, other = _tokenizer_of(ours), _tokenizer_of(theirs)
    if one is None or other is None:
        return
    if (difference := tokenizer_difference(one, other)) is not None:
        raise ConfigError(
            f"{name}: {theirs.path!r} has another tokenizer than {ours.path!r} ({difference}), so it cannot be asked "
            f"for every batch; {instead}"
        )
