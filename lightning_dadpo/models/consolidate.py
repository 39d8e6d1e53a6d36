"""What is in a checkpoint, whichever strategy wrote it: one file, or a folder with a part a rank."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import torch

from lightning_dadpo.errors import ConfigError, DataError

__all__ = ["read_checkpoint", "checkpoint_files"]

TAG = "checkpoint"
"""The subfolder in which Lightning lets DeepSpeed write."""


def checkpoint_files(checkpoint: str | Path) -> list[Path]:
    """Every file of a checkpoint that holds weights, in a fixed order.

    Raises:
        DataError: there is nothing, or a folder that no strategy here writes.
    """
    path = Path(checkpoint)
    if path.is_file():
        return [path]
    if not path.exists():
        raise DataError(f"{path}: no such file")
    files = sorted((path / TAG).glob("*.pt"))
    if not any(file.name.endswith("_model_states.pt") for file in files):
        raise DataError(
            f"{path}: a folder, but not of DeepSpeed (no {TAG}/*_model_states.pt); "
            "under FSDP2 train with save_distributed_checkpoint: false"
        )
    return files


def read_checkpoint(checkpoint: str | Path) -> dict[str, Any]:
    """The entries `state_dict` (whole weights, float32) and `dadpo` of a checkpoint.

    Raises:
        DataError: it is not one, or holds more than plain values and tensors, which could run code.
        ConfigError: it is DeepSpeed's, and DeepSpeed is not installed.
    """
    path = Path(checkpoint)
    files = checkpoint_files(path)
    loaded = _load(path) if path.is_file() else _read_deepspeed(path, files)
    if not isinstance(loaded, dict) or not isinstance(loaded.get("state_dict"), dict):
        raise DataError(f"{path}: not a Lightning checkpoint: no `state_dict` in it")
    if not isinstance(loaded.get("dadpo"), dict):
        raise DataError(f"{path}: not a checkpoint of this project: no entry `dadpo` that names the start model")
    return loaded


def _load(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # torch raises half a dozen types for a file that is none of its own
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise DataError(f"{path}: not a checkpoint that can be read safely (weights_only): {reason}") from error


def _read_deepspeed(path: Path, files: list[Path]) -> dict[str, Any]:
    """Parts of all ranks put together by DeepSpeed's own tool, held to plain values and tensors."""
    try:
        from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint
    except ImportError as error:
        raise ConfigError(
            f"{path}: a DeepSpeed checkpoint needs the package deepspeed (pip install 'lightning-dadpo[deepspeed]')"
        ) from error
    with _plain_values_only():
        said = _load(next(file for file in files if file.name.endswith("_model_states.pt")))
        try:
            with redirect_stdout(StringIO()):  # it prints its progress
                state = get_fp32_state_dict_from_zero_checkpoint(str(path), tag=TAG)
        except Exception as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise DataError(f"{path}: cannot put the ranks' parts together: {reason}") from error
    return {"state_dict": dict(state), "dadpo": said.get("dadpo")}


@contextmanager
def _plain_values_only() -> Iterator[None]:
    """DeepSpeed loads with pickle; inside the context torch refuses everything but plain values and tensors."""
    from deepspeed.runtime.fp16 import loss_scaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    named = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
    before = os.environ.get(named)
    os.environ[named] = "1"
    try:
        with torch.serialization.safe_globals([loss_scaler.LossScaler, ZeroStageEnum, fragment_address]):
            yield
    finally:
        if before is None:
            del os.environ[named]
        else:
            os.environ[named] = before
