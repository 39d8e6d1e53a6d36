from __future__ import annotations

import os
from pathlib import Path

# before anything imports torch, transformers or wandb: they read these once
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("WANDB_MODE", "offline")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch

from tests.tiny import tiny_model

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One tiny model's folder, shared by every test that only reads it."""
    return tiny_model(tmp_path_factory.mktemp("models") / "tiny")
