"""`dadpo score` by a model with another tokenizer, held to a float64 loop over ids that are written out by hand."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_dadpo.cli.main import main
from lightning_dadpo.data.artifacts import read_manifest
from lightning_dadpo.data.batching import collate_pairs
from lightning_dadpo.data.chat import RenderedTurn, render_prompt, render_response, render_turn
from lightning_dadpo.data.rows import FinishReason, Message, PairRow, ScoreRow, content_digest, read_rows
from lightning_dadpo.errors import ArtifactError, AuditError, ConfigError, DataError
from lightning_dadpo.models.loading import load_frozen, load_tokenizer, model_digest
from lightning_dadpo.models.spec import ModelSpec
from lightning_dadpo.scoring import reading, stage
from lightning_dadpo.scoring.live import LiveScorer
from lightning_dadpo.scoring.reading import Route, read_pair
from lightning_dadpo.scoring.routes import check_same_tokenizer
from lightning_dadpo.scoring.stage import score
from tests.other import by_hand, other_model
from tests.ranks import await_rank, ended, start_ranks
from tests.scoring.example import LiveRows, write_artifact
from tests.tiny import END_OF_TURN, tiny_model

ANSWERS = [
    "the answer",
    "the words merge here",
    "Zürich, 🙂",
    "no",
    " often  blank ",
    "a\n\nb",
    "1234",
    "the the the the",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("two")


@pytest.fixture(scope="module")
def student(folder: Path) -> Path:
    return tiny_model(folder / "student", layers=2, seed=1)


@pytest.fixture(scope="module")
def teacher(folder: Path) -> Path:
    return other_model(folder / "teacher")


def pair_of(tokenizer: Any, question: str, chosen: str, rejected: str, cut: str = "") -> PairRow:
    """A pair in this tokenizer's ids; `cut` names a side that has no end of turn."""
    messages = [Message("user", question)]
    prompt = render_prompt(tokenizer, messages)
    better, worse = (
        render_response(tokenizer, messages, text, finished=side != cut)
        for side, text in (("chosen", chosen), ("rejected", rejected))
    )
    ends: list[FinishReason] = ["length" if side == cut else "stop" for side in ("chosen", "rejected")]
    name = content_digest(prompt, better, worse)
    return PairRow(
        name, question, "train", messages, prompt, better, chosen, ends[0], worse, rejected, ends[1]
    )  # fmt: skip


def readable(tokenizer: Any) -> list[PairRow]:
    """Eight pairs, one side of three of them cut."""
    cuts = ["", "rejected", "", "chosen", "", "rejected", "", ""]
    turned = ANSWERS[3:] + ANSWERS[:3]
    return [
        pair_of(tokenizer, f"question {number}?", *texts, cut)
        for number, (*texts, cut) in enumerate(zip(ANSWERS, turned, cuts, strict=True))
    ]


def changed(pair: PairRow, side: str = "chosen") -> PairRow:
    """The same with a special token sampled in the middle: its text, and so its ids, can be read without that alone."""
    ids = getattr(pair, f"{side}_token_ids")
    return _named(replace(pair, **{f"{side}_token_ids": [*ids[:1], 1, *ids[1:]]}))


def broken(pair: PairRow, tokenizer: Any) -> PairRow:
    """The same, the chosen response ending within a character."""
    ids = [*tokenizer.encode("caf\N{LATIN SMALL LETTER E WITH ACUTE}", add_special_tokens=False)[:-1], END_OF_TURN]
    return _named(replace(pair, chosen_token_ids=ids, chosen_text=tokenizer.decode(ids, skip_special_tokens=True)))


def _named(pair: PairRow) -> PairRow:
    return replace(pair, pair_id=content_digest(pair.prompt_token_ids, pair.chosen_token_ids, pair.rejected_token_ids))


@pytest.fixture(scope="module")
def rows(student: Path) -> list[PairRow]:
    """Eight that survive, one whose chosen ids do not, one that is broken, one that the teacher's template refuses."""
    tokenizer = load_tokenizer(ModelSpec(str(student)))
    made = readable(tokenizer)
    system = pair_of(tokenizer, "a system prompt?", "yes", "no")
    system = replace(system, messages=[Message("system", "Be brief."), *system.messages])
    return [*made, changed(pair_of(tokenizer, "and?", "the", "a")), broken(made[0], tokenizer), _named(system)]


@pytest.fixture(scope="module")
def pairs(rows: list[PairRow], folder: Path) -> Path:
    return write_artifact(folder / "pairs", "pairs", rows)


def scores(model: Path, pairs: Path, out: Path, own: Path | None, read: Route | None = None) -> dict[str, ScoreRow]:
    spec = None if own is None else ModelSpec(str(own))
    made = score(
        ModelSpec(str(model)), str(pairs), str(out), "teacher", 90, precision="32-true", read=read, tokenizer=spec
    )
    return {row.pair_id: row for row in read_rows(made / "rows.jsonl", ScoreRow)}


def check_by_hand(found: dict[str, ScoreRow], rows: Sequence[PairRow], teacher: Path) -> None:
    """Every score against float64 log-softmax, token by token, over the ids of `by_hand`."""
    spec = ModelSpec(str(teacher))
    model, tokenizer = load_frozen(spec, "32-true").double(), load_tokenizer(spec)
    for pair in rows:
        row, question = found[pair.pair_id], pair.messages[0].content
        for side in ("chosen", "rejected"):
            finished = getattr(pair, f"{side}_finish_reason") == "stop"
            prompt, response = by_hand(tokenizer, question, getattr(pair, f"{side}_text"), finished)
            with torch.no_grad():
                logits = model(torch.tensor([prompt + response])).logits[0]
            log_probs = logits.log_softmax(-1)
            expected = sum(float(log_probs[len(prompt) - 1 + at, token]) for at, token in enumerate(response))
            assert getattr(row, f"{side}_num_tokens") == len(response)
            assert getattr(row, f"{side}_log_prob") == pytest.approx(expected, rel=1e-4)


def test_the_teacher_scores_the_text_as_it_reads_it_and_says_what_it_left_out(
    student: Path, teacher: Path, pairs: Path, rows: list[PairRow], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = scores(teacher, pairs, tmp_path / "scores", student)
    check_by_hand(found, rows[:9], teacher)
    assert found.keys() == {pair.pair_id for pair in rows[:9]}
    manifest = read_manifest(tmp_path / "scores", "scores")
    assert manifest.made_from["read"] == "text"
    assert manifest.counts == {"pairs": 9, "left_out": 2}
    assert manifest.results["left_out"] == {
        rows[9].pair_id: "broken UTF-8 in the response",
        rows[10].pair_id: "no place for it in the model's chat template",
    }
    assert manifest.results["changed_ids"] == {"pairs": 2, "chosen": 2, "rejected": 0}
    assert manifest.results["audit"]["rows"] == 8
    said = capsys.readouterr().out
    assert "reads the text of the pairs under its own tokenizer and template (id 0 is '<|endoftext|>' to one" in said
    assert "a lower bound on the text's probability; 9 pairs, left out 2 (broken UTF-8 in the response: 1, no" in said
    assert "of 11 pairs the ids of 2 chosen and 0 rejected responses do not survive decoding" in said


def test_with_equal_tokenizers_both_routes_agree_on_every_row_that_survives(
    student: Path, pairs: Path, rows: list[PairRow], tmp_path: Path
) -> None:
    ids = scores(student, pairs, tmp_path / "ids", None)
    text = scores(student, pairs, tmp_path / "text", student, "text")
    assert read_manifest(tmp_path / "ids").made_from["read"] == "ids"
    assert ids.keys() - text.keys() == {rows[9].pair_id}
    for pair in rows[:8]:
        for side in ("chosen", "rejected"):
            one, other = (getattr(found[pair.pair_id], f"{side}_log_prob") for found in (ids, text))
            assert one == pytest.approx(other, rel=1e-5), (pair, side)
    lost = rows[8].pair_id
    assert text[lost].chosen_num_tokens == ids[lost].chosen_num_tokens - 1
    assert abs(text[lost].chosen_log_prob - ids[lost].chosen_log_prob) > 0.1
    assert text[lost].rejected_log_prob == pytest.approx(ids[lost].rejected_log_prob, rel=1e-5)


Turned = Callable[[Any, Sequence[Message], str, bool], RenderedTurn]


def always_finished(real: Turned) -> Turned:
    return lambda tokenizer, messages, text, finished: real(tokenizer, messages, text, True)


def begun_twice(real: Turned) -> Turned:
    def turned(tokenizer: Any, *given: Any) -> RenderedTurn:
        turn = real(tokenizer, *given)
        return replace(turn, prompt_token_ids=tokenizer.encode(turn.prompt_text))

    return turned


def prompt_counted(real: Turned) -> Turned:
    def turned(*given: Any) -> RenderedTurn:
        turn = real(*given)
        first, *others = turn.prompt_token_ids
        return replace(turn, prompt_token_ids=[first], response_token_ids=others + turn.response_token_ids)

    return turned


def other_template(real: Turned) -> Turned:
    def turned(tokenizer: Any, messages: Sequence[Message], *given: Any) -> RenderedTurn:
        bare = tokenizer.encode(f"<s>user: {messages[0].content}\nassistant: ", add_special_tokens=False)
        return replace(real(tokenizer, messages, *given), prompt_token_ids=bare)

    return turned


def special_tokens_kept(real: Turned) -> Turned:
    return lambda tokenizer, messages, text, finished: real(
        tokenizer, messages, text + ("<|im_end|>" if finished else ""), finished
    )


@pytest.mark.parametrize("plant", [always_finished, begun_twice, prompt_counted, other_template, special_tokens_kept])
def test_A1_A3_A5_A7_A10_planted_defects_are_found_by_the_oracle(
    student: Path,
    teacher: Path,
    rows: list[PairRow],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    plant: Callable[[Turned], Turned],
) -> None:
    pairs = write_artifact(tmp_path / "pairs", "pairs", rows[:8])
    monkeypatch.setattr(reading, "render_turn", plant(render_turn))
    found = scores(teacher, pairs, tmp_path / "scores", student)
    with pytest.raises(AssertionError):
        check_by_hand(found, rows[:8], teacher)


def test_two_models_whose_logits_differ_in_width_alone_share_a_tokenizer(
    student: Path, pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wide = tiny_model(tmp_path / "wide", layers=1)
    model = load_frozen(ModelSpec(str(wide)), "32-true")
    model.resize_token_embeddings(model.config.vocab_size + 29)
    model.save_pretrained(wide)
    for own in (student, None):
        scores(wide, pairs, tmp_path / f"scores-{own is None}", own)
        assert "reads the ids of the pairs; its own chat template prints 1 of 11 prompts" in capsys.readouterr().out
        assert read_manifest(tmp_path / f"scores-{own is None}").made_from["read"] == "ids"
    check_same_tokenizer(ModelSpec(str(student)), ModelSpec(str(wide)), "model.anchors.teacher")


def test_a_live_anchor_with_another_tokenizer_is_refused(student: Path, teacher: Path) -> None:
    specs = ModelSpec(str(student)), ModelSpec(str(teacher))
    with pytest.raises(
        ConfigError, match=r"^model.anchors.teacher: .*has another tokenizer than .*score the text to disk"
    ):
        check_same_tokenizer(*specs, "model.anchors.teacher")
    check_same_tokenizer(specs[1], specs[1], "model.anchors.teacher")


def test_C1_the_route_is_part_of_what_scores_are_made_from(
    student: Path, teacher: Path, pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores(student, pairs, tmp_path / "scores", student, "text")
    with pytest.raises(ArtifactError, match="read: 'text' there, 'ids' now"):
        scores(student, pairs, tmp_path / "scores", student, "ids")
    scores(teacher, pairs, tmp_path / "others", student)
    monkeypatch.setattr(LiveScorer, "score", lambda *_: pytest.fail("scored again"))
    scores(teacher, pairs, tmp_path / "others", student)
    scores(teacher, pairs, tmp_path / "others", student, "text")


def test_what_cannot_be_read_is_refused_before_anything_is_written(
    student: Path, teacher: Path, rows: list[PairRow], tmp_path: Path
) -> None:
    few = write_artifact(tmp_path / "few", "pairs", [rows[0], rows[9], rows[10]])
    with pytest.raises(
        DataError, match=r"only 1 of 3 pairs of .* can be read .*\(broken UTF-8 in the response: 1, no "
    ):
        scores(teacher, few, tmp_path / "scores", student)
    with pytest.raises(ConfigError, match=r"so that it can be counted .*--tokenizer.path FOLDER"):
        scores(teacher, few, tmp_path / "scores", None)
    with pytest.raises(ConfigError, match="expected whose ids they are"):
        scores(student, few, tmp_path / "scores", teacher)
    with pytest.raises(DataError, match=r"reads the ids of pair .* as other text than theirs"):
        scores(teacher, few, tmp_path / "scores", student, "ids")
    assert not (tmp_path / "scores").exists()
    assert not (tmp_path / "scores.partial").exists()


def sampled(student: Path, rows: list[PairRow], spoil: float = 0.0) -> list[PairRow]:
    """The same with what the sampler of the chosen responses saw; a spoilt one in the first row."""
    live = LiveScorer(load_frozen(ModelSpec(str(student)), "32-true"))
    seen = [float(live.score(collate_pairs([pair])).chosen.total) for pair in rows]
    seen[0] += spoil
    return [replace(pair, chosen_log_prob=value) for pair, value in zip(rows, seen, strict=True)]


def test_the_sampler_is_asked_only_where_the_model_reads_the_very_ids_that_were_drawn(
    student: Path, teacher: Path, rows: list[PairRow], tmp_path: Path
) -> None:
    """The ninth row's chosen ids do not survive: its sampler saw another number, and is not asked."""
    own = {"chosen_model": model_digest(ModelSpec(str(student)))}
    pairs = write_artifact(tmp_path / "pairs", "pairs", sampled(student, rows), own)
    scores(student, pairs, tmp_path / "scores", student, "text")
    audit = read_manifest(tmp_path / "scores").results["audit"]
    assert audit["samples"] == 8  # the tenth is left out; the eleventh's prompt is other ids to the template
    spoilt = write_artifact(tmp_path / "spoilt", "pairs", sampled(student, rows, spoil=0.5), own)
    with pytest.raises(AuditError, match="against its sampler"):
        scores(student, spoilt, tmp_path / "others", student, "text")
    theirs = load_tokenizer(ModelSpec(str(teacher)))
    for pair in sampled(student, rows[:8]):
        found = read_pair(theirs, pair)
        assert isinstance(found, PairRow)
        assert (found.pair_id, found.chosen_log_prob) == (pair.pair_id, None)


def test_no_more_pairs_are_held_than_by_ids(
    student: Path, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = load_tokenizer(ModelSpec(str(student)))
    rows = [pair_of(tokenizer, f"question {number}?", f"the answer {number}", "no") for number in range(200)]
    pairs = write_artifact(tmp_path / "pairs", "pairs", rows)
    live = LiveRows(monkeypatch)
    own = ModelSpec(str(student))
    score(ModelSpec(str(teacher)), str(pairs), str(tmp_path / "scores"), tokens_per_batch=90, tokenizer=own)
    assert live.most < 64


def test_C3_several_processes_write_the_bytes_of_one_also_after_a_kill(
    student: Path, teacher: Path, pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def scoring(out: Path) -> Callable[[int], int]:
        asked = ["--model.path", str(teacher), "--pairs", str(pairs), "--tokenizer.path", str(student)]
        return lambda rank: main(
            ["score", *asked, "--out", str(out), "--precision", "32-true", "--tokens_per_batch", "40"]
        )

    one, many = tmp_path / "one", tmp_path / "many"
    assert scoring(one)(0) == 0
    real, calls = stage._rows, []

    def dies(*given: Any) -> Any:
        calls.append(given)
        if os.environ.get("RANK") == "1" and len(calls) == 2:
            await_rank(many, 0)
            os.kill(os.getpid(), 9)
        return real(*given)

    with monkeypatch.context() as patch:
        patch.setattr(stage, "_rows", dies)
        patch.setattr("lightning_dadpo.data.company.RENAME_SECONDS", 0.5)
        assert ended(start_ranks(tmp_path / "logs", 2, scoring(many))) == [2, -9]
    assert not many.exists()
    ranks = start_ranks(tmp_path / "logs", 2, scoring(many))
    assert ended(ranks) == [0, 0], [rank.said for rank in ranks]
    assert (many / "rows.jsonl").read_bytes() == (one / "rows.jsonl").read_bytes()
    assert read_manifest(many).results == read_manifest(one).results
    assert ranks[0].said.count("reads the text of the pairs") == 1
    assert not ranks[1].said
