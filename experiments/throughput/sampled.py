"""Row L: this project's sampler against plain `generate`, prompts in their order, on a model that ends its turns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from experiments.throughput.measure import Ratio, seconds
from experiments.throughput.setting import Setting
from lightning_dadpo.data.chat import render_prompt
from lightning_dadpo.data.prompts import PromptFile, read_prompts
from lightning_dadpo.models.loading import autocast, end_of_turn_ids, load_frozen, load_tokenizer
from lightning_dadpo.models.numerics import inference_precision
from lightning_dadpo.models.spec import ModelSpec
from lightning_dadpo.sampling.base import SamplerSettings
from lightning_dadpo.sampling.transformers_sampler import TransformersSampler

__all__ = ["compare_samplers", "response_tokens"]

PROMPTS = Path(__file__).resolve().parents[2] / "configs" / "prompts" / "train.jsonl"
BATCH = 32
TEMPERATURE = 0.7


def response_tokens(row: list[int], ends: tuple[int, ...]) -> int:
    """Tokens up to and with the first that ends the turn; what `generate` puts behind it is padding."""
    return next((place + 1 for place, token in enumerate(row) if token in ends), len(row))


class _Plain:
    """`generate` as it comes: batches in prompt order, padded on the left, every row to the last one's end."""

    def __init__(self, model: Any, ends: tuple[int, ...], new_tokens: int) -> None:
        self.model, self.ends = model, ends
        self.arguments = {
            "do_sample": True,
            "temperature": TEMPERATURE,
            "top_k": 0,
            "top_p": 1.0,
            "max_new_tokens": new_tokens,
            "eos_token_id": list(ends),
            "pad_token_id": ends[0],
        }

    def run(self, prompts: list[list[int]]) -> int:
        """Response tokens drawn."""
        drawn = 0
        for start in range(0, len(prompts), BATCH):
            part = prompts[start : start + BATCH]
            width = max(map(len, part))
            ids = torch.tensor([[0] * (width - len(row)) + row for row in part], device=self.model.device)
            mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in part], device=self.model.device)
            with torch.inference_mode():
                out = self.model.generate(input_ids=ids, attention_mask=mask, **self.arguments)
            drawn += sum(response_tokens(row, self.ends) for row in out[:, width:].tolist())
        return drawn


def _rate(run: Callable[[], int]) -> float:
    """Tokens a second of something that says how many tokens it drew."""
    drawn: list[int] = []
    taken = seconds(lambda: drawn.append(run()))
    return drawn[0] / taken


def compare_samplers(setting: Setting, model: ModelSpec) -> tuple[Ratio, dict[str, Any]]:
    """Response tokens a second, ours by theirs, block by block.

    Args:
        setting: sizes and machine.
        model: a chat model with its tokenizer; random weights never end a turn.
    """
    precision, sizes = inference_precision(setting.device), setting.sizes
    tokenizer, loaded = load_tokenizer(model), load_frozen(model, precision, setting.device)
    ends = end_of_turn_ids(loaded, tokenizer)
    rows = [row for _, row in read_prompts({"train": PromptFile(str(PROMPTS), limit=sizes.prompts)})]
    prompts, keys = [render_prompt(tokenizer, row.messages) for row in rows], [row.prompt_id for row in rows]
    settings = SamplerSettings(temperature=TEMPERATURE, max_new_tokens=sizes.new_tokens)
    plain = _Plain(loaded, ends, sizes.new_tokens)

    ordered = sorted(zip(prompts, keys, strict=True), key=lambda task: (len(task[0]), task[1]))  # as the stage does

    def ours(seed: int, tasks: int = sizes.prompts) -> int:
        sampler = TransformersSampler(loaded, ends, replace(settings, seed=seed), BATCH)
        ids, names = zip(*ordered[:tasks], strict=True)
        return sum(len(drawn.token_ids) for drawn in sampler.sample(list(ids), list(names)))

    rates: dict[str, list[float]] = {"ours": [], "plain": []}
    with autocast(precision, setting.device):
        ours(0, tasks=4)  # warm-up
        plain.run(prompts[:4])
        for block in range(sizes.sampled_blocks):
            torch.manual_seed(block)
            for name, run in {"ours": partial(ours, block), "plain": partial(plain.run, prompts)}.items():
                rates[name].append(_rate(run))
            print(f"    block {block + 1}: {rates['ours'][-1]:.0f} and {rates['plain'][-1]:.0f} tokens/s", flush=True)
    ratio = Ratio.of([above / below for above, below in zip(rates["ours"], rates["plain"], strict=True)])
    return ratio, {"tokens_per_second": rates, "prompts": len(prompts), "model": Path(model.path).name}
