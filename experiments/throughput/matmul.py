"""How fast this machine multiplies at the model's own shapes: what row F calls the hardware."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median

import torch

from experiments.throughput.flops import Shape
from experiments.throughput.measure import seconds

__all__ = ["training_seconds", "training_rate"]

REPEATS = 5


def _products(rows: int, inside: int, outside: int, dtype: torch.dtype, device: torch.device) -> float:
    """Seconds of a linear layer's three products: forward, gradient of its input, gradient of its weight."""
    states, weight = (torch.randn(*size, device=device).to(dtype) for size in ((rows, inside), (outside, inside)))
    slopes = torch.randn(rows, outside, device=device).to(dtype)
    products: list[Callable[[], object]] = [
        lambda: torch.nn.functional.linear(states, weight),
        lambda: slopes @ weight,
        lambda: slopes.T @ states,
    ]
    total = 0.0
    for product in products:
        product()
        total += median(seconds(product) for _ in range(REPEATS))
    return total


def training_seconds(shape: Shape, tokens: int, predictions: int, dtype: torch.dtype, device: torch.device) -> float:
    """All matrix products of one micro-batch's forward and backward pass, and nothing else."""
    layers = [_products(tokens, inside, outside, dtype, device) for inside, outside in shape.linear_layers]
    return shape.layers * sum(layers) + _products(predictions, shape.hidden, shape.vocabulary, dtype, device)


def training_rate(shape: Shape, tokens: int, predictions: int, dtype: torch.dtype, device: torch.device) -> float:
    """FLOP/s of those products."""
    flops = 6 * (shape.trunk * tokens + shape.head * predictions)
    return flops / training_seconds(shape, tokens, predictions, dtype, device)
