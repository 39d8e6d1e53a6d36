"""Trap C3: an artefact is complete or absent, whatever kills the stage and whoever else works there."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest

from lightning_dadpo.data.artifacts import Draft, draft, file_digest, finished, read_manifest
from lightning_dadpo.data.rows import RowWriter, ScoreRow, read_rows
from lightning_dadpo.errors import ArtifactError, DadpoError

MADE_FROM = {"model": "abc", "pairs": "def", "temperature": 0.7}


def score(index: int) -> ScoreRow:
    return ScoreRow(f"pair-{index}", -10.0 - index, 3, -20.5, 4)


def write(work: Draft, *indices: int) -> None:
    with RowWriter(work.path / "rows.jsonl") as rows:
        rows.write(*(score(index) for index in indices))


def make(folder: Path, *indices: int, made_from: dict[str, object] | None = None) -> None:
    with draft(folder, "scores", made_from or MADE_FROM) as work:
        write(work, *indices)
        work.counts["pairs"] = len(indices)


class Killed(BaseException):
    """As a signal would: not even `except Exception` sees it."""


def make_and_raise(folder: Path, error: type[BaseException], *indices: int) -> None:
    with draft(folder, "scores", MADE_FROM) as work:
        write(work, *indices)
        raise error


def interrupted(folder: Path, *indices: int) -> None:
    with pytest.raises(Killed):
        make_and_raise(folder, Killed, *indices)


def test_a_finished_artefact_says_what_it_holds_and_what_it_was_made_from(tmp_path: Path) -> None:
    folder = tmp_path / "scores"
    assert not finished(folder, "scores", MADE_FROM)
    make(folder, 1, 2)
    assert finished(folder, "scores", MADE_FROM)
    manifest = read_manifest(folder, "scores")
    assert (manifest.kind, manifest.made_from, manifest.counts) == ("scores", MADE_FROM, {"pairs": 2})
    assert manifest.files == {"rows.jsonl": file_digest(folder / "rows.jsonl")}
    assert manifest.versions["torch"]
    assert not manifest.resumed
    assert list(read_rows(folder / "rows.jsonl", ScoreRow)) == [score(1), score(2)]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["scores"]
    assert sorted(path.name for path in folder.iterdir()) == ["manifest.json", "rows.jsonl"]


def test_file_digest_is_sha_256(tmp_path: Path) -> None:
    (tmp_path / "abc").write_bytes(b"abc")
    expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-4's own example
    assert file_digest(tmp_path / "abc") == expected


@pytest.mark.parametrize("error", [Killed, RuntimeError, KeyboardInterrupt])
def test_C3_an_error_in_the_block_leaves_only_what_was_begun(tmp_path: Path, error: type[BaseException]) -> None:
    folder = tmp_path / "scores"
    with pytest.raises(error):
        make_and_raise(folder, error, 1)
    assert not folder.exists()
    assert [path.name for path in tmp_path.iterdir()] == ["scores.partial"]
    assert not (tmp_path / "scores.partial" / "manifest.json").exists()
    assert not finished(folder, "scores", MADE_FROM)
    with pytest.raises(ArtifactError, match="never finished"):
        read_manifest(folder)


def test_C3_a_killed_process_leaves_no_artefact_and_no_lock(tmp_path: Path) -> None:
    folder = tmp_path / "scores"
    program = textwrap.dedent(f"""
        import os, signal
        from lightning_dadpo.data.artifacts import draft
        with draft({str(folder)!r}, "scores", {MADE_FROM!r}) as work:
            with open(work.path / "rows.jsonl", "w") as rows:
                rows.write('{{"pair_id": "pair-1", "chosen_log')
                rows.flush()
                os.kill(os.getpid(), signal.SIGKILL)
    """)
    process = subprocess.run([sys.executable, "-c", program], check=False, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert process.returncode == -signal.SIGKILL
    assert not folder.exists()
    make(folder, 1, 2)  # the lock went with the process, the torn line with the writer
    assert list(read_rows(folder / "rows.jsonl", ScoreRow)) == [score(1), score(2)]


def test_C3_a_killed_stage_goes_on_behind_its_last_whole_row(tmp_path: Path) -> None:
    folder = tmp_path / "scores"
    interrupted(folder, 1, 2)
    with draft(folder, "scores", MADE_FROM) as work:
        there = list(read_rows(work.path / "rows.jsonl", ScoreRow))
        assert there == [score(1), score(2)]
        write(work, 3)
    assert list(read_rows(folder / "rows.jsonl", ScoreRow)) == [score(1), score(2), score(3)]
    assert read_manifest(folder).files["rows.jsonl"] == file_digest(folder / "rows.jsonl")
    assert read_manifest(folder).resumed


def test_C1_what_was_begun_from_something_else_is_refused_by_name_and_left_alone(tmp_path: Path) -> None:
    folder = tmp_path / "scores"
    interrupted(folder, 1)
    with pytest.raises(ArtifactError, match=r"temperature: 0\.7 there, 1\.0 now") as refused:
        make(folder, 2, made_from={**MADE_FROM, "temperature": 1.0})
    assert "\n" not in str(refused.value)
    assert str(tmp_path) in str(refused.value)
    assert list(read_rows(tmp_path / "scores.partial" / "rows.jsonl", ScoreRow)) == [score(1)]
    make(folder, 2)
    assert list(read_rows(folder / "rows.jsonl", ScoreRow)) == [score(1), score(2)]


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({**MADE_FROM, "model": "xyz"}, "model: 'abc' there, 'xyz' now"),
        ({**MADE_FROM, "template": "t"}, "template: None there, 't' now"),
        ({"model": "abc", "pairs": "def"}, r"temperature: 0\.7 there, None now"),
    ],
)
def test_C1_a_finished_artefact_made_from_something_else_is_refused(
    tmp_path: Path, changed: dict[str, object], named: str
) -> None:
    make(tmp_path / "scores", 1)
    with pytest.raises(ArtifactError, match=named):
        finished(tmp_path / "scores", "scores", changed)


def test_made_from_is_compared_as_json_gives_it_back(tmp_path: Path) -> None:
    meant = {"eos": (2, 7), "settings": {"b": 1, "a": [1.5]}}
    make(tmp_path / "scores", 1, made_from=dict(meant))
    assert finished(tmp_path / "scores", "scores", meant)
    assert finished(tmp_path / "scores", "scores", {"settings": {"a": [1.5], "b": 1}, "eos": [2, 7]})


def test_C3_a_finished_artefact_is_never_overwritten(tmp_path: Path) -> None:
    folder = tmp_path / "scores"
    make(folder, 1)
    before = (folder / "manifest.json").read_bytes()
    with pytest.raises(ArtifactError, match=str(folder)):
        make(folder, 2)
    assert (folder / "manifest.json").read_bytes() == before
    assert list(read_rows(folder / "rows.jsonl", ScoreRow)) == [score(1)]


def test_C3_rows_of_an_attempt_that_could_not_be_completed_are_not_adopted_by_another(tmp_path: Path) -> None:
    """The folder appears while it is made; what is left of that attempt still belongs to what it was made from."""
    folder = tmp_path / "scores"

    def overtaken() -> None:
        with draft(folder, "scores", MADE_FROM) as work:
            write(work, 1)
            folder.mkdir()

    with pytest.raises(ArtifactError):
        overtaken()
    folder.rmdir()
    with pytest.raises(ArtifactError, match="model"):
        make(folder, 2, made_from={**MADE_FROM, "model": "xyz"})


def test_C3_a_kill_between_manifest_and_rename_keeps_what_it_was_made_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, replace = tmp_path / "scores", os.replace

    def killed_at_the_rename(source: Path, target: Path) -> None:
        if Path(target) == folder:
            raise Killed
        replace(source, target)

    monkeypatch.setattr(os, "replace", killed_at_the_rename)
    with pytest.raises(Killed):
        make(folder, 1)
    monkeypatch.undo()
    assert not folder.exists()
    with pytest.raises(ArtifactError, match="model"):
        make(folder, 2, made_from={**MADE_FROM, "model": "xyz"})
    with draft(folder, "scores", MADE_FROM) as work:
        assert list(read_rows(work.path / "rows.jsonl", ScoreRow)) == [score(1)]
    assert finished(folder, "scores", MADE_FROM)


@pytest.mark.parametrize("change", ["edited", "grown", "removed"])
def test_C3_a_changed_file_is_detected_by_name(tmp_path: Path, change: str) -> None:
    folder = tmp_path / "scores"
    make(folder, 1, 2)
    rows = folder / "rows.jsonl"
    if change == "edited":
        rows.write_text(rows.read_text().replace("-11.0", "-11.5"))
    elif change == "grown":
        rows.write_text(rows.read_text() + "\n")
    else:
        rows.unlink()
    with pytest.raises(ArtifactError, match=r"rows\.jsonl.*changed"):
        read_manifest(folder, "scores")
    with pytest.raises(ArtifactError):
        finished(folder, "scores", MADE_FROM)


def test_another_kind_a_stranger_and_a_broken_manifest_are_refused(tmp_path: Path) -> None:
    make(tmp_path / "scores", 1)
    with pytest.raises(ArtifactError, match="holds scores, expected pairs"):
        read_manifest(tmp_path / "scores", "pairs")
    (tmp_path / "stranger").mkdir()
    with pytest.raises(ArtifactError, match="stranger"):
        read_manifest(tmp_path / "stranger")
    with pytest.raises(ArtifactError, match="absent"):
        read_manifest(tmp_path / "absent")
    manifest = tmp_path / "scores" / "manifest.json"
    for text in ("{", "[]", json.dumps({"kind": "scores", "surprise": 1})):
        manifest.write_text(text)
        with pytest.raises(ArtifactError, match=r"manifest\.json"):
            read_manifest(tmp_path / "scores")


def test_C3_a_second_draft_is_refused_while_the_first_works(tmp_path: Path) -> None:
    folder, seen = tmp_path / "scores", []

    def second() -> None:
        try:
            make(folder, 9)
        except BaseException as error:
            seen.append(error)

    with draft(folder, "scores", MADE_FROM) as work:
        write(work, 1)
        thread = threading.Thread(target=second)
        thread.start()
        thread.join()
        write(work, 2)
    assert len(seen) == 1
    assert isinstance(seen[0], DadpoError)
    assert "another process" in str(seen[0])
    assert list(read_rows(folder / "rows.jsonl", ScoreRow)) == [score(1), score(2)]


def test_C3_another_process_is_refused_in_one_line(tmp_path: Path) -> None:
    folder = tmp_path / "scores"
    program = textwrap.dedent(f"""
        from lightning_dadpo.data.artifacts import draft
        from lightning_dadpo.errors import ArtifactError
        try:
            with draft({str(folder)!r}, "scores", {MADE_FROM!r}):
                print("made")
        except ArtifactError as error:
            print("refused:", error)
    """)
    with draft(folder, "scores", MADE_FROM) as work:
        write(work, 1)
        answer = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout
    assert answer.startswith("refused:")
    assert str(folder) in answer
    assert answer.count("\n") == 1
    assert finished(folder, "scores", MADE_FROM)


def test_a_result_that_is_not_a_number_completes_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "scores"

    def measured() -> None:
        with draft(folder, "scores", MADE_FROM) as work:
            write(work, 1)
            work.results["mean"] = float("nan")

    with pytest.raises(ValueError, match="JSON"):
        measured()
    assert not folder.exists()
    with draft(folder, "scores", MADE_FROM) as work:
        assert list(read_rows(work.path / "rows.jsonl", ScoreRow)) == [score(1)]
