from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
import yaml

from lightning_dadpo.data.artifacts import draft, read_manifest
from lightning_dadpo.errors import ArtifactError, ConfigError, DataError
from lightning_dadpo.models.export import export_checkpoint, export_model
from lightning_dadpo.models.loading import load_model
from lightning_dadpo.models.model_card import ModelCard, escape_markdown, write_model_card
from lightning_dadpo.models.spec import ModelSpec
from tests.tiny import END_OF_TURN, tiny_model


def _trained(folder: Path) -> Any:
    model = load_model(ModelSpec(str(folder)))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.01)
    return model


def _checkpoint(path: Path, folder: Path, **changes: Any) -> str:
    state = {f"student.{name}": value for name, value in _trained(folder).state_dict().items()}
    entry = {
        "student": asdict(ModelSpec(str(folder))),
        "stage": "preference",
        "objective": {"betas": {"teacher": 0.05}},
    }
    torch.save({"state_dict": state, "dadpo": entry, "epoch": 0} | changes, path)
    return str(path)


@pytest.fixture
def checkpoint(tmp_path: Path, tiny_folder: Path) -> str:
    return _checkpoint(tmp_path / "last.ckpt", tiny_folder)


def test_a_checkpoint_comes_back_bit_for_bit_and_the_head_stays_tied(
    tmp_path: Path, tiny_folder: Path, checkpoint: str
) -> None:
    out = export_checkpoint(checkpoint, str(tmp_path / "out"))
    model = transformers.AutoModelForCausalLM.from_pretrained(out)
    wanted = _trained(tiny_folder).state_dict()
    assert model.dtype is torch.float32
    assert set(wanted) == set(model.state_dict())
    assert all(torch.equal(value, wanted[name]) for name, value in model.state_dict().items())
    assert model.config.tie_word_embeddings
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight
    assert sorted(path.suffix for path in out.glob("model*")) == [".safetensors"]
    assert not list(out.glob("*.bin"))
    assert (out / "chat_template.jinja").read_text() == (tiny_folder / "chat_template.jinja").read_text()
    assert read_manifest(out, "model").results["parameters"] == sum(p.numel() for p in model.parameters())


def test_bfloat16_is_written_when_asked(tmp_path: Path, tiny_folder: Path, checkpoint: str) -> None:
    out = export_checkpoint(checkpoint, str(tmp_path / "out"), dtype="bfloat16")
    model = transformers.AutoModelForCausalLM.from_pretrained(out)
    assert model.dtype is torch.bfloat16
    wanted = _trained(tiny_folder).to(torch.bfloat16).state_dict()
    assert all(torch.equal(value, wanted[name]) for name, value in model.state_dict().items())


def test_pipeline_loads_it_and_chats(tmp_path: Path, checkpoint: str) -> None:
    out = export_checkpoint(checkpoint, str(tmp_path / "out"))
    settings = transformers.GenerationConfig(do_sample=False, max_new_tokens=3, pad_token_id=2, eos_token_id=2)
    pipe = transformers.pipeline("text-generation", str(out))
    answer = pipe([{"role": "user", "content": "hi"}], generation_config=settings)
    assert [turn["role"] for turn in answer[0]["generated_text"]] == ["user", "assistant"]


def test_a_checkpoint_without_the_tied_head_is_whole(tmp_path: Path, tiny_folder: Path) -> None:
    path = _checkpoint(tmp_path / "c.ckpt", tiny_folder)
    loaded = torch.load(path, weights_only=True)
    del loaded["state_dict"]["student.lm_head.weight"]
    torch.save(loaded, path)
    model = load_model(ModelSpec(str(export_checkpoint(path, str(tmp_path / "out")))))
    assert torch.equal(model.lm_head.weight, _trained(tiny_folder).lm_head.weight)


def test_A9_sampling_defaults_of_the_start_model_do_not_travel(tmp_path: Path) -> None:
    folder = tiny_model(tmp_path / "m")
    config = json.loads((folder / "generation_config.json").read_text())
    config |= {"do_sample": True, "temperature": 0.3, "top_k": 7, "top_p": 0.5, "repetition_penalty": 1.3}
    (folder / "generation_config.json").write_text(json.dumps(config | {"eos_token_id": [2, 0]}))
    for out in (
        export_model(ModelSpec(str(folder)), str(tmp_path / "one")),
        export_checkpoint(_checkpoint(tmp_path / "c.ckpt", folder), str(tmp_path / "two")),
    ):
        said = json.loads((out / "generation_config.json").read_text())
        assert {"temperature", "top_k", "top_p", "repetition_penalty", "do_sample"}.isdisjoint(said)
        assert said["eos_token_id"] == [2, 0]  # every id that ends a turn
        assert said["pad_token_id"] == END_OF_TURN


def _state(checkpoint: str) -> dict[str, Any]:
    return dict(torch.load(checkpoint, weights_only=True))


def test_weights_that_are_not_the_students_are_refused_by_key(
    tmp_path: Path, tiny_folder: Path, checkpoint: str
) -> None:
    key = "student.model.layers.1.mlp.up_proj.weight"

    def with_state(**changes: Any) -> str:
        loaded = _state(checkpoint)
        loaded["state_dict"] |= changes
        torch.save(
            {**loaded, "state_dict": {k: v for k, v in loaded["state_dict"].items() if v is not None}}, tmp_path / "x"
        )
        return str(tmp_path / "x")

    out = str(tmp_path / "out")
    for changes, message in (
        ({key: None}, rf"{key} is missing"),
        ({"student.extra": torch.zeros(1)}, "student.extra is not in the start model"),
        ({key: torch.zeros(2, 2)}, rf"{key} has shape \(2, 2\), expected \(64, 32\)"),
        ({"student.lm_head.weight": torch.zeros(259, 32)}, "lm_head.weight differs from model.embed_tokens.weight"),
    ):
        with pytest.raises(DataError, match=message):
            export_checkpoint(with_state(**changes), out)
    assert not list(tmp_path.glob("out*"))


def test_a_file_that_is_no_checkpoint_is_refused(tmp_path: Path, tiny_folder: Path) -> None:
    out = str(tmp_path / "out")
    (tmp_path / "text").write_text("hello")
    (tmp_path / "folder").mkdir()
    torch.save({"weights": 1}, tmp_path / "plain")
    torch.save({"state_dict": {}, "dadpo": ModelSpec("x")}, tmp_path / "objects")  # would run code when unpickled
    torch.save({"state_dict": {}}, tmp_path / "stranger")
    for name, message in (
        ("none", "no such file"),
        ("folder", "a folder, but not of DeepSpeed"),
        ("text", "not a checkpoint that can be read safely"),
        ("objects", "not a checkpoint that can be read safely"),
        ("plain", "no `state_dict`"),
        ("stranger", "no entry `dadpo`"),
    ):
        with pytest.raises(DataError, match=message):
            export_checkpoint(str(tmp_path / name), out)
    entry = {"student": asdict(ModelSpec(str(tiny_folder)))}
    with pytest.raises(DataError, match="no weights of a student"):
        export_checkpoint(_checkpoint(tmp_path / "c", tiny_folder, state_dict={"x": torch.ones(1)}, dadpo=entry), out)
    with pytest.raises(DataError, match=r"dadpo\.student: expected the fields of a model"):
        export_checkpoint(_checkpoint(tmp_path / "c", tiny_folder, dadpo={"student": {"nam": 1}}), out)
    gone = {"student": {"path": str(tmp_path / "gone")}}
    with pytest.raises(ConfigError, match=r"gone'?: no such folder"):
        export_checkpoint(_checkpoint(tmp_path / "c", tiny_folder, dadpo=gone), out)
    assert not list(tmp_path.glob("out*"))


def test_a_second_export_does_nothing_and_another_checkpoint_is_refused(
    tmp_path: Path, tiny_folder: Path, checkpoint: str
) -> None:
    out = tmp_path / "out"
    export_checkpoint(checkpoint, str(out))
    made = (out / "model.safetensors").stat().st_mtime_ns
    export_checkpoint(checkpoint, str(out))
    assert (out / "model.safetensors").stat().st_mtime_ns == made
    other = _checkpoint(tmp_path / "other.ckpt", tiny_folder, epoch=5)
    with pytest.raises(ArtifactError, match="made from something else"):
        export_checkpoint(other, str(out))


def test_the_card_says_how_it_was_made_and_what_was_measured(tmp_path: Path, checkpoint: str) -> None:
    with draft(tmp_path / "pairs", "pairs", {}) as work:
        work.counts = {"kept": 12, "dropped": {"identical": 3}}
    rows = [
        {"model": "pruned", "forward_kl": 1.5, "forward_kl_low": 1.25, "forward_kl_high": 1.75, "prompts": 32},
        {"model": "a|b\n<script>", "forward_kl": float("nan"), "prompts": 32},
    ]
    (tmp_path / "summary.json").write_text(json.dumps(rows))
    out = export_checkpoint(
        checkpoint, str(tmp_path / "out"), teacher="package:big",
        made_with=[str(tmp_path / "pairs")], summary=str(tmp_path / "summary.json"),
    )  # fmt: skip
    card = (out / "README.md").read_text()
    front = yaml.safe_load(card.split("---")[1])
    assert front["library_name"] == "transformers"
    assert front["tags"] == ["dadpo", "distillation"]
    assert front["base_model"] == "tiny"
    assert str(tmp_path.parent) not in card  # no path of the machine that made it
    assert "| pruned | 1.5 [1.25, 1.75] | 32 |" in card
    assert "a\\|b &lt;script&gt; | not finite | 32 |" in card
    for said in ("betas.teacher: 0.05", "pairs.dropped.identical: 3", "Teacher: package:big", "- torch: "):
        assert said in card
    assert "What it is not" in card


def test_the_card_tells_of_a_pruned_start(tmp_path: Path) -> None:
    folder = tmp_path / "pruned"
    with draft(folder, "model", {}) as work:
        tiny_model(work.path)
        work.results = {"layers_removed": [2, 3], "layers_before": 6, "share_removed": 0.25, "criterion": "influence"}
    out = export_model(ModelSpec(str(folder)), str(tmp_path / "out"))
    expected = "1. Pruning: 2 of 6 decoder layers removed (2, 3), 25.0% of the parameters, chosen by influence."
    assert expected in (out / "README.md").read_text()


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\n# b", r"a \# b"),
        ("<img src=x>", "&lt;img src=x&gt;"),
        ("[x](y)", r"\[x\](y)"),
        ("*a* _b_ `c` | ~d~", r"\*a\* \_b\_ \`c\` \| \~d\~"),
        ("- item", r"\- item"),
        ("1. item", r"\1. item"),
        ("---", r"\---"),
        ("-0.5", "-0.5"),
        ("&lt;", "&amp;lt;"),
    ],
)
def test_markdown_in_data_shows_as_it_is(text: str, shown: str) -> None:
    assert escape_markdown(text) == shown


def test_front_matter_survives_a_hostile_name(tmp_path: Path) -> None:
    write_model_card(tmp_path, ModelCard(stage="x", base_model="a: b\n---\nlicense: none"))
    front = yaml.safe_load((tmp_path / "README.md").read_text().split("\n---\n\n#")[0])
    assert "license" not in front
