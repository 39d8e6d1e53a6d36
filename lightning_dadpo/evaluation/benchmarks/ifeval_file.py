"""IFEval's prompts (arXiv 2311.07911), whose instructions a program can check, read and made a prompt file.

Read are the authors' `input_data.jsonl`, the hub's `google/IFEval` by its name, and files that put `en:` in front of an
instruction's name.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pydantic.dataclasses import dataclass

from lightning_dadpo.data.artifacts import file_digest, write_atomically
from lightning_dadpo.data.hub import load_dataset
from lightning_dadpo.data.rows import STRICT, Message, PromptRow, content_digest, parse_row
from lightning_dadpo.errors import DataError

__all__ = ["IfevalPrompt", "ifeval_digest", "ifeval_prompts", "read_ifeval"]

SPLIT = "train"
"""Of the hub's data set, which has no other."""


@dataclass(frozen=True, config=STRICT)
class IfevalPrompt:
    """One line of the file.

    Attributes:
        key: the prompt's number.
        prompt: what the user says.
        instruction_id_list: what a response is checked for, as FAMILY:NAME, with or without `en:` in front.
        kwargs: the arguments of each check; a null says nothing.
    """

    key: int
    prompt: str
    instruction_id_list: list[str]
    kwargs: list[dict[str, Any]]

    @property
    def prompt_id(self) -> str:
        """What the prompt is called in prompt files and responses."""
        return f"ifeval-{self.key}"

    @property
    def instructions(self) -> list[tuple[str, dict[str, Any]]]:
        """Each instruction as FAMILY:NAME with the arguments that are said."""
        names = [name.removeprefix("en:") for name in self.instruction_id_list]
        said = [{key: value for key, value in given.items() if value is not None} for given in self.kwargs]
        return list(zip(names, said, strict=True))


def read_ifeval(source: str | Path) -> list[IfevalPrompt]:
    """The prompts, in their order.

    Args:
        source: a JSONL file, or a name for datasets.load_dataset.

    Raises:
        DataError: there is no such file or data set, it is empty, or a row is not such a prompt (file:line first).
    """
    prompts: dict[int, IfevalPrompt] = {}
    for place, row in _rows(source):
        prompt = parse_row(row, IfevalPrompt, place)
        _check(prompt, place)
        if prompt.key in prompts:
            raise DataError(f"{place}: key {prompt.key} stands there already, further up")
        prompts[prompt.key] = prompt
    if not prompts:
        raise DataError(f"{source}: holds no prompts")
    return list(prompts.values())


def ifeval_digest(source: str | Path) -> str:
    """What the prompts are named by: the file's bytes, or what a data set says."""
    path = Path(source).expanduser()
    return file_digest(path) if path.is_file() else content_digest([asdict(prompt) for prompt in read_ifeval(source)])


def _rows(source: str | Path) -> Iterator[tuple[str, bytes]]:
    """Every row as JSON, with its place."""
    path = Path(source).expanduser()
    if path.is_file():
        with path.open("rb") as lines:
            yield from ((f"{path}:{number}", line) for number, line in enumerate(lines, 1) if line.strip())
    elif path.suffix in (".json", ".jsonl"):
        raise DataError(f"{path}: no such file; expected IFEval's JSONL (input_data.jsonl), or google/IFEval")
    else:
        loaded = load_dataset(str(source), SPLIT)
        yield from ((f"{source}: row {number}", json.dumps(row).encode()) for number, row in enumerate(loaded, 1))


def _check(prompt: IfevalPrompt, place: str) -> None:
    if not prompt.prompt.strip():
        raise DataError(f"{place}: `prompt` has no text")
    names, arguments = len(prompt.instruction_id_list), len(prompt.kwargs)
    if names != arguments or names == 0:
        raise DataError(f"{place}: {names} instructions but arguments for {arguments}, expected one each, at least one")


def ifeval_prompts(ifeval_file: str, out: str) -> Path:
    """Write IFEval's prompts as a prompt file, for `dadpo sample --prompts.heldout.path`; nothing is rendered yet.

    Args:
        ifeval_file: IFEval's JSONL, or a name for datasets.load_dataset: google/IFEval.
        out: file to write; one that says the same may be there already.

    Raises:
        DataError: IFEval's file cannot be read, or something else stands at `out`.
    """
    rows = [
        PromptRow(prompt_id=prompt.prompt_id, messages=[Message("user", prompt.prompt)], source="ifeval")
        for prompt in read_ifeval(ifeval_file)
    ]
    text = "".join(json.dumps(asdict(row), ensure_ascii=False) + "\n" for row in rows)
    path = Path(out)
    if path.exists():
        if not path.is_file() or path.read_text("utf-8") != text:
            raise DataError(f"{path}: is there already and says something else; choose another file or remove it")
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, text)
    return path
