"""Attention over token trees against separate rows, in values and gradients, and the defects that must show."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from lightning_dadpo.data.batching import collate_sequences
from lightning_dadpo.data.packing import pack
from lightning_dadpo.errors import ConfigError
from lightning_dadpo.models import attention, log_probs
from lightning_dadpo.models.attention import (
    TOKEN_TREES,
    MaskedRows,
    RowGroup,
    masked_rows,
    tree_attention,
    variable_lengths,
)
from lightning_dadpo.models.log_probs import Kernels, model_log_probs, plain_log_probs, prepare
from lightning_dadpo.types import PackedBatch
from tests.trees import parents_of, places_of

VOCABULARY = 32
Rows = tuple[list[list[int]], list[list[list[int]]]]

TREES: dict[str, Rows] = {
    "a pair": ([[4, 5, 6]], [[[7, 8, 9, 2], [10, 11, 2]]]),
    "shared into the responses": ([[4, 5]], [[[7, 8, 9, 2], [7, 8, 10, 11, 2]]]),
    "several trees of different sizes": (
        [[4, 5, 6, 7, 8], [9], [10, 11]],
        [[[12, 2], [13, 14, 15, 2]], [[16, 17, 18, 19, 20, 21, 2], [22, 2]], [[23], [24]]],
    ),
    "branches without tokens": ([[4, 5], [6, 7, 8]], [[[9], [10, 11, 2]], [[12, 13, 2], [12]]]),
    "equal responses": ([[4, 5]], [[[7, 8, 2], [7, 8, 2]]]),
    "one branch": ([[4, 5], [6], [7, 8, 9]], [[[10, 11, 2]], [[12]], [[13, 14, 15, 16, 2]]]),
    "one system prompt": (
        [[4, 5, 6, 7], [4, 5, 6, 8, 9], [4, 5, 6, 10]],
        [[[11, 2], [12, 13, 2]], [[14], [15, 16, 2]], [[17, 2], [17, 18, 2]]],
    ),
    "two system prompts by turns and one of its own": (
        [[4, 5, 7], [3, 3, 3, 3, 8], [4, 5, 10, 11], [30, 31], [3, 3, 3, 3, 9]],
        [[[11, 2]], [[14]], [[17, 2]], [[20, 21, 2]], [[22, 23, 24, 25, 2]]],
    ),
    "a stem longer than every tree": ([[*range(3, 20), 21], [*range(3, 20), 22]], [[[5, 2], [6, 2]], [[7], [8]]]),
    "three branches": ([[4, 5], [6]], [[[7, 2], [8, 9, 2], [7, 10, 2]], [[11, 2], [12], [13, 14, 15, 2]]]),
}
COEFFICIENTS = torch.tensor([0.7, -1.3, 2.9, 0.3, 1.1, -0.4], dtype=torch.float64)


def fresh(heads: int = 4, key_heads: int = 2, dtype: torch.dtype = torch.float64, dropout: float = 0.0) -> Any:
    """A random Llama whose attention knows token trees."""
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=heads,
        num_key_value_heads=key_heads,
        initializer_range=0.3,
        attention_dropout=dropout,
        tie_word_embeddings=True,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = LlamaForCausalLM._from_config(config, attn_implementation=TOKEN_TREES).to(dtype).eval()
    for module in list(model.modules()):  # transformers' own norms round to float32 whatever the model's dtype
        for name, part in list(module.named_children()):
            if isinstance(part, LlamaRMSNorm):
                setattr(module, name, nn.RMSNorm(32, eps=1e-6, dtype=dtype))
    prepare(model, Kernels())
    return model


MODELS = {"GQA": (4, 2), "a key head for each": (4, 4), "one key head": (4, 1)}


def gradients(model: Any, totals: Tensor) -> dict[str, Tensor]:
    """Of a sum in which every sequence has its own coefficient."""
    model.zero_grad()
    (totals * COEFFICIENTS[: len(totals)].to(totals.dtype)).sum().backward()  # type: ignore[no-untyped-call]
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


def separate(model: Any, rows: Rows) -> tuple[Tensor, dict[str, Tensor]]:
    """By the readable path: each sequence in a padded row of its own, transformers' own attention."""
    prompts, responses = rows
    count = len(responses[0])
    batch = collate_sequences(prompts * count, [group[number] for number in range(count) for group in responses])
    totals = plain_log_probs(model, batch).total
    return totals.detach(), gradients(model, totals)


def agree(model: Any, rows: Rows, tolerance: float, batch: PackedBatch | None = None) -> bool:
    """The check that a layout has to pass, and defects have to fail: values, and every parameter's gradient."""
    expected, expected_gradients = separate(model, rows)
    totals = model_log_probs(model, batch or pack(*rows)).total
    found = gradients(model, totals)
    assert set(found) == set(expected_gradients)
    return torch.allclose(totals, expected, rtol=tolerance, atol=tolerance) and all(
        torch.allclose(found[name], wanted, rtol=tolerance, atol=tolerance * max(1.0, wanted.abs().max().item()))
        for name, wanted in expected_gradients.items()
    )


def reference_varlen(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    query_starts: Tensor,
    key_starts: Tensor,
    longest_query: int,
    longest_key: int,
    *,
    scale: float | None = None,
    window_size: tuple[int, int] = (-1, -1),
    enable_gqa: bool = False,
) -> Tensor:
    """What `torch.nn.attention.varlen.varlen_attn` computes, piece by piece and head by head.

    Causal from the end: the last query sees every key, the one before it all but the last.
    """
    assert window_size == (-1, 0)
    assert query_starts.dtype == key_starts.dtype == torch.int32
    assert enable_gqa == (query.shape[1] != key.shape[1])
    assert query.dtype == key.dtype == value.dtype  # the kernel takes no others, and autocast does not know it
    queries, keys = query_starts.tolist(), key_starts.tolist()
    assert (queries[-1], keys[-1]) == (len(query), len(key))
    assert max(b - a for a, b in pairwise(queries)) == longest_query
    assert max(b - a for a, b in pairwise(keys)) == longest_key
    group, out = query.shape[1] // key.shape[1], []
    for piece in range(len(queries) - 1):
        q = query[queries[piece] : queries[piece + 1]]
        k, v = (part[keys[piece] : keys[piece + 1]] for part in (key, value))
        assert 0 < len(q) <= len(k)
        heads = []
        for head in range(query.shape[1]):
            scores = q[:, head] @ k[:, head // group].T * (scale if scale is not None else q.shape[-1] ** -0.5)
            sees = torch.arange(len(k))[None, :] <= torch.arange(len(q))[:, None] + len(k) - len(q)
            heads.append(scores.masked_fill(~sees, -torch.inf).softmax(dim=-1) @ v[:, head // group])
        out.append(torch.stack(heads, dim=1))
    return torch.cat(out)


def on_varlen(patch: pytest.MonkeyPatch) -> None:
    """The layout of a GPU, its kernel replaced by the reference above."""
    patch.setattr(log_probs, "attention_kernel", lambda asked, device, dtype: "varlen")
    patch.setattr(attention, "varlen_attn", reference_varlen)


@pytest.fixture(params=["sdpa", "varlen"])
def layout(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both layouts on the CPU."""
    if request.param == "varlen":
        on_varlen(monkeypatch)
    return str(request.param)


@pytest.mark.parametrize("heads", MODELS)
@pytest.mark.parametrize("trees", TREES)
def test_B5_trees_equal_separate_rows_in_values_and_gradients(layout: str, trees: str, heads: str) -> None:
    assert agree(fresh(*MODELS[heads]), TREES[trees], 1e-10)


@pytest.mark.parametrize("trees", TREES)
def test_B5_in_float32_too(layout: str, trees: str) -> None:
    assert agree(fresh(dtype=torch.float32), TREES[trees], 1e-5)


@pytest.mark.parametrize("trees", TREES)
def test_B5_under_autocast_too(layout: str, trees: str) -> None:
    """Rotary embeddings leave query and key in float32 there, and only the value in bfloat16."""
    model = fresh(dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        assert agree(model, TREES[trees], 0.1)


@pytest.mark.parametrize("size", [(3, 40, 25), (60, 2, 31)])
def test_B5_longer_trees_in_company(layout: str, size: tuple[int, int, int]) -> None:
    """Next to a tree of another size, so that the padded layout pads."""
    generator = torch.Generator().manual_seed(0)
    prompt, chosen, rejected = (torch.randint(3, VOCABULARY, (n,), generator=generator).tolist() for n in size)
    assert agree(fresh(), ([prompt, [5]], [[chosen, rejected], [[6, 7], [8]]]), 1e-9)


def test_the_layouts_are_the_ones_that_ran(monkeypatch: pytest.MonkeyPatch) -> None:
    """Or the tests above would prove one of them twice."""
    seen: list[str] = []

    def watched(name: str, plain: Callable[[PackedBatch], Any]) -> Callable[[PackedBatch], Any]:
        def layout(batch: PackedBatch) -> Any:
            seen.append(name)
            return plain(batch)

        return layout

    for name in ("masked_rows", "variable_lengths"):
        monkeypatch.setattr(log_probs, name, watched(name, getattr(log_probs, name)))
    model, batch = fresh(), pack(*TREES["a pair"])
    with torch.no_grad():
        model_log_probs(model, batch)
        on_varlen(monkeypatch)
        model_log_probs(model, batch)
    assert seen == ["masked_rows", "variable_lengths"]


def looks_at(batch: PackedBatch) -> list[set[int]]:
    """Which tokens each token sees, found by walking up its own sequence."""
    parents = parents_of(batch)
    found: list[set[int]] = []
    for index, parent in enumerate(parents):
        found.append({index} | (set() if parent is None else found[parent]))
    return found


@pytest.mark.parametrize("trees", TREES)
def test_the_mask_is_the_tree_spelled_out(trees: str) -> None:
    batch = pack(*TREES[trees])
    layout, expected = masked_rows(batch), looks_at(batch)
    assert torch.cat([group.rows.flatten() for group in layout.groups])[layout.slots].tolist() == [
        *range(batch.num_tokens)
    ]
    assert sum(group.rows.numel() for group in layout.groups) == batch.num_slots
    first, real = 0, set(layout.slots.tolist())
    for group in layout.groups:
        width, longest = group.rows.shape
        assert group.mask.shape == (width, 1, longest, group.keys.shape[1])
        assert bool(((group.mask == 0) | (group.mask == -torch.inf)).all())
        assert bool((group.mask == 0).any(dim=-1).all())  # no row is empty: that would be NaN
        for row in range(width):
            for slot in range(longest):
                if first + row * longest + slot in real:  # nothing real looks at padding, and at nothing twice
                    seen = group.keys[row][group.mask[row, 0, slot] == 0].tolist()
                    assert sorted(seen) == sorted(expected[int(group.rows[row, slot])])
        first += group.rows.numel()


@pytest.mark.parametrize("trees", TREES)
def test_what_stands_in_the_padding_reaches_no_gradient(trees: str) -> None:
    """Padded slots repeat a tree's last token; what they compute must come back as exactly nothing."""
    batch = pack(*TREES[trees])
    rows = masked_rows(batch)
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(batch.num_tokens, 2, 4, generator=generator).requires_grad_() for _ in range(3))
    alone = rows.attend(query, key, value, 0.0, None)
    larger = torch.randn(40, 2, 4, generator=generator)
    wide = tuple(torch.cat([part, larger]) for part in (query, key, value))
    beside = pack([*TREES[trees][0], [1] * 40], [*TREES[trees][1], [[1]] * (len(batch.shapes[0]) - 1)])
    together = masked_rows(beside).attend(wide[0], wide[1], wide[2], 0.0, None)
    assert torch.allclose(together[: batch.num_tokens], alone, atol=1e-6)
    weights = torch.randn(alone.shape, generator=generator)
    expected = torch.autograd.grad((alone * weights).sum(), [query, key, value])
    found = torch.autograd.grad((together[: batch.num_tokens] * weights).sum(), [query, key, value])
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(found, expected, strict=True))


def test_pieces_of_varlen_by_hand() -> None:
    # prefix 4 5 with branches 7 8 | 10, then prefix 6 with branches of nothing | 11
    layout = variable_lengths(pack([[4, 5], [6]], [[[7, 8, 2], [10, 2]], [[9], [11, 2]]]))
    assert layout.query_starts.tolist() == [0, 4, 5, 6, 7]
    assert layout.keys.tolist() == [0, 1, 2, 3, 0, 1, 4, 5, 5, 6]
    assert layout.key_starts.tolist() == [0, 4, 7, 8, 10]
    assert (layout.longest_query, layout.longest_key) == (4, 4)


def test_pieces_of_varlen_behind_a_stem_by_hand() -> None:
    # stem 1 1, behind it prefix 4 with branches 7 | nothing, and prefix 6 7 with branches of nothing | 8
    batch = pack([[1, 1, 4], [1, 1, 6]], [[[7, 2], [8]], [[7], [7, 8, 2]]])
    assert batch.token_ids.tolist() == [1, 1, 4, 7, 6, 7, 8]
    assert batch.shapes == ((1, 1, 0), (1, 0, 2))
    layout = variable_lengths(batch)
    assert layout.query_starts.tolist() == [0, 2, 4, 5, 7]
    assert layout.keys.tolist() == [0, 1, 0, 1, 2, 3, 0, 1, 4, 0, 1, 4, 5, 6]
    assert layout.key_starts.tolist() == [0, 2, 6, 9, 14]
    assert (layout.longest_query, layout.longest_key) == (2, 5)


Defect = Callable[[pytest.MonkeyPatch], None]


def seeing(change: Callable[[Tensor, tuple[int, ...]], Tensor]) -> Defect:
    """The layout with another idea of who sees whom in the first tree: [queries, its own keys], True where seen."""

    def rows(batch: PackedBatch) -> MaskedRows:
        *stems, trees = masked_rows(batch).groups
        mask = trees.mask.clone()
        own = mask[0, 0, :, -mask.shape[2] :]
        visible = change(own == 0, batch.shapes[0])
        own.copy_(torch.zeros_like(own).masked_fill(~visible, -torch.inf))
        return replace(masked_rows(batch), groups=(*stems, replace(trees, mask=mask)))

    return lambda patch: patch.setattr(log_probs, "masked_rows", rows)


def first_branch_seen(visible: Tensor, shape: tuple[int, ...]) -> Tensor:
    return torch.ones_like(visible).tril()


def not_causal(visible: Tensor, shape: tuple[int, ...]) -> Tensor:
    return visible | visible.T


def prefix_unseen(visible: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The second branch does not see what it goes on from."""
    prefix, first, second = shape
    changed = visible.clone()
    changed[prefix + first : prefix + first + second, :prefix] = False
    return changed


def unchanged(visible: Tensor, shape: tuple[int, ...]) -> Tensor:
    return visible


@pytest.mark.parametrize("defect", [first_branch_seen, not_causal, prefix_unseen])
@pytest.mark.parametrize("trees", ["a pair", "shared into the responses"])
def test_B5_a_wrong_mask_is_noticed(
    monkeypatch: pytest.MonkeyPatch, defect: Callable[[Tensor, tuple[int, ...]], Tensor], trees: str
) -> None:
    model = fresh()
    seeing(unchanged)(monkeypatch)
    assert agree(model, TREES[trees], 1e-10)
    seeing(defect)(monkeypatch)
    assert not agree(model, TREES[trees], 1e-3)


def stem_unseen(group: RowGroup) -> RowGroup:
    return replace(group, mask=group.mask.clone().index_fill_(3, torch.arange(3), -torch.inf))


def another_tree_for_a_stem(group: RowGroup) -> RowGroup:
    """The right number of tokens, but those that stand behind the stem."""
    keys = group.keys.clone()
    keys[:, :3] += 3
    return replace(group, keys=keys)


@pytest.mark.parametrize("defect", [stem_unseen, another_tree_for_a_stem])
def test_B5_a_wrong_stem_is_noticed(monkeypatch: pytest.MonkeyPatch, defect: Callable[[RowGroup], RowGroup]) -> None:
    model, rows = fresh(), TREES["one system prompt"]
    right = masked_rows(pack(*rows))
    stem, trees = right.groups
    assert stem.rows.shape == (1, 3)
    assert agree(model, rows, 1e-10)
    monkeypatch.setattr(log_probs, "masked_rows", lambda batch: replace(right, groups=(stem, defect(trees))))
    assert not agree(model, rows, 1e-3)


@pytest.mark.parametrize("trees", ["one system prompt", "two system prompts by turns and one of its own"])
def test_B4_positions_that_begin_anew_behind_a_stem_are_noticed(layout: str, trees: str) -> None:
    batch = pack(*TREES[trees])
    positions = batch.position_ids.clone()
    for stem, start, shape in places_of(batch):
        positions[start : start + sum(shape)] -= len(stem)
    assert not agree(fresh(), TREES[trees], 1e-3, replace(batch, position_ids=positions))


def test_B5_a_stem_that_gets_no_gradient_from_its_trees_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    model, rows = fresh(), TREES["one system prompt"]
    attend = RowGroup.attend

    def cut(group: RowGroup, query: Tensor, key: Tensor, value: Tensor, *more: Any) -> Tensor:
        first = group.rows[0]
        kept = torch.zeros(len(key), 1, 1, dtype=torch.bool).index_fill_(0, first, True)
        return attend(group, query, torch.where(kept, key, key.detach()), value, *more)

    assert agree(model, rows, 1e-10)
    monkeypatch.setattr(RowGroup, "attend", cut)
    assert not agree(model, rows, 1e-3)


@pytest.mark.parametrize("layout_of", [masked_rows, variable_lengths])
def test_a_stems_gradients_are_summed_over_its_trees_in_float32(
    monkeypatch: pytest.MonkeyPatch, layout_of: Callable[[PackedBatch], Any]
) -> None:
    """600 trees of one token see the stem's one token and themselves alike; bfloat16 sums stop at 128 and at 64."""
    on_varlen(monkeypatch)
    count = 600
    batch = pack([[9, number] for number in range(count)], [[[5]]] * count)
    assert batch.stems == ((1, count),)
    query, key, value = (torch.zeros(count + 1, 1, 1, dtype=torch.bfloat16) for _ in range(3))
    query += 1
    value[0] += 1  # the stem's; the others' are 0
    key.requires_grad_(), value.requires_grad_()
    layout_of(batch).attend(query, key, value, 0.0, 1.0).sum().backward()
    assert key.grad is not None
    assert value.grad is not None
    assert key.grad[0].item() == count * 0.5 * (1 - 0.5)
    assert value.grad[0].item() == pytest.approx(count * 0.5 + 1, abs=1)  # in bfloat16, itself a multiple of 2


@pytest.mark.parametrize("trees", ["a pair", "shared into the responses", "several trees of different sizes"])
def test_B4_a_second_branch_whose_positions_go_on_behind_the_first_is_noticed(layout: str, trees: str) -> None:
    batch = pack(*TREES[trees])
    running = torch.cat([torch.arange(sum(shape)) for shape in batch.shapes])
    assert not agree(fresh(), TREES[trees], 1e-3, replace(batch, position_ids=running))


@pytest.mark.parametrize("defect", ["no prefix", "causal from the start", "first branch's keys"])
def test_B5_wrong_pieces_of_varlen_are_noticed(monkeypatch: pytest.MonkeyPatch, defect: str) -> None:
    """A wrong cu_seqlens once gave a first loss of 6 ln 2."""
    on_varlen(monkeypatch)
    model, rows = fresh(), TREES["a pair"]
    assert agree(model, rows, 1e-10)
    right = variable_lengths(pack(*rows))  # prefix of 3, branches of 3 and 2
    assert right.keys.tolist() == [0, 1, 2, 3, 4, 5, 0, 1, 2, 6, 7]
    wrong = {
        "no prefix": replace(
            right,
            keys=right.keys[[0, 1, 2, 3, 4, 5, 9, 10]],
            key_starts=torch.tensor([0, 6, 8], dtype=torch.int32),
        ),
        "causal from the start": replace(right, keys=right.keys[[0, 1, 2, 3, 4, 5, 9, 10, 6, 7, 8]]),
        "first branch's keys": replace(right, keys=right.keys[[0, 1, 2, 3, 4, 5, 6, 7, 8, 3, 4]]),
    }[defect]
    monkeypatch.setattr(log_probs, "variable_lengths", lambda batch: wrong)
    assert not agree(model, rows, 1e-3)


def test_B6_dropout_in_the_attention_layer_draws_in_training_and_never_in_eval() -> None:
    model, batch = fresh(dropout=0.5), pack(*TREES["several trees of different sizes"])
    expected, _ = separate(model, TREES["several trees of different sizes"])

    def drawn(seed: int) -> Tensor:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            total: Tensor = model_log_probs(model, batch).total
        return total

    assert torch.allclose(drawn(0), expected, rtol=1e-10)
    model.train()
    assert torch.equal(drawn(0), drawn(0))
    assert not torch.allclose(drawn(0), drawn(1), rtol=1e-3)
    assert not torch.allclose(drawn(0), expected, rtol=1e-3)
    gradients(model, model_log_probs(model, batch).total)


def test_B6_varlen_refuses_a_model_that_drops_out_and_says_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    on_varlen(monkeypatch)
    model, batch = fresh(dropout=0.5), pack(*TREES["a pair"])
    with torch.no_grad():
        model_log_probs(model, batch)
        with pytest.raises(ConfigError, match="set `attention: sdpa`"):
            model_log_probs(model.train(), batch)


@pytest.mark.parametrize("mixed", [False, True])
def test_one_mask_for_all_layers_is_kept_for_the_backward_pass(mixed: bool) -> None:
    """In bf16-mixed, SDPA would cast a float32 one anew in every layer."""
    model, batch = fresh(dtype=torch.float32), pack(*TREES["several trees of different sizes"])
    shape, kept = masked_rows(batch).groups[0].mask.shape, {}

    def note(tensor: Tensor) -> Tensor:
        if tensor.shape[-2:] == shape[-2:]:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    hooks = torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor)
    with torch.autocast("cpu", torch.bfloat16, enabled=mixed), hooks:
        model_log_probs(model, batch)
    assert [tensor.dtype for tensor in kept.values()] == [torch.bfloat16 if mixed else torch.float32]


@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize("masked", [False, True])
def test_without_trees_it_is_transformers_sdpa_to_the_bit(mode: str, masked: bool) -> None:
    """What sampling and every other caller runs."""
    model = fresh(dtype=torch.float32, dropout=0.3)
    getattr(model, mode)()
    ids = torch.randint(3, VOCABULARY, (3, 7), generator=torch.Generator().manual_seed(0))
    mask = torch.ones(3, 7, dtype=torch.long)
    mask[1, :3], mask[2, 5:] = 0, 0
    found = []
    for implementation in (TOKEN_TREES, "sdpa"):
        model.set_attn_implementation(implementation)
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            found.append(model(input_ids=ids, attention_mask=mask if masked else None).logits)
    real = mask.bool() if masked else torch.ones_like(mask, dtype=torch.bool)
    assert torch.equal(found[0][real], found[1][real])


def test_cached_decoding_is_transformers_sdpa_to_the_bit() -> None:
    model = fresh(dtype=torch.float32)
    ids, mask = torch.tensor([[2, 2, 5, 6], [7, 8, 9, 10]]), torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]])
    texts = []
    for implementation in (TOKEN_TREES, "sdpa"):
        model.set_attn_implementation(implementation)
        with torch.no_grad():
            out = model.generate(
                ids, attention_mask=mask, do_sample=False, max_new_tokens=6, min_new_tokens=6, pad_token_id=2
            )
        texts.append(out.tolist())
    assert texts[0] == texts[1]


@pytest.mark.parametrize("name", ["softcap", "s_aux", "position_bias", "sliding_window"])
def test_what_is_not_done_to_scores_is_refused_and_none_is_no_request(name: str) -> None:
    rows = masked_rows(pack(*TREES["a pair"]))
    query = torch.randn(1, 2, 8, 4, generator=torch.Generator().manual_seed(0))
    with pytest.raises(ConfigError, match=f"uses {name}, which packed batches do not support"):
        tree_attention(nn.Module(), query, query, query, None, token_trees=rows, **{name: 4})  # type: ignore[arg-type]
    unset: dict[str, Any] = {name: None}
    out, weights = tree_attention(nn.Module(), query, query, query, None, token_trees=rows, **unset)
    assert out.shape == (1, 8, 2, 4)
    assert weights is None


def test_a_model_with_a_sliding_window_is_refused() -> None:
    config = MistralConfig(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=2, sliding_window=3,
    )  # fmt: skip
    model = MistralForCausalLM._from_config(config, attn_implementation=TOKEN_TREES).eval()
    prepare(model, Kernels())
    with torch.no_grad(), pytest.raises(ConfigError, match="sliding_window"):
        model_log_probs(model, pack(*TREES["a pair"]))


def test_the_scaling_that_a_model_asks_for_is_used(layout: str) -> None:
    model = fresh()
    for block in model.model.layers:
        block.self_attn.scaling = 0.9
    assert agree(model, TREES["several trees of different sizes"], 1e-10)


def test_gradient_checkpointing_changes_nothing() -> None:
    model, batch = fresh().train(), pack(*TREES["several trees of different sizes"])
    expected = gradients(model, model_log_probs(model, batch).total)
    model.activation_checkpointing_enable()
    found = gradients(model, model_log_probs(model, batch).total)
    assert all(torch.allclose(found[name], expected[name], rtol=1e-12) for name in expected)
