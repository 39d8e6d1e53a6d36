from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from lightning_dadpo.cli.main import main
from lightning_dadpo.data.artifacts import draft, read_manifest
from lightning_dadpo.data.rows import Message, ResponseRow, RowWriter, read_rows
from lightning_dadpo.errors import ArtifactError, ConfigError, DadpoError, DataError
from lightning_dadpo.evaluation import judging
from lightning_dadpo.evaluation.judges import Comparison, Judge, Preference
from lightning_dadpo.evaluation.judging import judge
from lightning_dadpo.evaluation.verdicts import VerdictRow
from tests.evaluation.fake_judges import FirstJudge, LongerJudge, RandomJudge

QUESTIONS = (
    "How do birds stay in the air for hours?",
    "Which river runs through the old town of Basel?",
    "Please write two lines about an empty railway station.",
    "Why does bread dough rise when it is left alone?",
)
OPPONENT = ("aaaa", "bbbb", "cccc", "dddd")
LONG = ("aaaaaa", "bbbbb", "ccc", "dddd")  # longer, longer, shorter, equal
SHORT = ("a", "b", "ccccc", "ddd")  # shorter, shorter, longer, shorter
ESTIMATES = (
    "win", "tie", "lose", "preference_rate", "length_controlled", "longer_wins", "consistent", "mean_tokens",
    "opponent_mean_tokens",
)  # fmt: skip


def rows(texts: Sequence[str], questions: Sequence[str] = QUESTIONS) -> list[ResponseRow]:
    """Held-out answers, and one of the training split that must not count; a text of n letters has n + 1 tokens."""
    return [
        ResponseRow(
            prompt_id=f"p{at}",
            split="heldout" if at < len(QUESTIONS) else "train",
            messages=[Message("user", question)],
            prompt_token_ids=[1],
            token_ids=[3] * len(text) + [2],
            text=text,
            finish_reason="stop",
            log_prob=None,
        )
        for at, (text, question) in enumerate(zip([*texts, "no"], [*questions, "Who counts this one?"], strict=True))
    ]


SAMPLER = {"temperature": 0.7, "top_p": 1.0, "max_new_tokens": 64, "seed": 1}


def save(folder: Path, found: list[ResponseRow], sampled: bool = True, **sampler: Any) -> str:
    made_from = {"model": folder.name} | ({"sampler": SAMPLER | sampler} if sampled else {})
    with draft(folder, "responses", made_from) as work, RowWriter(work.path / "rows.jsonl") as writer:
        writer.write(*found)
    return str(folder)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    made = tmp_path_factory.mktemp("responses")
    texts = {"opponent": OPPONENT, "long": LONG, "short": SHORT}
    return {name: save(made / name, rows(text)) for name, text in texts.items()}


def judged(folders: dict[str, str], out: Path, judge_: Judge, **changed: Any) -> dict[str, Any]:
    arguments: dict[str, Any] = {
        "candidates": {name: folders[name] for name in ("long", "short")},
        "opponent": folders["opponent"],
        "resamples": 200,
    }
    folder = judge(judge=judge_, out=str(out), **arguments | changed)
    found: dict[str, Any] = json.loads((folder / "preference.json").read_text())
    return found


def test_numbers_worked_by_hand(folders: dict[str, str], tmp_path: Path) -> None:
    found = judged(folders, tmp_path / "out", LongerJudge())
    long, short = found["rows"]
    # long: win, win, lose, tie; short: lose, lose, win, lose
    assert [long[key] for key in ("win", "tie", "lose", "preference_rate")] == [0.5, 0.25, 0.25, 0.25]
    assert [short[key] for key in ("win", "tie", "lose", "preference_rate")] == [0.25, 0.0, 0.75, -0.5]
    # this judge is "longer wins" itself
    assert [row["longer_wins"] for row in (long, short)] == [0.25, -0.5]
    assert (long["mean_tokens"], long["opponent_mean_tokens"]) == (5.5, 5.0)
    assert short["mean_tokens"] == 3.5
    (difference,) = found["differences"]
    assert (difference["model"], difference["other"], difference["difference"]) == ("long", "short", 0.75)
    assert all(row["prompts"] == 4 and row["consistent"] == 1.0 for row in (long, short))


def test_rows_have_exactly_the_promised_keys(folders: dict[str, str], tmp_path: Path) -> None:
    found = judged(folders, tmp_path / "out", RandomJudge())
    bounds = ("", "_low", "_high")
    for row in found["rows"]:
        assert row.keys() == {"model", "prompts"} | {f"{name}{bound}" for name in ESTIMATES for bound in bounds}
        assert all(row[f"{name}_low"] <= row[name] <= row[f"{name}_high"] for name in ESTIMATES)
    assert found["judge"] == {"name": "random", "identity": RandomJudge().identity(), "validations": []}
    assert found["opponent"] == folders["opponent"]
    assert found["differences"][0].keys() == {"model", "other"} | {f"difference{bound}" for bound in bounds}


def test_E2_a_judge_that_sees_the_position_alone_finds_ties(folders: dict[str, str], tmp_path: Path) -> None:
    found = judged(folders, tmp_path / "out", FirstJudge())
    assert [(row["tie"], row["preference_rate"], row["consistent"]) for row in found["rows"]] == [(1.0, 0.0, 0.0)] * 2


def test_candidates_and_opponent_exchanged_negate_the_rates(folders: dict[str, str], tmp_path: Path) -> None:
    class Letters(LongerJudge):
        """A judge that knows nothing of sides: the text with the larger digest wins."""

        def preference(self, comparison: Comparison) -> Preference:
            return "first" if hash_of(comparison.first) > hash_of(comparison.second) else "second"

    def hash_of(text: str) -> int:
        return sum(ord(letter) * (7 + at) % 11 for at, letter in enumerate(text))

    pair = (folders["long"], folders["short"])
    (one,) = judged(folders, tmp_path / "a", Letters(), candidates={"x": pair[0]}, opponent=pair[1])["rows"]
    (two,) = judged(folders, tmp_path / "b", Letters(), candidates={"x": pair[1]}, opponent=pair[0])["rows"]
    assert one["preference_rate"] != 0
    for name in ("preference_rate", "length_controlled", "longer_wins"):
        assert two[name] == pytest.approx(-one[name], abs=1e-9)
        assert two[f"{name}_low"] == pytest.approx(-one[f"{name}_high"], abs=1e-9)


def test_every_pair_is_asked_once_in_both_orders_and_the_rows_say_so(folders: dict[str, str], tmp_path: Path) -> None:
    asked = RandomJudge()
    judged(folders, tmp_path / "out", asked)
    ids = [one.comparison_id for call in asked.calls for one in call]
    assert sorted(ids) == sorted(
        f"{model}/p{at}/{order}" for model in ("long", "short") for at in range(4) for order in ("ab", "ba")
    )
    said = dict(zip(ids, (asked.preference(one) for call in asked.calls for one in call), strict=True))
    kept = list(read_rows(tmp_path / "out" / "rows.jsonl", VerdictRow))
    assert len(kept) == 8
    for row in kept:
        name = f"{row.model}/{row.prompt_id}"
        assert (row.candidate_first, row.candidate_second) == (said[f"{name}/ab"], said[f"{name}/ba"])
    manifest = read_manifest(tmp_path / "out", "verdicts")
    assert manifest.counts == {"models": 2, "prompts": 4, "asked": 16, "unreadable": 0}


def test_a_killed_run_goes_on_and_gives_the_same_bytes(
    folders: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(judging, "PAIRS_AT_A_TIME", 3)
    judged(folders, tmp_path / "whole", RandomJudge())

    class Killed(RandomJudge):
        def prefer(self, comparisons: Sequence[Comparison]) -> list[Preference]:
            if len(self.calls) == 2:
                raise KeyboardInterrupt
            return super().prefer(comparisons)

    Killed.__name__ = "RandomJudge"  # its identity is the class's name
    with pytest.raises(KeyboardInterrupt):
        judged(folders, tmp_path / "out", Killed())
    assert not (tmp_path / "out").exists()
    again = RandomJudge()
    judged(folders, tmp_path / "out", again)
    assert {one.comparison_id.split("/")[1] for call in again.calls for one in call} == {"p2", "p3"}
    for name in ("rows.jsonl", "preference.json"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    idle = RandomJudge()
    judged(folders, tmp_path / "out", idle)
    assert idle.calls == []


def test_E1_what_was_trained_on_is_left_out_and_counted(
    folders: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trained = tmp_path / "train.jsonl"
    turn = {"role": "user", "content": QUESTIONS[2].upper()}
    trained.write_text(json.dumps({"prompt_id": "t7", "messages": [turn]}) + "\n")
    found = judged(folders, tmp_path / "out", LongerJudge(), trained_on=[str(trained)])
    # without the third prompt: win, win, tie and lose, lose, lose
    assert [(row["prompts"], row["win"], row["preference_rate"]) for row in found["rows"]] == [
        (3, pytest.approx(2 / 3), pytest.approx(2 / 3)),
        (3, 0.0, -1.0),
    ]
    assert read_manifest(tmp_path / "out").results["left_out"].keys() == {"p2"}
    assert "left out 1 of 4 prompts" in capsys.readouterr().out


def refused(expected: type[DadpoError], text: str, folders: dict[str, str], out: Path, **changed: Any) -> None:
    asked = LongerJudge()
    with pytest.raises(expected, match=text) as error:
        judged(folders, out, asked, **changed)
    assert "\n" not in str(error.value)
    assert not list(out.parent.glob("refused*"))
    assert asked.calls == []


def test_what_cannot_be_compared_is_refused_before_anything_is_asked(folders: dict[str, str], tmp_path: Path) -> None:
    out, found = tmp_path / "refused", rows(LONG)
    fewer = save(tmp_path / "fewer", found[1:])
    other = save(tmp_path / "other", rows(LONG, ("Quite another question?", *QUESTIONS[1:])))
    cool = save(tmp_path / "cool", found, temperature=0.1)
    twice = save(tmp_path / "twice", [*found, found[0]])
    refused(ConfigError, "none given", folders, out, candidates={})
    refused(ConfigError, "'a/b', expected one without a slash", folders, out, candidates={"a/b": fewer})
    refused(ConfigError, "resamples 0: expected at least 1", folders, out, resamples=0)
    refused(ArtifactError, "nowhere: is not an artefact", folders, out, candidates={"a": str(tmp_path / "nowhere")})
    refused(DataError, r"a answered other prompts .* \(1 differ, 'p0' is one\)", folders, out, candidates={"a": fewer})
    refused(DataError, "'p0' is another conversation", folders, out, candidates={"a": other})
    refused(DataError, "'p0' is answered twice", folders, out, candidates={"a": twice})
    refused(DataError, "no response of split 'validation'", folders, out, split="validation")
    both = {"a": folders["long"], "b": cool}
    said = "cool: sampler setting temperature is 0.1 for b but 0.7 for "
    refused(DataError, f"{said}opponent; expected the same", folders, out, candidates=both)
    imported = save(tmp_path / "imported", rows(OPPONENT), sampled=False)
    refused(DataError, f"{said}a; expected the same", folders, out, candidates=both, opponent=imported)
    for setting in ("temperature", "top_p", "max_new_tokens"):
        changed: dict[str, Any] = {setting: 0.5}
        other = save(tmp_path / setting, rows(OPPONENT), **changed)
        said = f"sampler setting {setting} is {SAMPLER[setting]} for long but 0.5 for opponent"
        refused(DataError, said, folders, out, opponent=other)


def test_seeds_may_differ_and_the_manifest_says_how_everybody_answered(folders: dict[str, str], tmp_path: Path) -> None:
    """An experiment's teacher and its students draw under different seeds; an imported file says nothing."""
    candidates = {"a": folders["long"], "b": save(tmp_path / "reseeded", rows(SHORT), seed=7)}
    opponents = {name: save(tmp_path / name, rows(OPPONENT), **said) for name, said in (
        ("teacher", {"seed": 9}), ("imported", {"sampled": False})
    )}  # fmt: skip
    for name, opponent in opponents.items():
        judged(folders, tmp_path / f"by-{name}", LongerJudge(), candidates=candidates, opponent=opponent)
        results = read_manifest(tmp_path / f"by-{name}", "verdicts").results
        assert results == {"sampler": SAMPLER, "opponent_sampler": SAMPLER | {"seed": 9} if name == "teacher" else {}}


def test_runs_from_a_yaml_with_a_class_path(
    folders: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "judge.yaml"
    built = {"class_path": "tests.evaluation.fake_judges.RandomJudge", "init_args": {"seed": 3}}
    config.write_text(
        yaml.safe_dump({"candidates": {"[red]long": folders["long"]}, "opponent": folders["opponent"], "judge": built})
    )
    out = tmp_path / "out"
    assert main(["judge", "-c", str(config), "--out", str(out), "--resamples", "50"]) == 0
    said = capsys.readouterr().out
    assert "[red]long" in said
    assert "random: 8 comparisons, free of charge" in said
    assert "was not held against people" in said
    assert said.splitlines()[-1] == str(out)
    assert json.loads((out / "preference.json").read_text())["judge"]["identity"]["seed"] == 3
