"""IFEval's checkers, which the package if-verifiable carries (the authors' own code), held to what a file asks.

Three things that the checkers do in silence are made loud here: an argument that one of them cannot use is replaced by
a random one, an unknown instruction is skipped, and a missing sentence model ends the run in the middle. Language
detection is seeded, or it would give another score each time.
"""

from __future__ import annotations

import importlib
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from lightning_dadpo.errors import ConfigError, DataError
from lightning_dadpo.evaluation.benchmarks.ifeval_file import IfevalPrompt

__all__ = ["Checkers", "Verdict"]

PROBE = "A first sentence. A second one."
SENTENCE_MODEL = (
    "nltk's sentence model punkt_tab, which is not on this machine: get it once with a network (python -m "
    "nltk.downloader punkt_tab), or set NLTK_DATA to a folder that holds tokenizers/punkt_tab"
)


@dataclass(frozen=True)
class Verdict:
    """What a response did, instruction by instruction.

    Attributes:
        strict: followed as the response stands.
        loose: followed by the response, or by it without its first line, its last one, both, or its asterisks.
    """

    strict: list[bool]
    loose: list[bool]


class Checkers:
    """The checkers of if-verifiable.

    Raises:
        ConfigError: the package, or one that it needs, is not installed.
    """

    def __init__(self) -> None:
        try:
            self._package = importlib.import_module("if_verifiable")
            registry = importlib.import_module("if_verifiable.ifeval.instructions_registry")
            detector = importlib.import_module("langdetect").DetectorFactory
        except ImportError as error:
            raise ConfigError(
                f"ifeval: cannot import its checkers ({error}); pip install 'lightning-dadpo[ifeval]'"
            ) from error
        self._classes: dict[str, Any] = registry.INSTRUCTION_DICT
        detector.seed = 0  # langdetect draws random numbers

    def identity(self) -> dict[str, str]:
        """Versions of what decides a verdict."""
        return {name: version(name) for name in ("if-verifiable", "langdetect", "nltk")}

    def fault(self, prompt: IfevalPrompt) -> str | None:
        """Why one of the prompt's instructions cannot be checked as it was given to the model; None when all can.

        The public file has two such prompts: they count a `#` and a `!`, where the checker knows letters alone.
        """
        for name, given in prompt.instructions:
            taken = self._built(name, given, prompt).get_instruction_args() or {}
            for key, value in given.items():
                if _normal(taken.get(key)) != _normal(value):
                    return f"{name} cannot check {key} {value!r}"
        return None

    def try_out(self, prompts: list[IfevalPrompt]) -> None:
        """Ask every checker that these prompts need once, so that none fails in the middle.

        Raises:
            ConfigError: nltk's sentence model is missing; all instructions that need it are named.
            DataError: an argument is missing, or is none that the checker takes.
        """
        without_model: set[str] = set()
        with _quiet():
            for prompt in prompts:
                for name, given in prompt.instructions:
                    if self._lacks_sentence_model(name, given, prompt):
                        without_model.add(name)
        if without_model:
            names = sorted(without_model)
            raise ConfigError(
                f"ifeval: {' and '.join(names)} need {SENTENCE_MODEL}; or leave their prompts out: "
                f"--leave_out '[{','.join(names)}]'"
            )

    def _lacks_sentence_model(self, name: str, given: dict[str, Any], prompt: IfevalPrompt) -> bool:
        try:
            self._built(name, given, prompt).check_following(PROBE)
        except re.error as error:  # keywords are patterns to the checkers
            raise DataError(f"prompt {prompt.prompt_id!r}: instruction {name!r}: {given} ({error})") from error
        except LookupError as error:
            if isinstance(error, KeyError | IndexError):
                raise
            return True  # nltk's way to say that a resource is not there
        return False

    def check(self, prompt: IfevalPrompt, response: str) -> Verdict:
        """Check a response for every instruction of its prompt; an empty one follows none.

        What a reasoning model wrote up to `</think>` is not part of its response: the package takes it off.
        """
        with _quiet():
            found = [self._check_one(prompt, name, given, response) for name, given in prompt.instructions]
        return Verdict([strict for strict, _ in found], [loose for _, loose in found])

    def _check_one(self, prompt: IfevalPrompt, name: str, given: dict[str, Any], response: str) -> tuple[bool, bool]:
        sample = self._package.IFEvalSample(prompt.key, prompt.prompt, [name], [given])
        try:
            results, _ = self._package.evaluate_output_for_sample("ifeval", sample, response)
        except RecursionError:  # json reading a thousand opening brackets, which are no JSON
            return False, False
        if not results:  # how the package answers to an empty response
            return False, False
        return bool(results[0].strict_pass), bool(results[0].loose_pass)

    def _built(self, name: str, given: dict[str, Any], prompt: IfevalPrompt) -> Any:
        place = f"prompt {prompt.prompt_id!r}: instruction {name!r}"
        if name not in self._classes:
            raise DataError(f"{place}: if-verifiable knows no such instruction")
        checker = self._classes[name](name)
        if lacking := sorted(set(checker.get_instruction_args_keys()) - given.keys()):
            raise DataError(f"{place}: lacks its argument {lacking[0]}; the checker would draw a random one")
        try:
            checker.build_description(**given)
        except (TypeError, ValueError, KeyError) as error:
            raise DataError(f"{place}: does not take {given} ({error})") from error
        return checker


def _normal(value: Any) -> Any:
    """Checkers sort lists of words, strip text and count without regard to case."""
    if isinstance(value, list | tuple):
        return sorted(map(str, value))
    return value.strip().casefold() if isinstance(value, str) else value


@contextmanager
def _quiet() -> Iterator[None]:
    """The checkers print a model's words when they cannot tell their language, and set up logging to do so."""
    root, handler, before = logging.getLogger(), logging.NullHandler(), logging.root.manager.disable
    root.addHandler(handler)
    logging.disable(logging.ERROR)
    try:
        yield
    finally:
        logging.disable(before)
        root.removeHandler(handler)
