"""What a real process holds at its peak: `python -m tests.training.memory_peaks CELLS`, one JSON figure a cell.

Two things that differ from run to run are kept out. Weights are loaded by several threads, and what each leaves in
the allocator stays there or is used again by chance (up to 100 MB for a model of 20): every cell but those that are
`plain` is measured with an allocator that gives each block back at once. And pages of a mapped file may be dropped by
the kernel at any time: weights are the process's own here, and its own memory alone is counted.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import json
import os
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from lightning_dadpo.data.batching import collate_pairs
from lightning_dadpo.data.rows import Message, PairRow
from lightning_dadpo.losses import DaDPO
from lightning_dadpo.models.adapters import attach_adapter
from lightning_dadpo.models.loading import load_frozen, load_model
from lightning_dadpo.models.log_probs import model_log_probs
from lightning_dadpo.models.spec import AdapterSpec, ModelSpec
from lightning_dadpo.types import PairLogProbs

LENGTHS = (40, 60, 60)
"""Tokens of a prompt and of its responses."""
MMAP_THRESHOLD = -3
"""glibc's M_MMAP_THRESHOLD: blocks from this size on go straight back to the system."""


def held() -> int:
    """Bytes of this process's own memory."""
    lines = Path("/proc/self/status").read_text("utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


class Peak:
    """The most that was held inside the context, looked at every millisecond."""

    def __enter__(self) -> Peak:
        self.bytes, self._on = held(), True
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while self._on:
            self.bytes = max(self.bytes, held())
            time.sleep(0.001)

    def __exit__(self, *error: object) -> None:
        self._on = False
        self._thread.join()


def own(model: Any) -> Any:
    """The model with weights of its own instead of a mapped file's."""
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()
    return model


def student(path: str, rank: int, quantize: Any) -> tuple[Any, torch.optim.Optimizer]:
    spec = ModelSpec(path, quantize=quantize)
    model = load_model(spec).train()
    if quantize is None:
        own(model)
    if rank:
        attach_adapter(model, AdapterSpec(rank=rank, quantize=quantize), spec)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return model, torch.optim.AdamW(trained, lr=1e-6, fused=True)


def pair(number: int) -> PairRow:
    ids = [[3 + (number + part + i) % 250 for i in range(size)] for part, size in enumerate(LENGTHS)]
    said = [Message("user", "q")]
    return PairRow(str(number), str(number), "train", said, ids[0], ids[1], "a", "stop", ids[2], "b", "stop")


def train(model: Any, optimizer: torch.optim.Optimizer, frozen: Sequence[Any], pairs: int, micro_batches: int) -> None:
    """One step."""
    for _ in range(micro_batches):
        sequences = collate_pairs([pair(number) for number in range(pairs)]).sequences
        with torch.no_grad():
            anchors = [PairLogProbs.split(model_log_probs(anchor, sequences)) for anchor in frozen]
        policy = PairLogProbs.split(model_log_probs(model, sequences))
        reference, teacher = anchors or (policy.detach(), policy.detach())
        DaDPO(0.09, 0.01)(policy, {"reference": reference, "teacher": teacher}).loss.sum().backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def peak(
    model: str, small: str, pairs: int, micro_batches: int = 1, frozen: Sequence[str] = (), rank: int = 0,
    quantize: str | None = None, scoring: bool = False,
) -> int:  # fmt: skip
    """Bytes beyond those of a process that has trained another, small model in the same way."""
    tried, optimizer = student(small, rank, quantize)
    train(tried, optimizer, [], 1, 1)
    del tried, optimizer
    gc.collect()
    base = held()
    with Peak() as most:
        trained, optimizer = student(model, rank, quantize)
        anchors = [own(load_frozen(ModelSpec(path), "32-true")) for path in frozen]
        if scoring:
            with torch.no_grad():
                model_log_probs(trained, collate_pairs([pair(number) for number in range(pairs)]).sequences)
        else:
            for _ in range(2):  # the optimizer's states are there from the first step on
                train(trained, optimizer, anchors, pairs, micro_batches)
    return most.bytes - base


def main(cells: list[dict[str, Any]]) -> None:
    """Each cell in a process of its own that begins with everything imported: none finds what another has left."""
    for package in ("peft", "bitsandbytes"):
        with suppress(ImportError):
            importlib.import_module(package)
    for cell in cells:
        if os.fork():
            assert os.wait()[1] == 0, cell
            continue
        if not cell.pop("plain", False):
            ctypes.CDLL(None).mallopt(MMAP_THRESHOLD, 1 << 16)
        print(json.dumps(peak(**cell)), flush=True)
        os._exit(0)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
