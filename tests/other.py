"""A second kind of tiny model: other tokens for the same text, another template, another end of turn.

Beside `tests.tiny`: a byte-level BPE with merges, special tokens behind the others instead of before them, a
beginning-of-sequence token that the template prints and that the tokenizer would add once more (trap A1), content
trimmed, roles in brackets, no system prompt of its own and no newline behind a turn.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from tokenizers.processors import TemplateProcessing
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

__all__ = ["OTHER_TEMPLATE", "by_hand", "other_model", "other_tokenizer", "speak_plainly"]

BEGIN, END = "<s>", "<end_of_turn>"
OTHER_TEMPLATE = """\
{{- bos_token -}}
{%- for turn in messages -%}
{%- if turn['role'] == 'system' -%}{{ raise_exception('no system messages') }}{%- endif -%}
{{ '[' + turn['role'] + ']\\n' + turn['content'] | trim + '<end_of_turn>' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '[assistant]\\n' }}{%- endif -%}
"""
TRAINED_ON = ["question of a user, the assistant answers", "the words that stand here often are merged: the answer"]


def other_tokenizer(path: Path) -> PreTrainedTokenizerFast:
    """Trained in a moment, always the same; saved into `path`."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.train_from_iterator(
        TRAINED_ON * 4,
        trainers.BpeTrainer(
            vocab_size=300, show_progress=False, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), min_frequency=2
        ),
    )
    core.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in (BEGIN, END)])
    core.post_processor = TemplateProcessing(single=f"{BEGIN} $A", special_tokens=[(BEGIN, core.token_to_id(BEGIN))])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token=BEGIN, eos_token=END, pad_token=END, chat_template=OTHER_TEMPLATE
    )
    tokenizer.save_pretrained(path)
    return tokenizer


def by_hand(tokenizer: Any, question: str, answer: str, finished: bool) -> tuple[list[int], list[int]]:
    """Ids of prompt and response, written out piece by piece; no template and no code of the package is asked."""
    core = tokenizer.backend_tokenizer
    begin, end = core.token_to_id(BEGIN), core.token_to_id(END)

    def plain(text: str) -> list[int]:
        pieces = pre_tokenizers.ByteLevel(add_prefix_space=False).pre_tokenize_str(text)
        return [token.id for piece, _ in pieces for token in core.model.tokenize(piece)]

    prompt = [begin, *plain(f"[user]\n{question.strip()}"), end, *plain("[assistant]\n")]
    return prompt, plain(answer.strip()) + ([end] if finished else [])


def other_model(path: Path, layers: int = 2, seed: int = 5) -> Path:
    """A random Llama with `other_tokenizer`, in float32, saved into one folder."""
    tokenizer = other_tokenizer(path)
    end = tokenizer.convert_tokens_to_ids(END)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        initializer_range=0.2,
        bos_token_id=tokenizer.convert_tokens_to_ids(BEGIN),
        eos_token_id=end,
        pad_token_id=end,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config).float()
    model.generation_config = GenerationConfig(bos_token_id=config.bos_token_id, eos_token_id=end, pad_token_id=end)
    model.save_pretrained(path)
    return path


def speak_plainly(path: Path) -> Path:
    """Let a random model of this package's tests sample words of ASCII letters and its end of turn alone.

    A constant is added to what every token is read as, and taken off the logits of all other tokens: what random bytes
    say is broken UTF-8 more often than not.
    """
    model, tokenizer = AutoModelForCausalLM.from_pretrained(path), AutoTokenizer.from_pretrained(path)
    said = [tokenizer.convert_ids_to_tokens(index) for index in range(model.config.vocab_size)]
    plain = [token == tokenizer.eos_token or (token.isascii() and token.isalpha()) for token in said]
    model.config.tie_word_embeddings = False
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    with torch.no_grad():
        model.model.embed_tokens.weight[:, 0] = 8.0
        model.lm_head.weight[:, 0] = torch.tensor([0.0 if one else -20.0 for one in plain])
    model.save_pretrained(path)
    return path
