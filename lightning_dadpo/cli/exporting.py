"""`dadpo export`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from lightning_dadpo.errors import ConfigError
from lightning_dadpo.models.adapter_folder import export_adapter
from lightning_dadpo.models.export import export_checkpoint, export_model
from lightning_dadpo.models.spec import ModelSpec

__all__ = ["export"]


def export(
    out: str,
    checkpoint: str | None = None,
    model: ModelSpec | None = None,
    dtype: Literal["float32", "bfloat16"] = "float32",
    teacher: str | None = None,
    made_with: list[str] | None = None,
    summary: str | None = None,
    adapter: bool = False,
) -> Path:
    """Write a student's checkpoint, or any model, as a plain folder that transformers loads.

    Args:
        out: folder to make; complete or absent.
        checkpoint: a checkpoint of `dadpo fit`.
        model: a model instead, for example a GGUF file that a package carries.
        dtype: number format of the written weights.
        teacher: name of a checkpoint's teacher, for the model card.
        made_with: artefact folders (responses, pairs, scores) whose counts the card of a checkpoint lists.
        summary: a summary.json whose numbers the card of a checkpoint shows.
        adapter: of a checkpoint trained with a LoRA adapter write that one alone, for peft, instead of merging it.
    """
    if checkpoint is not None and model is None:
        if adapter:
            return export_adapter(checkpoint, out)
        return export_checkpoint(checkpoint, out, dtype, teacher, made_with or (), summary)
    if model is not None and checkpoint is None and not adapter:
        return export_model(model, out, dtype)
    raise ConfigError("export: give --checkpoint (also for --adapter) or --model, one of the two")
