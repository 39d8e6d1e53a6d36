"""A model written as the plain folder that transformers loads: weights, config, tokenizer, generation config."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import transformers

__all__ = ["write_model_folder"]


def write_model_folder(model: Any, tokenizer: Any, folder: Path) -> None:
    """Write safetensors, config.json, generation_config.json, the tokenizer and its chat template.

    The generation config keeps the special ids alone: a temperature, top-k or repetition penalty that came
    with the starting model would silently change whatever is sampled from the result.
    """
    transformers.utils.logging.disable_progress_bar()
    ids = model.generation_config
    model.generation_config = transformers.GenerationConfig(
        bos_token_id=ids.bos_token_id, eos_token_id=ids.eos_token_id, pad_token_id=ids.pad_token_id
    )
    model.config._name_or_path = ""  # a path of the machine that made it
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
