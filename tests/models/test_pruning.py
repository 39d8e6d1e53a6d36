from __future__ import annotations

import json
import math
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from lightning_dadpo.data.artifacts import draft, read_manifest
from lightning_dadpo.data.packing import pack
from lightning_dadpo.data.rows import Message, ResponseRow
from lightning_dadpo.errors import ArtifactError, ConfigError, DataError
from lightning_dadpo.models.loading import count_parameters, load_model, load_tokenizer
from lightning_dadpo.models.pruning import block_influence, layers_to_remove, prune, remove_layers
from lightning_dadpo.models.spec import ModelSpec
from tests.tiny import END_OF_TURN, tiny_model


def _row(index: int, split: str = "train", finish: str = "stop") -> ResponseRow:
    prompt = [1, *(3 + (index * 7 + step * 3) % 250 for step in range(5 + index % 4))]
    response = [*(3 + (index * 11 + step * 5) % 250 for step in range(3 + index % 3)), END_OF_TURN]
    return ResponseRow(
        f"p{index}", split, [Message("user", "hi")], prompt, response, "text", finish, -1.0  # type: ignore[arg-type]
    )  # fmt: skip


def _responses(path: Path, rows: list[ResponseRow]) -> str:
    with draft(path, "responses", {"test": len(rows)}) as work:
        lines = [json.dumps(asdict(row)) + "\n" for row in rows]
        (work.path / "rows.jsonl").write_text("".join(lines), "utf-8")
    return str(path)


@pytest.fixture
def calibration(tmp_path: Path) -> str:
    rows = [_row(index) for index in range(6)] + [_row(6, "heldout"), _row(7, finish="length")]
    rows.append(replace(_row(1), candidate=1))  # the second answer to a prompt
    return _responses(tmp_path / "responses", rows)


def _by_hand(model: Any, rows: list[ResponseRow]) -> tuple[list[float], float]:
    """Row by row, position by position, in float64, through `output_hidden_states`: no batch, no hook."""
    influence = [0.0] * model.config.num_hidden_layers
    nats, tokens = 0.0, 0
    for row in rows:
        ids = row.prompt_token_ids + row.token_ids
        with torch.no_grad():
            found = model(input_ids=torch.tensor([ids]), output_hidden_states=True)
        for target in range(len(row.prompt_token_ids), len(ids)):
            at = target - 1
            # transformers gives the last entry after the final norm: the last layer's own output is not there
            for layer in range(len(influence) - 1):
                before, after = (found.hidden_states[layer + step][0, at].double() for step in (0, 1))
                influence[layer] += 1 - float(before @ after / before.norm() / after.norm())
            nats -= float(found.logits[0, at].double().log_softmax(-1)[ids[target]])
            tokens += 1
    return [value / tokens for value in influence], nats / tokens


def test_influence_and_loss_are_those_of_a_loop_over_positions(tiny_folder: Path) -> None:
    model = load_model(ModelSpec(str(tiny_folder)))
    rows = [_row(index) for index in range(5)]
    batch = pack([row.prompt_token_ids for row in rows], [[row.token_ids] for row in rows])
    found = block_influence(model, [batch])
    layers, nats = _by_hand(model, rows)
    assert found.layers[:-1] == pytest.approx(layers[:-1], rel=1e-4)
    assert found.nats_per_token == pytest.approx(nats, rel=1e-5)
    assert found.tokens == sum(len(row.token_ids) for row in rows)


def test_A5_prompt_positions_do_not_count(tiny_folder: Path) -> None:
    model = load_model(ModelSpec(str(tiny_folder)))
    rows = [_row(index) for index in range(4)]
    prompts, responses = [row.prompt_token_ids for row in rows], [row.token_ids for row in rows]
    right = block_influence(model, [pack(prompts, [[response] for response in responses])])
    shifted = [prompt[:-1] for prompt in prompts], [[p[-1:] + r] for p, r in zip(prompts, responses, strict=True)]
    wrong = block_influence(model, [pack(*shifted)])
    assert wrong.tokens == right.tokens + 4
    assert wrong.layers != pytest.approx(right.layers, rel=1e-4)


def test_a_layer_that_does_nothing_goes_first_and_changes_nothing(tmp_path: Path, calibration: str) -> None:
    folder = tiny_model(tmp_path / "m", layers=5)
    model = load_model(ModelSpec(str(folder)))
    idle = model.model.layers[2]
    idle.self_attn.o_proj.weight.data.zero_()
    idle.mlp.down_proj.weight.data.zero_()
    model.save_pretrained(folder)
    before = count_parameters(model)
    one_layer = count_parameters(idle)
    out = prune(ModelSpec(str(folder)), calibration, str(tmp_path / "out"), share=0.1, precision="32-true")
    results = read_manifest(out, "model").results
    assert results["layers_removed"] == [2]
    assert results["layer_influence"][2] == pytest.approx(0, abs=1e-9)
    assert results["nats_per_token_after"] == pytest.approx(results["nats_per_token_before"], rel=1e-6)
    assert (results["parameters_before"], results["parameters_after"]) == (before, before - one_layer)
    assert results["share_removed"] == pytest.approx(one_layer / before)
    assert read_manifest(out).counts == {"calibration_rows": 6}


def test_the_folder_is_what_transformers_loads_unchanged(tmp_path: Path, tiny_folder: Path, calibration: str) -> None:
    out = prune(ModelSpec(str(tiny_folder)), calibration, str(tmp_path / "out"), share=0.4, precision="32-true")
    removed = read_manifest(out).results["layers_removed"]
    model = transformers.AutoModelForCausalLM.from_pretrained(out)
    whole = load_model(ModelSpec(str(tiny_folder)))
    kept = [index for index in range(4) if index not in removed]
    assert model.config.num_hidden_layers == len(kept) == len(model.model.layers)
    for mine, theirs in zip(model.model.layers, kept, strict=True):
        wanted = whole.model.layers[theirs].state_dict()
        assert all(torch.equal(value, wanted[name]) for name, value in mine.state_dict().items())
    assert [layer.self_attn.layer_idx for layer in model.model.layers] == list(range(len(kept)))
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight
    assert model.generation_config.eos_token_id == END_OF_TURN
    spec = ModelSpec(str(out))
    assert load_tokenizer(spec).chat_template == load_tokenizer(ModelSpec(str(tiny_folder))).chat_template
    with torch.no_grad():
        greedy = model.generate(torch.tensor([[1, 5, 9]]), attention_mask=torch.ones(1, 3), do_sample=False,
                                max_new_tokens=6, min_new_tokens=6, pad_token_id=2)  # fmt: skip
        plain = model(input_ids=greedy[:, :-1], use_cache=False).logits[0, 2:]
    plain[:, END_OF_TURN] = -math.inf
    assert plain.argmax(-1).tolist() == greedy[0, 3:].tolist()  # the cache, too, knows the new numbers


def test_per_layer_lists_of_the_config_lose_the_same_entries(tmp_path: Path) -> None:
    config = transformers.Qwen2Config(
        vocab_size=32, hidden_size=16, intermediate_size=16, num_hidden_layers=4, num_attention_heads=2,
        num_key_value_heads=2, eos_token_id=[1, 2, 3, 4],
        layer_types=["full_attention", "sliding_attention", "full_attention", "sliding_attention"],
        use_sliding_window=True, sliding_window=4, max_window_layers=0,
    )  # fmt: skip
    model = transformers.Qwen2ForCausalLM(config)
    remove_layers(model, [0, 2])
    assert model.config.layer_types == ["sliding_attention", "sliding_attention"]
    assert model.config.num_hidden_layers == 2
    assert model.config.eos_token_id == [1, 2, 3, 4]  # as long as the layers were, and none of theirs


def test_a_model_whose_config_ties_roles_to_layer_numbers_is_refused(
    tmp_path: Path, tiny_folder: Path, calibration: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import lightning_dadpo.models.pruning as pruning

    def badly(model: Any, removed: list[int]) -> None:
        remove_layers(model, removed)
        model.model.layers[0].self_attn.scaling *= 2  # what no config entry says

    monkeypatch.setattr(pruning, "remove_layers", badly)
    with pytest.raises(ConfigError, match="loads as another model"):
        prune(ModelSpec(str(tiny_folder)), calibration, str(tmp_path / "out"), precision="32-true")
    assert not (tmp_path / "out").exists()


def test_the_fewest_layers_that_reach_the_share() -> None:
    # SmolLM2-135M-Instruct: 30 layers of 3,540,096 in 134,515,008; 7 are 18.4 %, 8 are 21.1 %
    influence = [float((7 * index) % 30) for index in range(30)]
    removed = layers_to_remove(influence, [3_540_096] * 30, 134_515_008, 0.2)
    assert len(removed) == 8
    assert sorted(influence[index] for index in removed) == list(range(8))
    assert layers_to_remove([3.0, 1.0, 2.0], [10, 10, 10], 100, 0.1) == [1]  # reached exactly
    assert layers_to_remove([3.0, 1.0, 2.0], [10, 10, 10], 100, 0.11) == [1, 2]


def test_an_unreachable_share_names_what_is_reachable() -> None:
    with pytest.raises(ConfigError, match=r"share 0\.21: cannot be reached: .* hold 0\.200"):
        layers_to_remove([3.0, 1.0, 2.0], [10, 10, 10], 100, 0.21)


@pytest.mark.parametrize("share", [0.0, 1.0, -0.1, 1.5, math.nan])
def test_a_share_out_of_range_is_refused(share: float) -> None:
    with pytest.raises(ConfigError, match="expected a number between 0 and 1"):
        prune(ModelSpec("nowhere"), "nothing", "out", share=share)


def test_no_usable_rows_and_wrong_artefacts_are_refused(tmp_path: Path, tiny_folder: Path) -> None:
    spec = ModelSpec(str(tiny_folder))
    only_cut = _responses(tmp_path / "cut", [_row(0, finish="length"), _row(1, "heldout")])
    with pytest.raises(DataError, match=r"rows\.jsonl: no row of split train that ended by itself"):
        prune(spec, only_cut, str(tmp_path / "out"))
    with pytest.raises(ArtifactError, match="is not an artefact"):
        prune(spec, str(tiny_folder), str(tmp_path / "out"))
    assert not list(tmp_path.glob("out*"))


def test_a_model_with_its_layers_elsewhere_is_refused_and_nothing_is_written(tmp_path: Path, calibration: str) -> None:
    folder = tiny_model(tmp_path / "gpt2")
    for name in ("model.safetensors", "config.json"):
        (folder / name).unlink()
    config = transformers.GPT2Config(vocab_size=259, n_embd=16, n_layer=2, n_head=2, n_positions=64)
    transformers.GPT2LMHeadModel(config).save_pretrained(folder)
    with pytest.raises(ConfigError, match=r"GPT2LMHeadModel: expected its decoder layers in model\.model\.layers"):
        prune(ModelSpec(str(folder)), calibration, str(tmp_path / "out"), precision="32-true")
    assert not list(tmp_path.glob("out*"))


def test_a_second_run_does_nothing_and_another_share_is_refused(
    tmp_path: Path, tiny_folder: Path, calibration: str
) -> None:
    spec, out = ModelSpec(str(tiny_folder)), str(tmp_path / "out")
    prune(spec, calibration, out, precision="32-true")
    made = (Path(out) / "model.safetensors").stat().st_mtime_ns
    prune(spec, calibration, out, precision="32-true")
    assert (Path(out) / "model.safetensors").stat().st_mtime_ns == made
    with pytest.raises(ArtifactError, match=r"share: 0\.2 there, 0\.5 now"):
        prune(spec, calibration, out, share=0.5, precision="32-true")
