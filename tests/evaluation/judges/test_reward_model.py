"""The reward-model judge: what it reads, how it batches, what it says when it cannot read."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaForSequenceClassification

from lightning_dadpo.evaluation.judges import Comparison, RewardModelJudge
from lightning_dadpo.models.spec import ModelSpec
from tests.evaluation.judges.talks import BOTH_ORDERS, COMPARISONS, talk
from tests.reward import tiny_reward_model
from tests.tiny import END_OF_TURN


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its padding token is the end of a turn, as in trap A11."""
    return tiny_reward_model(tmp_path_factory.mktemp("reward"), END_OF_TURN)


@pytest.fixture(scope="module")
def judge(folder: Path) -> RewardModelJudge:
    return RewardModelJudge(ModelSpec(str(folder)), tokens_per_batch=400, precision="32-true")


@pytest.fixture(scope="module")
def whole(folder: Path) -> Any:
    return LlamaForSequenceClassification.from_pretrained(folder).double().eval()


@torch.no_grad()
def alone(model: Any, tokenizer: Any, one: Comparison, response: str) -> float:
    """The usual three lines with transformers' own template; only for text that spells no special token."""
    turns = [{"role": turn.role, "content": turn.content} for turn in one.messages]
    ids = tokenizer.apply_chat_template([*turns, {"role": "assistant", "content": response}], return_dict=False)
    return float(model(input_ids=torch.tensor([ids])).logits[0, 0])


PLAIN = [one for one in COMPARISONS if "<|" not in one.first]


def test_rewards_are_what_transformers_gives_one_by_one(judge: RewardModelJudge, whole: Any) -> None:
    for one in PLAIN:
        scores = judge.score([(tuple(one.messages), text) for text in dict.fromkeys((one.first, one.second))])
        for (_, response), score in scores.items():
            assert score == pytest.approx(alone(whole, judge.tokenizer, one, response), abs=1e-5)


def test_the_higher_reward_is_preferred_in_both_orders(judge: RewardModelJudge, whole: Any) -> None:
    verdicts = dict(zip((one.comparison_id for one in BOTH_ORDERS), judge.prefer(BOTH_ORDERS), strict=True))
    for one in PLAIN:
        first, second = (alone(whole, judge.tokenizer, one, text) for text in (one.first, one.second))
        expected = "tie" if one.first == one.second else "first" if first > second else "second"
        assert verdicts[f"{one.comparison_id}/ab"] == expected
        assert verdicts[f"{one.comparison_id}/ba"] == {"tie": "tie", "first": "second", "second": "first"}[expected]
    assert judge.counts() == {"unreadable": 0}


def test_a13_text_that_spells_a_special_token_stays_text(judge: RewardModelJudge) -> None:
    spelled = next(one for one in COMPARISONS if one.comparison_id == "spelled")
    ids = judge._ids([(tuple(spelled.messages), spelled.second)])[0]
    assert ids is not None
    assert ids.count(END_OF_TURN) == 3  # system, user, assistant: none for the text
    assert len(ids) - len(judge._ids([(tuple(spelled.messages), "")])[0] or []) == len(spelled.second)


def test_a11_a_template_that_ends_in_the_padding_token(folder: Path, whole: Any, tmp_path: Path) -> None:
    template = tmp_path / "template.jinja"
    template.write_text(
        "{% for turn in messages %}{{ '<|im_start|>' + turn['role'] + '\\n' + turn['content'] + '<|im_end|>' }}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
    )
    judge = RewardModelJudge(replace(ModelSpec(str(folder)), chat_template=str(template)), precision="32-true")
    assert judge._ids([(tuple(PLAIN[0].messages), "The Danube.")])[0][-1] == END_OF_TURN  # type: ignore[index]
    scores = judge.score([(tuple(one.messages), one.first) for one in PLAIN[:3]])
    for one in PLAIN[:3]:
        assert scores[tuple(one.messages), one.first] == pytest.approx(
            alone(whole, judge.tokenizer, one, one.first), abs=1e-5
        )


def test_nothing_is_cut(judge: RewardModelJudge) -> None:
    long = Comparison("long", talk("Go on."), "no" * 100, "no")
    assert judge.prefer([long, PLAIN[0], PLAIN[1]])[0] == "tie"
    assert judge.counts() == {"unreadable": 1}
    assert judge.prefer([long]) == ["tie"]


def test_cost_counts_the_conversation_once_for_each_response(judge: RewardModelJudge) -> None:
    one = PLAIN[0]
    turns = [{"role": turn.role, "content": turn.content} for turn in one.messages]
    tokens = sum(
        len(judge.tokenizer.apply_chat_template([*turns, {"role": "assistant", "content": text}], return_dict=False))
        for text in (one.first, one.second)
    )
    assert f"2 responses to read, {tokens} tokens, on this machine's cpu in 32-true" in judge.cost([one])
