"""`dadpo chat`: teacher and student side by side in the terminal."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Literal

import yaml

from lightning_dadpo.cli.chat_screen import Lines, Screen, Terminal
from lightning_dadpo.errors import ArtifactError, ConfigError, DataError
from lightning_dadpo.models.spec import ModelSpec
from lightning_dadpo.sampling.base import SamplerSettings

__all__ = ["chat"]

TEACHER = "teacher"
BLOCK = '"""'
SETTINGS = SamplerSettings(temperature=0.7, max_new_tokens=512)


def chat(
    folder: str | None = None,
    models: dict[str, ModelSpec] = {},  # noqa: B006 the parser offers --models.NAME.path for a plain dict alone
    settings: SamplerSettings = SETTINGS,
    log_probs: bool = False,
    precision: Literal["32-true", "bf16-true"] | None = None,
) -> int:
    '''Talk to models side by side: each answers as it is drawn, and remembers its own answers.

    Lines that a script sends are answered one after another; status 2 when one of them was a mistake. A question of
    several lines stands between two lines of """. /help lists the commands.

    Args:
        folder: an experiment's folder, for example runs/demo: its teacher and its last student answer, the others can
            be called in; or a model's folder.
        models: or models by name: --models.teacher.path FOLDER --models.student.path FOLDER.
        settings: how answers are drawn.
        log_probs: what every model in the chat gives to each answer, in nats per token.
        precision: number format; by default what this machine is fast in.

    Raises:
        ConfigError, DataError, ArtifactError: there is nobody to talk to, or a model cannot be loaded.
    '''
    specs, company = _experiment(Path(folder)) if folder is not None else ({}, [])
    specs, company = specs | models, list(dict.fromkeys([*company, *models]))
    if not company:
        raise ConfigError("chat: expected an experiment's folder (dadpo chat runs/demo) or --models.NAME.path FOLDER")
    from lightning_dadpo.cli.chat_session import Session  # torch

    screen, shown = _screen()
    session = Session(specs, company, settings, log_probs, precision, screen, timed=shown)
    typed = shown and sys.stdin.isatty()
    try:
        session.begin()
        for question in _questions(screen, typed):
            if not session.hear(question):
                break
    except KeyboardInterrupt:
        return 130
    return 2 if session.mistakes and not typed else 0


def _screen() -> tuple[Screen, bool]:
    """Where it is shown, and whether that is a terminal."""
    if not sys.stdout.isatty():
        return Lines(), False
    from rich.console import Console

    return Terminal(Console(highlight=False)), True


def _questions(screen: Screen, typed: bool) -> Iterator[str]:
    """What is typed or sent, until it ends; a block between two lines of three quotes is one question."""
    lines = _typed(screen) if typed else _sent(screen)
    for line in lines:
        if line.strip() != BLOCK:
            yield line
            continue
        block: list[str] = []
        for further in lines:
            if further.strip() == BLOCK:
                break
            block.append(further)
        yield "\n".join(block)


def _typed(screen: Screen) -> Iterator[str]:
    with suppress(ImportError):
        import readline  # noqa: F401 gives `input` arrow keys and a history
    while True:
        try:
            yield input("> ")
        except EOFError:
            screen.say("")
            return
        except UnicodeDecodeError:
            screen.complain("what was typed is not UTF-8 text")
        except KeyboardInterrupt:
            screen.say("\nCtrl-D or /quit ends the chat")


def _sent(screen: Screen) -> Iterator[str]:
    try:
        for line in sys.stdin:
            screen.heard(line.removesuffix("\n"))
            yield line.removesuffix("\n")
    except UnicodeDecodeError as error:
        raise DataError(f"stdin: not UTF-8 text ({error.reason} at byte {error.start})") from error


def _experiment(root: Path) -> tuple[dict[str, ModelSpec], list[str]]:
    """Everybody in a folder by name, and whom a chat begins with.

    Raises:
        ArtifactError: it holds neither an experiment nor a model.
    """
    index = root / "experiment.json"
    if not index.is_file():
        if (root / "config.json").is_file():
            name = root.resolve().name
            return {name: ModelSpec(str(root))}, [name]
        raise ArtifactError(f"{root}: no experiment.json; expected what `dadpo run` has finished, or a model's folder")
    said = json.loads(index.read_text("utf-8"))
    configuration = yaml.safe_load(said["configuration"])
    made = {stage["name"]: (stage["command"], root / Path(stage["folder"]).name) for stage in said["stages"]}
    specs = {TEACHER: ModelSpec(**configuration[TEACHER])}
    if configuration["student"] is not None:
        specs["initial"] = ModelSpec(**configuration["student"])
    specs |= {_name(stage): ModelSpec(str(path)) for stage, (command, path) in made.items() if _is_model(command)}
    students = [name for name in specs if name != TEACHER]
    return specs, [TEACHER, *students[-1:]]


def _is_model(command: str) -> bool:
    return command in ("export", "prune")


def _name(stage: str) -> str:
    return stage.removeprefix("model-")
