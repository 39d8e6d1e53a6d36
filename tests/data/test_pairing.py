from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lightning_dadpo.data.artifacts import draft, read_manifest
from lightning_dadpo.data.importing import PreferenceSource
from lightning_dadpo.data.pairing import Paired, import_pairs, make_pairs, pair_responses, read_pairs
from lightning_dadpo.data.rows import FinishReason, Message, ResponseRow, RowWriter, content_digest
from lightning_dadpo.errors import ArtifactError, ConfigError, DataError
from tests.tiny import tiny_tokenizer

END = 2


def response(prompt_id: str, *token_ids: int, finish: FinishReason = "stop", split: str = "train") -> ResponseRow:
    return ResponseRow(
        prompt_id=prompt_id,
        split=split,
        messages=[Message("user", prompt_id)],
        prompt_token_ids=[10, 11, 12],
        token_ids=list(token_ids),
        text=" ".join(map(str, token_ids)),
        finish_reason=finish,
        log_prob=-float(sum(token_ids)),
    )


def paired(chosen: list[ResponseRow], rejected: list[ResponseRow], **settings: Any) -> Paired:
    return pair_responses(chosen, rejected, **{"max_prompt_tokens": 8, "max_response_tokens": 8} | settings)


def test_a_pair_holds_what_was_sampled_joined_by_prompt_id_whatever_the_order() -> None:
    found = paired(
        [response("a", 20, END), response("b", 21, END)],
        [response("b", 31, 32, END), response("a", 30, 33, finish="length")],
    )
    first, second = found.pairs
    assert (first.prompt_id, second.prompt_id) == ("a", "b")
    assert (first.chosen_token_ids, first.rejected_token_ids) == ([20, END], [30, 33])
    assert (second.chosen_token_ids, second.rejected_token_ids) == ([21, END], [31, 32, END])
    assert (first.chosen_finish_reason, first.rejected_finish_reason) == ("stop", "length")
    assert (first.chosen_log_prob, first.rejected_log_prob) == (-22.0, -63.0)
    assert (first.chosen_text, first.rejected_text, first.split) == ("20 2", "30 33", "train")
    assert first.messages == [Message("user", "a")]
    assert first.pair_id == content_digest([10, 11, 12], [20, END], [30, 33])
    assert found.counts == {"pairs": 2, "kept_rejected_cut": 1}


def test_A7_a_cut_rejected_response_gains_no_end_of_turn_and_a_cut_chosen_one_is_dropped_unless_kept() -> None:
    chosen, rejected = [response("a", 20, 21, finish="length")], [response("a", 30, END)]
    assert paired(chosen, rejected) == Paired([], {"pairs": 0, "dropped_chosen_cut": 1})
    kept = paired(chosen, rejected, keep_cut_chosen=True)
    assert kept.counts == {"pairs": 1, "kept_chosen_cut": 1}
    assert kept.pairs[0].chosen_token_ids == [20, 21]
    (swapped,) = paired(rejected, chosen).pairs
    assert swapped.rejected_token_ids == [20, 21]


@pytest.mark.parametrize("silent", [response("a"), response("a", END), response("a", finish="length")])
def test_D5_responses_that_say_nothing_are_dropped_and_counted(silent: ResponseRow) -> None:
    speaking = response("a", 20, END)
    for sides in (([silent], [speaking]), ([speaking], [silent])):
        assert paired(*sides).counts == {"pairs": 0, "dropped_empty": 1}


def test_a_cut_response_of_one_token_says_something() -> None:
    assert paired([response("a", 20, END)], [response("a", 30, finish="length")]).counts["pairs"] == 1


def test_D5_identical_responses_are_dropped_and_counted() -> None:
    assert paired([response("a", 20, END)], [response("a", 20, END)]).counts == {"pairs": 0, "dropped_identical": 1}


def test_A6_over_long_pairs_are_dropped_at_the_exact_limit_and_never_cut() -> None:
    chosen, rejected = [response("a", 20, END)], [response("a", 30, 31, END)]
    exact = {"max_prompt_tokens": 3, "max_response_tokens": 3}
    assert paired(chosen, rejected, **exact).pairs[0].rejected_token_ids == [30, 31, END]
    for key in exact:
        assert paired(chosen, rejected, **exact | {key: 2}).counts == {"pairs": 0, "dropped_over_long": 1}


def test_prompts_without_a_partner_are_counted_by_side() -> None:
    found = paired(
        [response("a", 20, END), response("b", 21, END)],
        [response("b", 30, END), response("c", 31, END), response("d", 32, END)],
    )
    assert found.counts == {"pairs": 1, "dropped_only_chosen": 1, "dropped_only_rejected": 2}


def test_prompts_of_a_split_that_one_model_was_not_asked_about_are_not_dropped() -> None:
    heldout = response("b", 21, END, split="heldout")
    assert paired([response("a", 20, END), heldout], [response("a", 30, END)]).counts == {"pairs": 1}


def test_A8_A10_prompts_that_the_two_models_read_differently_are_refused() -> None:
    other = replace(response("a", 30, END), prompt_token_ids=[10, 99, 12])
    with pytest.raises(DataError, match=r"prompt_id 'a': .* different tokens"):
        paired([response("a", 20, END)], [other])


def test_C2_a_prompt_that_is_answered_twice_is_refused_not_collapsed() -> None:
    twice = [response("a", 20, END), response("a", 21, END)]
    with pytest.raises(DataError, match="chosen responses: prompt_id 'a' is answered twice"):
        paired(twice, [response("a", 30, END)])
    with pytest.raises(DataError, match="rejected responses: prompt_id 'a' is answered twice"):
        paired([response("a", 30, END)], twice)


def test_the_same_prompt_in_two_splits_is_refused() -> None:
    with pytest.raises(DataError, match="split 'train' among the chosen, 'heldout'"):
        paired([response("a", 20, END)], [response("a", 30, END, split="heldout")])


def responses_folder(folder: Path, model: str, *rows: ResponseRow) -> str:
    with draft(folder, "responses", {"model": model}) as work, RowWriter(work.path / "rows.jsonl") as writer:
        writer.write(*rows)
    return str(folder)


@pytest.fixture
def folders(tmp_path: Path) -> tuple[str, str]:
    teacher = responses_folder(
        tmp_path / "teacher",
        "teacher-digest",
        response("a", 20, END),
        response("b", 21, END, split="validation"),
        response("c", 22, 23, finish="length"),
    )
    student = responses_folder(
        tmp_path / "student",
        "student-digest",
        response("b", 31, 32, split="validation", finish="length"),
        response("a", 30, END),
        response("c", 33, END),
    )
    return teacher, student


def test_make_pairs_writes_an_artefact_named_by_what_it_was_made_from(tmp_path: Path, folders: tuple[str, str]) -> None:
    out = make_pairs(*folders, str(tmp_path / "pairs"))
    assert out == tmp_path / "pairs"
    manifest = read_manifest(out, "pairs")
    assert manifest.counts == {"pairs": 2, "dropped_chosen_cut": 1, "kept_rejected_cut": 1}
    assert manifest.made_from == {
        "keep_cut_chosen": False,
        "max_prompt_tokens": 1024,
        "max_response_tokens": 1024,
        "chosen_responses": read_manifest(folders[0]).files["rows.jsonl"],
        "chosen_model": "teacher-digest",
        "rejected_responses": read_manifest(folders[1]).files["rows.jsonl"],
        "rejected_model": "student-digest",
    }
    assert [pair.prompt_id for pair in read_pairs(out)] == ["a", "b"]
    assert [pair.prompt_id for pair in read_pairs(out, "validation")] == ["b"]
    with pytest.raises(DataError, match="no pairs of split 'heldout'; it has train 1, validation 1"):
        read_pairs(out, "heldout")


def test_a_second_run_does_nothing_and_other_settings_are_refused(tmp_path: Path, folders: tuple[str, str]) -> None:
    out = make_pairs(*folders, str(tmp_path / "pairs"))
    stamp = (out / "manifest.json").stat().st_mtime_ns
    make_pairs(*folders, str(out))
    assert (out / "manifest.json").stat().st_mtime_ns == stamp
    with pytest.raises(ArtifactError, match="keep_cut_chosen: False there, True now"):
        make_pairs(*folders, str(out), keep_cut_chosen=True)


def test_C3_a_killed_run_is_begun_again_without_doubled_rows(tmp_path: Path, folders: tuple[str, str]) -> None:
    whole = make_pairs(*folders, str(tmp_path / "whole"))
    partial = tmp_path / "pairs.partial"
    partial.mkdir()
    lines = (whole / "rows.jsonl").read_text("utf-8")
    (partial / "begun.json").write_text(json.dumps(read_manifest(whole).made_from), "utf-8")
    (partial / "rows.jsonl").write_text(lines[: len(lines) * 2 // 3], "utf-8")
    again = make_pairs(*folders, str(tmp_path / "pairs"))
    assert (again / "rows.jsonl").read_text("utf-8") == lines


def test_nothing_is_left_behind_when_no_pair_is_left(tmp_path: Path) -> None:
    chosen = responses_folder(tmp_path / "teacher", "t", response("a", 20, finish="length"))
    rejected = responses_folder(tmp_path / "student", "s", response("a", 30, END))
    with pytest.raises(DataError, match=r"no pair is left to use \(dropped_chosen_cut 1, pairs 0\)"):
        make_pairs(chosen, rejected, str(tmp_path / "pairs"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["student", "teacher"]


def test_other_folders_and_limits_are_refused(tmp_path: Path, folders: tuple[str, str]) -> None:
    out = make_pairs(*folders, str(tmp_path / "pairs"))
    with pytest.raises(ArtifactError, match="holds pairs, expected responses"):
        make_pairs(str(out), folders[1], str(tmp_path / "more"))
    with pytest.raises(ArtifactError, match="not an artefact"):
        read_pairs(tmp_path / "nowhere", "train")
    with pytest.raises(ConfigError, match="max_prompt_tokens 0: expected at least 1"):
        make_pairs(*folders, str(tmp_path / "more"), max_prompt_tokens=0)


def test_imported_preferences_become_the_same_kind_of_artefact(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer(tmp_path / "tokenizer")
    rows = [
        {"prompt": "Sky?", "chosen": "Blue.", "rejected": "Green."},
        {"prompt": "Sky?", "chosen": "Blue.", "rejected": "Red."},
        {"prompt": "Sea?", "chosen": "Blue.", "rejected": "Blue."},
    ]
    path = tmp_path / "p.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)), "utf-8")
    source = PreferenceSource(str(path))
    out = import_pairs(source, tokenizer, "tokenizer-digest", "train", str(tmp_path / "pairs"))
    manifest = read_manifest(out, "pairs")
    assert manifest.counts == {"pairs": 2, "dropped_identical": 1}
    assert manifest.made_from["tokenizer"] == "tokenizer-digest"
    assert str(tmp_path) not in json.dumps(manifest.made_from)
    assert [pair.rejected_text for pair in read_pairs(out, "train")] == ["Green.", "Red."]
    moved = path.rename(tmp_path / "moved.jsonl")
    import_pairs(PreferenceSource(str(moved)), tokenizer, "tokenizer-digest", "train", str(out))
    with pytest.raises(ArtifactError, match="tokenizer: 'tokenizer-digest' there, 'another' now"):
        import_pairs(PreferenceSource(str(moved)), tokenizer, "another", "train", str(out))
