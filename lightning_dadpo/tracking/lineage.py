"""From prompts to student in wandb: each run says which artefacts it used and which one it made.

An artefact there is a reference to a folder's `manifest.json`, or to a file of prompts, by its content; no row and no
weight is uploaded. wandb takes two artefacts of one name and content for the same version, so a run says what it used
by describing it again, and the two meet on the server. That also works offline: `wandb sync` sends both.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lightning_dadpo.data.artifacts import MANIFEST, file_digest

__all__ = ["Node", "made", "trained", "used", "record_inputs", "record_output"]

FIT = "fit"
LONGEST_NAME = 128
"""wandb's limit, in letters."""
INSIDE = 2
"""How deep in an artefact a file may lie that a setting names: `checkpoints/last.ckpt`."""


@dataclass(frozen=True)
class Node:
    """One artefact of the lineage.

    Attributes:
        name: the folder's or file's; versions are counted by it.
        kind: responses, pairs, scores, fit, model, evaluation ...; `data` for files of prompts, preferences or
            people's judgements.
        reference: an address; of a file, whose content is the artefact's, or of nothing but a name.
        metadata: for people; few keys, since wandb takes a hundred at most.
    """

    name: str
    kind: str
    reference: str
    metadata: dict[str, Any] = field(default_factory=dict, compare=False)


def made(folder: Path) -> Node:
    """An artefact that is complete; a training is named alone, since it is spoken of before it is complete."""
    manifest = folder / MANIFEST
    text = manifest.read_text("utf-8")
    kind = str(json.loads(text)["kind"])
    if kind == FIT:
        return trained(folder.name)
    metadata = {"folder": str(folder), "digest": file_digest(manifest), "kind": kind, "manifest": text}
    return Node(folder.name, kind, manifest.absolute().as_uri(), metadata)


def trained(name: str) -> Node:
    """What a training makes: its checkpoints, by the name of its run, which is that of its folder."""
    return Node(name, FIT, f"dadpo:{FIT}/{name}")


def used(settings: Any) -> list[Node]:
    """The artefacts, files of rows and models that settings name, each once.

    Args:
        settings: of a command or a training, as plain values; paths are relative to the current folder.
    """
    return list(dict.fromkeys(_used(settings)))


def _used(said: Any, key: str = "") -> Iterator[Node]:
    if isinstance(said, Mapping):
        if (model := _outside_model(said, key)) is not None:
            yield model
            return
        for name, one in said.items():
            yield from _used(one, name)
    elif isinstance(said, str):
        yield from _named(said)
    elif isinstance(said, Sequence):
        for one in said:
            yield from _used(one)


def _named(text: str) -> Iterator[Node]:
    path = Path(os.path.expanduser(text))  # a text may be anything, and none is an error here
    if (folder := _artefact_around(path)) is not None:
        yield made(folder)
    elif path.suffix in (".jsonl", ".json") and os.path.isfile(path):
        metadata = {"file": text, "digest": file_digest(path), "kind": "data"}
        yield Node(path.name, "data", path.absolute().as_uri(), metadata)


def _artefact_around(path: Path) -> Path | None:
    if path in (Path(), Path("/")) or not os.path.exists(path):
        return None
    around = (folder for folder in (path, *list(path.parents)[:INSIDE]) if (folder / MANIFEST).is_file())
    return next(around, None)


def _outside_model(said: Mapping[str, Any], key: str) -> Node | None:
    """A model that no stage made: a hub name or a plain folder; its weights are not read.

    A whole `ModelSpec` shows by its fields. A judge's stands in the YAML as a person wrote it: mostly a path alone, so
    it shows by its key, `model`.
    """
    path = said.get("path")
    if not isinstance(path, str) or ("gguf_file" not in said and key != "model") or list(_named(path)):
        return None
    parts = [str(said[key]) for key in ("gguf_file", "revision") if said.get(key)]
    return Node(Path(path).name, "model", "dadpo:model/" + "@".join([path, *parts]), {"kind": "model", "path": path})


def record_inputs(run: Any, settings: Any) -> None:
    """Say in a run what it used; whatever goes wrong is one printed line, never an error.

    Args:
        run: a wandb run that is open.
        settings: see `used`.
    """
    with _out_of_the_way(run):
        for node in [] if run.disabled else used(settings):
            # wandb's `use_artifact` refuses offline runs, and waits for the server in others. This is the record that
            # it writes itself; `wandb sync` sends it
            run._log_artifact(_artifact(node), is_user_created=True, use_after_commit=True)


def record_output(run: Any, node: Node) -> None:
    """Say in a run what it made; whatever goes wrong is one printed line, never an error."""
    with _out_of_the_way(run):
        run.log_artifact(_artifact(node))


@contextmanager
def _out_of_the_way(run: Any) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # the work is what counts; no trouble of its tracking may undo it
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        print(f"wandb: {run.name}: its lineage was not recorded ({reason})", flush=True)


def _artifact(node: Node) -> Any:
    import wandb

    name = re.sub(r"[^\w.-]", "-", node.name)[:LONGEST_NAME]
    artifact = wandb.Artifact(name, type=node.kind, metadata=node.metadata)
    artifact.add_reference(node.reference, name=node.reference.rsplit("/", 1)[-1])
    return artifact
