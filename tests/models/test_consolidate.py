"""DeepSpeed reads its checkpoints with pickle; here that runs no code."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from lightning_dadpo.errors import DataError
from lightning_dadpo.models.consolidate import TAG, checkpoint_files, read_checkpoint


class Code:
    """What a pickle would run."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.proof),)


def deepspeed_folder(root: Path, client: object) -> Path:
    folder = root / "last.ckpt"
    (folder / TAG).mkdir(parents=True)
    torch.save({"dadpo": client}, folder / TAG / "mp_rank_00_model_states.pt")
    return folder


def test_code_in_the_parts_of_a_deepspeed_checkpoint_is_not_run(tmp_path: Path) -> None:
    pytest.importorskip("deepspeed")
    folder = deepspeed_folder(tmp_path, Code(tmp_path / "proof"))
    with pytest.raises(DataError, match=r"model_states\.pt: not a checkpoint that can be read safely"):
        read_checkpoint(folder)
    assert not (tmp_path / "proof").exists()


def test_code_in_an_optimizers_part_is_not_run_by_deepspeeds_own_tool(tmp_path: Path) -> None:
    pytest.importorskip("deepspeed")
    folder = deepspeed_folder(tmp_path, {"student": {"path": "x"}})
    torch.save(Code(tmp_path / "proof"), folder / TAG / "zero_pp_rank_0_mp_rank_00_optim_states.pt")
    before = os.environ.get("TORCH_FORCE_WEIGHTS_ONLY_LOAD")
    with pytest.raises(DataError, match="cannot put the ranks' parts together"):
        read_checkpoint(folder)
    assert not (tmp_path / "proof").exists()
    assert os.environ.get("TORCH_FORCE_WEIGHTS_ONLY_LOAD") == before


def test_the_parts_of_a_checkpoint_are_its_files(tmp_path: Path) -> None:
    folder = deepspeed_folder(tmp_path, {})
    assert [file.name for file in checkpoint_files(folder)] == ["mp_rank_00_model_states.pt"]
    with pytest.raises(DataError, match="no such file"):
        checkpoint_files(tmp_path / "none.ckpt")
    with pytest.raises(DataError, match="a folder, but not of DeepSpeed"):
        checkpoint_files(tmp_path)
