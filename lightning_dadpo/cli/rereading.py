"""`dadpo reread`."""

from __future__ import annotations

from pathlib import Path

from lightning_dadpo.data.artifacts import read_manifest
from lightning_dadpo.data.rereading import reread_responses
from lightning_dadpo.models.loading import load_tokenizer, model_digest
from lightning_dadpo.models.spec import ModelSpec

__all__ = ["reread"]


def reread(responses: str, tokenizer: ModelSpec, out: str) -> Path:
    """Make a responses folder of one whose model has another tokenizer: the same texts in the student's ids.

    Then `dadpo pair` takes it beside the student's own responses, dSFT learns from it, and `dadpo score` lets the
    teacher score the text of the pairs.

    Args:
        responses: folder of the teacher's responses.
        tokenizer: the student, whose tokenizer and chat template are used.
        out: folder to make; complete or absent.
    """
    folder = reread_responses(responses, load_tokenizer(tokenizer), model_digest(tokenizer), out)
    counts = dict(read_manifest(folder, "responses").counts)
    dropped = {key.removeprefix("dropped_"): count for key, count in counts.items() if key.startswith("dropped_")}
    said = ", ".join(f"{reason} {count}" for reason, count in dropped.items())
    print(f"{responses}: {counts['responses']} responses in the ids of {tokenizer.path}; dropped: {said or 'none'}")
    return folder
