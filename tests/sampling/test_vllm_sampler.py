"""What vLLM is asked for, and what is made of its answers. The module is a fake: vLLM does not install everywhere.

The fake takes the arguments that vLLM's `LLM`, `TokensPrompt` and `SamplingParams` have, and no others, and answers
in the shape of its `RequestOutput`.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, ClassVar

import pytest

from lightning_dadpo.data.artifacts import read_manifest
from lightning_dadpo.data.prompts import PromptFile
from lightning_dadpo.data.rows import ResponseRow, read_rows
from lightning_dadpo.errors import ArtifactError, ConfigError, DataError
from lightning_dadpo.models.spec import ModelSpec
from lightning_dadpo.sampling.base import SamplerSettings, prompt_seed
from lightning_dadpo.sampling.stage import sample
from lightning_dadpo.sampling.vllm_sampler import VllmSampler
from tests.tiny import END_OF_TURN

SETTINGS = SamplerSettings(temperature=0.7, top_p=0.9, max_new_tokens=6, seed=5)


@dataclass
class SamplingParams:
    """vLLM's defaults stand here, so that what we leave unsaid would show."""

    n: int = 1
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    stop: list[str] | None = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool = False
    max_tokens: int | None = 16
    min_tokens: int = 0
    logprobs: int | None = None
    detokenize: bool = True


class LLM:
    """Answers each prompt from its seed alone: 3, 4, 5 ... up to the cap, or an end of turn for an even seed."""

    made: ClassVar[list[LLM]] = []

    def __init__(
        self, model: str, *, tokenizer: str, revision: str | None, tokenizer_revision: str | None,
        trust_remote_code: bool, dtype: str, max_num_seqs: int, seed: int, generation_config: str, logprobs_mode: str,
    ) -> None:  # fmt: skip
        self.said = dict(locals())
        self.calls: list[tuple[list[Any], list[SamplingParams]]] = []
        LLM.made.append(self)

    def generate(self, prompts: list[Any], sampling_params: list[SamplingParams], *, use_tqdm: bool) -> list[Any]:
        assert len(prompts) == len(sampling_params)
        self.calls.append((prompts, sampling_params))
        return [self.answer(*both) for both in zip(prompts, sampling_params, strict=True)]

    def answer(self, prompt: dict[str, list[int]], asked: SamplingParams) -> Any:
        assert asked.seed is not None
        assert asked.max_tokens is not None
        assert asked.stop_token_ids is not None
        ends = asked.seed % 2 == 0
        token_ids = [3, 4, *asked.stop_token_ids[:1]] if ends else list(range(3, 3 + asked.max_tokens))
        one = SimpleNamespace(
            token_ids=token_ids,
            finish_reason="stop" if ends else "length",
            # the sampled token and the likeliest one, as `logprobs=1` gives them
            logprobs=[{77: SimpleNamespace(logprob=-0.1), t: SimpleNamespace(logprob=-float(t))} for t in token_ids],
        )
        return SimpleNamespace(prompt_token_ids=prompt["prompt_token_ids"], outputs=[one], finished=True)


@dataclass
class Fake:
    module: ModuleType
    engines: list[LLM] = field(default_factory=list)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Fake:
    module = ModuleType("vllm")
    for name, value in {
        "LLM": LLM,
        "SamplingParams": SamplingParams,
        "TokensPrompt": lambda *, prompt_token_ids: {"prompt_token_ids": prompt_token_ids},
        "__version__": "0.32.0",
    }.items():
        setattr(module, name, value)
    monkeypatch.setitem(sys.modules, "vllm", module)
    monkeypatch.setattr(LLM, "made", [])
    return Fake(module, LLM.made)


def sampler(model: Path, settings: SamplerSettings = SETTINGS, **arguments: Any) -> VllmSampler:
    spec = arguments.pop("spec", ModelSpec(str(model), revision="main"))
    return VllmSampler(spec, arguments.pop("precision", "bf16-true"), (END_OF_TURN, 9), settings, batch_size=64)


def test_A9_every_sampling_parameter_is_said_and_the_models_own_defaults_are_off(fake: Fake, tiny_folder: Path) -> None:
    sampler(tiny_folder).sample([[1, 2], [3]], ["a", "b"])
    (engine,) = fake.engines
    folder = str(tiny_folder)
    assert {key: value for key, value in engine.said.items() if key != "self"} == {
        "model": folder, "tokenizer": folder, "revision": "main", "tokenizer_revision": "main",
        "trust_remote_code": False, "dtype": "bfloat16", "max_num_seqs": 64, "seed": 0,
        "generation_config": "vllm", "logprobs_mode": "raw_logprobs",
    }  # fmt: skip
    ((prompts, asked),) = engine.calls
    assert prompts == [{"prompt_token_ids": [1, 2]}, {"prompt_token_ids": [3]}]  # ids, never text (traps A1, A4)
    assert asked[0] == SamplingParams(
        n=1, presence_penalty=0.0, frequency_penalty=0.0, repetition_penalty=1.0, temperature=0.7, top_p=0.9,
        top_k=-1, min_p=0.0, seed=prompt_seed(5, "a"), stop=None, stop_token_ids=[END_OF_TURN, 9], ignore_eos=True,
        max_tokens=6, min_tokens=0, logprobs=1, detokenize=False,
    )  # fmt: skip


def test_a_prompts_seed_is_its_own_whatever_the_company(fake: Fake, tiny_folder: Path) -> None:
    first = sampler(tiny_folder)
    together = first.sample([[1], [2], [3]], ["a", "b", "c"])
    assert first.sample([[3], [1]], ["c", "a"]) == [together[2], together[0]]
    seeds = [one.seed for _, asked in fake.engines[0].calls for one in asked]
    assert seeds[3:] == [seeds[2], seeds[0]]
    assert len(set(seeds[:3])) == 3
    assert all(seed is not None and 0 <= seed < 2**63 for seed in seeds)


def test_A7_the_end_of_turn_stays_and_a_capped_response_gains_none(fake: Fake, tiny_folder: Path) -> None:
    keys = ["a", "b", "c", "d", "e", "f"]
    rows = sampler(tiny_folder).sample([[1]] * 6, keys)
    assert {row.finish_reason for row in rows} == {"stop", "length"}
    for key, row in zip(keys, rows, strict=True):
        even = prompt_seed(5, key) % 2 == 0
        assert row.token_ids == ([3, 4, END_OF_TURN] if even else [3, 4, 5, 6, 7, 8])
        assert row.finish_reason == ("stop" if even else "length")


def test_the_log_prob_is_the_sum_over_the_sampled_tokens_not_over_the_likeliest(fake: Fake, tiny_folder: Path) -> None:
    for row in sampler(tiny_folder).sample([[1]] * 4, ["a", "b", "c", "d"]):
        assert row.log_prob == pytest.approx(-sum(row.token_ids))


def test_progress_is_told_of_every_response(fake: Fake, tiny_folder: Path) -> None:
    counted: list[int] = []
    sampler(tiny_folder).sample([[1], [2]], ["a", "b"], counted.append)
    assert sum(counted) == 2


@pytest.mark.parametrize(
    ("defect", "message"),
    [
        ({"token_ids": [3, 4], "finish_reason": "stop"}, r"prompt 'a' with 'stop' behind \[3, 4\]"),  # its end cut off
        ({"token_ids": [3, END_OF_TURN], "finish_reason": "length"}, "prompt 'a' with 'length'"),
        ({"token_ids": [3], "finish_reason": "abort"}, "prompt 'a' with 'abort'"),
        ({"token_ids": [], "finish_reason": "stop"}, "prompt 'a' with 'stop' behind \\[\\]"),
        ({"token_ids": [3, 4], "finish_reason": "length", "logprobs": None}, "no log-prob for every token .* 'a'"),
        ({"token_ids": [3, 4], "finish_reason": "length", "logprobs": [{}]}, "no log-prob for every token .* 'a'"),
    ],
)
def test_an_answer_that_is_not_whole_is_refused(
    fake: Fake, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch, defect: dict[str, Any], message: str
) -> None:
    whole = LLM.answer

    def broken(self: LLM, prompt: Any, asked: SamplingParams) -> Any:
        output = whole(self, prompt, asked)
        vars(output.outputs[0]).update(defect)
        return output

    monkeypatch.setattr(LLM, "answer", broken)
    with pytest.raises(DataError, match=message):
        sampler(tiny_folder).sample([[1]], ["a"])


def test_answers_in_another_order_are_refused(fake: Fake, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    generate = LLM.generate
    monkeypatch.setattr(LLM, "generate", lambda *all_of, **named: generate(*all_of, **named)[::-1])
    with pytest.raises(DataError, match="in their order"):
        sampler(tiny_folder).sample([[1], [2]], ["a", "b"])


def test_what_vllm_cannot_do_is_refused_before_it_loads(fake: Fake, tiny_folder: Path) -> None:
    with pytest.raises(ConfigError, match="precision bf16-mixed: vLLM has no autocast; expected 32-true or bf16-true"):
        sampler(tiny_folder, precision="bf16-mixed")
    with pytest.raises(ConfigError, match="gguf_file is not supported there"):
        sampler(tiny_folder, spec=ModelSpec(str(tiny_folder), gguf_file="x.gguf"))
    with pytest.raises(ConfigError, match=r"temperature 0\.005: vLLM would raise it; expected 0, or at least 0\.01"):
        sampler(tiny_folder, SamplerSettings(temperature=0.005))
    assert fake.engines == []
    sampler(tiny_folder, SamplerSettings(temperature=0.0))


def write_prompts(path: Path) -> dict[str, PromptFile]:
    rows = [{"prompt_id": name, "messages": [{"role": "user", "content": name}]} for name in ("one", "two")]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return {"train": PromptFile(str(path))}


def test_the_stage_samples_through_vllm_and_says_so_in_what_it_was_made_from(
    fake: Fake, tiny_folder: Path, tmp_path: Path
) -> None:
    prompts, spec = write_prompts(tmp_path / "prompts.jsonl"), ModelSpec(str(tiny_folder))
    folder = sample(spec, prompts, str(tmp_path / "out"), SETTINGS, precision="32-true", backend="vllm")
    rows = list(read_rows(folder / "rows.jsonl", ResponseRow))
    assert {row.prompt_id: row.token_ids[:2] for row in rows} == {"one": [3, 4], "two": [3, 4]}
    assert read_manifest(folder, "responses").made_from["backend"] == "vllm 0.32.0 32-true"
    assert fake.engines[0].said["dtype"] == "float32"
    asked = [one for _, parameters in fake.engines[0].calls for one in parameters]
    assert all(one.stop_token_ids == [END_OF_TURN] for one in asked)
    with pytest.raises(ArtifactError, match=r"vllm 0\.32\.0 32-true.*transformers sdpa 32-true"):
        sample(spec, prompts, str(folder), SETTINGS, precision="32-true")


def test_a_missing_vllm_is_one_line_that_says_how_to_get_it(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    prompts = write_prompts(tmp_path / "prompts.jsonl")
    with pytest.raises(ConfigError, match=r"backend vllm: .*pip install 'lightning-dadpo\[vllm\]'") as caught:
        sample(ModelSpec(str(tiny_folder)), prompts, str(tmp_path / "out"), SETTINGS, backend="vllm")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out.partial").exists()
