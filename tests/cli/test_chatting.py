"""`dadpo chat` with tiny models, its lines sent by a script: what is said, remembered, measured and saved."""

from __future__ import annotations

import io
import json
import signal
import sys
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from lightning_dadpo.cli.main import main
from lightning_dadpo.sampling.streaming import StreamedResponse
from tests.other import other_model, speak_plainly
from tests.tiny import tiny_model

OPTIONS = ("--precision", "32-true", "--settings.max_new_tokens", "9")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher and a student of one tokenizer, and a stranger of another; all speak ASCII."""
    home = tmp_path_factory.mktemp("home")
    speak_plainly(tiny_model(home / "teacher", layers=2, seed=1))
    speak_plainly(tiny_model(home / "student", layers=1, seed=2))
    speak_plainly(other_model(home / "stranger"))
    return home


class Chat:
    """Runs a chat with sent lines; keeps what was said."""

    def __init__(self, home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self.home, self.monkeypatch, self.capsys = home, monkeypatch, capsys

    def __call__(self, *lines: str, who: tuple[str, ...] = ("teacher", "student")) -> int:
        named = [part for name in who for part in (f"--models.{name}.path", str(self.home / name))]
        return self.bare("chat", *named, *OPTIONS, sent=lines)

    def bare(self, *arguments: str, sent: tuple[str, ...] = ()) -> int:
        self.monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{line}\n" for line in sent)))
        status = main(list(arguments))
        self.said, self.complaints = self.capsys.readouterr()
        return status

    def answers(self) -> dict[str, list[str]]:
        """What each model said, in order."""
        found: dict[str, list[str]] = {}
        lines = self.said.splitlines()
        for at, line in enumerate(lines):
            if line.startswith("[") and line.endswith("]"):
                found.setdefault(line[1:-1], []).append(lines[at + 1])
        return found


@pytest.fixture
def chat(home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Chat:
    return Chat(home, monkeypatch, capsys)


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


@torch.no_grad()
def nats(folder: Path, prompt: list[int], response: list[int]) -> float:
    """Log pi(y|x) by a whole forward pass in float64, summed by hand."""
    model = AutoModelForCausalLM.from_pretrained(folder).double().eval()
    table = model(torch.tensor([prompt + response])).logits[0].log_softmax(-1)
    return sum(float(table[len(prompt) - 1 + at, token]) for at, token in enumerate(response))


def test_each_model_sees_all_questions_and_its_own_answers(chat: Chat, tmp_path: Path) -> None:
    assert chat("Hello", "and then?", f"/save {tmp_path / 'chat.jsonl'}") == 0
    said, saved = chat.answers(), rows(tmp_path / "chat.jsonl")
    assert said["teacher"][0] != said["student"][0]
    assert [(row["turn"], row["model"]) for row in saved] == [
        (1, "teacher"), (1, "student"), (2, "teacher"), (2, "student"),
    ]  # fmt: skip
    for row in saved[2:]:
        first = said[row["model"]][0]
        assert [(one["role"], one["content"]) for one in row["messages"]] == [
            ("user", "Hello"), ("assistant", first), ("user", "and then?"),
        ]  # fmt: skip
        tokenizer = AutoTokenizer.from_pretrained(chat.home / row["model"])
        rendered = tokenizer.apply_chat_template(row["messages"], add_generation_prompt=True, return_dict=False)
        assert row["prompt_token_ids"] == rendered
        assert row["text"] == tokenizer.decode(row["token_ids"], skip_special_tokens=True) == said[row["model"]][1]
        assert row["sampler"] == {"temperature": 0.7, "top_p": 1.0, "max_new_tokens": 9, "seed": 0}


def test_log_probs_are_the_raw_models_of_each_answer_by_each_model(chat: Chat, tmp_path: Path) -> None:
    assert chat("/temperature 2", "Hello", "again", "/log-probs", f"/save {tmp_path / 'chat.jsonl'}") == 0
    table = [line for line in chat.said.splitlines() if "'s answer, " in line]
    assert [line.split("'")[0] for line in table] == ["teacher", "student"]
    saved = rows(tmp_path / "chat.jsonl")
    assert [row["log_prob_by"] for row in saved[:2]] == [{}, {}]  # nobody asked
    for row, line in zip(saved[2:], table, strict=True):
        expected = {
            name: nats(chat.home / name, row["prompt_token_ids"], row["token_ids"]) for name in ("teacher", "student")
        }
        assert row["log_prob_by"] == pytest.approx(expected, rel=1e-4)
        assert row["log_prob"] == pytest.approx(expected[row["model"]], rel=1e-4)
        per_token = [expected[name] / len(row["token_ids"]) for name in ("teacher", "student")]
        assert [float(cell) for cell in line.split()[-2:]] == pytest.approx(per_token, abs=2e-3)
        assert abs(per_token[0] - per_token[1]) > 0.05  # so that swapped columns would be seen


def test_log_probs_of_every_answer_until_they_are_off_again(chat: Chat) -> None:
    assert chat("/log-probs on", "a", "/log-probs off", "b") == 0
    assert chat.said.count("log-probs in nats per token") == 1


def test_the_same_script_gives_the_same_answers_and_another_seed_others(chat: Chat) -> None:
    assert chat("Hello", "and?") == 0
    first = chat.said
    assert chat("Hello", "and?") == 0
    assert chat.said == first
    said = chat.answers()
    assert chat("/seed 1", "Hello") == 0
    assert chat.answers()["teacher"][0] != said["teacher"][0]
    # whoever else is there, whatever was undone, and in whatever order they are named
    assert chat("/only student", "x", "/undo", "/both", "Hello", who=("student", "teacher")) == 0
    again = chat.answers()
    assert (again["student"][1], again["teacher"][0]) == (said["student"][0], said["teacher"][0])


def test_a_model_that_was_not_asked_does_not_see_the_turn(chat: Chat, tmp_path: Path) -> None:
    assert chat("a", "/teacher", "b", "/student", "c", "/both", "d", f"/save {tmp_path / 'chat.jsonl'}") == 0
    shown = {
        (row["turn"], row["model"]): [one["content"] for one in row["messages"]]
        for row in rows(tmp_path / "chat.jsonl")
    }
    assert set(shown) == {
        (1, "teacher"),
        (1, "student"),
        (2, "teacher"),
        (3, "student"),
        (4, "teacher"),
        (4, "student"),
    }
    assert shown[4, "teacher"][0::2] == ["a", "b", "d"]
    assert shown[4, "student"][0::2] == ["a", "c", "d"]


def test_undo_and_reset(chat: Chat, tmp_path: Path) -> None:
    assert chat("a", "b", "/undo", "c", "/reset", "d", "e", f"/save {tmp_path / 'chat.jsonl'}") == 0
    assert "taken back: b" in chat.said
    last = rows(tmp_path / "chat.jsonl")[-1]
    assert [one["content"] for one in last["messages"]][0::2] == ["d", "e"]
    assert last["turn"] == 2


def test_several_lines_and_a_slash_are_said_as_they_are(chat: Chat, tmp_path: Path) -> None:
    assert chat('"""', "one", "/two", '"""', "//etc", "", f"/save {tmp_path / 'chat.jsonl'}") == 0
    assert [row["messages"][-1]["content"] for row in rows(tmp_path / "chat.jsonl")[::2]] == ["one\n/two", "/etc"]


def test_text_that_spells_a_special_token_or_a_command_is_text(chat: Chat, tmp_path: Path) -> None:
    """A13, and nothing that is sent reaches the terminal as a command."""
    assert chat("<|im_end|>\x1b[2J[bold]", f"/save {tmp_path / 'chat.jsonl'}") == 0
    assert "> <|im_end|>\\x1b[2J[bold]\n" in chat.said
    prompt = rows(tmp_path / "chat.jsonl")[0]["prompt_token_ids"]
    tokenizer = AutoTokenizer.from_pretrained(chat.home / "teacher")
    assert prompt.count(tokenizer.eos_token_id) == 2  # behind the system's turn and the user's


def test_models_of_two_tokenizers_chat_but_do_not_score_one_another(chat: Chat, tmp_path: Path) -> None:
    assert chat("/log-probs on", "Hello", f"/save {tmp_path / 'c.jsonl'}", who=("teacher", "stranger")) == 0
    assert len(chat.answers()["stranger"]) == 1
    assert "teacher cannot score stranger's answer by its token ids: their tokenizers differ (id 0 is" in chat.said
    assert "stranger cannot score teacher's answer by its token ids: their tokenizers differ" in chat.said
    assert [list(row["log_prob_by"]) for row in rows(tmp_path / "c.jsonl")] == [["teacher"], ["stranger"]]


def test_an_experiments_folder_is_enough(chat: Chat, tmp_path: Path) -> None:
    """The folder was made elsewhere: only the names of its stages' folders count."""
    root = tmp_path / "moved"
    root.mkdir()
    (root / "model-dadpo-12").symlink_to(chat.home / "student")
    (root / "model-dsft-34").symlink_to(chat.home / "student")
    stages = [
        {"name": "sample-teacher", "command": "sample", "folder": "runs/x/sample-teacher-1"},
        {"name": "model-dsft", "command": "export", "folder": "runs/x/model-dsft-34"},
        {"name": "dadpo", "command": "fit", "folder": "runs/x/dadpo-77"},
        {"name": "model-dadpo", "command": "export", "folder": "runs/x/model-dadpo-12"},
    ]
    configuration = f"teacher: {{path: {chat.home / 'teacher'}}}\nstudent: {{path: {chat.home / 'stranger'}}}\n"
    (root / "experiment.json").write_text(json.dumps({"stages": stages, "configuration": configuration}))
    assert chat.bare("chat", str(root), *OPTIONS, sent=("hi", "/models", "/only dsft", "hi")) == 0
    assert list(chat.answers()) == ["teacher", "dadpo", "dsft"]
    assert chat.answers()["dsft"] == chat.answers()["dadpo"]  # the same weights, the same draws
    assert f"initial: {chat.home / 'stranger'} (not loaded)" in chat.said
    assert chat.bare("chat", str(root / "model-dsft-34"), *OPTIONS, sent=("hi",)) == 0
    assert len(chat.answers()) == 1


def test_mistakes_are_one_line_each_and_the_chat_goes_on(chat: Chat, tmp_path: Path) -> None:
    (tmp_path / "there").write_text("precious")
    sent = {
        "/undo": "/undo: nothing was said yet",
        "/log-probs": "/log-probs: nothing was said yet",
        "/save x": "/save x: nothing was said yet",
        "hi": None,
        "/sed 3": "no command /sed; did you mean /seed? (/help lists them)",
        "/seed x": "/seed x: expected a whole number",
        "/temperature": "/temperature: expected a number",
        "/temperature nan": "temperature nan: expected a number >= 0",
        "/max-tokens 0": "max_new_tokens 0: expected at least 1",
        "/only nobody": "no model 'nobody'; there are teacher, student",
        "/only": "/only: expected the names of one or more of teacher, student",
        "/log-probs maybe": "/log-probs maybe: expected on, off, or nothing for the latest answers",
        f"/save {tmp_path / 'there'}": f"/save {tmp_path / 'there'}: is there already; nothing was overwritten",
        f"/save {tmp_path / 'no' / 'x'}": f"/save {tmp_path / 'no' / 'x'}: no folder {tmp_path / 'no'}",
        "/save": "/save: expected a file, for example /save chat.jsonl",
        "x" * 600: "teacher: the conversation has",
    }
    assert chat(*sent, "bye") == 2
    found = chat.complaints.splitlines()
    expected = [text for text in sent.values() if text is not None]
    assert len(found) == len(expected)
    assert all(line.startswith(f"error: {text}") for line, text in zip(found, expected, strict=True))
    assert len(chat.answers()["teacher"]) == 2
    assert (tmp_path / "there").read_text() == "precious"


def test_a_file_that_this_chat_wrote_is_written_anew(chat: Chat, tmp_path: Path) -> None:
    file = tmp_path / "chat.jsonl"
    assert chat("a", f"/save {file}", "b", f"/save {file}", "/quit", "c") == 0
    assert len(rows(file)) == 4


def test_nobody_to_talk_to_is_one_line(chat: Chat, tmp_path: Path) -> None:
    for arguments, said in (
        ((), "chat: expected an experiment's folder"),
        ((str(tmp_path),), f"{tmp_path}: no experiment.json; expected what `dadpo run` has finished"),
        (("--models.teacher.path", str(tmp_path / "none")), "no such folder"),
    ):
        assert chat.bare("chat", *arguments) == 2
        (line,) = chat.complaints.splitlines()
        assert line.startswith("error: ")
        assert said in line


def test_ctrl_c_stops_the_answer_and_keeps_what_is_there(
    chat: Chat, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step, count = StreamedResponse.step, 0

    def pressed(self: StreamedResponse) -> None:
        nonlocal count
        count += 1
        step(self)
        if count == 3:  # the teacher's second token
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(StreamedResponse, "step", pressed)
    before = signal.getsignal(signal.SIGINT)
    assert chat("/seed 4", "Hello", "and?", f"/save {tmp_path / 'chat.jsonl'}") == 0
    assert signal.getsignal(signal.SIGINT) is before
    saved = rows(tmp_path / "chat.jsonl")
    assert [(row["model"], len(row["token_ids"])) for row in saved[:2]] == [("teacher", 2), ("student", 2)]
    assert {row["finish_reason"] for row in saved[:2]} == {"interrupted"}
    assert "(2 tokens, interrupted)" in chat.said
    assert saved[2]["messages"][1] == {"role": "assistant", "content": saved[0]["text"]}
    assert {row["finish_reason"] for row in saved[2:]} <= {"stop", "length"}


def test_ctrl_c_before_the_first_token_takes_the_turn_back(chat: Chat, monkeypatch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def pressed() -> Iterator[Any]:
        yield lambda: True

    monkeypatch.setattr("lightning_dadpo.cli.chat_session._stoppable", pressed)
    assert chat("first", "/undo") == 2
    assert "(0 tokens, interrupted)" in chat.said
    assert "nothing was said yet" in chat.complaints


def test_ctrl_c_while_log_probs_are_measured_does_not_end_the_chat(chat: Chat, monkeypatch: pytest.MonkeyPatch) -> None:
    def pressed(*_: Any) -> float:
        raise KeyboardInterrupt

    monkeypatch.setattr("lightning_dadpo.sampling.speaker.Speaker.log_prob", pressed)
    assert chat("/log-probs on", "a", "/log-probs off", "b") == 0
    assert chat.said.count("\ninterrupted\n") == 1
    assert len(chat.answers()["student"]) == 2


def test_models_of_two_templates_do_not_score_one_another(chat: Chat, tmp_path: Path) -> None:
    """A10: the same ids, other conversations."""
    (tmp_path / "plain.jinja").write_text("{% for turn in messages %}{{ turn['content'] }}<|im_end|>{% endfor %}")
    named = ["--models.teacher.path", str(chat.home / "teacher"), "--models.student.path", str(chat.home / "student")]
    template = ["--models.student.chat_template", str(tmp_path / "plain.jinja")]
    assert chat.bare("chat", *named, *template, *OPTIONS, sent=("/log-probs on", "Hello")) == 0
    why = "its token ids: their chat templates render the conversation otherwise"
    assert f"teacher cannot score student's answer by {why}" in chat.said
    assert f"student cannot score teacher's answer by {why}" in chat.said


def test_bytes_that_are_no_text_are_one_line(chat: Chat, monkeypatch: pytest.MonkeyPatch) -> None:
    assert chat("a\udcff", "b") == 2
    assert chat.complaints == "error: what was sent is not UTF-8 text\n"
    assert len(chat.answers()["teacher"]) == 1
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\xff\n"), "utf-8"))
    assert main(["chat", "--models.teacher.path", str(chat.home / "teacher"), *OPTIONS]) == 2
    assert chat.capsys.readouterr().err.startswith("error: stdin: not UTF-8 text (invalid start byte at byte 0")


def test_a_model_that_writes_random_bytes_writes_nothing_that_a_terminal_obeys(chat: Chat, tiny_folder: Path) -> None:
    wild = ("--models.wild.path", str(tiny_folder), "--precision", "32-true", "--settings.max_new_tokens", "80")
    assert chat.bare("chat", *wild, sent=("Hello", "/reset", "/seed 1", "Hello")) == 0
    assert {character for character in chat.said if unicodedata.category(character) == "Cc"} <= {"\n", "\t"}
    assert "\\x" in chat.said  # it did try
