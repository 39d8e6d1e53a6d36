"""What both sides share: the models' shapes and random weights, the device and its numbers, the sizes of a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from experiments.throughput.flops import STUDENT, TEACHER, TINY, Shape
from experiments.throughput.workload import LONG, SHORT, Pair, evenly, read_workload
from lightning_dadpo.models.loading import autocast
from lightning_dadpo.models.numerics import default_device, default_tokens_per_batch, training_precision
from lightning_dadpo.models.spec import ModelSpec, Precision

__all__ = [
    "Sizes",
    "sizes_for",
    "Setting",
    "save_random",
    "optimizer_of",
    "chunks",
    "BETA_REFERENCE",
    "BETA_TEACHER",
]

BETA_REFERENCE, BETA_TEACHER = 0.09, 0.01
LEARNING_RATE = 1e-6
MICRO_BATCHES = (1, 2, 4, 8, 16)


@dataclass(frozen=True)
class Sizes:
    """How much of everything is run.

    Attributes:
        student, teacher: shapes.
        step: pairs of an optimizer step, by set; the pairs are spread evenly over the lengths.
        sweep: pairs of one unit of the search for a rival's micro-batch, by set.
        scored: pairs of a unit of scoring, by set.
        blocks: measured rounds.
        ladder: pairs of a step of the ablation ladder, by set; ladder_blocks: its rounds.
        gate: pairs whose log-probs, and pairs whose gradient, are computed in float64.
        loop: optimizer steps of an epoch of the Lightning loop, of `loop_pairs` pairs each.
        prompts: prompts of row L; new_tokens: cap on its responses; sampled_blocks: its rounds.
        scaling: pairs of a step, and tokens a response, at 1x.
    """

    student: Shape
    teacher: Shape
    step: dict[str, int]
    sweep: dict[str, int]
    scored: dict[str, int]
    blocks: int
    ladder: dict[str, int]
    ladder_blocks: int
    gate: tuple[int, int]
    loop: int
    loop_pairs: int
    prompts: int
    new_tokens: int
    sampled_blocks: int
    scaling: tuple[int, int]


FULL = Sizes(
    student=STUDENT,
    teacher=TEACHER,
    step={SHORT: 8, LONG: 2},
    sweep={SHORT: 4, LONG: 2},
    scored={SHORT: 8, LONG: 2},
    blocks=5,
    ladder={SHORT: 4, LONG: 1},
    ladder_blocks=3,
    gate=(24, 4),
    loop=2,
    loop_pairs=4,
    prompts=64,
    new_tokens=64,
    sampled_blocks=5,
    scaling=(8, 16),
)
ON_GPU = replace(
    FULL,
    step={SHORT: 16, LONG: 16},
    sweep={SHORT: 16, LONG: 16},
    scored={SHORT: 64, LONG: 16},
    blocks=15,
    ladder={SHORT: 16, LONG: 16},
    ladder_blocks=5,
    loop=10,
    loop_pairs=16,
)
"""Where a step takes a fraction of a second."""
QUICK = Sizes(
    student=TINY,
    teacher=TINY,
    step={SHORT: 4, LONG: 2},
    sweep={SHORT: 2, LONG: 2},
    scored={SHORT: 4, LONG: 2},
    blocks=2,
    ladder={SHORT: 2, LONG: 2},
    ladder_blocks=1,
    gate=(64, 2),
    loop=2,
    loop_pairs=2,
    prompts=4,
    new_tokens=8,
    sampled_blocks=1,
    scaling=(2, 4),
)


def sizes_for(quick: bool) -> Sizes:
    """How much is run on this machine."""
    return QUICK if quick else ON_GPU if default_device().type == "cuda" else FULL


def save_random(shape: Shape, folder: Path, seed: int) -> Path:
    """A model of a shape with seeded random weights, in float32, as a folder that everyone loads it from."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.key_value_heads,
        max_position_embeddings=8192,
        rope_parameters={"rope_type": "default", "rope_theta": 100_000.0},
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        initializer_range=0.05,  # logits with a spread above 1, so that the gate on accuracy sees real differences
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
    )
    if not (folder / "config.json").exists():
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            LlamaForCausalLM(config).float().save_pretrained(folder)
    return folder


def optimizer_of(model: Any) -> torch.optim.Optimizer:
    """The same on every side."""
    return torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.01, fused=True)


@dataclass(frozen=True)
class Setting:
    """One run's models, data and machine.

    Attributes:
        sizes: how much.
        folder: where the random models lie, and what is written on the way.
        sets: every pair of both sets.
        device, precision: what the project chooses here for training; both sides use them.
        chat_model: the model of row L.
    """

    sizes: Sizes
    folder: Path
    sets: dict[str, list[Pair]]
    device: torch.device
    precision: Precision
    chat_model: ModelSpec | None = None

    @staticmethod
    def make(sizes: Sizes, folder: Path, chat_model: ModelSpec | None = None) -> Setting:
        """Save the models, read the workload, look at the machine."""
        save_random(sizes.student, folder / "student", seed=0)
        save_random(sizes.teacher, folder / "teacher", seed=1)
        device = default_device()
        return Setting(
            sizes, folder, read_workload(sizes.student.vocabulary), device, training_precision(device), chat_model
        )

    @property
    def student(self) -> ModelSpec:
        """The student, which is its own reference at step 0."""
        return ModelSpec(str(self.folder / "student"))

    @property
    def teacher(self) -> ModelSpec:
        """The teacher."""
        return ModelSpec(str(self.folder / "teacher"))

    @property
    def quick(self) -> bool:
        """Whether this only shows that everything runs."""
        return self.sizes == QUICK

    @property
    def budget(self) -> int:
        """Tokens of a micro-batch: what the project takes here by itself."""
        return default_tokens_per_batch(self.device)

    def pairs(self, name: str, number: int) -> list[Pair]:
        """Some pairs of a set, spread evenly over the lengths."""
        return evenly(self.sets[name], number)

    def autocast(self) -> torch.autocast:
        """The context of a forward pass."""
        return autocast(self.precision, self.device)

    def described(self) -> dict[str, Any]:
        """For results.json."""
        sizes = asdict(self.sizes)
        return {"precision": self.precision, "threads": torch.get_num_threads(), "sizes": sizes}


def chunks(pairs: Sequence[Pair], size: int) -> list[list[Pair]]:
    """Pairs in their order, `size` at a time."""
    return [list(pairs[start : start + size]) for start in range(0, len(pairs), size)]
