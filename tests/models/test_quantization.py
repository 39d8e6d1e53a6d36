"""Frozen models in 8 and 4 bits: held to what their rounded weights are, each by hand, on the CPU."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_dadpo.data.packing import pack
from lightning_dadpo.errors import ConfigError
from lightning_dadpo.models import quantization
from lightning_dadpo.models.export import export_model
from lightning_dadpo.models.loading import count_parameters, load_frozen, load_model, model_digest
from lightning_dadpo.models.log_probs import model_log_probs
from lightning_dadpo.models.quantization import quantized_bytes
from lightning_dadpo.models.spec import ModelSpec, Quantization
from lightning_dadpo.sampling.base import SamplerSettings
from lightning_dadpo.sampling.vllm_sampler import VllmSampler
from lightning_dadpo.training.supervised import SupervisedModule
from tests.tiny import tiny_model

bitsandbytes = pytest.importorskip(
    "bitsandbytes", reason="bitsandbytes is not installed: pip install 'lightning-dadpo[quantize]'"
)
KINDS: tuple[Quantization, ...] = ("int8", "nf4")
NF4 = (
    -1.0, -0.6961928, -0.5250731, -0.3949175, -0.2844414, -0.1847734, -0.0910500, 0.0,
    0.0795803, 0.1609302, 0.2461123, 0.3379152, 0.4407098, 0.5626170, 0.7229568, 1.0,
)  # fmt: skip
"""The numbers of NF4 (arXiv 2305.14314, appendix E)."""


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> ModelSpec:
    return ModelSpec(str(tiny_model(tmp_path_factory.mktemp("models") / "whole", layers=2, hidden=64)))


def linear_layers(model: nn.Module) -> dict[str, nn.Linear]:
    return {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear) and name != "lm_head"}


def rounded(weight: Tensor, kind: Quantization) -> Tensor:
    """By hand, in float64: the constants of NF4's blocks whole, not rounded once more as bitsandbytes does."""
    if kind == "int8":
        sixteen_bit = weight.half().double()  # as bitsandbytes reads it
        step = sixteen_bit.abs().amax(1, keepdim=True) / 127
        return (sixteen_bit / step).round() * step
    blocks = weight.double().reshape(-1, 64)
    most = blocks.abs().amax(1, keepdim=True)
    levels = torch.tensor(NF4, dtype=torch.float64)
    return (levels[(blocks / most)[..., None].sub(levels).abs().argmin(-1)] * most).reshape(weight.shape)


@pytest.mark.parametrize("kind", KINDS)
def test_each_layer_multiplies_with_its_rounded_weights_and_rounds_nothing_else(
    spec: ModelSpec, kind: Quantization
) -> None:
    """Planted: bitsandbytes' own 8-bit product rounds the states too, to 1 part in 127."""
    whole, held = load_model(spec), load_frozen(replace(spec, quantize=kind), "32-true")
    states = torch.randn(5, 64, generator=torch.Generator().manual_seed(0))
    states[3, 7] = 30.0  # beyond what bitsandbytes calls an outlier
    for name, layer in linear_layers(whole).items():
        if layer.in_features == 64:
            found = held.get_submodule(name)(states).double()
            expected = states.double() @ rounded(layer.weight.detach(), kind).T
            error = (found - expected).norm() / expected.norm()
            assert error < (1e-3 if kind == "int8" else 5e-3), name  # a tie that fell otherwise; rounded constants
            assert (found - states.double() @ layer.weight.double().T).norm() / expected.norm() > error
    for name in ("model.embed_tokens", "lm_head", "model.norm"):
        assert torch.equal(held.get_submodule(name).weight, whole.get_submodule(name).weight)
    assert count_parameters(held) == count_parameters(whole)


@pytest.mark.parametrize("kind", KINDS)
def test_B8_a_log_prob_does_not_depend_on_its_neighbours(spec: ModelSpec, kind: Quantization) -> None:
    """Planted: with bitsandbytes' own 8-bit product a response moves by 0.1 nats here, and by 3 in SmolLM2-135M."""
    model = load_frozen(replace(spec, quantize=kind), "32-true")
    generator = torch.Generator().manual_seed(1)
    prompts, responses = (
        [torch.randint(3, 250, (int(n),), generator=generator).tolist() for n in torch.randint(4, 30, (6,))]
        for _ in range(2)
    )
    together = model_log_probs(model, pack(prompts, [[one] for one in responses])).total
    alone = [
        model_log_probs(model, pack([prompt], [[one]])).total for prompt, one in zip(prompts, responses, strict=True)
    ]
    assert torch.allclose(together, torch.cat(alone), rtol=1e-5, atol=1e-4)


def test_C1_a_quantised_model_is_another_one_than_the_whole_one(spec: ModelSpec) -> None:
    digests = [model_digest(replace(spec, quantize=kind)) for kind in (None, *KINDS)]
    assert len(set(digests)) == 3
    names = [model_digest(ModelSpec("some/name", quantize=kind)) for kind in (None, *KINDS)]
    assert len(set(names)) == 3


def test_4_bits_are_warned_of_with_what_was_measured(spec: ModelSpec, capsys: pytest.CaptureFixture[str]) -> None:
    load_frozen(replace(spec, quantize="nf4"), "32-true")
    assert quantization.NF4_NOISE in capsys.readouterr().err
    load_frozen(replace(spec, quantize="int8"), "32-true")
    assert "warning" not in capsys.readouterr().err


@pytest.mark.parametrize("kind", KINDS)
def test_the_bytes_of_the_layers_are_those_that_are_there(spec: ModelSpec, kind: Quantization) -> None:
    held = load_model(replace(spec, quantize=kind))
    found = 0
    for layer in linear_layers(held).values():
        found += layer.weight.nbytes
        if kind == "int8":
            found += layer.weight.SCB.nbytes
        else:
            state = layer.weight.quant_state
            found += state.absmax.nbytes + state.state2.absmax.nbytes
    layers = linear_layers(load_model(spec)).values()
    # the layers here are smaller than what shares one constant of constants
    assert quantized_bytes(kind, layers) == pytest.approx(found, rel=0.02)


def test_what_cannot_be_done_with_rounded_weights_is_one_line(
    spec: ModelSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = replace(spec, quantize="nf4")
    with pytest.raises(ConfigError, match="quantize nf4: weights of a student are trained"):
        SupervisedModule(held)
    with pytest.raises(ConfigError, match="quantize nf4: a folder holds whole weights; leave it out"):
        export_model(held, str(tmp_path / "out"))
    with pytest.raises(ConfigError, match="quantize nf4: vLLM is given whole weights"):
        VllmSampler(held, "32-true", (2,), SamplerSettings())
    with pytest.raises(ConfigError, match="quantize nf4: needs its weights as safetensors, not GGUF"):
        ModelSpec(spec.path, gguf_file="x.gguf", quantize="nf4")
    with pytest.raises(ConfigError, match="quantize 'int4': expected int8 or nf4"):
        ModelSpec(spec.path, quantize="int4")  # type: ignore[arg-type]
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(ConfigError, match=r"quantize nf4 needs the package bitsandbytes \(pip install"):
        load_model(held)


def test_what_transformers_is_told(spec: ModelSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    told: dict[str, Any] = {}
    monkeypatch.setattr(quantization.transformers, "BitsAndBytesConfig", lambda **said: told.update(said))
    found = quantization.quantization_arguments("nf4", torch.device("cuda", 1), torch.bfloat16)
    assert found["device_map"] == {"": torch.device("cuda", 1)}
    assert told == {
        "load_in_4bit": True,
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": True,
        "bnb_4bit_compute_dtype": torch.bfloat16,
    }
