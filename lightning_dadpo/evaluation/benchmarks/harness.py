"""The stage `dadpo lm-eval`: any task of EleutherAI's lm-evaluation-harness, on a model as this project loads it.

What a task asks and how it is counted, and the standard errors, are the library's own; this file hands it the model
and keeps what it says.
"""

from __future__ import annotations

import importlib
import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from importlib.metadata import version
from pathlib import Path
from typing import Any

from lightning_dadpo.data.artifacts import draft, file_digest, finished, write_atomically
from lightning_dadpo.data.rows import content_digest
from lightning_dadpo.errors import ConfigError, DataError
from lightning_dadpo.evaluation.benchmarks.harness_documents import not_trained_on
from lightning_dadpo.evaluation.left_out import training_digests
from lightning_dadpo.models.loading import autocast, load_frozen, load_tokenizer, model_digest
from lightning_dadpo.models.numerics import default_device, inference_precision
from lightning_dadpo.models.spec import ModelSpec, Precision

__all__ = ["lm_eval"]

LONGEST_QUOTE = 300


def lm_eval(
    model: ModelSpec,
    tasks: list[str],
    out: str,
    include: str | None = None,
    num_fewshot: int | None = None,
    limit: int | None = None,
    apply_chat_template: bool = False,
    batch_size: int = 8,
    precision: Precision | None = None,
    trained_on: list[str] | None = None,
) -> Path:
    """Run tasks of lm-eval (extra `lm-eval`); the library loads their data, mostly from the hub.

    Makes an artefact of kind "lm-eval": `lm_eval.json` with `rows`, one a task or group and metric: `task`, `metric`,
    `filter`, `value`, `standard_error` (null where the library gives none), `documents`, `shots` and the task's
    `version`.

    Args:
        model: which model.
        tasks: names that lm-eval knows, groups too, or that stand in `include`.
        out: folder to make; complete or absent.
        include: folder of further tasks as YAML; one that reads local files needs no hub. A YAML may name Python
            functions beside it, which are then run.
        num_fewshot: examples in front of each question; by default what the task says.
        limit: the first so many documents of each task, to try something out; their scores are not the benchmark's.
        apply_chat_template: ask through the model's chat template.
        batch_size: questions at a time.
        precision: number format; by default what this machine is fast in. Log-softmax is float32 in any.
        trained_on: what the model was trained on, prompt files (.jsonl) or artefacts of kind "responses" or "pairs";
            documents that stand there too are left out, and the manifest lists them as results["left_out"]. Their
            scores are not the benchmark's, and say so by their number of documents.

    Raises:
        ConfigError: lm-eval is not installed, or a task or a setting is none.
        ArtifactError: what the model was trained on is neither responses nor pairs.
        DataError: a task's data cannot be loaded, or all of it was trained on.
    """
    _check_numbers(num_fewshot=(num_fewshot, 0), limit=(limit, 1), batch_size=(batch_size, 1))
    library, manager = _library(), _task_manager(tasks, include)
    device = default_device()
    precision = precision or inference_precision(device)
    made_from = {
        "model": model_digest(model),
        "tasks": tasks,
        "include": None if include is None else _folder_digest(Path(include)),
        "num_fewshot": num_fewshot,
        "limit": limit,
        "apply_chat_template": apply_chat_template,
        "batch_size": batch_size,
        "backend": f"{device.type} {precision}",
        "lm-eval": version("lm-eval"),
    } | ({"trained_on": training_digests(trained_on)} if trained_on else {})
    if finished(out, "lm-eval", made_from):
        return Path(out)
    documents, left_out = _documents(manager, tasks, limit, trained_on)
    loaded = _wrapped(model, precision, batch_size)
    with draft(out, "lm-eval", made_from) as work, autocast(precision, device):
        with _trouble_with(tasks):
            found = library.simple_evaluate(
                model=loaded,
                tasks=tasks,
                task_manager=manager,
                num_fewshot=num_fewshot,
                apply_chat_template=apply_chat_template,
                log_samples=False,
                **documents,
            )
        rows = _rows(dict(found))
        write_atomically(work.path / "lm_eval.json", json.dumps({"rows": rows}, indent=1, allow_nan=False) + "\n")
        work.counts = {"tasks": len({row["task"] for row in rows})}
        work.results = {"device": device.type, "precision": precision} | left_out
    for row in rows:
        error = "" if row["standard_error"] is None else f" +- {row['standard_error']:.4f} (standard error)"
        print(f"{row['task']} {row['metric']} ({row['filter']}): {row['value']:.4f}{error}", flush=True)
    return Path(out)


def _check_numbers(**numbers: tuple[int | None, int]) -> None:
    for name, (number, least) in numbers.items():
        if number is not None and number < least:
            raise ConfigError(f"{name} {number}: expected at least {least}")


def _library() -> Any:
    try:
        importlib.import_module("lm_eval.models.huggingface")
        return importlib.import_module("lm_eval")
    except ImportError as error:
        raise ConfigError(f"lm-eval: cannot import it ({error}); pip install 'lightning-dadpo[lm-eval]'") from error


def _task_manager(tasks: list[str], include: str | None) -> Any:
    if include is not None and not Path(include).is_dir():
        raise ConfigError(f"include {include}: no such folder")
    if not tasks:
        raise ConfigError("tasks: none given, expected at least one, for example [arc_easy]")
    managers = importlib.import_module("lm_eval.tasks").TaskManager
    if include is not None:
        own = managers(include_path=include, include_defaults=False)
        if set(tasks) <= set(own.all_tasks):
            return own  # the library's own list is 14,000 files and takes half a minute to read
    manager = managers(include_path=include)
    if unknown := [name for name in tasks if name not in manager.all_tasks]:
        near = get_close_matches(unknown[0], manager.all_tasks, n=1)
        raise ConfigError(f"tasks: lm-eval has no {unknown[0]!r}{f'; did you mean {near[0]}?' if near else ''}")
    return manager


def _folder_digest(folder: Path) -> str:
    files = sorted(path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return content_digest([[str(path.relative_to(folder)), file_digest(path)] for path in files])


def _wrapped(spec: ModelSpec, precision: Precision, batch_size: int) -> Any:
    loaded = load_frozen(spec, precision, default_device())
    wrapper = importlib.import_module("lm_eval.models.huggingface").HFLM
    return wrapper(
        pretrained=loaded,
        tokenizer=load_tokenizer(spec),
        backend="causal",
        batch_size=batch_size,
        softmax_dtype="float32",  # in bfloat16 it costs 0.01 nats and more a token (trap B2)
    )


def _documents(
    manager: Any, tasks: list[str], limit: int | None, trained_on: list[str] | None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Which documents the library is to ask, in its own arguments; and what the manifest says of the others."""
    if not trained_on:
        return {"limit": limit}, {}
    with _trouble_with(tasks):
        loaded = manager.load(tasks)["tasks"]
    chosen = not_trained_on(loaded, limit, trained_on)
    return {"samples": chosen.asked}, {"left_out": chosen.left_out}


@contextmanager
def _trouble_with(tasks: list[str]) -> Iterator[None]:
    """What the library and the hub complain of in here, as one line."""
    try:
        yield
    except (OSError, ValueError) as error:  # also the hub's own: all are one of the two
        said = " ".join(str(error).split())
        said = said if len(said) <= LONGEST_QUOTE else said[:LONGEST_QUOTE] + " ..."
        raise DataError(
            f"lm-eval, tasks {', '.join(tasks)}: {said} (most tasks load their data from the hub; a folder of tasks "
            "that read local files is given with --include)"
        ) from error


def _rows(results: dict[str, Any]) -> list[dict[str, Any]]:
    """The library's table, a row a task and metric."""
    rows = []
    for task, measured in results["results"].items():
        for key, value in measured.items():
            metric, comma, filtered = key.partition(",")
            if not comma or metric.endswith("_stderr"):
                continue
            error = measured.get(f"{metric}_stderr,{filtered}")
            rows.append(
                {
                    "task": task,
                    "metric": metric,
                    "filter": filtered,
                    "value": _number(task, metric, value),
                    "standard_error": float(error) if _is_number(error) else None,
                    "documents": results.get("n-samples", {}).get(task, {}).get("effective"),
                    "shots": results.get("n-shot", {}).get(task),
                    "version": results.get("versions", {}).get(task),
                }
            )
    if not rows:
        raise DataError(f"lm-eval: gave no number for {', '.join(results['results'])}")
    return rows


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _number(task: str, metric: str, value: Any) -> float:
    if not _is_number(value):
        raise DataError(f"lm-eval, task {task}: {metric} is {value!r}, expected a finite number")
    return float(value)
