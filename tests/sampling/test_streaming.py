"""One response token by token: tokens and log-probs as everywhere else, and no broken characters on the way."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_dadpo.data.packing import pack
from lightning_dadpo.data.rows import Message
from lightning_dadpo.errors import DataError
from lightning_dadpo.models.loading import load_frozen
from lightning_dadpo.models.log_probs import model_log_probs
from lightning_dadpo.models.spec import ModelSpec
from lightning_dadpo.sampling import streaming
from lightning_dadpo.sampling.base import SamplerSettings
from lightning_dadpo.sampling.speaker import Speaker
from lightning_dadpo.sampling.streaming import Drawn, StreamedResponse, stream_tokens
from lightning_dadpo.sampling.transformers_sampler import TransformersSampler
from tests.tiny import END_OF_TURN, tiny_tokenizer

PROMPT = [40, 41, 42, 50, 50]
BENT = SamplerSettings(temperature=0.7, top_p=0.9, max_new_tokens=40, seed=3)


@pytest.fixture(scope="module")
def model(tiny_folder: Path) -> Any:
    return load_frozen(ModelSpec(str(tiny_folder)), "32-true")


@pytest.mark.parametrize(
    "settings", [BENT, SamplerSettings(max_new_tokens=1), SamplerSettings(temperature=0, max_new_tokens=9)]
)
def test_tokens_are_those_that_the_stage_draws(model: Any, settings: SamplerSettings) -> None:
    (whole,) = TransformersSampler(model, (END_OF_TURN,), settings).sample([PROMPT], ["key"])
    drawn = list(stream_tokens(model, PROMPT, (END_OF_TURN,), settings, "key"))
    assert [one.token_id for one in drawn] == whole.token_ids
    assert sum(one.log_prob for one in drawn) == pytest.approx(whole.log_prob, rel=1e-6)


@torch.no_grad()
def test_B1_log_probs_are_the_raw_models_whatever_the_sampler_does(model: Any) -> None:
    """Against the one path for log-probs, and against a whole forward pass in float64 token by token."""
    drawn = list(stream_tokens(model, PROMPT, (END_OF_TURN,), BENT, "key"))
    ids = [one.token_id for one in drawn]
    assert len(ids) > 5
    total = sum(one.log_prob for one in drawn)
    assert total == pytest.approx(float(model_log_probs(model, pack([PROMPT], [[ids]])).total), rel=1e-5)
    table = copy.deepcopy(model).double()(torch.tensor([PROMPT + ids])).logits[0].log_softmax(-1)
    for at, one in enumerate(drawn):
        assert one.log_prob == pytest.approx(float(table[len(PROMPT) - 1 + at, one.token_id]), abs=1e-4)


def test_a_response_drawn_between_the_steps_of_another_changes_nothing(model: Any) -> None:
    alone = [list(stream_tokens(model, prompt, (END_OF_TURN,), BENT, "key")) for prompt in (PROMPT, [60])]
    first, second = (stream_tokens(model, prompt, (END_OF_TURN,), BENT, "key") for prompt in (PROMPT, [60]))
    mixed: tuple[list[Drawn], list[Drawn]] = ([], [])
    for _ in range(BENT.max_new_tokens):
        for stream, found in zip((first, second), mixed, strict=True):
            found.extend(one for one in [next(stream, None)] if one is not None)
    assert list(mixed) == alone
    assert torch.is_grad_enabled()
    assert not torch.is_inference_mode_enabled()


def spelling(monkeypatch: pytest.MonkeyPatch, ids: list[int], tokenizer: Any, cap: int = 99) -> StreamedResponse:
    """A response whose tokens are these."""

    def scripted(*_: Any) -> Iterator[Drawn]:
        yield from (Drawn(token, -1.0) for token in ids)

    monkeypatch.setattr(streaming, "stream_tokens", scripted)
    return StreamedResponse(None, tokenizer, PROMPT, (END_OF_TURN,), SamplerSettings(max_new_tokens=cap), "key")


def test_no_character_is_shown_before_all_its_bytes_are_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer, text = tiny_tokenizer(tmp_path), "Zürich, 日本語, 🙂👩‍🔬!"
    response = spelling(monkeypatch, [*tokenizer.encode(text), END_OF_TURN], tokenizer)
    shown = []
    while response.finish_reason is None:
        response.step()
        shown.append(response.text)
    assert response.text == text
    assert response.finish_reason == "stop"
    assert response.log_prob == -len(response.token_ids) == -len(text.encode()) - 1
    assert all(text.startswith(piece) for piece in shown)
    assert len(set(shown)) == len(text)  # each of them as soon as it is whole
    response.step()
    assert response.text == text


def test_what_is_cut_inside_a_character_ends_before_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = tiny_tokenizer(tmp_path)
    ids = tokenizer.encode("ab🙂")
    response = spelling(monkeypatch, ids, tokenizer, cap=5)
    for _ in range(5):
        response.step()
    assert (response.text, response.finish_reason, response.token_ids) == ("ab", "length", ids[:5])


def test_bytes_that_are_no_character_are_shown_when_the_answer_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = tiny_tokenizer(tmp_path)
    broken = tokenizer.encode("🙂")[:2]
    response = spelling(monkeypatch, [*broken, *tokenizer.encode("a"), *broken, END_OF_TURN], tokenizer)
    seen = []
    while response.finish_reason is None:
        response.step()
        seen.append(response.text)
    assert seen == ["", "", "\ufffda", "\ufffda", "\ufffda", "\ufffda\ufffd"]


def test_a_decoder_that_takes_a_character_back_does_not_flicker(monkeypatch: pytest.MonkeyPatch) -> None:
    """Byte fallback shows all bytes of a run as broken until the whole run is valid."""

    class Fallback:
        said = ("é", "\ufffd\ufffd\ufffd", "é€")

        def decode(self, ids: list[int], skip_special_tokens: bool) -> str:
            return self.said[len(ids) - 1]

    response = spelling(monkeypatch, [7, 8, 9], Fallback())
    seen = []
    for _ in range(3):
        response.step()
        seen.append(response.text)
    assert seen == ["é", "é", "é€"]


def test_a_conversation_that_fills_the_context_is_refused_and_one_near_it_is_cut(tiny_folder: Path) -> None:
    speaker = Speaker("teacher", ModelSpec(str(tiny_folder)), "32-true")
    question = [Message("user", "x" * 420)]
    response = speaker.answer(question, SamplerSettings(max_new_tokens=10_000))
    room = 512 - len(response.prompt_token_ids)
    assert room > 0
    while response.finish_reason is None:
        response.step()
    assert len(response.token_ids) <= room
    with pytest.raises(DataError, match=r"teacher: the conversation has 5\d\d tokens and it reads 512; shorten it"):
        speaker.answer([Message("user", "x" * 500)], SamplerSettings())


def test_the_same_conversation_is_answered_alike_and_another_or_another_seed_is_not(tiny_folder: Path) -> None:
    speaker = Speaker("teacher", ModelSpec(str(tiny_folder)), "32-true")

    def said(question: str, seed: int) -> list[int]:
        response = speaker.answer([Message("user", question)], SamplerSettings(max_new_tokens=8, seed=seed))
        while response.finish_reason is None:
            response.step()
        return response.token_ids

    first = said("a", 0)
    assert said("a", 0) == first
    assert said("a", 1) != first
    assert said("b", 0) != first
