from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lightning_dadpo.data.rows import Message
from lightning_dadpo.errors import ConfigError, DataError
from lightning_dadpo.evaluation.judges import Preference
from lightning_dadpo.evaluation.people import LLMBAR, PANDALM, majority, read_people
from lightning_dadpo.evaluation.people_files import PeopleFiles

PANDA = {
    "idx": 7, "motivation_app": "mail", "cmp_key": "a_b", "instruction": "Shorten this.", "input": "A long sentence.",
    "response1": "A sentence.", "response2": "Long.", "annotator1": 1, "annotator2": 2, "annotator3": 1,
}  # fmt: skip
BAR = {"input": "Name a river.", "output_1": "The Aare.", "output_2": "A river is water.", "label": 1}


def written(path: Path, rows: Any) -> str:
    path.write_text(json.dumps(rows))
    return str(path)


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (["first", "first", "second"], "first"),
        (["second", "tie", "second"], "second"),
        (["tie", "first", "tie"], "tie"),
        (["first", "second", "tie"], "tie"),
        (["first", "second"], "tie"),
        (["second"], "second"),
    ],
)
def test_more_than_half_of_the_people_decide(labels: list[Preference], expected: Preference) -> None:
    assert majority(labels) == expected


def test_both_forms_become_comparisons_in_people_s_order(tmp_path: Path) -> None:
    alone = PANDA | {"input": "", "annotator1": 2, "annotator2": 0, "annotator3": 1}
    panda = written(tmp_path / "panda.json", [PANDA, alone])
    bar = written(tmp_path / "LLMBar__Natural.json", [BAR, BAR | {"label": 2}])
    one, two, three, four = read_people(PeopleFiles(pandalm=panda, llmbar=[bar]))
    assert (one.kind, one.part, one.people, one.comparison.comparison_id) == (PANDALM, "panda", "first", "panda/0")
    assert one.comparison.messages == [Message("user", "Shorten this.\n\nA long sentence.")]
    assert (one.comparison.first, one.comparison.second) == ("A sentence.", "Long.")
    assert (two.people, two.comparison.messages) == ("tie", [Message("user", "Shorten this.")])
    assert [(row.kind, row.people) for row in (three, four)] == [(LLMBAR, "first"), (LLMBAR, "second")]
    assert (four.part, four.comparison.comparison_id) == ("LLMBar__Natural", "LLMBar__Natural/1")
    assert (four.comparison.first, four.comparison.second) == ("The Aare.", "A river is water.")


def test_answers_that_became_booleans_on_the_way_are_words_again(tmp_path: Path) -> None:
    panda = written(tmp_path / "panda.json", [PANDA | {"response1": True, "response2": False}])
    (pair,) = read_people(PeopleFiles(pandalm=panda))
    assert (pair.comparison.first, pair.comparison.second) == ("True", "False")


@pytest.mark.parametrize(
    ("rows", "text"),
    [
        ([PANDA, PANDA | {"annotator2": 3}], r"panda.json, pair 1: `annotator2`: .*expected the form of PandaLM"),
        ([PANDA | {"response1": None}], r"panda.json, pair 0: `response1"),
        ([BAR], r"panda.json, pair 0: `instruction`: Field required; expected the form of PandaLM"),
        ({"a": 1}, "panda.json: expected a JSON list of pairs"),
        ([], "panda.json: expected a JSON list of pairs"),
        ([PANDA | {"annotator1": 0}], "panda.json: people call every pair a tie"),
    ],
)
def test_what_is_not_in_the_form_is_named(tmp_path: Path, rows: Any, text: str) -> None:
    with pytest.raises(DataError, match=text) as error:
        read_people(PeopleFiles(pandalm=written(tmp_path / "panda.json", rows)))
    assert "\n" not in str(error.value)


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    broken = tmp_path / "broken.json"
    broken.write_text('[\n{"input": }\n]')
    with pytest.raises(DataError, match=r"broken.json:2: not JSON"):
        read_people(PeopleFiles(llmbar=[str(broken)]))
    with pytest.raises(DataError, match=r"none.json: no such file"):
        read_people(PeopleFiles(llmbar=[str(tmp_path / "none.json")]))
    with pytest.raises(ConfigError, match="people: no files"):
        PeopleFiles()
    with pytest.raises(ConfigError, match="two files are called x"):
        PeopleFiles(pandalm="a/x.json", llmbar=["b/x.json"])
