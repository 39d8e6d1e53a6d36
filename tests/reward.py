"""A reward model small enough to build inside a test."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForSequenceClassification

from tests.tiny import END_OF_TURN, VOCABULARY, tiny_tokenizer

__all__ = ["tiny_reward_model"]


def tiny_reward_model(path: Path, padding: int | None, positions: int = 200) -> Path:
    """A random Llama with one output and `tiny_tokenizer`, saved into one folder.

    Args:
        path: the folder.
        padding: what its config names as padding token, whatever the tokenizer's is.
        positions: tokens that it can read.
    """
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_labels=1,
        num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=positions, initializer_range=0.3,
        pad_token_id=padding, bos_token_id=1, eos_token_id=END_OF_TURN,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        LlamaForSequenceClassification(config).save_pretrained(path)
    tiny_tokenizer(path)
    return path
