"""The stage `dadpo sample`: prompts to an artefact of responses."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lightning_dadpo.data.artifacts import Draft, draft, finished
from lightning_dadpo.data.chat import render_prompt
from lightning_dadpo.data.prompts import PromptFile, read_prompts
from lightning_dadpo.data.rows import PromptRow, ResponseRow, RowWriter, content_digest, read_rows
from lightning_dadpo.errors import ConfigError
from lightning_dadpo.models.loading import autocast, end_of_turn_ids, load_frozen, load_tokenizer, model_digest
from lightning_dadpo.models.numerics import default_device, inference_precision
from lightning_dadpo.models.spec import ModelSpec, Precision
from lightning_dadpo.progress import progress
from lightning_dadpo.sampling.base import Sampled, SamplerSettings
from lightning_dadpo.sampling.transformers_sampler import TransformersSampler

__all__ = ["sample"]

Task = tuple[str, PromptRow, list[int]]
"""Split, prompt, and the prompt as the model reads it."""


def sample(
    model: ModelSpec,
    prompts: dict[str, PromptFile],
    out: str,
    settings: SamplerSettings | None = None,
    batch_size: int = 32,
    precision: Precision | None = None,
) -> Path:
    """Draw one response for every prompt from a model; a killed run goes on where it stopped.

    Args:
        model: which model answers.
        prompts: prompt files by split name: train, validation, heldout.
        out: folder to make; complete or absent.
        settings: temperature, top_p, cap and seed.
        batch_size: responses drawn at a time.
        precision: number format; by default what this machine is fast in.

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
        "backend": f"transformers {model.attention} {precision}",
    }
    if finished(out, "responses", made_from):
        return Path(out)
    tokenizer = load_tokenizer(model)
    tasks = [(split, row, render_prompt(tokenizer, row.messages)) for split, row in rows]
    loaded = load_frozen(model, precision, default_device())
    sampler = TransformersSampler(loaded, end_of_turn_ids(loaded, tokenizer), settings)
    with draft(out, "responses", made_from) as work, autocast(precision, default_device()):
        _draw_all(work, sampler, tokenizer, tasks, batch_size)
    return Path(out)


def _batches(tasks: list[Task], size: int) -> Iterable[list[Task]]:
    """Prompts of like length together; the same batches whenever the stage is run again."""
    ordered = sorted(tasks, key=lambda task: (len(task[2]), task[1].prompt_id))
    return (ordered[start : start + size] for start in range(0, len(ordered), size))


def _draw_all(work: Draft, sampler: TransformersSampler, tokenizer: Any, tasks: list[Task], size: int) -> None:
    path = work.path / "rows.jsonl"
    with RowWriter(path) as writer:
        done = {row.prompt_id for row in read_rows(path, ResponseRow)}
        with progress("sampling (responses)", len(tasks), len(done)) as bar:
            for batch in _batches(tasks, size):
                missing = {task[1].prompt_id for task in batch} - done
                if missing:
                    drawn = sampler.sample([ids for *_, ids in batch], [row.prompt_id for _, row, _ in batch])
                    both = zip(batch, drawn, strict=True)
                    writer.write(*(_row(tokenizer, *pair) for pair in both if pair[0][1].prompt_id in missing))
                    bar.advance(len(missing))
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
