"""IFEval's file (arXiv 2311.07911): prompts whose instructions a program can check, read and made a prompt file.

Read are the authors' `input_data.jsonl`, the hub's `google/IFEval` saved as JSONL, and files that put `en:` in front of
an instruction's name.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pydantic.dataclasses import dataclass

from lightning_dadpo.data.artifacts import write_atomically
from lightning_dadpo.data.rows import STRICT, Message, PromptRow, parse_row
from lightning_dadpo.errors import DataError

__all__ = ["IfevalPrompt", "read_ifeval", "ifeval_prompts"]


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


def read_ifeval(path: str | Path) -> list[IfevalPrompt]:
    """The file's prompts, in its order.

    Raises:
        DataError: there is no such file, it is empty, or a line is not such a prompt (file:line first).
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise DataError(f"{path}: no such file; expected IFEval's JSONL (input_data.jsonl)")
    prompts: dict[int, IfevalPrompt] = {}
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                place = f"{path}:{number}"
                prompt = parse_row(line, IfevalPrompt, place)
                _check(prompt, place)
                if prompt.key in prompts:
                    raise DataError(f"{place}: key {prompt.key} stands there already, further up")
                prompts[prompt.key] = prompt
    if not prompts:
        raise DataError(f"{path}: holds no prompts")
    return list(prompts.values())


def _check(prompt: IfevalPrompt, place: str) -> None:
    if not prompt.prompt.strip():
        raise DataError(f"{place}: `prompt` has no text")
    names, arguments = len(prompt.instruction_id_list), len(prompt.kwargs)
    if names != arguments or names == 0:
        raise DataError(f"{place}: {names} instructions but arguments for {arguments}, expected one each, at least one")


def ifeval_prompts(ifeval_file: str, out: str) -> Path:
    """Write IFEval's prompts as a prompt file, for `dadpo sample --prompts.heldout.path`; nothing is rendered yet.

    Args:
        ifeval_file: IFEval's JSONL.
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
