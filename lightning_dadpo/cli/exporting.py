"""`dadpo export`."""

from __future__ import annotations

from pathlib import Path

from lightning_dadpo.errors import ConfigError
from lightning_dadpo.models.export import export_checkpoint, export_model
from lightning_dadpo.models.spec import ModelSpec

__all__ = ["export"]


def export(out: str, checkpoint: str | None = None, model: ModelSpec | None = None) -> Path:
    """Write a student's checkpoint, or any model, as a plain folder that transformers loads.

    Args:
        out: folder to make; complete or absent.
        checkpoint: a checkpoint of `dadpo fit`.
        model: a model instead, for example a GGUF file that a package carries.
    """
    if checkpoint is not None and model is None:
        return export_checkpoint(checkpoint, out)
    if model is not None and checkpoint is None:
        return export_model(model, out)
    raise ConfigError("export: give --checkpoint or --model, one of the two")
