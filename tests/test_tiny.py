from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.tiny import END_OF_TURN, VOCABULARY, tiny_model


def test_the_tokenizer_gives_every_text_back(tiny_folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_folder)
    text = "Zürich, 東京 and\nnew lines"
    ids = tokenizer(text)["input_ids"]
    assert len(ids) == len(text.encode())
    assert tokenizer.decode(ids) == text
    assert len(tokenizer) == VOCABULARY
    assert tokenizer.eos_token_id == tokenizer.pad_token_id == END_OF_TURN == 2


def test_the_template_has_a_system_prompt_and_a_newline_after_each_turn(tiny_folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_folder)
    rendered = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], tokenize=False, add_generation_prompt=True
    )
    assert rendered == (
        "<|im_start|>system\nYou answer in bytes.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )


def test_the_model_is_the_same_for_the_same_seed_and_loads_whole(tmp_path: Path, tiny_folder: Path) -> None:
    state = torch.get_rng_state()
    same, other = tiny_model(tmp_path / "a", seed=0), tiny_model(tmp_path / "b", seed=1)
    assert torch.equal(state, torch.get_rng_state())
    first, again, another = (AutoModelForCausalLM.from_pretrained(path) for path in (tiny_folder, same, other))
    assert torch.equal(first.lm_head.weight, again.lm_head.weight)
    assert not torch.equal(first.lm_head.weight, another.lm_head.weight)
    assert first.lm_head.weight is first.get_input_embeddings().weight
    assert first.generation_config.eos_token_id == END_OF_TURN
    ids = torch.arange(20)[None]
    assert first(ids).logits.shape == (1, 20, VOCABULARY)
