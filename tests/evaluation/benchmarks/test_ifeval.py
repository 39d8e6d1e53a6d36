from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lightning_dadpo.cli.main import main
from lightning_dadpo.data.artifacts import read_manifest
from lightning_dadpo.data.prompts import PromptFile, read_prompts
from lightning_dadpo.errors import ArtifactError, ConfigError, DataError
from lightning_dadpo.evaluation.benchmarks import ifeval_checks
from lightning_dadpo.evaluation.benchmarks.ifeval import ifeval
from lightning_dadpo.evaluation.benchmarks.ifeval_checks import Checkers
from lightning_dadpo.evaluation.benchmarks.ifeval_file import IfevalPrompt, ifeval_prompts, read_ifeval
from lightning_dadpo.evaluation.benchmarks.ifeval_tables import IfevalRow, summarise
from tests.evaluation.benchmarks.artefacts import SAMPLER, expected_ratio, responses, trained_prompts

pytest.importorskip("if_verifiable", reason="needs the package if-verifiable (extra ifeval)")

ENGLISH = "the quick brown fox jumps over the lazy dog and then it sleeps in the warm sun"
GERMAN = "Der schnelle braune Fuchs springt über den faulen Hund und schläft dann in der Sonne."
TRUTHS: list[tuple[str, dict[str, Any], str, str]] = [  # instruction, arguments, followed by, not followed by
    ("change_case:capital_word_frequency", {"capital_frequency": 2, "capital_relation": "at least"}, "GO ON", "GO on"),
    ("change_case:english_capital", {}, ENGLISH.upper(), ENGLISH.capitalize()),
    ("change_case:english_lowercase", {}, ENGLISH, ENGLISH.capitalize()),
    ("combination:repeat_prompt", {"prompt_to_repeat": "Say it."}, "Say it. It.", "It. Say it."),
    ("combination:two_responses", {}, "one ****** two", "one ****** one"),
    ("detectable_content:number_placeholders", {"num_placeholders": 2}, "[name], [town]", "[name], (town)"),
    ("detectable_content:postscript", {"postscript_marker": "P.S."}, "Bye.\nP.S. Write!", "Bye. Write!"),
    ("detectable_format:constrained_response", {}, "My answer is yes.", "Yes."),
    ("detectable_format:json_format", {}, '```json\n{"a": [1]}\n```', '{"a": [1}'),
    ("detectable_format:multiple_sections", {"num_sections": 2, "section_spliter": "Part"}, "Part 1 Part 2", "Part a"),
    ("detectable_format:number_bullet_lists", {"num_bullets": 2}, "* a\n* b", "* a\n* b\n- c"),
    ("detectable_format:number_highlighted_sections", {"num_highlights": 2}, "*a* and *b*", "*a* and b"),
    ("detectable_format:title", {}, "<<Song>>\nla", "<Song>\nla"),
    ("keywords:existence", {"keywords": ["sun", "dog"]}, ENGLISH, "the sun"),
    ("keywords:forbidden_words", {"forbidden_words": ["sun"]}, "sunny", "a Sun sets"),
    ("keywords:frequency", {"keyword": "the", "frequency": 3, "relation": "at least"}, ENGLISH, "the end"),
    ("keywords:letter_frequency", {"letter": "a", "let_frequency": 2, "let_relation": "less than"}, "Abc", "Abca"),
    ("language:response_language", {"language": "de"}, GERMAN, ENGLISH),
    (
        "length_constraints:nth_paragraph_first_word",
        {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "then"},
        "First.\n\nThen, more.",
        "Then.\n\nFirst, more.",
    ),
    ("length_constraints:number_paragraphs", {"num_paragraphs": 2}, "a\n***\nb", "a\n\nb"),
    ("length_constraints:number_sentences", {"num_sentences": 2, "relation": "less than"}, "One of it.", "One. Two."),
    ("length_constraints:number_words", {"num_words": 3, "relation": "at least"}, "one two three", "one two"),
    ("punctuation:no_comma", {}, "no; none", "no, none"),
    ("startend:end_checker", {"end_phrase": "Is that all?"}, "Well. Is that all?", "Is that all? Well."),
    ("startend:quotation", {}, '"All of it."', '"Most" of it.'),
]  # fmt: skip


def _prompt(key: int, *instructions: tuple[str, dict[str, Any]], prefix: str = "en:") -> dict[str, Any]:
    return {
        "key": key,
        "prompt": f"Question {key}?",
        "instruction_id_list": [prefix + name for name, _ in instructions],
        "kwargs": [given for _, given in instructions],
    }


def _file(path: Path, *prompts: dict[str, Any]) -> str:
    path.write_text("".join(json.dumps(prompt) + "\n" for prompt in prompts), "utf-8")
    return str(path)


@pytest.fixture(autouse=True)
def sentence_model(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """nltk's sentence model as it is before it has learnt any abbreviation: four empty files."""
    import nltk

    root = tmp_path_factory.mktemp("nltk")
    folder = root / "tokenizers" / "punkt_tab" / "english"
    folder.mkdir(parents=True)
    for name in ("abbrev_types.txt", "collocations.tab", "ortho_context.tab", "sent_starters.txt"):
        (folder / name).touch()
    _forget()
    monkeypatch.setattr(nltk.data, "path", [str(root)])


def _forget() -> None:
    from if_verifiable.ifeval import instructions_util
    from nltk.tokenize import _get_punkt_tokenizer

    instructions_util._get_sentence_tokenizer.cache_clear()
    _get_punkt_tokenizer.cache_clear()


@pytest.mark.parametrize(("name", "given", "followed", "broken"), TRUTHS, ids=[name for name, *_ in TRUTHS])
def test_a_checker_says_what_is_true(name: str, given: dict[str, Any], followed: str, broken: str) -> None:
    prompt, checkers = IfevalPrompt(1, "Question?", [f"en:{name}"], [given]), Checkers()
    checkers.try_out([prompt])
    assert checkers.fault(prompt) is None
    assert checkers.check(prompt, followed).strict == [True]
    assert checkers.check(prompt, broken).strict == [False]


def test_loosely_is_without_the_first_line_the_last_one_or_asterisks() -> None:
    checkers = Checkers()
    quoted = IfevalPrompt(1, "Question?", ["startend:quotation", "punctuation:no_comma"], [{}, {}])
    for text in ('Sure\n"All."', '"All."\nBye', 'Sure\n"All."\nBye', '*"All."*'):
        verdict = checkers.check(quoted, text)
        assert (verdict.strict, verdict.loose) == ([False, True], [True, True]), text
    assert checkers.check(quoted, 'Sure "All."').loose == [False, True]


def test_an_empty_response_follows_none_of_its_instructions() -> None:
    """The package answers with no verdicts at all; an accuracy over those it gives would leave the prompt out."""
    prompt = IfevalPrompt(1, "Question?", ["punctuation:no_comma", "change_case:english_lowercase"], [{}, {}])
    for text in ("", " \n", "<think>and then"):
        verdict = Checkers().check(prompt, text)
        assert verdict.strict == verdict.loose == [False, False]


def test_brackets_without_end_are_no_json_and_end_nothing() -> None:
    prompt = IfevalPrompt(1, "Question?", ["detectable_format:json_format", "punctuation:no_comma"], [{}, {}])
    assert Checkers().check(prompt, "[" * 100_000).strict == [False, True]


def test_language_is_told_the_same_way_each_time() -> None:
    """langdetect draws random numbers: without a seed this is Italian in about two of three detections."""
    prompt, checkers = IfevalPrompt(1, "Question?", ["language:response_language"], [{"language": "it"}]), Checkers()
    assert len({checkers.check(prompt, "no me die").strict[0] for _ in range(10)}) == 1


def test_a_models_words_are_not_printed_when_their_language_cannot_be_told(capfd: pytest.CaptureFixture[str]) -> None:
    prompt = IfevalPrompt(1, "Question?", ["language:response_language"], [{"language": "de"}])
    assert Checkers().check(prompt, "12345 \x1b!").strict == [True]  # the authors count it as followed
    assert capfd.readouterr() == ("", "")


def test_accuracies_families_and_differences_against_a_loop() -> None:
    length, comma, title = "length_constraints:number_words", "punctuation:no_comma", "detectable_format:title"

    def row(model: str, key: int, names: list[str], strict: list[int], loose: list[int], tokens: int) -> IfevalRow:
        return IfevalRow(model, str(key), names, [*map(bool, strict)], [*map(bool, loose)], tokens, tokens < 9)

    names = [[length], [length, comma], [comma, length, title], [length, length]]
    student = [[1], [1, 0], [0, 0, 1], [1, 1]]
    loosely = [[1], [1, 1], [0, 0, 1], [1, 1]]
    teacher = [[0], [1, 1], [1, 1, 1], [1, 0]]
    rows = [row("student", at, names[at], student[at], loosely[at], [2, 4, 9, 5][at]) for at in range(4)]
    rows += [row("teacher", 3 - at, names[3 - at], teacher[3 - at], teacher[3 - at], 6) for at in range(4)]
    found = summarise(rows, 200)

    own, other = found["rows"]
    assert (own["prompts"], own["instructions"], own["mean_tokens"], own["finished"]) == (4, 8, 5.0, 0.75)
    assert (own["prompt_strict"], own["instruction_strict"]) == (2 / 4, 5 / 8)  # 2 of 4 whole; 1 + 1 + 1 + 2 of 8
    assert (own["prompt_loose"], own["instruction_loose"]) == (3 / 4, 6 / 8)
    assert (other["prompt_strict"], other["instruction_strict"]) == (2 / 4, 6 / 8)
    low_and_high = own["instruction_strict_low"], own["instruction_strict_high"]
    assert low_and_high == pytest.approx(expected_ratio([1, 1, 1, 2], [1, 2, 3, 2], 200)[1:], abs=1e-12)
    assert (own["prompt_strict_low"], own["prompt_strict_high"]) == pytest.approx(
        expected_ratio([1, 0, 0, 1], [1] * 4, 200)[1:], abs=1e-12
    )

    families = {(one["model"], one["family"]): one for one in found["families"]}
    assert len(families) == 6
    punctuation = families["student", "punctuation"]
    assert (punctuation["prompts"], punctuation["instructions"], punctuation["strict"]) == (2, 2, 0.0)
    assert punctuation["loose"] == 1 / 2
    lengths = families["student", "length_constraints"]
    assert (lengths["prompts"], lengths["instructions"], lengths["strict"]) == (4, 5, 4 / 5)
    assert (lengths["strict_low"], lengths["strict_high"]) == pytest.approx(
        expected_ratio([1, 1, 0, 2], [1, 1, 1, 2], 200)[1:], abs=1e-12
    )

    (difference,) = found["differences"]
    assert (difference["model"], difference["other"], difference["prompts"]) == ("student", "teacher", 4)
    assert (difference["prompt_strict"], difference["instruction_strict"]) == (0.0, -1 / 8)
    # paired: +1 -1 -1 +1 whole prompts, +1 -1 -2 +1 instructions, though the teacher's rows stand in another order
    assert (difference["prompt_strict_low"], difference["prompt_strict_high"]) == pytest.approx(
        expected_ratio([1, -1, -1, 1], [1] * 4, 200)[1:], abs=1e-12
    )
    assert (difference["instruction_strict_low"], difference["instruction_strict_high"]) == pytest.approx(
        expected_ratio([1, -1, -2, 1], [1, 2, 3, 2], 200)[1:], abs=1e-12
    )


@pytest.fixture
def example(tmp_path: Path) -> tuple[str, dict[str, str]]:
    """Three prompts, one of which no checker can check, and what two models said to them."""
    hashes = {"letter": "#", "let_frequency": 4, "let_relation": "at least"}
    file = _file(
        tmp_path / "ifeval.jsonl",
        _prompt(7, ("punctuation:no_comma", {}), ("startend:quotation", {})),
        _prompt(8, ("keywords:letter_frequency", hashes)),
        _prompt(9, ("length_constraints:number_words", {"num_words": 2, "relation": "at least"}), prefix=""),
        _prompt(10, ("punctuation:no_comma", {})),
    )
    said = {
        "good": {7: '"All of it."', 8: "####", 9: "Two words"},
        "bad": {7: "Some, not all", 8: "####", 9: '"Two" words'},
    }
    folders = {
        name: responses(tmp_path / name, {f"ifeval-{key}": (f"Question {key}?", text) for key, text in texts.items()})
        for name, texts in said.items()
    }
    return file, folders


def test_the_command_joins_responses_to_their_instructions(
    example: tuple[str, dict[str, str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, folders = example
    arguments = ["ifeval", "--ifeval_file", file, "--candidates", json.dumps(folders), "--out", str(tmp_path / "out")]
    assert main([*arguments, "--resamples", "50"]) == 0
    said = capsys.readouterr().out
    assert "1 of 3 prompts left out: keywords:letter_frequency cannot check letter '#'" in said
    assert "good: IFEval strict 100.0% [100.0%, 100.0%] of 2 prompts, 100.0% [100.0%, 100.0%] of 3 instr" in said
    found = json.loads((tmp_path / "out" / "ifeval.json").read_text("utf-8"))
    good, bad = found["rows"]
    assert (good["prompt_strict"], good["instruction_strict"]) == (1.0, 1.0)
    assert (bad["prompt_strict"], bad["instruction_strict"], bad["finished"]) == (1 / 2, 1 / 3, 1.0)
    # "Question 7?" has no comma and no quotation marks, "Question 9?" has two words
    assert found["repeating_the_prompt"]["prompt_strict"] == 1 / 2
    assert found["repeating_the_prompt"]["instruction_strict"] == 2 / 3
    assert "repeating the prompt would be 50.0% of prompts" in said
    manifest = read_manifest(tmp_path / "out", "ifeval")
    assert manifest.counts == {"models": 2, "prompts": 2, "left_out": 1}
    assert list(manifest.results["left_out"]) == ["ifeval-8"]
    assert manifest.made_from["checkers"].keys() == {"if-verifiable", "langdetect", "nltk"}
    before = (tmp_path / "out" / "rows.jsonl").stat().st_mtime_ns
    assert main([*arguments, "--resamples", "50"]) == 0
    assert (tmp_path / "out" / "rows.jsonl").stat().st_mtime_ns == before  # complete: nothing is made again
    assert main([*arguments, "--resamples", "51"]) == 2  # something else would be


def test_prompts_written_for_the_sampler_join_back(example: tuple[str, dict[str, str]], tmp_path: Path) -> None:
    file, _ = example
    written = tmp_path / "prompts" / "ifeval.jsonl"
    assert main(["ifeval-prompts", "--ifeval_file", file, "--out", str(written)]) == 0
    rows = [row for _, row in read_prompts({"heldout": PromptFile(str(written), limit=2)})]
    prompts = read_ifeval(file)
    assert [row.prompt_id for row in rows] == [prompt.prompt_id for prompt in prompts[:2]] == ["ifeval-7", "ifeval-8"]
    assert [row.messages[-1].content for row in rows] == [prompt.prompt for prompt in prompts[:2]]
    assert ifeval_prompts(file, str(written)) == written  # the same again
    written.write_text("{}\n", "utf-8")
    with pytest.raises(DataError, match=r"ifeval.jsonl: is there already and says something else"):
        ifeval_prompts(file, str(written))


def test_a_data_set_says_the_same_as_the_file(
    example: tuple[str, dict[str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hub's rows hold the arguments of every instruction there is, mostly null."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    file, folders = example
    named = tmp_path / "google-ifeval"
    named.mkdir()
    rows = [json.loads(line) for line in Path(file).read_text("utf-8").splitlines()]
    every = dict.fromkeys(key for row in rows for given in row["kwargs"] for key in given)
    _file(named / "train.jsonl", *(row | {"kwargs": [every | given for given in row["kwargs"]]} for row in rows))
    assert [prompt.instructions for prompt in read_ifeval(named)] == [one.instructions for one in read_ifeval(file)]
    assert any(None in given.values() for prompt in read_ifeval(named) for given in prompt.kwargs)
    written = [ifeval_prompts(source, str(tmp_path / f"{n}.jsonl")) for n, source in enumerate((str(named), file))]
    assert written[0].read_bytes() == written[1].read_bytes()
    for name, source in (("named", str(named)), ("file", file)):
        ifeval(folders, source, str(tmp_path / name), resamples=10)
    one, other = (tmp_path / name / "rows.jsonl" for name in ("named", "file"))
    assert one.read_bytes() == other.read_bytes()


def test_prompts_of_a_named_instruction_are_left_out(example: tuple[str, dict[str, str]], tmp_path: Path) -> None:
    file, folders = example
    ifeval(folders, file, str(tmp_path / "out"), leave_out=["startend:quotation"], resamples=10)
    assert read_manifest(tmp_path / "out").results["left_out"].keys() == {"ifeval-7", "ifeval-8"}
    with pytest.raises(ConfigError, match="leave_out 'startend:quote': no prompt has it"):
        ifeval(folders, file, str(tmp_path / "other"), leave_out=["startend:quote"])
    names = ["startend:quotation", "length_constraints:number_words"]
    with pytest.raises(ConfigError, match="all 3 prompts are left out"):
        ifeval(folders, file, str(tmp_path / "other"), leave_out=names)


def test_E1_prompts_that_were_trained_on_are_left_out(
    example: tuple[str, dict[str, str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, folders = example
    trained = trained_prompts(tmp_path / "train.jsonl", "question 7")
    ifeval(folders, file, str(tmp_path / "out"), trained_on=[trained], resamples=10)
    assert "left out 1 of 2 prompts of split 'heldout' that stand in the training data" in capsys.readouterr().out
    found = json.loads((tmp_path / "out" / "ifeval.json").read_text("utf-8"))
    # of prompt 9 alone: both models' two words, and the prompt's own
    assert [(row["prompts"], row["prompt_strict"]) for row in found["rows"]] == [(1, 1.0), (1, 1.0)]
    assert found["repeating_the_prompt"]["instruction_strict"] == 1.0
    manifest = read_manifest(tmp_path / "out", "ifeval")
    assert manifest.counts == {"models": 2, "prompts": 1, "left_out": 2}
    assert manifest.results["left_out"].keys() == {"ifeval-7", "ifeval-8"}
    assert manifest.results["left_out"]["ifeval-7"] == "the same words as t0"
    with pytest.raises(ArtifactError, match=r"trained_on: .* there, None now"):
        ifeval(folders, file, str(tmp_path / "out"), resamples=10)
    trained = trained_prompts(tmp_path / "all.jsonl", "Question 7?", "Question 9?")
    with pytest.raises(DataError, match="all 2 prompts of split 'heldout' stand there too"):
        ifeval(folders, file, str(tmp_path / "other"), trained_on=[trained])
    assert not list(tmp_path.glob("other*"))


def test_a_missing_sentence_model_is_said_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import nltk

    _forget()
    monkeypatch.setattr(nltk.data, "path", [str(tmp_path)])
    few = {"num_sentences": 2, "relation": "less than"}
    file = _file(
        tmp_path / "f.jsonl", _prompt(1, ("punctuation:no_comma", {}), ("length_constraints:number_sentences", few))
    )
    folder = responses(tmp_path / "r", {"ifeval-1": ("Question 1?", "One.")})
    with pytest.raises(
        ConfigError, match=r"ifeval: length_constraints:number_sentences need nltk's .* punkt_tab"
    ) as said:
        ifeval({"m": folder}, file, str(tmp_path / "out"))
    assert "\n" not in str(said.value)
    assert not list(tmp_path.glob("out*"))


def test_missing_checkers_are_said(
    example: tuple[str, dict[str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_package(name: str) -> Any:
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr(ifeval_checks.importlib, "import_module", no_package)
    with pytest.raises(
        ConfigError, match=r"No module named 'if_verifiable'\); pip install 'lightning-dadpo\[ifeval\]'"
    ):
        ifeval(example[1], example[0], str(tmp_path / "out"))


@pytest.mark.parametrize(
    ("prompt", "fault"),
    [
        (_prompt(1, ("punctuation:no_dash", {})), "'punctuation:no_dash': if-verifiable knows no such instruction"),
        (_prompt(1, ("startend:end_checker", {"end_phrase": None})), "lacks its argument end_phrase; .* random one"),
        (_prompt(1, ("startend:quotation", {"marks": 2})), r"does not take \{'marks': 2\}"),
        (_prompt(1, ("language:response_language", {"language": "xx"})), "does not take .*'xx'"),
        (_prompt(1, ("keywords:existence", {"keywords": ["(a"]})), "unterminated"),
    ],
)
def test_what_a_checker_cannot_take_is_refused(prompt: dict[str, Any], fault: str, tmp_path: Path) -> None:
    file = _file(tmp_path / "f.jsonl", prompt)
    folder = responses(tmp_path / "r", {"ifeval-1": ("Question 1?", "One.")})
    with pytest.raises(DataError, match=f"prompt 'ifeval-1': instruction .*{fault}"):
        ifeval({"m": folder}, file, str(tmp_path / "out"))
    assert not list(tmp_path.glob("out*"))


@pytest.mark.parametrize(
    ("lines", "fault"),
    [
        ([], "holds no prompts"),
        ([{"key": 1, "prompt": "a"}], r":1: `instruction_id_list`: Field required"),
        ([_prompt(1, ("a:b", {})) | {"kwargs": []}], r":1: 1 instructions but arguments for 0"),
        ([_prompt(1, ("a:b", {})) | {"prompt": " "}], r":1: `prompt` has no text"),
        ([_prompt(1, ("a:b", {})), _prompt(1, ("a:b", {}))], r":2: key 1 stands there already"),
    ],
)
def test_a_file_that_is_not_ifevals_is_refused(lines: list[dict[str, Any]], fault: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"f.jsonl{fault}" if fault[0] == ":" else f"f.jsonl: {fault}"):
        read_ifeval(_file(tmp_path / "f.jsonl", *lines))
    with pytest.raises(DataError, match=r"none\.jsonl: no such file"):
        read_ifeval(tmp_path / "none.jsonl")


def test_candidates_that_cannot_be_compared_are_refused(example: tuple[str, dict[str, str]], tmp_path: Path) -> None:
    file, folders = example
    out = str(tmp_path / "out")
    question = "Question 7?"
    cooler = responses(tmp_path / "cool", {"ifeval-7": (question, "a")}, sampler=SAMPLER | {"temperature": 0.0})
    fewer = responses(tmp_path / "fewer", {"ifeval-7": (question, "a")}, sampler=SAMPLER | {"seed": 3})
    foreign = responses(tmp_path / "foreign", {"ifeval-77": (question, "a")})
    reworded = responses(tmp_path / "reworded", {"ifeval-7": ("Another question?", "a")})
    for candidates, fault in [
        (
            {"good": folders["good"], "cool": cooler},
            "cool: sampler setting temperature is 0.0 for cool but 0.7 for good",
        ),
        ({"good": folders["good"], "fewer": fewer}, r"fewer answered other prompts than good \(2 differ; 'ifeval-8'"),
        ({"foreign": foreign}, "prompt 'ifeval-77' is none of .*ifeval.jsonl"),
        ({"reworded": reworded}, "prompt 'ifeval-7' has other words there than in"),
    ]:
        with pytest.raises(DataError, match=fault):
            ifeval(candidates, file, out)
    with pytest.raises(ConfigError, match="candidates: none given"):
        ifeval({}, file, out)
    with pytest.raises(DataError, match="no response of split 'test'"):
        ifeval({"fewer": fewer}, file, out, split="test")
    assert not list(tmp_path.glob("out*"))
