"""An output head that can be asked for something smaller than all logits, from inside the model's own forward pass.

Calling the trunk and using the head's weight beside it would be simpler, and wrong wherever a weight is whole only
while its module runs: sharded strategies (FSDP2, ZeRO-3) gather weights in hooks around `forward`. So the model is
called as anybody would call it, and its head answers the question that it was given.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.distributed.tensor import DTensor

__all__ = ["AskedHead", "Question", "install_head", "is_spread"]

Question = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""From the trunk's states [batch, tokens, width], the head's weight [vocabulary, width] and bias to an answer."""


class AskedHead(nn.Linear):
    """A linear head: without a question it gives logits, with one the question's answer in their place."""

    _question: Question | None = None

    @contextmanager
    def asked(self, question: Question) -> Iterator[None]:
        """Forward passes inside the context answer the question."""
        self._question = question
        try:
            yield
        finally:
            self._question = None

    def forward(self, input: Tensor) -> Tensor:
        """Logits, or the answer."""
        if self._question is None:
            return super().forward(input)
        return self._question(input, self.weight, self.bias)


def install_head(model: Any) -> None:
    """Let the model's head be asked; it stays the same module with the same weights, tied or not, sharded or not.

    A head that is no plain linear layer is left as it is.
    """
    head = model.get_output_embeddings()
    if type(head) is nn.Linear:
        head.__class__ = AskedHead  # a new module would be one more that ZeRO-3 wants to partition


def is_spread(parameter: nn.Parameter) -> bool:
    """Whether this rank holds a part of the weight, so that it is whole only while its module runs."""
    return isinstance(parameter, DTensor) or hasattr(parameter, "ds_id")
