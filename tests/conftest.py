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


LONGEST = (
    "test_drill.py", "test_strategies.py", "test_pipeline.py", "test_launching.py", "test_rounds.py",
    "test_resume_commands.py", "test_throughput.py", "test_memory.py", "test_adapter_strategies.py",
    "test_adapters.py", "test_two_processes.py", "test_watch.py",
)  # fmt: skip
"""Files that take longest, first: the last one that is begun leaves one of two processes without work."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    places = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.name, len(LONGEST)))
