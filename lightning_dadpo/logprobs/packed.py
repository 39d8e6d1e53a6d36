"""The fast kernel: log pi(y|x) of whole responses from the packed states of token trees."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from lightning_dadpo.logprobs.linear import linear_log_probs
from lightning_dadpo.types import PackedBatch, SequenceLogProbs

__all__ = ["packed_log_probs", "sum_over_responses"]


def packed_log_probs(
    hidden: Float[Tensor, "tokens width"],
    weight: Float[Tensor, "vocabulary width"],
    bias: Float[Tensor, " vocabulary"] | None,
    batch: PackedBatch,
    chunk_tokens: int | None = None,
) -> SequenceLogProbs:
    """Log pi(y|x) of each sequence, the head applied to predicting states only.

    Equal to `gather.sequence_log_probs` on the same sequences in rows of their own, values and gradients.

    Args:
        hidden: the trunk's output for every token of the batch.
        weight, bias: the head's.
        batch: token trees.
        chunk_tokens: predictions whose logits are in memory at a time; None: by the device.

    Returns:
        Sums over response tokens in nats and the number of tokens in each.
    """
    log_probs = linear_log_probs(hidden[batch.predicted_by], weight, bias, batch.targets, chunk_tokens)
    return SequenceLogProbs(sum_over_responses(log_probs, batch), batch.num_response_tokens)


def sum_over_responses(values: Float[Tensor, " predictions"], batch: PackedBatch) -> Float[Tensor, " sequences"]:
    """One value a prediction to one sum a sequence; a prediction that two sequences share counts for both."""
    return values.new_zeros(len(batch.num_response_tokens)).index_add(0, batch.owners, values[batch.terms])
