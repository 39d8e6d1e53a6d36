"""What a training of an experiment needs, read from its recipe: which anchors, a live teacher, pairs or responses."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from lightning_dadpo.cli.command_parser import one_line
from lightning_dadpo.cli.experiment import FitRecipe
from lightning_dadpo.errors import ConfigError, DadpoError

__all__ = ["Needs", "needs_of"]


@dataclass(frozen=True)
class Needs:
    """What a training asks of the pipeline.

    Attributes:
        trains_on: pairs with the anchors' scores, or the teacher's responses.
        anchors: names of the anchors that the loss needs; one of weight 0 is not among them.
        live_teacher: a term of the loss looks at the teacher's logits, so the teacher is in memory.
    """

    trains_on: Literal["pairs", "responses"]
    anchors: tuple[str, ...] = ()
    live_teacher: bool = False

    @property
    def scored(self) -> tuple[str, ...]:
        """The anchors whose scores are wanted on disk."""
        return tuple(name for name in self.anchors if not (self.live_teacher and name == "teacher"))


def needs_of(name: str, recipe: FitRecipe) -> Needs:
    """Build the recipe's loss, and nothing else of it, and ask.

    Args:
        name: the objective's, for messages.
        recipe: how it is trained.

    Raises:
        ConfigError: the recipe names no loss, or one that cannot be built.
    """
    from lightning_dadpo.losses import PreferenceObjective, TokenDivergence  # torch, which a plan should not cost twice

    module, model = _model(recipe)
    place = f"experiment.objectives.{name}"
    if "loss" not in model:
        raise ConfigError(f"{place}: no model.init_args.loss in its configs; add one of configs/loss/")
    if module == "DistillationModule":
        _built(TokenDivergence, model["loss"], place)
        return Needs("responses", live_teacher=True)
    loss = _built(PreferenceObjective, model["loss"], place)
    terms = [term["term"] for term in (model.get("terms") or {}).values() if "term" in term]
    live = any(issubclass(_class(term, place), TokenDivergence) for term in terms)
    return Needs("pairs", tuple(loss.anchors), live)


def _model(recipe: FitRecipe) -> tuple[str, dict[str, Any]]:
    """The module's name, and what its arguments come to: a later file replaces a loss of another class as a whole."""
    module, model = "PreferenceModule", dict[str, Any]()
    for said in (*(yaml.safe_load(Path(file).read_text("utf-8")) or {} for file in recipe.configs), recipe.settings):
        part = said.get("model") or {}
        module = part.get("class_path", module).rsplit(".", 1)[-1]
        arguments = dict(part.get("init_args") or {})
        if "loss" in arguments:
            said_now = arguments["loss"]
            said_now = {"class_path": said_now} if isinstance(said_now, str) else said_now
            arguments["loss"] = _over(model.get("loss", {}), said_now)
        model |= arguments
    return module, model


def _over(under: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    if over.get("class_path", under.get("class_path")) != under.get("class_path"):
        return over
    return under | over | {"init_args": (under.get("init_args") or {}) | (over.get("init_args") or {})}


def _built(kind: type, said: Any, place: str) -> Any:
    from jsonargparse import ArgumentError, ArgumentParser

    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(kind, "loss")
    try:
        return parser.instantiate(parser.parse_object({"loss": said})).loss
    except (ArgumentError, ValueError) as error:
        mistake: BaseException | None = error
        while mistake is not None and not isinstance(mistake, DadpoError):
            mistake = mistake.__cause__
        raise ConfigError(f"{place}: model.init_args.loss: {mistake or one_line(str(error))}") from error


def _class(said: dict[str, Any] | str, place: str) -> type:
    """A term's class; those of this package may be said by their names alone."""
    from importlib import import_module

    from lightning_dadpo import losses

    path = said if isinstance(said, str) else said["class_path"]
    module, _, name = path.rpartition(".")
    try:
        found: type = getattr(import_module(module) if module else losses, name)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"{place}: model.init_args.terms: no class {path!r}") from error
    return found
