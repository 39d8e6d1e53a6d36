"""What a training holds on one device, by part and strategy, before anything is loaded: arithmetic alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Literal

from lightning_dadpo.models.footprint import Footprint

__all__ = ["Layout", "Parts", "training_memory", "scoring_memory", "StrategyName"]

StrategyName = Literal["one", "ddp", "fsdp2", "deepspeed_zero2", "deepspeed_zero3"]
DEEPSPEED_BUCKET = 200_000_000
"""Elements of each of the two buffers in which DeepSpeed gathers gradients, as Lightning sets them."""
SCORE_BYTES = 420
"""Of one pair's scores by one anchor in memory: an id, four numbers and the table's entry."""


ALLOCATOR_SHARE = 0.5
"""Of the activations, kept by the allocator in pieces that fit nothing: 0.3 at 135M parameters, up to 0.8 for tiny
models, measured with glibc; nothing where it gives every block back at once (MALLOC_MMAP_THRESHOLD_=65536)."""
ALLOCATOR_SHARE_OF_ADAPTERS = 1.4
"""The same for adapters, measured on a tiny model: of each layer's results fewer are kept and more are let go."""


@dataclass(frozen=True)
class Layout:
    """How a training is spread.

    Attributes:
        strategy: what is spread at all.
        devices: over how many.
        mixed: bf16-mixed instead of float32 throughout.
        micro_batches: of one step on one device; with one, gradients grow while activations go.
    """

    strategy: StrategyName = "one"
    devices: int = 1
    mixed: bool = False
    micro_batches: int = 1


@dataclass(frozen=True)
class Parts:
    """Bytes on one device at the moment when they are the most.

    Attributes:
        weights, gradients, optimizer: of the student.
        activations: what autograd keeps of a micro-batch, and the head's chunk that is worked on.
        frozen: weights of live anchors.
        gathered: whole weights and gradients of what a strategy has put together for a moment, and its buffers.
        scores: tables of cached anchors.
        allocator: freed memory that the allocator cannot use again or give back.
    """

    weights: float
    gradients: float
    optimizer: float
    activations: float
    frozen: float
    gathered: float
    scores: float
    allocator: float

    @property
    def total(self) -> float:
        """All of it."""
        return float(sum(asdict(self).values()))


def training_memory(
    student: Footprint, frozen: Sequence[Footprint], layout: Layout, pairs: int, cached_anchors: int
) -> Parts:
    """The most that a preference training holds on one device.

    Either when the forward pass has ended (all activations, and gradients if there were micro-batches before) or
    when the backward pass has (all gradients, and those of the embeddings twice, once as the dense result that is
    still to be added).

    Args:
        student: the model in training.
        frozen: anchors that are live.
        layout: how all of it is spread.
        pairs: whose scores are in memory.
        cached_anchors: by how many anchors.
    """
    weights, gradients, optimizer = _states(student, layout)
    spread = layout.strategy in ("fsdp2", "deepspeed_zero3")
    held = sum(_frozen_bytes(model, layout) for model in frozen)
    gathered = _gathered(student, layout) + (sum(_whole_layers(model) for model in frozen) if spread else 0.0)
    scores = float(SCORE_BYTES * pairs * cached_anchors)
    head = 0.0 if student.adapter else 4.0 * student.head
    work = student.saved_bytes + 2.0 * student.chunk_bytes + head
    slack = (ALLOCATOR_SHARE_OF_ADAPTERS if student.adapter else ALLOCATOR_SHARE) * student.saved_bytes
    before = gradients if layout.micro_batches > 1 else 0.0
    early = Parts(weights, before, optimizer, work, held, gathered, scores, slack)
    late = Parts(weights, gradients, optimizer, head, held, gathered, scores, slack)
    return max(early, late, key=lambda parts: parts.total)


def _states(student: Footprint, layout: Layout) -> tuple[float, float, float]:
    """Weights, gradients and optimizer states on one device; the last two of an adapter alone, where there is one."""
    trained, n = float(student.trained), layout.devices
    deepspeed_mixed = layout.mixed and layout.strategy.startswith("deepspeed")
    # DeepSpeed trains bfloat16 weights beside float32 masters; everyone else float32 weights under autocast
    width = 2 if deepspeed_mixed else 4
    weights, gradients = student.weight_bytes(width), width * trained
    optimizer = (12 if layout.strategy.startswith("deepspeed") else 8) * trained
    if layout.strategy in ("fsdp2", "deepspeed_zero3"):
        return weights / n, gradients / n, optimizer / n
    if layout.strategy == "deepspeed_zero2":
        return weights, gradients / n, optimizer / n
    return weights, gradients, optimizer


def _frozen_bytes(model: Footprint, layout: Layout) -> float:
    width = 2 if layout.mixed and layout.strategy.startswith("deepspeed") else 4
    share = layout.devices if layout.strategy in ("fsdp2", "deepspeed_zero3") else 1
    return model.weight_bytes(width) / share


def _whole_layers(model: Footprint) -> float:
    """The outer group of weights and two layers, one of them fetched ahead, in float32."""
    return 4.0 * (model.parameters - model.layers * model.layer + 2 * model.layer)


def _gathered(student: Footprint, layout: Layout) -> float:
    if layout.strategy == "fsdp2":
        return _whole_layers(student) + (0.0 if student.adapter else 4.0 * student.layer)
    buckets = 2.0 * DEEPSPEED_BUCKET * (2 if layout.mixed else 4)
    if layout.strategy == "deepspeed_zero2":
        return buckets
    return buckets + _whole_layers(student) if layout.strategy == "deepspeed_zero3" else 0.0


def scoring_memory(model: Footprint, tokens: int, sixteen_bit: bool) -> float:
    """Bytes that a frozen model holds while it scores: its weights, one layer's tensors, a chunk of logits.

    Args:
        model: counted with the micro-batch of a training, of which a layer's share is taken.
        tokens: of a batch of the scoring, as a multiple of that micro-batch's.
        sixteen_bit: bfloat16 weights.
    """
    weights = model.weight_bytes(2 if sixteen_bit else 4)
    return weights + tokens * model.saved_bytes / model.layers + 2.0 * model.chunk_bytes
