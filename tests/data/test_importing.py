from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lightning_dadpo.data.importing import Imported, PreferenceSource, import_preferences, source_identity
from lightning_dadpo.errors import ConfigError, DataError
from tests.tiny import END_OF_TURN, tiny_tokenizer


def turn(role: str, content: Any) -> dict[str, Any]:
    return {"role": role, "content": content}


USER, GOOD, BAD = turn("user", "Sky?"), turn("assistant", "Blue."), turn("assistant", "Green.")
EARLIER = [turn("system", "Be brief."), turn("user", "Hi"), turn("assistant", "Ho"), USER]
STANDARD = {"prompt": "Sky?", "chosen": "Blue.", "rejected": "Green."}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return tiny_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def write(path: Path, rows: list[Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return str(path)


def imported(tmp_path: Path, tokenizer: Any, *rows: Any, **settings: Any) -> Imported:
    source = PreferenceSource(write(tmp_path / "p.jsonl", list(rows)), **settings)
    return import_preferences(source, tokenizer, "train")


@pytest.mark.parametrize(
    ("row", "prompt"),
    [
        (STANDARD, [USER]),
        ({"chosen": "Sky? Blue.", "rejected": "Sky? Green."}, [USER]),
        ({"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]}, [USER]),
        ({"chosen": [USER, GOOD], "rejected": [USER, BAD]}, [USER]),
        ({"prompt": EARLIER, "chosen": [GOOD], "rejected": [BAD]}, EARLIER),
        ({"chosen": [*EARLIER, GOOD], "rejected": [*EARLIER, BAD]}, EARLIER),
        ({"prompt": EARLIER[:2], "chosen": [*EARLIER[2:], GOOD], "rejected": [*EARLIER[2:], BAD]}, EARLIER),
        ({"prompt": EARLIER, "chosen": [*EARLIER, GOOD], "rejected": [*EARLIER, BAD]}, EARLIER),
        ({"prompt": "Sky?", "chosen": [USER, GOOD], "rejected": [USER, BAD]}, [USER]),
        ({"prompt": "Sky?", "chosen": [GOOD], "rejected": [BAD]}, [USER]),
        ({"prompt": None, "chosen": [USER, GOOD], "rejected": [USER, BAD], "score": 3}, [USER]),
    ],
    ids=[
        "standard explicit", "standard implicit", "conversational explicit", "conversational implicit",
        "multi-turn explicit", "multi-turn implicit", "prompt goes on in the completions", "prompt repeated",
        "string beside conversations", "string beside answers", "null prompt and other columns",
    ],
)  # fmt: skip
def test_every_trl_format_gives_the_same_pair(tmp_path: Path, tokenizer: Any, row: Any, prompt: list[Any]) -> None:
    (pair,) = imported(tmp_path, tokenizer, row).pairs
    assert [turn(message.role, message.content) for message in pair.messages] == prompt
    assert pair.prompt_token_ids == tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=False)
    assert pair.chosen_token_ids == [*tokenizer.encode("Blue.", add_special_tokens=False), END_OF_TURN]
    assert pair.rejected_token_ids == [*tokenizer.encode("Green.", add_special_tokens=False), END_OF_TURN]
    assert (pair.chosen_text, pair.rejected_text) == ("Blue.", "Green.")
    assert (pair.chosen_finish_reason, pair.chosen_log_prob, pair.split) == ("stop", None, "train")


@pytest.mark.parametrize(
    ("chosen", "rejected", "expected"),
    [
        ("The sky is blue", "The sky is black", ("The sky is", "blue", "black")),
        ("The sky\nis blue", "The sky\nwas blue", ("The sky", "is blue", "was blue")),
        ("Q: why?\n\nA: because", "Q: why?\n\nA: be quiet", ("Q: why?\n\nA:", "because", "be quiet")),
        ("One two", "One two three", ("One", "two", "two three")),
        ("One  two", "One   two three", ("One", "two", "two three")),
    ],
)
def test_implicit_strings_part_at_a_word(
    tmp_path: Path, tokenizer: Any, chosen: str, rejected: str, expected: tuple[str, str, str]
) -> None:
    (pair,) = imported(tmp_path, tokenizer, {"chosen": chosen, "rejected": rejected}).pairs
    assert (pair.messages[0].content, pair.chosen_text, pair.rejected_text) == expected


LONG = "x" * 30
UNUSABLE = [
    ("empty", {**STANDARD, "chosen": ""}),
    ("empty", {**STANDARD, "rejected": " \n"}),
    ("empty", {**STANDARD, "prompt": "  "}),
    ("empty", {"prompt": [USER], "chosen": [], "rejected": [BAD]}),
    ("empty", {"chosen": [GOOD], "rejected": [BAD]}),
    ("identical", {**STANDARD, "chosen": "Green."}),
    ("identical", {"chosen": "The sky", "rejected": "The sky"}),
    ("identical", {"chosen": [USER, GOOD], "rejected": [USER, GOOD]}),
    ("over_long", {**STANDARD, "prompt": LONG * 10}),
    ("over_long", {**STANDARD, "chosen": LONG}),
    ("over_long", {**STANDARD, "rejected": LONG}),
    ("wrong_type", "a string"),
    ("wrong_type", None),
    ("wrong_type", {**STANDARD, "chosen": 3}),
    ("wrong_type", {**STANDARD, "prompt": 3}),
    ("wrong_type", {**STANDARD, "chosen": [GOOD]}),
    ("wrong_type", {"prompt": [USER], "chosen": ["Blue."], "rejected": [BAD]}),
    ("wrong_type", {"prompt": [USER], "chosen": [turn("assistant", None)], "rejected": [BAD]}),
    ("wrong_type", {"prompt": [USER], "chosen": [turn("tool", "Blue.")], "rejected": [BAD]}),
    ("wrong_type", {"prompt": [USER, USER], "chosen": [GOOD], "rejected": [BAD]}),
    ("wrong_type", {**STANDARD, "chosen": "half \ud83d"}),
    ("last_turn_not_assistant", {"chosen": [USER, GOOD, USER], "rejected": [USER, BAD]}),
    ("last_turn_not_assistant", {"chosen": [USER, GOOD], "rejected": [USER]}),
    ("prompts_differ", {"chosen": [USER, GOOD], "rejected": [turn("user", "Sea?"), BAD]}),
    ("prompts_differ", {"chosen": [USER, GOOD, USER, GOOD], "rejected": [USER, BAD]}),
    ("prompts_differ", {"chosen": "Blue", "rejected": "Black"}),
    ("missing_column", {"prompt": "Sky?", "chosen": "Blue."}),
    ("missing_column", {"prompt": "Sky?", "chosen": None, "rejected": "Green."}),
    ("missing_column", {}),
]


@pytest.mark.parametrize(("reason", "row"), UNUSABLE)
def test_unusable_rows_are_counted_by_reason_or_refused_with_their_line(
    tmp_path: Path, tokenizer: Any, reason: str, row: Any
) -> None:
    limits = {"max_prompt_tokens": 200, "max_response_tokens": 20}
    found = imported(tmp_path, tokenizer, STANDARD, row, STANDARD, **limits)
    assert len(found.pairs) == 2
    assert found.dropped == {reason: 1}
    with pytest.raises(DataError) as raised:
        imported(tmp_path, tokenizer, STANDARD, row, STANDARD, strict=True, **limits)
    assert str(raised.value).startswith(f"{tmp_path / 'p.jsonl'}:2: {reason}: ")
    assert "\n" not in str(raised.value)


def test_D5_responses_that_become_the_same_tokens_are_identical(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer(tmp_path / "t")
    tokenizer.chat_template = tokenizer.chat_template.replace("turn['content']", "turn['content'] | trim")
    found = imported(tmp_path, tokenizer, STANDARD, {"prompt": "Sky?", "chosen": "Blue.", "rejected": "Blue. "})
    assert found.dropped == {"identical": 1}


def test_A6_the_limits_are_exact_and_nothing_is_cut(tmp_path: Path, tokenizer: Any) -> None:
    (pair,) = imported(tmp_path, tokenizer, STANDARD).pairs
    prompt, response = len(pair.prompt_token_ids), len(pair.rejected_token_ids)
    kept = imported(tmp_path, tokenizer, STANDARD, max_prompt_tokens=prompt, max_response_tokens=response)
    assert kept.pairs == [pair]
    short = {**STANDARD, "prompt": "?", "rejected": "."}
    for limits in ({"max_prompt_tokens": prompt - 1}, {"max_response_tokens": response - 1}):
        found = imported(tmp_path, tokenizer, STANDARD, {**short, "chosen": "!"}, **limits)
        assert found.dropped == {"over_long": 1}
        assert [row.chosen_text for row in found.pairs] == ["!"]


def test_C2_repeated_prompts_do_not_collapse(tmp_path: Path, tokenizer: Any) -> None:
    other = {**STANDARD, "rejected": "Red."}
    pairs = imported(tmp_path, tokenizer, STANDARD, other, STANDARD).pairs
    assert [pair.rejected_text for pair in pairs] == ["Green.", "Red.", "Green."]
    assert len({pair.prompt_id for pair in pairs}) == 1
    assert len({pair.pair_id for pair in pairs}) == 2, "an id names the tokens of its pair"


def test_A13_preference_data_cannot_spell_special_tokens(tmp_path: Path, tokenizer: Any) -> None:
    row = {"prompt": "<|im_end|>", "chosen": "Blue.<|im_end|>", "rejected": "<|im_start|>"}
    (pair,) = imported(tmp_path, tokenizer, row).pairs
    assert [token for token in pair.prompt_token_ids if token < 3] == [1, 2, 1, 2, 1]
    for ids in (pair.chosen_token_ids, pair.rejected_token_ids):
        assert [token for token in ids if token < 3] == [END_OF_TURN]


def test_json_and_parquet_give_what_jsonl_gives(tmp_path: Path, tokenizer: Any) -> None:
    import pyarrow
    from pyarrow import parquet

    rows = [{"prompt": EARLIER, "chosen": [GOOD], "rejected": [BAD], "score": 1}]
    rows += [{"prompt": [USER], "chosen": [BAD], "rejected": [GOOD], "score": 2}]
    expected = imported(tmp_path, tokenizer, *rows)
    (tmp_path / "p.json").write_text(json.dumps(rows, indent=2), "utf-8")
    (tmp_path / "lines.json").write_text("\n\n".join(map(json.dumps, rows)), "utf-8")
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "p.parquet")
    for name in ("p.json", "lines.json", "p.parquet"):
        assert import_preferences(PreferenceSource(str(tmp_path / name)), tokenizer, "train") == expected


def test_rows_of_a_parquet_file_are_named_by_number(tmp_path: Path, tokenizer: Any) -> None:
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.Table.from_pylist([STANDARD, {**STANDARD, "chosen": ""}]), tmp_path / "p.parquet")
    with pytest.raises(DataError, match=r"p\.parquet: row 2: empty"):
        import_preferences(PreferenceSource(str(tmp_path / "p.parquet"), strict=True), tokenizer, "train")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("p.jsonl", b"", "p.jsonl: holds no rows"),
        ("p.jsonl", b"\n \n", "p.jsonl: holds no rows"),
        ("p.json", b"[]", "p.json: holds no rows"),
        ("p.json", b"[{]", "p.json: not JSON"),
        ("p.jsonl", b'{"prompt": "a"}\n{"prompt": ', "p.jsonl:2: not JSON"),
        ("p.jsonl", b'{"prompt": "\xff"}\n', "p.jsonl:1: not JSON"),
        ("p.jsonl", b'{"prompt": "a"}\n3\n', "none of its 2 rows can be used (missing_column 1, wrong_type 1)"),
        ("p.parquet", b"PAR?", "p.parquet: not a Parquet file"),
        ("p.csv", b"prompt,chosen,rejected\n", "p.csv: expected a file that ends in .jsonl, .json, .parquet"),
    ],
)
def test_files_that_cannot_be_read_are_one_line_errors(
    tmp_path: Path, tokenizer: Any, name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError) as raised:
        import_preferences(PreferenceSource(str(tmp_path / name)), tokenizer, "train")
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_missing_file_is_named_and_no_hub_is_asked(tmp_path: Path, tokenizer: Any) -> None:
    with pytest.raises(DataError, match=r"p\.jsonl: no such file$"):
        import_preferences(PreferenceSource(str(tmp_path / "p.jsonl")), tokenizer, "train")


def test_a_template_that_refuses_a_row_names_the_row(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer(tmp_path / "t")
    tokenizer.chat_template = "{{ raise_exception('no') }}"
    with pytest.raises(DataError, match=r"p\.jsonl:1: the chat template refuses the conversation: no"):
        imported(tmp_path, tokenizer, STANDARD)


def test_names_go_to_datasets_with_split_and_configuration(monkeypatch: pytest.MonkeyPatch, tokenizer: Any) -> None:
    import datasets

    asked: list[Any] = []

    def load_dataset(*arguments: Any, **named: Any) -> Any:
        asked.append((arguments, named))
        return datasets.Dataset.from_list([{**STANDARD, "score": 1.0}, {**STANDARD, "chosen": ""}])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    source = PreferenceSource("someone/preferences", split="test", name="easy")
    found = import_preferences(source, tokenizer, "heldout")
    assert asked == [(("someone/preferences", "easy"), {"split": "test"})]
    assert [pair.split for pair in found.pairs] == ["heldout"]
    assert found.dropped == {"empty": 1}
    assert source_identity(source) == {"dataset": "someone/preferences", "name": "easy", "split": "test"}


@pytest.mark.parametrize("failure", [ConnectionError("no\nway"), ValueError('Unknown split "test"'), StopIteration()])
def test_what_datasets_raises_becomes_one_line(
    monkeypatch: pytest.MonkeyPatch, tokenizer: Any, failure: Exception
) -> None:
    import datasets

    def load_dataset(*_: Any, **__: Any) -> Any:
        raise failure

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(DataError, match=r"^someone/preferences: ") as raised:
        import_preferences(PreferenceSource("someone/preferences"), tokenizer, "train")
    assert "\n" not in str(raised.value)


def test_a_hub_that_cannot_be_reached_is_one_line(tokenizer: Any) -> None:
    with pytest.raises(DataError, match="datasets cannot load it") as raised:
        import_preferences(PreferenceSource("nobody/no-such-preferences"), tokenizer, "train")
    assert "\n" not in str(raised.value)


def test_contradictory_settings_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="max_response_tokens 0: expected at least 1"):
        PreferenceSource("p.jsonl", max_response_tokens=0)
    with pytest.raises(ConfigError, match="a file has no configuration, but name is 'easy'"):
        PreferenceSource("p.jsonl", name="easy")


def test_the_identity_of_a_file_or_folder_is_its_content(tmp_path: Path) -> None:
    first, second = tmp_path / "a", tmp_path / "b"
    for folder in (first, second):
        folder.mkdir()
        write(folder / "p.jsonl", [STANDARD])
    for inside in ("", "p.jsonl"):
        one, other = (source_identity(PreferenceSource(str(folder / inside))) for folder in (first, second))
        assert one == other
        assert str(tmp_path) not in json.dumps(one)
    write(second / "p.jsonl", [STANDARD, STANDARD])
    for inside in ("", "p.jsonl"):
        one, other = (source_identity(PreferenceSource(str(folder / inside))) for folder in (first, second))
        assert one != other
