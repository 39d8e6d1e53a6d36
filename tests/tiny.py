"""Models and tokenizers small enough to build inside a test. Nothing is downloaded."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

__all__ = ["END_OF_TURN", "VOCABULARY", "tiny_model", "tiny_tokenizer"]

SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
END_OF_TURN = SPECIAL_TOKENS.index("<|im_end|>")
VOCABULARY = len(SPECIAL_TOKENS) + 256

# The traits that traps A8, A11 and A12 need: a default system prompt, and a newline after each end of turn.
CHAT_TEMPLATE = """\
{%- if messages[0]['role'] != 'system' -%}
{{ '<|im_start|>system\\nYou answer in bytes.<|im_end|>\\n' }}
{%- endif -%}
{%- for turn in messages -%}
{{ '<|im_start|>' + turn['role'] + '\\n' + turn['content'] + '<|im_end|>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{ '<|im_start|>assistant\\n' }}
{%- endif -%}
"""


def tiny_tokenizer(path: Path) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer without merges, saved into `path`.

    Ids 0, 1, 2 are the special tokens in SmolLM2's order, the 256 bytes follow. The end-of-sequence token is
    also the padding token, so a mask made from ids instead of lengths loses the end of the turn.
    """
    tokens = [*SPECIAL_TOKENS, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    core = Tokenizer(models.BPE(vocab={token: index for index, token in enumerate(tokens)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|im_end|>",
        unk_token="<|endoftext|>",
        chat_template=CHAT_TEMPLATE,
    )
    tokenizer.save_pretrained(path)
    return tokenizer


def tiny_model(path: Path, layers: int = 4, hidden: int = 32, seed: int = 0, dropout: float = 0.0) -> Path:
    """A random Llama (tied embeddings, float32) with `tiny_tokenizer`, saved into one folder.

    Args:
        path: folder to make; parents are made too.
        layers: decoder blocks.
        hidden: width; four heads share it.
        seed: of the weights; the caller's random state is left as it was.
        dropout: on the attention weights, active in train mode only.

    Returns:
        `path`, ready for `from_pretrained`.
    """
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        # ten times the usual spread: with 0.02 every token is about equally likely and defects hide
        initializer_range=0.2,
        tie_word_embeddings=True,
        attention_dropout=dropout,
        bos_token_id=SPECIAL_TOKENS.index("<|im_start|>"),
        eos_token_id=END_OF_TURN,
        pad_token_id=END_OF_TURN,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config).float()
    model.generation_config = GenerationConfig(
        bos_token_id=config.bos_token_id, eos_token_id=END_OF_TURN, pad_token_id=END_OF_TURN
    )
    model.save_pretrained(path)
    tiny_tokenizer(path)
    return path
