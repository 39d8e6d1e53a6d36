"""A trained adapter alone, as the folder that peft loads onto its base."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import save_file

from lightning_dadpo.data.artifacts import draft, file_digest, finished
from lightning_dadpo.models.adapters import require_peft
from lightning_dadpo.models.consolidate import checkpoint_files
from lightning_dadpo.models.model_card import public_name
from lightning_dadpo.models.stored_adapters import read_adapter

__all__ = ["export_adapter"]


def export_adapter(checkpoint: str, out: str) -> Path:
    """Write the adapter of a checkpoint for `peft.PeftModel.from_pretrained(BASE, out)`.

    Args:
        checkpoint: of a training with `model.adapter`.
        out: folder to make; complete or absent.

    Raises:
        DataError: there is no adapter in it.
        ConfigError: peft is not installed.
    """
    adapter, peft = read_adapter(checkpoint), require_peft()
    made_from = {
        "checkpoint": [file_digest(file) for file in checkpoint_files(checkpoint)],
        "base": adapter.base_digest,
    }
    if finished(out, "adapter", made_from):
        return Path(out)
    config = peft.LoraConfig(
        r=adapter.spec.rank,
        lora_alpha=adapter.spec.alpha,
        lora_dropout=adapter.spec.dropout,
        target_modules=sorted(adapter.weights),
        base_model_name_or_path=public_name(adapter.base.path),
        task_type="CAUSAL_LM",
        inference_mode=True,
    )
    weights = {
        f"base_model.model.{name}.lora_{side}.weight": value.contiguous()
        for name, pair in adapter.weights.items()
        for side, value in zip("AB", pair, strict=True)
    }
    with draft(out, "adapter", made_from) as work:
        config.save_pretrained(str(work.path))
        save_file(weights, work.path / "adapter_model.safetensors", metadata={"format": "pt"})
        work.results = {"parameters": sum(value.numel() for value in weights.values())}
    return Path(out)
