"""What a training of an experiment needs, read from its recipe: which anchors, a live teacher, pairs or responses."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from lightning_dadpo.cli.command_parser import one_line
from lightning_dadpo.cli.experiment import FitRecipe
from lightning_dadpo.cli.recipe import merge
from lightning_dadpo.errors import ConfigError, DadpoError
from lightning_dadpo.models.spec import ModelSpec

__all__ = ["Needs", "check_judges", "needs_of"]


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
    from lightning_dadpo.losses import PairTerm, PreferenceObjective, TokenDivergence, WeightedTerm
    from lightning_dadpo.sampling.on_policy import OnPolicy

    place = f"experiment.objectives.{name}"
    module, model = _model(recipe, place)
    if model.get("loss") is None:
        raise ConfigError(f"{place}: no model.init_args.loss in its configs; add one of configs/loss/")
    if module == "DistillationModule":
        _built(TokenDivergence, model["loss"], f"{place}: model.init_args.loss")
        _terms(WeightedTerm, model, place)
        if model.get("on_policy") is not None:
            _typed(OnPolicy, model["on_policy"], f"{place}: model.init_args.on_policy")
        return Needs("responses", live_teacher=True)
    loss = _built(PreferenceObjective, model["loss"], f"{place}: model.init_args.loss")
    terms = _terms(PairTerm, model, place)
    return Needs("pairs", tuple(loss.anchors), any(isinstance(one.term, TokenDivergence) for one in terms))


def check_judges(judges: dict[str, dict[str, Any]], losses: Iterable[ModelSpec]) -> None:
    """Build an experiment's judges, which load nothing yet, so that a mistake shows before anything runs.

    Args:
        judges: class_path and init_args of each, by the key that says so.
        losses: the models that the objectives look at.

    Raises:
        ConfigError: there is no such judge, or its arguments are not its own; or it is part of a loss, so that its
            verdicts would praise what was trained for.
    """
    if not judges:
        return
    from lightning_dadpo.evaluation.judges import Judge

    trained_towards = [one.resolved() for one in losses]
    for place, said in judges.items():
        model = getattr(_built(Judge, said, place), "model", None)
        if not isinstance(model, ModelSpec):
            continue
        judging = model.resolved()
        if any((judging.path, judging.gguf_file) == (one.path, one.gguf_file) for one in trained_towards):
            raise ConfigError(
                f"{place}: {model.path} is also what the objectives train towards, and would praise that; "
                "expected a model that is part of no loss"
            )


def _model(recipe: FitRecipe, place: str) -> tuple[str, dict[str, Any]]:
    """The module's name, and what its arguments come to: a later file replaces a loss of another class as a whole.

    Raises:
        ConfigError: a file, or the settings, hold something else where keys with values belong.
    """
    module, model = "PreferenceModule", dict[str, Any]()
    files = [(file, yaml.safe_load(Path(file).read_text("utf-8")) or {}) for file in recipe.configs]
    for source, said in (*files, ("settings", recipe.settings)):
        for key in ("trainer", "data", "model"):
            if key in said:
                _keys(said[key], f"{place}: {source}: {key}")
        part = said.get("model", {})
        if not isinstance(class_path := part.get("class_path", module), str):
            raise ConfigError(f"{place}: {source}: model.class_path {class_path!r}: expected a name")
        module = class_path.rsplit(".", 1)[-1]
        arguments = dict(_keys(part.get("init_args", {}), f"{place}: {source}: model.init_args"))
        if "loss" in arguments:
            said_now = _keys(_named(arguments["loss"]), f"{place}: {source}: model.init_args.loss")
            arguments["loss"] = _over(model.get("loss", {}), said_now)
        for key, lay in (("terms", _over_terms), ("on_policy", merge)):
            if isinstance(model.get(key), dict) and isinstance(arguments.get(key), dict):
                arguments[key] = lay(model[key], arguments[key])
        model |= arguments
    return module, model


def _keys(said: Any, place: str) -> dict[str, Any]:
    """What was said, if it is keys with values.

    Raises:
        ConfigError: it is not.
    """
    if not isinstance(said, dict):
        raise ConfigError(f"{place}: expected keys with values, found {said!r}")
    return said


def _named(said: Any) -> Any:
    """A class that is said by its name alone."""
    return {"class_path": said} if isinstance(said, str) else said


def _over_terms(under: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """A later file's terms alone; what it leaves out of one stays as an earlier file has it."""
    laid = dict(over)
    for name in under.keys() & over.keys():
        before, now = under[name], over[name]
        if isinstance(before, dict) and isinstance(now, dict):
            laid[name] = before | now
            both = _named(before.get("term")), _named(now.get("term"))
            if all(isinstance(one, dict) for one in both):
                laid[name]["term"] = _over(*both)
    return laid


def _over(under: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    if over.get("class_path", under.get("class_path")) != under.get("class_path"):
        return over
    return under | over | {"init_args": (under.get("init_args") or {}) | (over.get("init_args") or {})}


def _built(kind: type, said: Any, place: str) -> Any:
    """An object of one of the kind's classes, as a recipe or an experiment names it."""
    from jsonargparse import ArgumentParser

    key = place.rsplit(".", 1)[-1]
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(kind, key, required=True)
    with _in_one_line(place):
        # a copy, for the parser writes into what it is given
        return parser.instantiate(parser.parse_object(deepcopy({key: said})))[key]


def _terms(kind: type, model: dict[str, Any], place: str) -> list[Any]:
    """The terms beside the loss."""
    place = f"{place}: model.init_args.terms"
    return [_typed(kind, said, f"{place}.{name}") for name, said in _keys(model.get("terms") or {}, place).items()]


def _typed(kind: type, said: Any, place: str) -> Any:
    """An object of the class, as a training would read it."""
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(kind)
    said = deepcopy(_keys(said, place))
    with _in_one_line(place):
        return kind(**vars(parser.instantiate(parser.parse_object(said))))


@contextmanager
def _in_one_line(place: str) -> Iterator[None]:
    """A mistake with its place, as our own class says it where it was one of ours.

    Raises:
        ConfigError: for any mistake of a recipe's.
    """
    from jsonargparse import ArgumentError

    try:
        yield
    except (ArgumentError, ValueError, TypeError) as error:
        mistake: BaseException | None = error
        while mistake is not None and not isinstance(mistake, DadpoError):
            mistake = mistake.__cause__
        raise ConfigError(f"{place}: {mistake or one_line(str(error))}") from error
