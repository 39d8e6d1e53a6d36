"""The stage `dadpo sample`: prompts to an artefact of responses."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from lightning_dadpo.data.artifacts import finished
from lightning_dadpo.data.chat import render_prompt
from lightning_dadpo.data.prompts import PromptFile, read_prompts
from lightning_dadpo.data.ranks import Ranks, ranks_here, take_device
from lightning_dadpo.data.rows import PromptRow, ResponseRow, content_digest, read_rows
from lightning_dadpo.data.shards import SharedDraft, share, shared_draft
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
from lightning_dadpo.models.server_spec import ServerSpec, refuse_beside_a_server, tokenizer_digest
from lightning_dadpo.models.spec import ModelSpec, Precision
from lightning_dadpo.sampling.base import Sampled, Sampler, SamplerSettings, seed_key
from lightning_dadpo.sampling.server_sampler import ServerSampler
from lightning_dadpo.sampling.transformers_sampler import TransformersSampler
from lightning_dadpo.sampling.vllm_sampler import VllmSampler, vllm_module

__all__ = ["sample", "Backend"]

Backend = Literal["transformers", "vllm"]

BATCHES_IN_WINDOW = 8
"""A window is drawn as a whole by one process, its batch kept full, and then written: what a kill can lose, and what is
drawn again together, so that every prompt has the same company, whoever draws it and whenever."""


@dataclass(frozen=True)
class _Task:
    """One response to draw: the prompt with its split, the prompt as the model reads it, and the response's number."""

    split: str
    prompt: PromptRow
    prompt_ids: list[int]
    candidate: int


def sample(
    model: ModelSpec | None,
    prompts: dict[str, PromptFile],
    out: str,
    settings: SamplerSettings | None = None,
    batch_size: int = 32,
    precision: Precision | None = None,
    backend: Backend = "transformers",
    responses_per_prompt: int = 1,
    server: ServerSpec | None = None,
) -> Path:
    """Draw responses for every prompt from a model; a killed run goes on where it stopped.

    Several processes, started by torchrun or srun, share the prompts, eight batches at a time: on several GPUs,
    `torchrun --nproc_per_node 8 -m lightning_dadpo sample -c FILE.yaml`. Their number changes nothing in the rows.

    Args:
        model: which model answers.
        prompts: prompt files by split name: train, validation, heldout.
        out: folder to make; complete or absent. All processes must see it.
        settings: temperature, top_p, cap and seed.
        batch_size: responses drawn at a time, by each process.
        precision: number format; by default what this machine is fast in.
        backend: what runs the model; vllm is an extra of its own, for GPUs, and wants a large batch_size.
        responses_per_prompt: candidates for a pairing rule to choose among; the first is what would be drawn alone.
        server: where the model is served, in place of `model`; its responses have no log-prob.

    Raises:
        ConfigError, DataError, ArtifactError: see the message.
    """
    for key, number in (("batch_size", batch_size), ("responses_per_prompt", responses_per_prompt)):
        if number < 1:
            raise ConfigError(f"{key} {number}: expected at least 1")
    _one_of(model, server, precision, backend)
    ranks = ranks_here()
    take_device(ranks)
    settings = settings or SamplerSettings()
    precision = precision or inference_precision()
    rows = read_prompts(prompts)
    made_from = {
        **_identity(model, server, backend, precision),
        "prompts": content_digest([[split, asdict(row)] for split, row in rows]),
        "sampler": asdict(settings),
        "batch_size": batch_size,
    }
    if responses_per_prompt > 1:  # artefacts of a single one say nothing of it, older ones too
        made_from["responses_per_prompt"] = responses_per_prompt
    if finished(out, "responses", made_from):
        return Path(out)
    if backend == "vllm":
        _refuse_shared_gpu(ranks)
    tokenizer = load_tokenizer(_spec(model, server))
    prompts_read = [(split, row, render_prompt(tokenizer, row.messages)) for split, row in rows]
    tasks = [_Task(*read, candidate) for read in prompts_read for candidate in range(responses_per_prompt)]
    sampler: Sampler
    if server is None:
        sampler = _sampler(backend, _spec(model, server), tokenizer, settings, batch_size, precision)
    else:
        sampler = ServerSampler(server, tokenizer, settings)
    with shared_draft(out, "responses", made_from, ranks) as work, autocast(precision, default_device()):
        window = batch_size * (BATCHES_IN_WINDOW if server is None else 1)  # what a server has drawn may be dear
        _draw_all(work, sampler, tokenizer, _windows(tasks, window))
        if work.leads:
            work.draft.counts = _counts(work.draft.path / "rows.jsonl")
    return Path(out)


def _refuse_shared_gpu(ranks: Ranks) -> None:
    """The processes that vLLM starts take the first GPU that they see."""
    import torch

    if ranks.size > 1 and torch.cuda.device_count() > 1:
        raise ConfigError(
            f"backend vllm, {ranks.size} processes: each must see one GPU alone (srun --gpus-per-task 1), "
            f"this one sees {torch.cuda.device_count()}"
        )


def _one_of(model: ModelSpec | None, server: ServerSpec | None, precision: Precision | None, backend: Backend) -> None:
    if server is None and model is None:
        raise ConfigError("sample: expected a model (--model.path FOLDER) or a server (--server.url URL)")
    if server is not None:
        refuse_beside_a_server(model=model, precision=precision, backend=None if backend == "transformers" else backend)


def _spec(model: ModelSpec | None, server: ServerSpec | None) -> ModelSpec:
    """Who reads the prompts."""
    spec = model if server is None else server.tokenizer
    assert spec is not None
    return spec


def _identity(
    model: ModelSpec | None, server: ServerSpec | None, backend: Backend, precision: Precision
) -> dict[str, str]:
    if server is not None:
        digest = tokenizer_digest(load_tokenizer(server.tokenizer))
        return {"model": server.served(), "tokenizer": digest, "backend": "completions server"}
    spec = _spec(model, server)
    return {"model": model_digest(spec), "backend": _backend(backend, spec, precision)}


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


def _windows(tasks: list[_Task], size: int) -> list[list[_Task]]:
    """Prompts of like length together, all responses to one side by side; the same whenever the stage is run again."""
    ordered = sorted(tasks, key=lambda task: (len(task.prompt_ids), task.prompt.prompt_id, task.candidate))
    return [ordered[start : start + size] for start in range(0, len(ordered), size)]


def _draw_all(work: SharedDraft, sampler: Sampler, tokenizer: Any, windows: list[list[_Task]]) -> None:
    """This rank's windows."""
    keys = [[_key(task.prompt.prompt_id, task.candidate) for task in window] for window in windows]
    with share(work, keys, ResponseRow, _row_key, "sampling (responses)") as own:
        for number in own:
            window = windows[number]
            seeds = [seed_key(task.prompt.prompt_id, task.candidate) for task in window]
            drawn = sampler.sample([task.prompt_ids for task in window], seeds, own.advance)
            own.write(number, (_row(tokenizer, *pair) for pair in zip(window, drawn, strict=True)))


def _key(prompt_id: str, candidate: int) -> str:
    """Different for any two responses, whatever the prompts are called."""
    return f"{candidate} {prompt_id}"


def _row_key(row: ResponseRow) -> str:
    return _key(row.prompt_id, row.candidate)


def _counts(path: Path) -> dict[str, int]:
    counts = {"responses": 0, "stopped": 0, "tokens": 0}
    for row in read_rows(path, ResponseRow):
        counts["responses"] += 1
        counts["stopped"] += row.finish_reason == "stop"
        counts["tokens"] += len(row.token_ids)
    return counts


def _row(tokenizer: Any, task: _Task, drawn: Sampled) -> ResponseRow:
    return ResponseRow(
        prompt_id=task.prompt.prompt_id,
        split=task.split,
        messages=task.prompt.messages,
        prompt_token_ids=task.prompt_ids,
        token_ids=drawn.token_ids,
        text=tokenizer.decode(drawn.token_ids, skip_special_tokens=True),
        finish_reason=drawn.finish_reason,
        log_prob=drawn.log_prob,
        candidate=task.candidate,
    )
