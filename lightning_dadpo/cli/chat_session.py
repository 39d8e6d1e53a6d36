"""A chat with several models: questions go to those who are present, commands change who is and how they draw."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from types import FrameType

from lightning_dadpo.cli.chat_screen import Column, Screen
from lightning_dadpo.cli.conversation import Answer, Conversation, Turn
from lightning_dadpo.errors import ConfigError, DadpoError, DataError
from lightning_dadpo.models.spec import ModelSpec
from lightning_dadpo.sampling.base import SamplerSettings
from lightning_dadpo.sampling.speaker import Speaker, SpeakerPrecision

__all__ = ["Session"]

TEACHER = "teacher"
ENDINGS = {"stop": "ended by itself", "length": "cut at the cap", "interrupted": "interrupted"}

HELP = """\
Whatever does not begin with / is said to every model that is present. A model sees the turns that it answered, with its
own answers; // at the beginning says a / itself. Ctrl-C stops an answer and keeps what is there, Ctrl-D ends the chat.
  /teacher, /student     talk to one alone
  /both                  talk to those whom the chat began with
  /only NAME [NAME ...]  talk to these alone
  /models                who can be talked to
  /log-probs on|off      log-probs of every answer, by its own model and by the others, in nats per token; of raw models
                         at temperature 1, whatever the sampler does. Without on or off: of the latest answers, once
  /temperature X         0 takes the likeliest token each time
  /max-tokens N          the cap on an answer
  /seed N                the same seed and the same conversation give the same answers
  /undo                  take the latest turn back
  /reset                 begin anew
  /save FILE             write the conversation as JSONL: texts, token ids, log-probs in nats, settings
  /quit                  end"""


class Session:
    """One chat.

    Args:
        specs: everybody who can be talked to, by name.
        company: whom the chat begins with.
        settings: how answers are drawn.
        log_probs: measure every answer.
        precision: number format of all models; by default what this machine is fast in.
        screen: where it is shown.
        timed: say how fast answers came; lines that a script compares leave it out.
    """

    def __init__(
        self,
        specs: dict[str, ModelSpec],
        company: list[str],
        settings: SamplerSettings,
        log_probs: bool,
        precision: SpeakerPrecision | None,
        screen: Screen,
        timed: bool,
    ) -> None:
        self.specs, self.company, self.present = specs, company, list(company)
        self.settings, self.log_probs, self.precision = settings, log_probs, precision
        self.screen, self.timed = screen, timed
        self.conversation = Conversation()
        self.speakers: dict[str, Speaker] = {}
        self.mistakes = 0
        self._commands: dict[str, Callable[[list[str]], None]] = {
            "/help": self._help, "/models": self._models, "/teacher": self._teacher, "/student": self._student,
            "/both": self._both, "/only": self._only, "/log-probs": self._log_probs, "/temperature": self._temperature,
            "/max-tokens": self._max_tokens, "/seed": self._seed, "/undo": self._undo, "/reset": self._reset,
            "/save": self._save,
        }  # fmt: skip

    def begin(self) -> None:
        """Load the company and say how the chat works."""
        for name in self.company:
            self._speaker(name)
        self._say_settings()
        self.screen.say("/help lists the commands, Ctrl-D ends")

    def hear(self, line: str) -> bool:
        """Obey a command or pass a question on; a mistake is said and counted.

        Returns:
            whether the chat goes on.
        """
        try:
            if _broken(line):
                raise DataError("what was sent is not UTF-8 text")
            if line.startswith("/") and not line.startswith("//"):
                return self._obey(line)
            if line.strip():
                self._ask(line.removeprefix("/") if line.startswith("//") else line)
        except DadpoError as error:
            self.mistakes += 1
            self.screen.complain(str(error))
        except KeyboardInterrupt:  # while log-probs are measured or a model is loaded
            self.screen.say("\ninterrupted")
        return True

    def _obey(self, line: str) -> bool:
        name, *words = line.split()
        if name == "/quit":
            return False
        if name not in self._commands:
            near = get_close_matches(name, [*self._commands, "/quit"], n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise ConfigError(f"no command {name}{hint} (/help lists them)")
        self._commands[name](words)
        return True

    def _speaker(self, name: str) -> Speaker:
        """Whoever is not in memory yet is loaded."""
        if name not in self.speakers:
            speaker = Speaker(name, self.specs[name], self.precision)
            self.screen.say(f"{name}: {speaker.describe()}")
            self.speakers[name] = speaker
        return self.speakers[name]

    def _ask(self, question: str) -> None:
        """One turn: everybody who is present answers, a token each in turn."""
        answers = {}
        for name in self.present:
            messages = self.conversation.messages(name, question)
            answers[name] = Answer(messages, self._speaker(name).answer(messages, self.settings))
        columns = {name: Column(name) for name in answers}
        with _stoppable() as stopped, self.screen.writing(list(columns.values())) as grown:
            start = time.monotonic()
            while not stopped() and (open_ := [name for name in answers if not _ended(answers[name])]):
                for name in open_:
                    answers[name].response.step()
                    columns[name].text = answers[name].response.text
                    if self.timed:
                        columns[name].note = self._note(answers[name], time.monotonic() - start)
                grown()
            for name, answer in answers.items():
                columns[name].note = columns[name].note if self.timed and _ended(answer) else self._note(answer, None)
        said = {name: answer for name, answer in answers.items() if answer.response.token_ids}
        if said:
            self.conversation.turns.append(Turn(question, self.settings, said))
            if self.log_probs:
                self._measure()

    def _note(self, answer: Answer, seconds: float | None) -> str:
        count = len(answer.response.token_ids)
        note = f"{count} token{'s' * (count != 1)}"
        if _ended(answer) or seconds is None:
            note += f", {ENDINGS[answer.ending]}"
        return note + (f", {count / seconds:.1f} a second" if seconds else "")

    def _measure(self) -> None:
        """What everybody in memory gives to each of the latest answers."""
        answers = self.conversation.turns[-1].answers
        reasons = []
        rows = []
        for name, answer in answers.items():
            cells = []
            for reader in self.speakers.values():
                why = reader.cannot_read(self.speakers[name], answer.messages, answer.response)
                if why is None:
                    answer.log_probs[reader.name] = reader.log_prob(answer.response)
                    cells.append(f"{answer.log_probs[reader.name] / len(answer.response.token_ids):.3f}")
                else:
                    cells.append("-")
                    reasons.append(f"{reader.name} cannot score {name}'s answer by its token ids: {why}")
            rows.append([f"{name}'s answer, {self._note(answer, None)}", *cells])
        self.screen.table(["log-probs in nats per token", *(f"by {name}" for name in self.speakers)], rows)
        for reason in reasons:
            self.screen.say(reason)

    def _help(self, words: list[str]) -> None:
        self.screen.say(HELP)

    def _models(self, words: list[str]) -> None:
        for name, spec in self.specs.items():
            held = "present" if name in self.present else "in memory" if name in self.speakers else "not loaded"
            self.screen.say(f"{name}: {spec.path} ({held})")

    def _teacher(self, words: list[str]) -> None:
        self._only([TEACHER])

    def _student(self, words: list[str]) -> None:
        students = [name for name in self.company if name != TEACHER]
        if len(students) != 1:
            raise ConfigError(f"/student: {len(students)} of them ({', '.join(students)}); name one: /only NAME")
        self._only(students)

    def _both(self, words: list[str]) -> None:
        self._only(self.company)

    def _only(self, words: list[str]) -> None:
        known = ", ".join(self.specs)
        if not words:
            raise ConfigError(f"/only: expected the names of one or more of {known}")
        if unknown := [name for name in words if name not in self.specs]:
            raise ConfigError(f"no model {unknown[0]!r}; there are {known}")
        for name in words:
            self._speaker(name)
        self.present = list(dict.fromkeys(words))
        self.screen.say(f"talking to {' and '.join(self.present)}")

    def _log_probs(self, words: list[str]) -> None:
        if not words:
            if not self.conversation.turns:
                raise DataError("/log-probs: nothing was said yet")
            self._measure()
        elif words in (["on"], ["off"]):
            self.log_probs = words == ["on"]
            self.screen.say(f"log-probs are {words[0]}")
        else:
            raise ConfigError(f"/log-probs {' '.join(words)}: expected on, off, or nothing for the latest answers")

    def _temperature(self, words: list[str]) -> None:
        self._change(temperature=_number("/temperature", words, float))

    def _max_tokens(self, words: list[str]) -> None:
        self._change(max_new_tokens=_number("/max-tokens", words, int))

    def _seed(self, words: list[str]) -> None:
        self._change(seed=_number("/seed", words, int))

    def _change(self, **changed: float) -> None:
        self.settings = replace(self.settings, **changed)  # type: ignore[arg-type]
        self._say_settings()

    def _say_settings(self) -> None:
        said = self.settings
        self.screen.say(
            f"temperature {said.temperature:g}, top_p {said.top_p:g}, at most {said.max_new_tokens} tokens, "
            f"seed {said.seed}, log-probs {'on' if self.log_probs else 'off'}"
        )

    def _undo(self, words: list[str]) -> None:
        if not self.conversation.turns:
            raise DataError("/undo: nothing was said yet")
        taken = self.conversation.turns.pop()
        self.screen.say(f"taken back: {' '.join(taken.question.split())}")

    def _reset(self, words: list[str]) -> None:
        self.conversation.turns.clear()
        self.screen.say("a new conversation")

    def _save(self, words: list[str]) -> None:
        if not words:
            raise ConfigError("/save: expected a file, for example /save chat.jsonl")
        path = Path(" ".join(words)).expanduser()
        count = self.conversation.save(path, {name: spec.path for name, spec in self.specs.items()})
        self.screen.say(f"{path}: {count} answers")


def _ended(answer: Answer) -> bool:
    return answer.response.finish_reason is not None


def _broken(text: str) -> bool:
    """Whether it holds bytes that were no text, as Python reads them under some locales."""
    return any("\ud800" <= character <= "\udfff" for character in text)


def _number(command: str, words: list[str], kind: type[int] | type[float]) -> float:
    try:
        (word,) = words
        return kind(word)
    except ValueError:
        what = "a whole number" if kind is int else "a number"
        raise ConfigError(f"{' '.join([command, *words])}: expected {what}") from None


@contextmanager
def _stoppable() -> Iterator[Callable[[], bool]]:
    """Inside, Ctrl-C stops nothing by itself; what is yielded says whether it was pressed."""
    pressed = False

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal pressed
        pressed = True

    before = signal.signal(signal.SIGINT, note)
    try:
        yield lambda: pressed
    finally:
        signal.signal(signal.SIGINT, before)
