"""README.md of an exported model: what it is, how it was made, what was measured, what it is not."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from lightning_dadpo.data.artifacts import read_manifest, write_atomically

__all__ = ["ModelCard", "write_model_card", "add_measurements", "escape_markdown"]

WHAT_IT_IS_NOT = """\
- Not a safety-tuned or fact-checked model: it imitates its teacher, errors and biases included.
- Not measured beyond the table above, if there is one: distances to the teacher on one set of prompts are no
  judgement of quality, and intervals of a small evaluation are wide.
- Not a substitute for the licences of the models and data that it was made from: they apply to it as well.
"""


@dataclass(frozen=True)
class ModelCard:
    """What a card says; whatever is not known is left out of it.

    Attributes:
        stage: how the weights were made, for example "dadpo", "dsft", "export".
        base_model: what the weights started from: a hub name, `package:NAME`, or a folder.
        teacher: the model whose answers and probabilities taught it.
        pipeline: the steps, first to last, a sentence each.
        objective: the objective's settings, the betas among them.
        counts: how much data, by name.
        versions: software, by package.
        measured: rows of a summary; a column X may have its 95 % interval in X_low and X_high.
    """

    stage: str
    base_model: str
    teacher: str | None = None
    pipeline: tuple[str, ...] = ()
    objective: Mapping[str, Any] = field(default_factory=dict)
    counts: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    measured: list[dict[str, Any]] | None = None


def escape_markdown(value: Any) -> str:
    """Text that came from data, on one line, so that it shows as it is: no markup, no HTML, no table cell more."""
    text = " ".join(str(value).split())
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    text = re.sub(r"([\\`*_{}\[\]|~#!$])", r"\\\1", text)
    return re.sub(r"^([-+=]|\d+[.)])(?=\s|$|[-=])", r"\\\1", text)


def add_measurements(folder: Path, measured: list[dict[str, Any]]) -> None:
    """Write the card of an exported model again, now with what was measured of it.

    Args:
        folder: a model artefact of `dadpo export`; its manifest keeps what its card said.
        measured: rows of a summary.
    """
    said = dict(read_manifest(folder, "model").results["card"])
    said |= {"pipeline": tuple(said["pipeline"]), "measured": measured}
    write_model_card(folder, ModelCard(**said))


def public_name(path: str) -> str:
    """A model's name without the folders of the machine that it lay on."""
    is_folder = path.startswith((".", "/", "~")) or Path(path).exists() or path.count("/") > 1
    return Path(path).name if is_folder else path


def write_model_card(folder: Path, card: ModelCard) -> None:
    """Write README.md into the folder."""
    base = public_name(card.base_model)
    front = {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "base_model": base,
        "tags": ["dadpo", "distillation"],
    }
    parts = [
        f"---\n{yaml.safe_dump(front, sort_keys=False, allow_unicode=True)}---",
        f"# {escape_markdown(base)}, {escape_markdown(card.stage)}",
        "A causal language model written by lightning-dadpo, which distils chat models by daDPO (preference "
        "optimisation that also uses the teacher's probabilities, arXiv 2506.15717) and by the methods beside it; "
        "which one made this model stands below.",
        *_how_it_was_made(card),
        *_measured(card.measured),
        f"## What it is not\n\n{WHAT_IT_IS_NOT.rstrip()}",
    ]
    write_atomically(folder / "README.md", "\n\n".join(parts) + "\n")


def _how_it_was_made(card: ModelCard) -> list[str]:
    facts = [("Started from", public_name(card.base_model)), ("Stage", card.stage)]
    if card.teacher is not None:
        facts.append(("Teacher", public_name(card.teacher)))
    steps = "\n".join(f"{number}. {escape_markdown(step)}" for number, step in enumerate(card.pipeline, 1))
    tables = [("Objective", card.objective), ("Data", card.counts), ("Versions", card.versions)]
    return [
        "## How it was made",
        "\n".join(f"- {name}: {escape_markdown(value)}" for name, value in facts),
        *([steps] if steps else []),
        *(f"{title}:\n\n{_settings(values)}" for title, values in tables if values),
    ]


def _settings(values: Mapping[str, Any]) -> str:
    return "\n".join(f"- {escape_markdown(key)}: {escape_markdown(value)}" for key, value in _flat(values))


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    rows: list[tuple[str, Any]] = []
    for key, value in values.items():
        name = f"{prefix}{key}"
        rows += _flat(value, f"{name}.") if isinstance(value, Mapping) else [(name, value)]
    return rows


def _measured(rows: Sequence[Mapping[str, Any]] | None) -> list[str]:
    if not rows:
        return ["## What was measured", "Nothing was measured on this export."]
    names = list(dict.fromkeys(name for row in rows for name in row))
    columns = [name for name in names if not _is_bound(name, names)]
    lines = [
        "| " + " | ".join(escape_markdown(name) for name in columns) + " |",
        "|" + " --- |" * len(columns),
        *("| " + " | ".join(_cell(row, name) for name in columns) + " |" for row in rows),
    ]
    note = "Brackets hold 95 % intervals. Negative log-likelihoods and divergences are in nats per token."
    return ["## What was measured", "\n".join(lines), note]


def _is_bound(name: str, names: Sequence[str]) -> bool:
    return name.endswith(("_low", "_high")) and name.rsplit("_", 1)[0] in names


def _cell(row: Mapping[str, Any], name: str) -> str:
    bounds = [row.get(f"{name}_{side}") for side in ("low", "high")]
    if row.get(name) is None:
        return ""
    if None in bounds:
        return _number(row[name])
    return f"{_number(row[name])} [{_number(bounds[0])}, {_number(bounds[1])}]"


def _number(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}" if math.isfinite(value) else "not finite"
    return escape_markdown(value)
