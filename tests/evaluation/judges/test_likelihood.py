"""The likelihood judge, held to a float64 loop over whole rows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from time import sleep
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from lightning_dadpo.data.rows import Message
from lightning_dadpo.errors import ConfigError, DataError
from lightning_dadpo.evaluation.judges import Comparison, LikelihoodJudge, cache
from lightning_dadpo.evaluation.judges.cache import keeping
from lightning_dadpo.evaluation.judges.likelihood import NO_PROMPT
from lightning_dadpo.evaluation.judges.scoring import Answer, KeptScore, _key
from lightning_dadpo.models.spec import ModelSpec
from tests.evaluation.judges.talks import BOTH_ORDERS, COMPARISONS, talk
from tests.oracles import sequence_log_prob
from tests.tiny import END_OF_TURN, SPECIAL_TOKENS


@pytest.fixture(scope="module")
def judge(tiny_folder: Path) -> LikelihoodJudge:
    return LikelihoodJudge(ModelSpec(str(tiny_folder)), tokens_per_batch=300, precision="32-true")


@pytest.fixture(scope="module")
def whole(tiny_folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(tiny_folder).double().eval()


def prompt_ids(tokenizer: Any, messages: Sequence[Message]) -> list[int]:
    """The template by hand: special tokens are single ids, everything between them bytes."""
    begin = SPECIAL_TOKENS.index("<|im_start|>")

    def plain(text: str) -> list[int]:
        return list(tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True))

    turns = [(one.role, one.content) for one in messages]
    if turns[0][0] != "system":
        turns.insert(0, ("system", "You answer in bytes."))
    ids: list[int] = []
    for role, content in turns:
        ids += [begin, *plain(f"{role}\n{content}"), END_OF_TURN, *plain("\n")]
    return [*ids, begin, *plain("assistant\n")]


@torch.no_grad()
def oracle(model: Any, tokenizer: Any, messages: Sequence[Message], response: str) -> float:
    """(log p(y|x) - log p(y|o)) / n, one whole row at a time."""
    answer = [*tokenizer.encode(response, add_special_tokens=False, split_special_tokens=True), END_OF_TURN]
    sums = []
    for conversation in (messages, [Message("user", "")]):
        prompt = prompt_ids(tokenizer, conversation)
        ids = prompt + answer
        logits = model(torch.tensor([ids])).logits[0].tolist()
        sums.append(sequence_log_prob(logits, ids, len(prompt), len(ids))[0])
    return (sums[0] - sums[1]) / len(answer)


def answers(comparisons: Sequence[Comparison]) -> list[Answer]:
    return list(dict.fromkeys((tuple(one.messages), text) for one in comparisons for text in (one.first, one.second)))


def test_scores_are_the_loops(judge: LikelihoodJudge, whole: Any) -> None:
    assert Message("user", "") == NO_PROMPT[0]
    scores = judge.score(answers(COMPARISONS))
    assert len(scores) == 10
    for (messages, response), score in scores.items():
        assert score == pytest.approx(oracle(whole, judge.tokenizer, messages, response), abs=2e-5)
    values = [score for score in scores.values() if score is not None]
    assert max(values) - min(values) > 0.05  # so that the comparison above compares something


def test_the_higher_score_is_preferred_in_both_orders(judge: LikelihoodJudge, whole: Any) -> None:
    verdicts = dict(zip((one.comparison_id for one in BOTH_ORDERS), judge.prefer(BOTH_ORDERS), strict=True))
    for one in COMPARISONS:
        first, second = (oracle(whole, judge.tokenizer, one.messages, text) for text in (one.first, one.second))
        expected = "tie" if one.first == one.second else "first" if first > second else "second"
        assert verdicts[f"{one.comparison_id}/ab"] == expected
        assert verdicts[f"{one.comparison_id}/ba"] == {"tie": "tie", "first": "second", "second": "first"}[expected]
    assert set(verdicts.values()) == {"first", "second", "tie"}
    assert judge.counts() == {"unreadable": 0}


def test_a_margin_makes_ties_up_to_it(judge: LikelihoodJudge, tiny_folder: Path) -> None:
    one = COMPARISONS[1]
    scores = judge.score(answers([one]))
    first, second = scores[tuple(one.messages), one.first], scores[tuple(one.messages), one.second]
    assert first is not None
    assert second is not None
    for margin, expected in ((abs(first - second), "tie"), (abs(first - second) * 0.999, judge.prefer([one])[0])):
        wide = LikelihoodJudge(judge.model, margin, 300, "32-true")
        wide.__dict__["_loaded"] = judge._loaded
        assert wide.prefer([one]) == [expected]
        assert wide.identity() != judge.identity()
        assert wide.scored_by() == judge.scored_by()


def test_what_does_not_fit_is_a_tie_and_counted(judge: LikelihoodJudge, capsys: pytest.CaptureFixture[str]) -> None:
    long = Comparison("long", talk("Go on."), "no" * 300, "no")
    fits = COMPARISONS[0]
    assert judge.prefer([long, fits])[0] == "tie"
    assert judge.counts() == {"unreadable": 1}
    refusing = Comparison("refused", talk("x" * 600), "a", "b")
    capsys.readouterr()
    assert judge.prefer([fits, long, refusing])[1:] == ["tie", "tie"]
    assert judge.counts() == {"unreadable": 2}
    (said,) = capsys.readouterr().out.splitlines()
    assert "cannot read 2 of 3 comparisons (too long " in said
    assert said.endswith("among them 'long'; they count as ties")


def test_cost_counts_each_response_once(judge: LikelihoodJudge) -> None:
    said = judge.cost(BOTH_ORDERS)
    assert "10 responses to read, " in said
    one = [COMPARISONS[0]]
    prompt, empty = (len(prompt_ids(judge.tokenizer, it)) for it in (one[0].messages, [Message("user", "")]))
    # two trees: each its prompt, and both responses with their end of turn, of which the last is never an input
    tokens = prompt + empty + 2 * (len(one[0].first) + len(one[0].second))
    assert f"2 responses to read, {tokens} tokens, on this machine's cpu in 32-true" in judge.cost(one)


class KilledError(RuntimeError):
    pass


def test_a_killed_run_goes_on_from_its_cache(
    judge: LikelihoodJudge, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fresh() -> LikelihoodJudge:
        made = LikelihoodJudge(judge.model, 0.0, 60, "32-true", str(tmp_path / "kept"))
        made.__dict__["_loaded"] = judge._loaded
        return made

    read = LikelihoodJudge.read
    seen: list[Answer] = []

    def dies(self: LikelihoodJudge, some: Sequence[Answer]) -> list[float | None]:
        if len(seen) >= 4:
            raise KilledError
        seen.extend(some)
        return read(self, some)

    monkeypatch.setattr(LikelihoodJudge, "read", dies)
    with pytest.raises(KilledError):
        fresh().prefer(COMPARISONS)
    rows = next((tmp_path / "kept").glob("*/rows.jsonl"))
    with rows.open("a") as file:
        file.write('{"key": "torn')
    kept = len(seen)
    assert 4 <= kept < 10
    assert f"{10 - kept} responses to read ({kept} more are in {tmp_path / 'kept'})" in fresh().cost(COMPARISONS)
    monkeypatch.setattr(LikelihoodJudge, "read", lambda self, some: (seen.extend(some), read(self, some))[1])
    resumed = fresh()
    assert resumed.prefer(COMPARISONS) == judge.prefer(COMPARISONS)
    assert len(seen) == 10 + 10  # the last call is the module's judge, which keeps nothing
    assert len(set(seen[:10])) == 10
    scores, again = resumed.score(answers(COMPARISONS)), judge.score(answers(COMPARISONS))
    assert all(math.isclose(scores[one] or 0, again[one] or 0, abs_tol=1e-5) for one in again)


def test_what_another_process_reads_meanwhile_is_not_read_again(
    judge: LikelihoodJudge, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "BETWEEN_LOOKS", 0.01)
    waiting = LikelihoodJudge(judge.model, 0.0, 60, "32-true", str(tmp_path / "kept"))
    waiting.__dict__["_loaded"] = judge._loaded
    some = answers(COMPARISONS[:2])
    with ThreadPoolExecutor(1) as beside:
        with keeping(waiting.cache, waiting.scored_by()) as keep:
            found = beside.submit(waiting.score, some)
            sleep(0.2)  # it finds nothing kept, and waits
            keep(KeptScore(_key(some[0]), 7.0))
        assert found.result()[some[0]] == 7.0
    assert found.result()[some[1]] == pytest.approx(judge.score(some)[some[1]], abs=1e-5)


def test_ids_without_an_embedding_and_numbers_that_are_none(
    judge: LikelihoodJudge, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(judge._loaded.get_input_embeddings(), "num_embeddings", 100)
    with pytest.raises(DataError, match=r"its tokenizer makes the id \d+, but it knows ids below 100"):
        judge.prefer(COMPARISONS[:1])
    monkeypatch.setattr(LikelihoodJudge, "read", lambda self, some: [math.nan] * len(some))
    with pytest.raises(DataError, match=r"scores the response 'The Danube\.' with nan"):
        judge.prefer(COMPARISONS[:1])


def test_arguments_out_of_range_are_named() -> None:
    for arguments, said in (
        ({"tie_margin": -1.0}, "judge.tie_margin -1.0"),
        ({"tie_margin": math.nan}, "judge.tie_margin nan"),
        ({"tokens_per_batch": 0}, "judge.tokens_per_batch 0: expected at least 1"),
    ):
        with pytest.raises(ConfigError, match=said):
            LikelihoodJudge(ModelSpec("x"), **arguments)  # type: ignore[arg-type]


def test_identity_is_plain_and_changes_with_what_decides(judge: LikelihoodJudge, tmp_path: Path) -> None:
    import json

    assert json.loads(json.dumps(judge.identity())) == judge.identity()
    template = tmp_path / "template.jinja"
    template.write_text(judge.tokenizer.chat_template + " ")
    other = LikelihoodJudge(replace(judge.model, chat_template=str(template)), 0.0, 300, "32-true")
    assert other.identity() != judge.identity()
    assert other.name == judge.name == "likelihood of tiny"
