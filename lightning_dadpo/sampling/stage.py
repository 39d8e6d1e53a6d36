"""The stage `dadpo sample`: prompts to an artefact of responses."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from lightning_dadpo.data.artifacts import Draft, draft, finished
from lightning_dadpo.data.chat import render_prompt
from lightning_dadpo.data.prompts import PromptFile, read_prompts
from lightning_dadpo.data.rows import PromptRow, ResponseRow, RowWriter, content_digest, read_rows
from lightning_dadpo.errors import ConfigError
from lightning_dadpo.models.loading import (
    autocast,
    end_of_turn_ids,
    load_frozen,
    load_tokenizer,
    model_digest,
    model_without_weights,
)
from lightning_dadpo.models.numerics import default_device, inference_precision
from lightning_dadpo.models.spec import ModelSpec, Precision
from lightning_dadpo.progress import progress
from lightning_dadpo.sampling.base import Sampled, Sampler, SamplerSettings
from lightning_dadpo.sampling.transformers_sampler import TransformersSampler
from lightning_dadpo.sampling.vllm_sampler import VllmSampler, vllm_module

__all__ = ["sample", "Backend"]

Backend = Literal["transformers", "vllm"]

BATCHES_IN_WINDOW = 8
"""A window is drawn as a whole, its batch kept full, and then written: what a kill can lose, and what is drawn again
together, so that every prompt has the same company then."""

Task = tuple[str, PromptRow, list[int]]
"""Split, prompt, and the prompt as the model reads it."""


def sample(
    model: ModelSpec,
    prompts: dict[str, PromptFile],
    out: str,
    settings: SamplerSettings | None = None,
    batch_size: int = 32,
    precision: Precision | None = None,
    backend: Backend = "transformers",
) -> Path:
    """Draw one response for every prompt from a model; a killed run goes on where it stopped.

    Args:
        model: which model answers.
        prompts: prompt files by split name: train, validation, heldout.
        out: folder to make; complete or absent.
        settings: temperature, top_p, cap and seed.
        batch_size: responses drawn at a time.
        precision: number format; by default what this machine is fast in.
        backend: what runs the model; vllm is an extra of its own, for GPUs, and wants a large batch_size.

    Raises:
        ConfigError, DataError, ArtifactError: see the message.
    """
    if batch_size < 1:
        raise ConfigError(f"batch_size {batch_size}: expected at least 1")
    settings = settings or SamplerSettings()
    precision = precision or inference_precision()
    rows = read_prompts(prompts)
    made_from = {
        "model": model_digest(model),
        "prompts": content_digest([[split, asdict(row)] for split, row in rows]),
        "sampler": asdict(settings),
        "batch_size": batch_size,
        "backend": _backend(backend, model, precision),
    }
    if finished(out, "responses", made_from):
        return Path(out)
    tokenizer = load_tokenizer(model)
    tasks = [(split, row, render_prompt(tokenizer, row.messages)) for split, row in rows]
    sampler = _sampler(backend, model, tokenizer, settings, batch_size, precision)
    with draft(out, "responses", made_from) as work, autocast(precision, default_device()):
        _draw_all(work, sampler, tokenizer, tasks, batch_size * BATCHES_IN_WINDOW)
    return Path(out)


def _backend(backend: Backend, model: ModelSpec, precision: Precision) -> str:
    kind = f"vllm {vllm_module().__version__}" if backend == "vllm" else "transformers sdpa"
    return f"{kind} {precision}"


def _sampler(
    backend: Backend, model: ModelSpec, tokenizer: Any, settings: SamplerSettings, size: int, precision: Precision
) -> Sampler:
    if backend == "vllm":
        ends = end_of_turn_ids(model_without_weights(model), tokenizer)
        return VllmSampler(model, precision, ends, settings, size)
    loaded = load_frozen(model, precision, default_device())
    return TransformersSampler(loaded, end_of_turn_ids(loaded, tokenizer), settings, size)


def _windows(tasks: list[Task], size: int) -> list[list[Task]]:
    """Prompts of like length together; the same windows whenever the stage is run again."""
    ordered = sorted(tasks, key=lambda task: (len(task[2]), task[1].prompt_id))
    return [ordered[start : start + size] for start in range(0, len(ordered), size)]


def _draw_all(work: Draft, sampler: Sampler, tokenizer: Any, tasks: list[Task], size: int) -> None:
    path = work.path / "rows.jsonl"
    with RowWriter(path) as writer:
        written = {row.prompt_id for row in read_rows(path, ResponseRow)}
        windows = [
            window for window in _windows(tasks, size) if not written.issuperset(row.prompt_id for _, row, _ in window)
        ]
        with progress("sampling (responses)", len(tasks), len(tasks) - sum(map(len, windows))) as bar:
            for window in windows:
                keys = [row.prompt_id for _, row, _ in window]
                drawn = sampler.sample([ids for *_, ids in window], keys, bar.advance)
                rows = (_row(tokenizer, *pair) for pair in zip(window, drawn, strict=True))
                writer.write(*(row for row in rows if row.prompt_id not in written))
    responses = list(read_rows(path, ResponseRow))
    work.counts = {
        "responses": len(responses),
        "stopped": sum(row.finish_reason == "stop" for row in responses),
        "tokens": sum(len(row.token_ids) for row in responses),
    }


def _row(tokenizer: Any, task: Task, drawn: Sampled) -> ResponseRow:
    split, prompt, prompt_ids = task
    return ResponseRow(
        prompt_id=prompt.prompt_id,
        split=split,
        messages=prompt.messages,
        prompt_token_ids=prompt_ids,
        token_ids=drawn.token_ids,
        text=tokenizer.decode(drawn.token_ids, skip_special_tokens=True),
        finish_reason=drawn.finish_reason,
        log_prob=drawn.log_prob,
    )
