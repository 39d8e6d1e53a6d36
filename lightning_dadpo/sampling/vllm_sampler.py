"""Sampling through vLLM's offline `LLM` class: for GPUs, where its kernels and its scheduler are hard to beat.

Tested against a fake of the module only, which checks what it is asked for: vLLM does not install where the tests run.
What vLLM does not promise: its kernels add up in another order in other company, so that with the same seed a text
can part ways at a near-tie (set VLLM_BATCH_INVARIANT=1 where the GPU supports it). Rows that were written stay.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from lightning_dadpo.errors import ConfigError, DataError
from lightning_dadpo.models.spec import ModelSpec, Precision, refuse_quantized
from lightning_dadpo.sampling.base import Sampled, SamplerSettings, nothing, prompt_seed

__all__ = ["VllmSampler", "vllm_module"]

DTYPES = {"32-true": "float32", "bf16-true": "bfloat16"}
LOWEST_TEMPERATURE = 0.01
"""vLLM raises any lower one to this, 0 excepted."""


def vllm_module() -> Any:
    """The package.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        return importlib.import_module("vllm")
    except ImportError as error:
        raise ConfigError(
            f"backend vllm: cannot import the package vllm ({error}); pip install 'lightning-dadpo[vllm]', "
            "or take backend: transformers"
        ) from error


class VllmSampler:
    """A `Sampler` over vLLM.

    Args:
        model: loaded by vLLM itself.
        precision: 32-true or bf16-true.
        end_of_turn_ids: ids that end a response; they alone do.
        settings: how to draw.
        batch_size: responses drawn at a time.

    Raises:
        ConfigError: vLLM is not installed, or cannot do what is asked.
    """

    def __init__(
        self,
        model: ModelSpec,
        precision: Precision,
        end_of_turn_ids: tuple[int, ...],
        settings: SamplerSettings,
        batch_size: int = 32,
    ) -> None:
        _refuse(model, precision, settings)
        self.vllm, self.end_of_turn_ids, self.settings = vllm_module(), end_of_turn_ids, settings
        self.engine = self.vllm.LLM(
            model=model.location(),
            tokenizer=model.location(),
            revision=model.revision,
            tokenizer_revision=model.revision,
            trust_remote_code=model.trust_remote_code,
            dtype=DTYPES[precision],
            max_num_seqs=batch_size,
            seed=0,  # of the engine; every prompt has its own
            generation_config="vllm",  # not the model's own defaults (trap A9)
            logprobs_mode="raw_logprobs",  # temperature 1, nothing cut off
        )

    def sample(
        self, prompt_ids: list[list[int]], keys: list[str], advance: Callable[[int], None] = nothing
    ) -> list[Sampled]:
        """One response a prompt, in the order given; `advance` is told when all are there.

        Raises:
            DataError: vLLM did not answer what it was asked.
        """
        prompts = [self.vllm.TokensPrompt(prompt_token_ids=ids) for ids in prompt_ids]
        outputs = self.engine.generate(prompts, [self._parameters(key) for key in keys], use_tqdm=False)
        if [list(output.prompt_token_ids) for output in outputs] != prompt_ids:
            raise DataError("vLLM did not answer the prompts that it was given, in their order")
        responses = [self._sampled(key, output.outputs[0]) for key, output in zip(keys, outputs, strict=True)]
        advance(len(responses))
        return responses

    def _parameters(self, key: str) -> Any:
        """Every parameter that bends the distribution or ends a response, said."""
        return self.vllm.SamplingParams(
            n=1,
            temperature=self.settings.temperature,
            top_p=self.settings.top_p,
            top_k=-1,
            min_p=0.0,
            presence_penalty=0.0,
            frequency_penalty=0.0,
            repetition_penalty=1.0,
            seed=prompt_seed(self.settings.seed, key),
            max_tokens=self.settings.max_new_tokens,
            min_tokens=0,
            stop=None,
            stop_token_ids=list(self.end_of_turn_ids),
            ignore_eos=True,  # the list above says it all
            logprobs=1,
            detokenize=False,
        )

    def _sampled(self, key: str, answer: Any) -> Sampled:
        token_ids = [int(token) for token in answer.token_ids]
        ended = bool(token_ids) and token_ids[-1] in self.end_of_turn_ids
        reason = answer.finish_reason
        if not token_ids or reason not in ("stop", "length") or ended != (reason == "stop"):
            raise DataError(
                f"vLLM ended the response to prompt {key!r} with {reason!r} behind {token_ids[-3:]}; "
                f"expected 'stop' behind one of {list(self.end_of_turn_ids)}, or 'length'"
            )
        if answer.logprobs is None or len(answer.logprobs) != len(token_ids):
            raise DataError(f"vLLM returned no log-prob for every token of the response to prompt {key!r}")
        found = zip(token_ids, answer.logprobs, strict=True)
        return Sampled(token_ids, reason, sum(float(candidates[token].logprob) for token, candidates in found))


def _refuse(model: ModelSpec, precision: Precision, settings: SamplerSettings) -> None:
    if precision not in DTYPES:
        raise ConfigError(f"precision {precision}: vLLM has no autocast; expected {' or '.join(DTYPES)}")
    if model.gguf_file is not None:
        raise ConfigError("backend vllm: gguf_file is not supported there; expected a folder with safetensors")
    refuse_quantized(model, "vLLM is given whole weights")
    if 0 < settings.temperature < LOWEST_TEMPERATURE:
        raise ConfigError(
            f"temperature {settings.temperature}: vLLM would raise it; expected 0, or at least {LOWEST_TEMPERATURE}"
        )
