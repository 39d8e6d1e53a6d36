"""`dadpo import`."""

from __future__ import annotations

from pathlib import Path

from lightning_dadpo.data.artifacts import read_manifest
from lightning_dadpo.data.importing import PreferenceSource
from lightning_dadpo.data.pairing import import_pairs
from lightning_dadpo.models.loading import load_tokenizer, model_digest
from lightning_dadpo.models.spec import ModelSpec

__all__ = ["import_preferences"]


def import_preferences(source: PreferenceSource, tokenizer: ModelSpec, out: str, split: str = "train") -> Path:
    """Make a pairs folder of preference data in TRL's format, rendered by the student's chat template.

    Args:
        source: a file, or a name for datasets.load_dataset.
        tokenizer: the student, whose tokenizer and chat template are used.
        out: folder to make; complete or absent.
        split: what the rows are called: train, validation or heldout.
    """
    folder = import_pairs(source, load_tokenizer(tokenizer), model_digest(tokenizer), split, out)
    counts = dict(read_manifest(folder, "pairs").counts)
    pairs = counts.pop("pairs")
    dropped = ", ".join(f"{reason.removeprefix('dropped_')} {count}" for reason, count in counts.items())
    print(f"{source.path}: {pairs} pairs; dropped: {dropped or 'none'}")
    return folder
