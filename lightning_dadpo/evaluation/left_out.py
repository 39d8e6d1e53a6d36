"""Which prompts of a split are left out of a measurement, since the models were trained on them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from lightning_dadpo.data.artifacts import file_digest, read_manifest
from lightning_dadpo.data.overlap import Overlap, overlapping
from lightning_dadpo.data.prompts import PromptFile, read_prompts
from lightning_dadpo.data.rows import Message, PairRow, ResponseRow, read_rows
from lightning_dadpo.errors import ArtifactError, ConfigError, DataError

__all__ = ["leave_out", "training_digests"]

ROWS = "rows.jsonl"
TRAIN = "train"
KINDS: dict[str, type[PairRow] | type[ResponseRow]] = {"pairs": PairRow, "responses": ResponseRow}
SHOWN = 3


def training_digests(trained_on: Sequence[str]) -> list[str]:
    """What training data is named by its content, in the order in which it is named.

    Args:
        trained_on: prompt files (.jsonl), or artefacts of kind "responses" or "pairs".

    Raises:
        ArtifactError, ConfigError, DataError: one is neither; the message begins with it.
    """
    return [file_digest(path) if path.is_file() else _rows_of(path)[1] for path in map(_source, trained_on)]


def leave_out(asked: Mapping[str, Sequence[Message]], trained_on: Sequence[str], called: str) -> dict[str, Overlap]:
    """The prompts that stand in the training data, said in one line.

    Of an artefact the rows of split "train" count: its other splits were asked, not trained on.

    Args:
        asked: the conversations by prompt id.
        trained_on: prompt files (.jsonl), or artefacts of kind "responses" or "pairs"; of none, nothing is said.
        called: what they are, for what is said: "prompts of split 'heldout'".

    Raises:
        ArtifactError, ConfigError, DataError: a file or folder is none of these; or no prompt would be left.
    """
    if not trained_on:
        return {}
    found = overlapping(asked, (one for source in trained_on for one in _conversations(source)))
    if len(found) == len(asked):
        name, overlap = next(iter(found.items()))
        raise DataError(
            f"trained_on {', '.join(trained_on)}: all {len(asked)} {called} stand there too "
            f"({name}: {overlap}); expected some that were not trained on"
        )
    print(_said(found, len(asked), called), flush=True)
    return found


def _said(found: Mapping[str, Overlap], asked: int, called: str) -> str:
    if not found:
        return f"none of the {asked} {called} stands in the training data"
    reasons = Counter(overlap.reason for overlap in found.values())
    listed = [f"{name}: {overlap}" for name, overlap in list(found.items())[:SHOWN]]
    more = ["..."] if len(found) > SHOWN else []
    return (
        f"left out {len(found)} of {asked} {called} that stand in the training data "
        f"({reasons['exact']} exactly, {reasons['near']} nearly): {'; '.join(listed + more)}"
    )


def _source(name: str) -> Path:
    path = Path(name).expanduser()
    if path.is_dir() or (path.is_file() and path.suffix == ".jsonl"):
        return path
    raise ConfigError(f"trained_on {name}: expected a prompt file (.jsonl) or a folder of responses or pairs")


def _rows_of(folder: Path) -> tuple[type[PairRow] | type[ResponseRow], str]:
    """What the rows of an artefact are, and their digest."""
    manifest = read_manifest(folder)
    if manifest.kind not in KINDS:
        raise ArtifactError(f"{folder}: holds {manifest.kind}, expected responses or pairs")
    return KINDS[manifest.kind], manifest.files[ROWS]


def _conversations(source: str) -> Iterator[tuple[str, list[Message]]]:
    path, count = _source(source), 0
    if path.is_file():
        yield from ((row.prompt_id, row.messages) for _, row in read_prompts({TRAIN: PromptFile(str(path))}))
        return
    for row in read_rows(path / ROWS, _rows_of(path)[0]):
        if row.split == TRAIN:
            count += 1
            yield row.prompt_id, row.messages
    if count == 0:
        raise DataError(f"{path}: no row of split {TRAIN!r}, expected what was trained on")
