"""Kernels that turn hidden states into response log-probabilities. Torch only."""

from lightning_dadpo.logprobs.divergence import Divergence, Predictor, linear_divergences
from lightning_dadpo.logprobs.gather import response_positions, sequence_log_probs, token_log_probs
from lightning_dadpo.logprobs.linear import default_chunk_tokens, linear_log_probs
from lightning_dadpo.logprobs.packed import packed_log_probs, sum_over_responses

__all__ = [
    "response_positions",
    "sequence_log_probs",
    "token_log_probs",
    "default_chunk_tokens",
    "linear_log_probs",
    "packed_log_probs",
    "sum_over_responses",
    "Divergence",
    "Predictor",
    "linear_divergences",
]
