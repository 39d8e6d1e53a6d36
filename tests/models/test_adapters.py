"""LoRA adapters on a model: the formula, what trains, and the model as it was before its first step."""

from __future__ import annotations

import copy
import sys
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_dadpo.data.packing import pack
from lightning_dadpo.errors import ConfigError, DataError
from lightning_dadpo.models import quantization
from lightning_dadpo.models.adapters import as_it_started, attach_adapter, describe_adapter, is_trained_weight
from lightning_dadpo.models.loading import load_model, model_digest
from lightning_dadpo.models.log_probs import check_trunk_and_head, model_log_probs
from lightning_dadpo.models.pruning import decoder_layers
from lightning_dadpo.models.spec import AdapterSpec, ModelSpec
from lightning_dadpo.models.stored_adapters import merge_adapter, read_adapter
from tests.tiny import tiny_model

BATCH = pack([[1, 5, 6], [1, 9]], [[[7, 8, 2], [7, 30, 31, 2]], [[40, 41, 2], [50, 2]]])


def adapted(folder: Path, **settings: Any) -> Any:
    """The tiny model with an adapter, in eval mode."""
    model = load_model(ModelSpec(str(folder)))
    attach_adapter(model, AdapterSpec(**settings), ModelSpec(str(folder)))
    return model.eval()


def shake(model: Any, seed: int = 0) -> dict[str, Tensor]:
    """Random numbers for A and B, as if they had been trained; returns them by their keys in a checkpoint."""
    generator = torch.Generator().manual_seed(seed)
    weights = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    with torch.no_grad():
        for parameter in weights.values():
            parameter.copy_(0.05 * torch.randn(parameter.shape, generator=generator))
    return {f"student.{name}": parameter.detach().clone() for name, parameter in weights.items()}


def checkpoint(path: Path, folder: Path, model: Any, **settings: Any) -> str:
    """What `dadpo fit` would have written of it."""
    base = ModelSpec(str(folder))
    said = {"student": asdict(base), "adapter": describe_adapter(AdapterSpec(**settings), base)}
    torch.save({"state_dict": shake(model), "dadpo": said}, path)
    return str(path)


def log_probs(model: Any) -> Tensor:
    with torch.no_grad():
        return model_log_probs(model, BATCH).total


@pytest.mark.parametrize("targets", ["all-linear", ["q_proj", "down_proj"], ["model.layers.1.self_attn.v_proj"]])
def test_the_formula_in_float64_against_weights_made_by_hand(tiny_folder: Path, targets: Any) -> None:
    """W + alpha / r B A for every target, with alpha / r = 5 / 3."""
    model = adapted(tiny_folder, rank=3, alpha=5.0, targets=targets).double()
    weights = shake(model)
    plain = load_model(ModelSpec(str(tiny_folder))).double()
    layers = {key.removeprefix("student.").removesuffix(".lora_A.trained.weight") for key in weights if "lora_A" in key}
    expected = {"all-linear": 28, "q_proj": 8}.get(targets if isinstance(targets, str) else targets[0], 1)
    assert len(layers) == expected  # 7 in each of 4 layers, or 2 of them
    before = log_probs(plain)
    with torch.no_grad():
        for name in layers:
            a, b = (weights[f"student.{name}.lora_{side}.trained.weight"] for side in "AB")
            product = torch.zeros(b.shape[0], a.shape[1], dtype=torch.float64)
            for row in range(3):
                product += torch.outer(b[:, row], a[row])
            plain.get_submodule(name).weight += product * 5 / 3
    assert log_probs(model).dtype == torch.float64
    assert torch.allclose(log_probs(model), log_probs(plain), rtol=1e-12, atol=1e-12)
    assert (log_probs(plain) - before).abs().max() > 1e-3  # or the comparison says little


def test_a_fresh_adapter_changes_nothing_to_the_bit_and_the_model_stays_what_it_was(tiny_folder: Path) -> None:
    plain, model = load_model(ModelSpec(str(tiny_folder))), adapted(tiny_folder)
    assert torch.equal(log_probs(plain), log_probs(model))
    assert type(model) is type(plain)
    assert model.kernels == plain.kernels
    assert len(decoder_layers(model)) == 4
    assert type(model.get_output_embeddings()).__name__ == "AskedHead"
    shake(model)
    check_trunk_and_head(model, "tiny")  # packed trees and whole rows agree, adapter included


def test_only_A_and_B_are_trained_and_the_start_weights_get_no_gradient(tiny_folder: Path) -> None:
    model = adapted(tiny_folder, rank=2)
    shake(model)
    model_log_probs(model, BATCH).total.sum().backward()
    with_gradient = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert with_gradient == {name for name, _ in model.named_parameters() if is_trained_weight(name)}
    assert len(with_gradient) == 2 * 28
    assert not is_trained_weight("student.model.layers.0.self_attn.q_proj.base_layer.weight")


def test_A_depends_on_the_seed_alone_and_the_random_state_is_left_as_it_was(tiny_folder: Path) -> None:
    found = []
    for drawn in (0, 7):  # one rank has drawn while it was loading, another has not
        torch.manual_seed(3)
        torch.rand(drawn)
        state = torch.get_rng_state()
        model = adapted(tiny_folder)
        assert torch.equal(torch.get_rng_state(), state)
        found.append(model.model.layers[0].self_attn.q_proj.lora_A["trained"].weight)
    assert torch.equal(*found)
    torch.manual_seed(4)
    assert not torch.equal(adapted(tiny_folder).model.layers[0].self_attn.q_proj.lora_A["trained"].weight, found[0])


@pytest.mark.parametrize("training", [True, False])
def test_D7_as_it_started_is_the_base_also_after_training_and_the_adapter_is_on_again_behind_it(
    tiny_folder: Path, training: bool
) -> None:
    plain, model = load_model(ModelSpec(str(tiny_folder))), adapted(tiny_folder, dropout=0.5)
    shake(model)
    own = log_probs(model)
    model.train(training)
    model.model.layers[0].mlp.eval()  # not all in one mode
    modes = [module.training for module in model.modules()]
    trained = [parameter.requires_grad for parameter in model.parameters()]
    for _ in range(2):
        with as_it_started(model):
            assert torch.equal(log_probs(model), log_probs(plain))
            assert not any(module.training for module in model.modules())
            assert [parameter.requires_grad for parameter in model.parameters()] == trained
        assert [module.training for module in model.modules()] == modes
        assert [parameter.requires_grad for parameter in model.parameters()] == trained
    assert torch.equal(log_probs(model.eval()), own)
    assert not torch.equal(own, log_probs(plain))


def test_D7_the_adapter_is_on_again_when_the_reference_fails_in_between(tiny_folder: Path) -> None:
    model = adapted(tiny_folder)
    shake(model)
    own = log_probs(model)
    model.train()

    class BreaksError(Exception):
        pass

    with pytest.raises(BreaksError), as_it_started(model):
        raise BreaksError
    assert all(module.training for module in model.modules())
    assert torch.equal(log_probs(model.eval()), own)


def test_D7_from_an_earlier_adapter_it_starts_as_that_one_and_keeps_a_frozen_copy(
    tiny_folder: Path, tmp_path: Path
) -> None:
    earlier = adapted(tiny_folder, rank=2, alpha=6.0)
    path = checkpoint(tmp_path / "dsft.ckpt", tiny_folder, earlier, rank=2, alpha=6.0)
    wanted = log_probs(earlier)
    model = adapted(tiny_folder, rank=2, alpha=6.0, dropout=0.3, start=path)
    assert torch.equal(log_probs(model), wanted)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == {name for name, _ in earlier.named_parameters() if is_trained_weight(name)}
    shake(model, seed=1)
    assert not torch.equal(log_probs(model), wanted)
    model.train()
    with as_it_started(model):
        assert torch.equal(log_probs(model), wanted)
        assert not torch.equal(wanted, log_probs(load_model(ModelSpec(str(tiny_folder)))))  # nor the bare base
    state = copy.deepcopy(model.state_dict())
    model_log_probs(model, BATCH).total.sum().backward()
    torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1).step()
    moved = {name for name, value in model.state_dict().items() if not torch.equal(value, state[name])}
    assert moved == trained


def test_an_earlier_adapter_on_another_base_or_made_otherwise_is_refused_with_both(
    tiny_folder: Path, tmp_path: Path
) -> None:
    path = checkpoint(tmp_path / "dsft.ckpt", tiny_folder, adapted(tiny_folder, rank=2), rank=2)
    other = tiny_model(tmp_path / "other", seed=5)
    with pytest.raises(
        ConfigError, match=rf"was trained on '{tiny_folder}' \(\w+\), but the student is '{other}' \(\w+"
    ):
        adapted(other, rank=2, start=path)
    with pytest.raises(ConfigError, match=r"model\.adapter\.rank 4: expected 2, as in model\.adapter\.start"):
        adapted(tiny_folder, rank=4, start=path)
    with pytest.raises(ConfigError, match=r"model\.adapter\.targets \['q_proj'\]: expected all-linear"):
        adapted(tiny_folder, rank=2, targets=["q_proj"], start=path)
    whole = tmp_path / "whole.ckpt"
    torch.save({"state_dict": {}, "dadpo": {"student": asdict(ModelSpec(str(tiny_folder)))}}, whole)
    with pytest.raises(DataError, match="holds whole weights, expected a checkpoint of a training with"):
        adapted(tiny_folder, rank=2, start=str(whole))


def test_weights_that_do_not_fit_are_named(tiny_folder: Path, tmp_path: Path) -> None:
    path = checkpoint(tmp_path / "a.ckpt", tiny_folder, adapted(tiny_folder, rank=2), rank=2)
    layer = "student.model.layers.0.self_attn.q_proj"
    for change, message in (
        ({f"{layer}.lora_A.trained.weight": None}, "expected keys that end with"),
        ({f"{layer}.lora_{side}.trained.weight": None for side in "AB"}, rf"{layer} has no adapter"),
        ({f"student.x.lora_{side}.trained.weight": torch.ones(2, 2) for side in "AB"}, "student.x is no target"),
        (
            {f"{layer}.lora_A.trained.weight": torch.ones(3, 32)},
            r"shapes \(3, 32\) and \(32, 2\), expected \(2, 32\) and \(32, 2\)",
        ),
    ):
        loaded = torch.load(path, weights_only=True)
        loaded["state_dict"] |= change
        loaded["state_dict"] = {key: value for key, value in loaded["state_dict"].items() if value is not None}
        torch.save(loaded, tmp_path / "b.ckpt")
        with pytest.raises(DataError, match=message):
            merge_adapter(load_model(ModelSpec(str(tiny_folder))), read_adapter(str(tmp_path / "b.ckpt")), "b.ckpt")


def test_B7_an_adapter_on_the_head_is_refused_by_name_and_unknown_targets_too(tiny_folder: Path) -> None:
    with pytest.raises(ConfigError, match=rf"model\.adapter\.targets: 'lm_head' is the head of '{tiny_folder}'"):
        adapted(tiny_folder, targets=["q_proj", "lm_head"])
    with pytest.raises(ConfigError, match=r"'c_attn' is no linear layer of .*it has \['down_proj', 'gate_proj'"):
        adapted(tiny_folder, targets=["c_attn"])
    with pytest.raises(ConfigError, match="'embed_tokens' is no linear layer"):
        adapted(tiny_folder, targets=["embed_tokens"])


def test_settings_out_of_range_are_refused_by_name() -> None:
    for settings, message in (
        ({"rank": 0}, r"adapter\.rank 0: expected at least 1"),
        ({"alpha": 0.0}, r"adapter\.alpha 0.0: expected a number > 0"),
        ({"dropout": 1.0}, r"adapter\.dropout 1.0: expected a probability"),
        ({"targets": []}, r"adapter\.targets \[\]: expected all-linear or a list"),
        ({"targets": "q_proj"}, r"adapter\.targets 'q_proj': expected all-linear or a list"),
        ({"quantize": "fp4"}, r"adapter\.quantize 'fp4': expected nf4"),
    ):
        with pytest.raises(ConfigError, match=message):
            AdapterSpec(**settings)  # type: ignore[arg-type]


def test_without_peft_one_line_says_what_to_install(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ConfigError, match=r"needs the package peft \(pip install 'lightning-dadpo\[lora\]'\)"):
        adapted(tiny_folder)


def test_an_adapter_of_a_4_bit_base_is_merged_into_what_it_was_trained_on(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[dict[str, Any]] = []

    def quantize(weight: Tensor, **arguments: Any) -> tuple[Tensor, str]:
        asked.append(arguments)
        return (weight * 8).round(), "state"

    functional = SimpleNamespace(quantize_4bit=quantize, dequantize_4bit=lambda packed, state: packed / 8)
    package = SimpleNamespace(functional=functional)
    monkeypatch.setattr(quantization, "require_bitsandbytes", lambda setting: package)
    settings: dict[str, Any] = {"rank": 2, "targets": ["q_proj"], "quantize": "nf4"}
    path = checkpoint(tmp_path / "a.ckpt", tiny_folder, adapted(tiny_folder, **settings), **settings)
    merged, plain = load_model(ModelSpec(str(tiny_folder))), load_model(ModelSpec(str(tiny_folder)))
    merge_adapter(merged, read_adapter(path), path)
    assert asked == [{"quant_type": "nf4", "compress_statistics": True}] * 28
    for name, module in plain.named_modules():
        if isinstance(module, nn.Linear) and name != "lm_head" and "q_proj" not in name:
            assert torch.equal(merged.get_submodule(name).weight, (module.weight * 8).round() / 8)
    assert torch.equal(merged.lm_head.weight, plain.lm_head.weight)


def test_what_a_checkpoint_says_of_an_adapter_is_plain_and_knows_its_base(tiny_folder: Path) -> None:
    said = describe_adapter(AdapterSpec(), ModelSpec(str(tiny_folder)))
    assert said == {"settings": asdict(AdapterSpec()), "base": model_digest(ModelSpec(str(tiny_folder))), "start": None}
