"""A trained student, or any model, as the plain folder that transformers loads, with a card that says what it is."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from lightning_dadpo.data.artifacts import MANIFEST, Manifest, draft, file_digest, finished, read_manifest, versions
from lightning_dadpo.errors import DataError
from lightning_dadpo.models.consolidate import checkpoint_files, read_checkpoint
from lightning_dadpo.models.folder import write_model_folder
from lightning_dadpo.models.loading import (
    count_parameters,
    load_model,
    load_tokenizer,
    model_digest,
    model_without_weights,
)
from lightning_dadpo.models.model_card import ModelCard, write_model_card
from lightning_dadpo.models.spec import ModelSpec, refuse_quantized
from lightning_dadpo.models.stored_adapters import merge_adapter, stored_adapter

__all__ = ["export_checkpoint", "export_model"]

STUDENT = "student."
Dtype = Literal["float32", "bfloat16"]


def export_checkpoint(
    checkpoint: str,
    out: str,
    dtype: Dtype = "float32",
    teacher: str | None = None,
    made_with: Sequence[str] = (),
    summary: str | None = None,
) -> Path:
    """Write the student of a Lightning checkpoint as a plain model folder with a model card; an adapter is merged.

    Args:
        checkpoint: a file, or the folder that DeepSpeed writes; its entry `dadpo` says which model the student
            started from.
        out: folder to make; complete or absent.
        dtype: number format of the written weights.
        teacher: name of the teacher, for the card.
        made_with: artefact folders (responses, pairs, scores) whose counts the card lists.
        summary: a summary.json, a list of rows, whose numbers the card shows.

    Raises:
        DataError: the file is no such checkpoint, or its weights are not the student's.
        ConfigError, ArtifactError: the start model or an artefact is not there.
    """
    loaded = read_checkpoint(checkpoint)
    start = _start_model(checkpoint, loaded["dadpo"])
    counts = {folder: read_manifest(folder).counts for folder in made_with}
    measured = None if summary is None else _summary(summary)
    made_from = {
        "checkpoint": [file_digest(file) for file in checkpoint_files(checkpoint)],
        "start": model_digest(start),
        "dtype": dtype,
        "teacher": teacher,
        "made_with": [file_digest(Path(folder) / MANIFEST) for folder in counts],
        "summary": None if summary is None else file_digest(Path(summary)),
    }
    if finished(out, "model", made_from):
        return Path(out)
    model = _student(loaded, start, checkpoint)
    said = loaded["dadpo"]
    card = ModelCard(
        stage=str(said.get("stage", "training")),
        base_model=start.path,
        teacher=teacher,
        pipeline=(*_history(start), _step(said, checkpoint)),
        objective=said.get("objective") or {},
        counts={Path(folder).name: found for folder, found in counts.items()},
        versions=versions(),
        measured=measured,
    )
    return _write(model, start, out, made_from, dtype, card)


def export_model(model: ModelSpec, out: str, dtype: Dtype = "float32") -> Path:
    """Write any model that can be loaded, for example a GGUF file, as a plain model folder with a model card.

    Raises:
        ConfigError, DataError, ArtifactError: see the message.
    """
    refuse_quantized(model, "a folder holds whole weights")
    made_from = {"model": model_digest(model), "dtype": dtype}
    if finished(out, "model", made_from):
        return Path(out)
    source = f", file {model.gguf_file}, de-quantised" if model.gguf_file else ""
    card = ModelCard(
        stage="export",
        base_model=model.path,
        pipeline=(*_history(model), f"Written as it was loaded{source}; the weights were not trained."),
        versions=versions(),
    )
    return _write(load_model(model), model, out, made_from, dtype, card)


def _write(
    model: Any, source: ModelSpec, out: str, made_from: Mapping[str, Any], dtype: Dtype, card: ModelCard
) -> Path:
    tokenizer = load_tokenizer(source, model.config)
    with draft(out, "model", made_from) as work:
        write_model_folder(model.to(getattr(torch, dtype)), tokenizer, work.path)
        write_model_card(work.path, card)
        work.results = {"parameters": count_parameters(model), "card": asdict(replace(card, measured=None))}
    return Path(out)


def _start_model(checkpoint: str, said: Mapping[str, Any]) -> ModelSpec:
    try:
        return ModelSpec(**said["student"])
    except (KeyError, TypeError) as error:
        raise DataError(f"{checkpoint}: dadpo.student: expected the fields of a model ({error})") from error


def _student(loaded: Mapping[str, Any], start: ModelSpec, checkpoint: str) -> Any:
    """The trained model on the CPU: the start model with the checkpoint's weights, or with its adapter merged.

    Raises:
        DataError: they do not fit, or an adapter's base is not the model any more that it was trained on.
    """
    if loaded["dadpo"].get("adapter") is None:
        model = model_without_weights(start)
        _load_weights(model, loaded["state_dict"], checkpoint)
        return model
    adapter = stored_adapter(loaded, checkpoint)
    digest = model_digest(start)
    if digest != adapter.base_digest:
        raise DataError(
            f"{checkpoint}: its adapter was trained on another {start.path!r} ({adapter.base_digest}) than is there "
            f"now ({digest})"
        )
    model = load_model(start)
    merge_adapter(model, adapter, checkpoint)
    return model


def _load_weights(model: Any, state: Mapping[str, Tensor], checkpoint: str) -> None:
    """Key by key, shape by shape; a tied head may be left out, but must not differ from the embeddings.

    Raises:
        DataError: naming the first key that does not fit.
    """
    weights = {key.removeprefix(STUDENT): value for key, value in state.items() if key.startswith(STUDENT)}
    if not weights:
        raise DataError(f"{checkpoint}: no weights of a student (keys that begin with {STUDENT!r})")
    for tied, source in dict(model.all_tied_weights_keys).items():
        if source in weights and not torch.equal(weights.setdefault(tied, weights[source]), weights[source]):
            raise DataError(f"{checkpoint}: {tied} differs from {source}, but the model ties them")
    expected = model.state_dict()
    if strange := sorted(expected.keys() ^ weights.keys()):
        key = strange[0]
        raise DataError(f"{checkpoint}: {STUDENT}{key} is {'missing' if key in expected else 'not in the start model'}")
    for key, value in weights.items():
        if value.shape != expected[key].shape:
            shapes = f"{tuple(value.shape)}, expected {tuple(expected[key].shape)}"
            raise DataError(f"{checkpoint}: {STUDENT}{key} has shape {shapes}")
    model.load_state_dict(weights, strict=True, assign=True)
    model.tie_weights()


def _step(said: Mapping[str, Any], checkpoint: str) -> str:
    objective = (said.get("objective") or {}).get("name", "a training")
    return f"{objective}: {_trained(said)} of {Path(checkpoint).name}."


def _trained(said: Mapping[str, Any]) -> str:
    if said.get("adapter") is None:
        return "weights"
    adapter = said["adapter"]["settings"]
    targets = adapter["targets"] if adapter["targets"] == "all-linear" else ", ".join(adapter["targets"])
    begun = "; it went on from an earlier training's" if adapter["start"] else ""
    base = f" rounded to {adapter['quantize']}" if adapter["quantize"] else ""
    settings = f"rank {adapter['rank']}, alpha {adapter['alpha']:g}, {targets}{begun}"
    return f"LoRA adapter ({settings}), merged into its base{base},"


def _history(start: ModelSpec) -> Iterator[str]:
    """What the start model's own manifest says of it."""
    folder = Path(start.location())
    if not (folder / MANIFEST).is_file():
        return
    manifest: Manifest = read_manifest(folder, "model")
    yield from manifest.results.get("card", {}).get("pipeline", ())
    removed = manifest.results.get("layers_removed")
    if removed:
        yield (
            f"Pruning: {len(removed)} of {manifest.results['layers_before']} decoder layers removed "
            f"({', '.join(map(str, removed))}), {manifest.results['share_removed']:.1%} of the parameters, "
            f"chosen by {manifest.results['criterion']}."
        )


def _summary(path: str) -> list[dict[str, Any]]:
    try:
        rows = json.loads(Path(path).read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot read the summary: {error}") from error
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise DataError(f"{path}: expected a list of rows, each a JSON object")
    return rows
