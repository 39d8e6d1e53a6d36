"""The stage `dadpo mt-bench`: both turns of MT-bench, each answer graded from 1 to 10 by a chat model (2306.05685).

A grade is the opinion of the grader that is named beside it; grades of two graders, or of two versions of one, are
not the same scale.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lightning_dadpo.data.artifacts import draft, file_digest, finished, write_atomically
from lightning_dadpo.data.rows import Message, ResponseRow, RowWriter, read_rows
from lightning_dadpo.errors import ConfigError, DataError
from lightning_dadpo.evaluation.answers import Answers, read_answers
from lightning_dadpo.evaluation.benchmarks.grade_tables import GradeRow, summarise
from lightning_dadpo.evaluation.benchmarks.grading import LOWEST, grading_messages, prompt_digest, read_grade
from lightning_dadpo.evaluation.benchmarks.mt_bench_file import Question, first_turn, read_questions, second_turn
from lightning_dadpo.evaluation.benchmarks.mt_bench_sampling import SPLIT
from lightning_dadpo.evaluation.benchmarks.responses import check_one_sampler
from lightning_dadpo.evaluation.budget import Budget, estimated_tokens, most_drawn_tokens
from lightning_dadpo.evaluation.left_out import leave_out, training_digests
from lightning_dadpo.models.chat_completions import ChatAnswer, ChatServer
from lightning_dadpo.models.openai_server import GOES_ON
from lightning_dadpo.models.openai_server import Question as Request
from lightning_dadpo.models.server_spec import ChatServerSpec
from lightning_dadpo.progress import progress

__all__ = ["mt_bench"]

REQUEST = {"temperature": 0, "max_tokens": 512}
OWN = ("messages", "model", "n", "stream")
"""Entries of a request that are this stage's own."""


@dataclass(frozen=True)
class _Dialogue:
    """What one model said to one question; no second answer behind an empty first one."""

    model: str
    question: Question
    answers: list[ResponseRow]

    def conversation(self, turn: int) -> list[Message]:
        """The turns up to and with the answer to `turn`."""
        asked = zip(self.question.turns[:turn], self.answers, strict=False)
        return [m for user, row in asked for m in (Message("user", user), Message("assistant", row.text))]

    def reference(self, turn: int) -> str | None:
        """A right answer to the turn, where the file has one."""
        known = self.question.reference or []
        return known[turn - 1] if turn <= len(known) and known[turn - 1].strip() else None


def mt_bench(
    candidates: dict[str, str],
    questions: str,
    grader: ChatServerSpec,
    out: str,
    request: dict[str, Any] | None = None,
    resamples: int = 2000,
    trained_on: list[str] | None = None,
    input_price: float | None = None,
    output_price: float | None = None,
    max_calls: int | None = None,
    max_cost: float | None = None,
) -> Path:
    """Grade what `dadpo mt-bench-sample` made; a killed run goes on behind the last grade.

    Makes an artefact of kind "mt-bench": `rows.jsonl`, a row a model, question and turn with the grader's words, and
    `mt_bench.json`: `grader`; `rows`, one a model, with the mean grades X = `overall`, `turn_1`, `turn_2` and
    `mean_tokens_1`, `mean_tokens_2`, `finished`, each with `X_low` and `X_high` (95 %, bootstrap over the
    questions that have a grade, `graded` of `questions`), `unread` and `empty`; `categories` likewise; `differences` of
    grades between every two models, paired by question, over those that have a grade on both sides.

    An answer without text gets grade 1 unasked, and so does the turn behind it. A reply without a last line
    `Grade: N` is counted as `unread` and gives no grade. Answers that the server declines to grade are no rows: the
    stage ends with an error that says why, and the same command asks again for those.

    Args:
        candidates: folders of `mt-bench-sample` by the name of their model.
        questions: the question.jsonl that they answered.
        grader: the chat endpoint that grades. Its key comes from the environment.
        out: folder to make; complete or absent.
        request: what is sent beside the messages, by default temperature 0 and max_tokens 512.
        resamples: bootstrap draws over questions.
        trained_on: what the models were trained on, prompt files (.jsonl) or artefacts of kind "responses" or "pairs";
            questions whose first turn stands there too, exactly or nearly (`data.overlap`), are left out and counted.
        input_price: of a million tokens that the grader reads, in any currency.
        output_price: of a million tokens that it writes.
        max_calls: calls that this command may make; more are refused before the first one.
        max_cost: what this command may cost; more is refused before the first call, and where the server counts more
            tokens than were estimated, in between.

    Raises:
        ConfigError: a setting is not usable, or the server refuses.
        ArtifactError: answers are incomplete.
        DataError: answers are to other questions, every question was trained on, the server declines some answers, or
            none of the replies holds a grade.
    """
    if resamples < 1:
        raise ConfigError(f"resamples {resamples}: expected at least 1")
    if own := [name for name in OWN if name in (request or {})]:
        raise ConfigError(f"request.{own[0]}: is the stage's own; leave it out")
    asking = _Asking(grader, request or REQUEST, Budget("", input_price, output_price, max_calls, max_cost))
    asked = read_questions(questions)
    dialogues, digests = _read(candidates, asked)
    made_from = {
        "questions": file_digest(Path(questions).expanduser()),
        "responses": digests,
        "grader": {"model": grader.model, "prompt": prompt_digest(), "request": asking.request},
        "resamples": resamples,
    } | ({"trained_on": training_digests(trained_on)} if trained_on else {})
    if finished(out, "mt-bench", made_from):
        return Path(out)
    opened = {one.prompt_id(1): first_turn(one).messages for one in asked}
    left_out = leave_out(opened, trained_on or [], f"prompts of split {SPLIT!r}")
    dialogues = [one for one in dialogues if one.question.prompt_id(1) not in left_out]
    with draft(out, "mt-bench", made_from) as work:
        rows = _grade(work.path / "rows.jsonl", dialogues, asking)
        summary = {"grader": made_from["grader"], **summarise(rows, resamples)}
        write_atomically(work.path / "mt_bench.json", json.dumps(summary, indent=1, allow_nan=False) + "\n")
        work.counts = {"models": len(candidates), "grades": len(rows), "unread": sum(r.grade is None for r in rows)}
        if trained_on:
            work.results = {"left_out": {question: str(overlap) for question, overlap in left_out.items()}}
    for line in summary["rows"]:
        print(_said(line, grader.model), flush=True)
    return Path(out)


def _read(candidates: dict[str, str], questions: list[Question]) -> tuple[list[_Dialogue], dict[str, list[str]]]:
    firsts = [read_answers(name, Path(folder) / "turn-1", SPLIT) for name, folder in candidates.items()]
    check_one_sampler(firsts)
    seconds = [read_answers(name, Path(folder) / "turn-2", SPLIT) for name, folder in candidates.items()]
    dialogues = []
    for first, second in zip(firsts, seconds, strict=True):
        if first.sampler != second.sampler:
            raise DataError(f"{second.folder}: was sampled with other settings than {first.folder}; sample both again")
        if strangers := first.rows.keys() ^ {question.prompt_id(1) for question in questions}:
            raise DataError(
                f"{first.folder}: answers other questions than the file ({min(strangers)!r} is in one alone)"
            )
        dialogues += [_dialogue(first, second, question) for question in questions]
    return dialogues, {one.name: [one.digest, two.digest] for one, two in zip(firsts, seconds, strict=True)}


def _dialogue(first: Answers, second: Answers, question: Question) -> _Dialogue:
    """Both answers; refused where the second one was not given behind the first."""
    answer = first.rows[question.prompt_id(1)]
    if answer.messages[-1].content != question.turns[0]:
        raise DataError(f"{first.folder}: prompt {answer.prompt_id!r} has other words than question.jsonl")
    if not answer.text.strip():
        return _Dialogue(first.name, question, [answer])
    further = second.rows.get(question.prompt_id(2))
    if further is None or further.messages[-3:] != second_turn(question, answer.text).messages:
        raise DataError(
            f"{second.folder}: {question.prompt_id(2)!r} was not asked behind the answer in {first.folder}; sample it"
        )
    return _Dialogue(first.name, question, [answer, further])


Unit = tuple[_Dialogue, int]
"""An answer to grade: the dialogue and the turn, 1 or 2."""


class _Asking:
    """The grader, what it is sent, and what it may cost."""

    def __init__(self, grader: ChatServerSpec, request: dict[str, Any], budget: Budget) -> None:
        self.server, self.request, self.budget = ChatServer(grader), request, budget
        self.most_drawn = most_drawn_tokens(request, "")

    def question(self, dialogue: _Dialogue, turn: int) -> Request:
        return {**self.request, "messages": grading_messages(dialogue.conversation(turn), dialogue.reference(turn))}

    def say_cost(self, asked: list[tuple[Unit, list[Request]]]) -> None:
        tokens_in = sum(estimated_tokens(body["messages"]) for _, bodies in asked for body in bodies)
        tokens_out = len(asked) * self.most_drawn
        self.budget.refuse(len(asked), tokens_in, tokens_out)
        quote = self.budget.quote(tokens_in, tokens_out)
        print(f"mt-bench: {len(asked)} answers to grade, one call each to {self.server.place}; {quote}", flush=True)

    def count(self, unit: Unit, reply: ChatAnswer) -> None:
        """What the server counted, or an estimate where it does not say."""
        tokens_in = reply.prompt_tokens
        if tokens_in is None:
            tokens_in = estimated_tokens(self.question(*unit)["messages"])
        self.budget.count(tokens_in, self.most_drawn if reply.drawn_tokens is None else reply.drawn_tokens)


def _grade(path: Path, dialogues: list[_Dialogue], asking: _Asking) -> list[GradeRow]:
    """Every grade, those that an earlier run has left taken over; in the order of models, questions and turns."""
    units: list[Unit] = [(dialogue, turn) for dialogue in dialogues for turn in (1, 2)]
    with RowWriter(path) as writer:
        done = {_key(row.model, row.question_id, row.turn): row for row in read_rows(path, GradeRow)}

        def keep(row: GradeRow) -> None:
            writer.write(row)
            done[_key(row.model, row.question_id, row.turn)] = row

        missing = [unit for unit in units if _key(unit[0].model, unit[0].question.question_id, unit[1]) not in done]
        asked, declined = list[tuple[Unit, list[Request]]](), list[str]()
        for dialogue, turn in missing:
            if turn <= len(dialogue.answers) and dialogue.answers[turn - 1].text.strip():
                asked.append(((dialogue, turn), [asking.question(dialogue, turn)]))
            else:
                keep(_row(dialogue, turn, LOWEST, "", "rule"))
        asking.say_cost(asked)
        with progress("grading (answers)", len(units), len(units) - len(asked)) as bar:

            def tell(unit: Unit, replies: list[ChatAnswer]) -> None:
                (reply,) = replies
                if reply.declined is None:
                    keep(_row(*unit, read_grade(reply.text), reply.text, "grader"))
                else:  # no word about the answer: another day, or with more room, it may be graded
                    declined.append(reply.declined)
                bar.advance(1)
                asking.count(unit, reply)

            asking.server.ask(asked, tell)
    if declined:
        raise DataError(
            f"{asking.server.place}: declined to grade {len(declined)} of {len(asked)} answers, "
            f"the first: {declined[0]}; {GOES_ON}"
        )
    rows = [done[_key(dialogue.model, dialogue.question.question_id, turn)] for dialogue, turn in units]
    if all(row.grade is None for row in rows):
        raise DataError(
            f"{asking.server.place}: no reply ends with a line 'Grade: N'; the first ends {rows[0].said[-60:]!r}"
        )
    return rows


def _key(model: str, question_id: int, turn: int) -> tuple[str, int, int]:
    return model, question_id, turn


def _row(dialogue: _Dialogue, turn: int, grade: int | None, said: str, by: Literal["grader", "rule"]) -> GradeRow:
    row = dialogue.answers[turn - 1] if turn <= len(dialogue.answers) else None
    return GradeRow(
        model=dialogue.model,
        question_id=dialogue.question.question_id,
        category=dialogue.question.category,
        turn=turn,
        grade=grade,
        graded_by=by,
        tokens=0 if row is None else len(row.token_ids),
        finished=row is not None and row.finish_reason == "stop",
        said=said,
    )


def _said(line: dict[str, Any], grader: str) -> str:
    unread = f"; {line['unread']} replies held no grade" if line["unread"] else ""
    if line["overall"] is None:
        return f"{line['model']}: MT-bench, no grade{unread}"
    grades = f"{line['overall']:.2f} [{line['overall_low']:.2f}, {line['overall_high']:.2f}] of 10"
    questions = f"{line['graded']} of {line['questions']} questions"
    return f"{line['model']}: MT-bench {grades}, {questions}, graded by {grader}{unread}"
