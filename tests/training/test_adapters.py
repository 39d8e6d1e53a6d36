"""Students trained through a LoRA adapter: what is trained, saved, resumed and exported, and what the reference is."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor

from lightning_dadpo.data.artifacts import read_manifest
from lightning_dadpo.data.batching import collate_pairs
from lightning_dadpo.data.pairing import read_pairs
from lightning_dadpo.errors import AuditError, ConfigError, DataError
from lightning_dadpo.losses import DPO
from lightning_dadpo.models.adapters import is_trained_weight
from lightning_dadpo.models.export import export_checkpoint
from lightning_dadpo.models.loading import load_frozen
from lightning_dadpo.models.log_probs import model_log_probs
from lightning_dadpo.models.spec import AdapterSpec, ModelSpec
from lightning_dadpo.scoring.live import LiveScorer
from lightning_dadpo.training.checkpoints import LastCheckpoint
from lightning_dadpo.training.checks import CheckScores
from lightning_dadpo.training.datamodule import SupervisedData
from lightning_dadpo.training.preference import AnchorSource, PreferenceModule
from lightning_dadpo.training.sources import ResponseSource
from lightning_dadpo.training.supervised import SupervisedModule
from tests.scoring.example import Setup, make_response, make_setup, trainer, write_artifact
from tests.tiny import tiny_model

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*in eval mode at the start of training.*"),
    pytest.mark.filterwarnings("ignore:.*Checkpoint directory .* exists and is not empty"),
]
ADAPTER = AdapterSpec(rank=4, alpha=16.0, dropout=0.1)
FAST = partial(torch.optim.AdamW, lr=1e-2, weight_decay=0.1)


@pytest.fixture(scope="module")
def setup(tmp_path_factory: pytest.TempPathFactory) -> Setup:
    return make_setup(tmp_path_factory.mktemp("adapters"))


def live_reference(setup: Setup, adapter: str | None = None) -> dict[str, AnchorSource]:
    """The student itself, its adapter off; a second model would be in `frozen`."""
    reference = AnchorSource(model=ModelSpec(str(setup.student)), adapter=adapter)
    return {"reference": reference, "teacher": AnchorSource(scores=str(setup.teacher_scores))}


def adapted(setup: Setup, adapter: AdapterSpec = ADAPTER, live: bool = True, **changes: Any) -> PreferenceModule:
    anchors = {"anchors": live_reference(setup, adapter.start)} if live else {}
    return setup.module(**({"adapter": adapter, "optimizer": FAST} | anchors | changes))


class Seen(L.Callback):
    """Losses, what had gradients and what the optimizer held; dies before the step that it is told."""

    def __init__(self, dies_before: int | None = None) -> None:
        self.dies_before = dies_before
        self.losses: dict[int, float] = {}
        self.with_gradient: set[str] = set()

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == self.dies_before:
            raise KilledError

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.losses[trainer.global_step] = float(outputs["loss"])

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        self.with_gradient |= {name for name, p in pl_module.named_parameters() if p.grad is not None}
        held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        assert held == {id(p) for name, p in pl_module.named_parameters() if is_trained_weight(name)}


class KilledError(Exception):
    """What a kill looks like from inside."""


def fit(module: Any, root: Path, data: Any, seen: Seen, resume: bool = False, **settings: Any) -> L.Trainer:
    L.seed_everything(0, verbose=False)
    loop = trainer(
        root, [seen, LastCheckpoint(every_n_steps=1)], **({"max_epochs": 2, "limit_val_batches": 0} | settings)
    )
    loop.fit(module, datamodule=data, ckpt_path=root / "checkpoints" / "last.ckpt" if resume else None)
    return loop


@pytest.fixture(scope="module")
def whole(setup: Setup, tmp_path_factory: pytest.TempPathFactory) -> tuple[PreferenceModule, Seen, Path]:
    """Two epochs of three steps with a live reference and dropout."""
    module, seen, root = adapted(setup), Seen(), tmp_path_factory.mktemp("whole")
    fit(module, root, setup.data(), seen)
    return module, seen, root


def trained_weights(module: Any) -> dict[str, Tensor]:
    return {name: p.detach() for name, p in module.student.named_parameters() if p.requires_grad}


def log_probs(model: Any, setup: Setup) -> Tensor:
    with torch.no_grad():
        return model_log_probs(model.eval(), collate_pairs(read_pairs(setup.pairs, "train")).sequences).total


def test_D3_adapters_alone_have_gradients_optimizer_states_and_a_place_in_the_checkpoint(
    setup: Setup, whole: tuple[PreferenceModule, Seen, Path]
) -> None:
    module, seen, root = whole
    names = {f"student.{name}" for name in trained_weights(module)}
    assert seen.with_gradient == names
    assert all(is_trained_weight(name) for name in names)
    assert len(names) == 2 * 7 * 2  # A and B of 7 matrices in each of 2 layers
    saved = torch.load(root / "checkpoints" / "last.ckpt", weights_only=True)
    assert set(saved["state_dict"]) == names
    assert len(saved["optimizer_states"][0]["state"]) == len(names)
    assert saved["dadpo"]["adapter"]["settings"]["rank"] == 4
    base = load_frozen(ModelSpec(str(setup.student)), "32-true").state_dict()
    for name, value in module.student.state_dict().items():
        if "lora_" not in name:
            assert torch.equal(value, base[name.replace(".base_layer", "")]), name
    assert not module.frozen  # no second model for the reference


def test_every_matrix_of_an_adapter_moves_and_weights_are_decayed(whole: tuple[PreferenceModule, Seen, Path]) -> None:
    module, _, _ = whole
    assert all(bool(value.abs().sum()) for value in trained_weights(module).values())  # B began as zeros
    (group,) = module.trainer.optimizers[0].param_groups
    assert group["weight_decay"] == 0.1


def test_B3_at_step_zero_policy_and_reference_are_equal_to_the_bit(setup: Setup, tmp_path: Path) -> None:
    """In validation: in training the adapter's dropout has nothing to drop from yet either, since B is 0."""
    for precision in ("32-true", "bf16-mixed"):
        (found,) = trainer(tmp_path, precision=precision).validate(adapted(setup, loss=DPO(0.1)), setup.data())
        assert found["val/margin"] == 0.0
        assert found["val/ties"] == 1.0


@pytest.mark.parametrize("live", [True, False])
def test_the_oracle_before_the_first_step_holds_for_a_live_and_a_cached_reference(
    setup: Setup, tmp_path: Path, capsys: pytest.CaptureFixture[str], live: bool
) -> None:
    loop = trainer(tmp_path, [CheckScores(chosen_from_teacher=False)], limit_train_batches=1, limit_val_batches=0)
    loop.fit(adapted(setup, live=live), datamodule=setup.data())
    said = capsys.readouterr().out
    assert "step-0 oracle: student = reference on 8 pairs; largest difference in loss 0.00e+00" in said or not live
    assert "D_teacher - D_reference: quartiles" in said
    assert (" pairs)" in said) == live


def test_D7_the_oracle_finds_a_cached_reference_of_another_base(setup: Setup, tmp_path: Path) -> None:
    other = tiny_model(tmp_path / "other", layers=2, seed=7)
    module = adapted(setup, live=False, student=ModelSpec(str(other)))
    loop = trainer(tmp_path, [CheckScores(chosen_from_teacher=False)], limit_train_batches=1, limit_val_batches=0)
    with pytest.raises(AuditError, match="the reference's scores are not this student's"):
        loop.fit(module, datamodule=setup.data())


def test_D7_after_training_the_reference_still_says_what_a_second_frozen_model_says(
    setup: Setup, whole: tuple[PreferenceModule, Seen, Path]
) -> None:
    module, _, _ = whole
    second = LiveScorer(load_frozen(ModelSpec(str(setup.student)), "32-true"))
    for part in ("train", "validation"):
        batch = collate_pairs(read_pairs(setup.pairs, part))
        module.train()
        found, expected = module.scorers["reference"].score(batch), second.score(batch)
        for ours, theirs in ((found.chosen, expected.chosen), (found.rejected, expected.rejected)):
            assert torch.allclose(ours.total, theirs.total, rtol=1e-6, atol=0)
            assert torch.equal(ours.num_tokens, theirs.num_tokens)
        assert all(part.training for part in module.student.modules())
        module.student.eval()  # or its dropout would part them
        own = module.policy_log_probs(batch).chosen.total
        assert (own - expected.chosen.total).abs().max() > 0.1


def test_a_live_and_a_cached_reference_train_the_same_adapter(setup: Setup, tmp_path: Path) -> None:
    """Nothing of the reference's pass is left in the policy's: neither a mode, nor a gradient, nor a draw."""
    found = []
    for live in (True, False):
        module, seen = adapted(setup, live=live), Seen()
        fit(module, tmp_path / str(live), setup.data(), seen)
        found.append((seen.losses, trained_weights(module)))
    assert found[0][0] == pytest.approx(found[1][0], abs=1e-5)
    for name, value in found[0][1].items():
        assert torch.allclose(value, found[1][1][name], atol=2e-3), name  # AdamW moves by up to 1e-2 a step


def test_D7_a_reference_that_the_student_does_not_start_from_is_refused_with_both_names(setup: Setup) -> None:
    other = AnchorSource(model=ModelSpec(str(setup.teacher)))
    with pytest.raises(ConfigError, match=rf"'{setup.teacher}' is not what the student starts from: '{setup.student}'"):
        adapted(setup, anchors=live_reference(setup) | {"reference": other})
    begun = AdapterSpec(start="dsft.ckpt")
    with pytest.raises(ConfigError, match=rf"'{setup.student}' is not what .* '{setup.student}' \(adapter dsft.ckpt\)"):
        adapted(setup, begun, anchors=live_reference(setup))  # trap D7 itself: the base, without dSFT's adapter
    with pytest.raises(ConfigError, match=r"\(adapter dsft.ckpt\) is not what the student starts from"):
        adapted(setup, anchors=live_reference(setup, "dsft.ckpt"))
    odd = AnchorSource(model=ModelSpec(str(setup.student), attention="sdpa"))
    with pytest.raises(ConfigError, match=r"\(attention sdpa\) is not what the student starts from"):
        adapted(setup, anchors=live_reference(setup) | {"reference": odd})
    same = AnchorSource(model=ModelSpec(f"{setup.student}/../student/"))
    adapted(setup, anchors=live_reference(setup) | {"reference": same})  # another way to write one path


def test_an_adapter_on_an_anchor_that_could_not_ask_it_is_refused(setup: Setup) -> None:
    teacher = AnchorSource(model=ModelSpec(str(setup.teacher)), adapter="x.ckpt")
    with pytest.raises(ConfigError, match=r"anchors\.teacher\.adapter x\.ckpt: expected only under `reference`"):
        adapted(setup, anchors=live_reference(setup) | {"teacher": teacher})
    with pytest.raises(
        ConfigError, match=r"anchors\.reference\.adapter x\.ckpt: expected only under `reference`, beside"
    ):
        setup.module(anchors=live_reference(setup, "x.ckpt"))  # a student that trains all of its weights
    with pytest.raises(ConfigError, match="needs the `model` that it was trained on"):
        AnchorSource(scores="x", adapter="x.ckpt")


@pytest.mark.parametrize("steps", [1, 4])
def test_D4_resumed_the_losses_and_the_adapter_are_bit_identical_with_dropout(
    setup: Setup, tmp_path: Path, whole: tuple[PreferenceModule, Seen, Path], steps: int
) -> None:
    module, uninterrupted, _ = whole
    before, after, again = Seen(dies_before=steps), Seen(), adapted(setup)
    with pytest.raises(KilledError):
        fit(adapted(setup), tmp_path, setup.data(), before)
    fit(again, tmp_path, setup.data(), after, resume=True)
    assert before.losses | after.losses == uninterrupted.losses
    assert sorted(after.losses) == list(range(steps + 1, 7))
    for name, value in trained_weights(module).items():
        assert torch.equal(trained_weights(again)[name], value), name


def test_a_run_that_goes_on_with_another_adapter_or_base_is_refused_with_both_values(
    setup: Setup, tmp_path: Path, whole: tuple[PreferenceModule, Seen, Path]
) -> None:
    path = whole[2] / "checkpoints" / "last.ckpt"

    def resume(module: Any) -> None:
        trainer(tmp_path, max_epochs=3).fit(module, datamodule=setup.data(), ckpt_path=path)

    with pytest.raises(ConfigError, match=r"28 weights differ.*\[4, \d+\] in the checkpoint, \[2, \d+\] here"):
        resume(adapted(setup, AdapterSpec(rank=2, alpha=16.0, dropout=0.1)))
    with pytest.raises(ConfigError, match=r"cannot resume: adapter\.alpha was 16\.0 and is 8\.0 now"):
        resume(adapted(setup, AdapterSpec(rank=4, alpha=8.0, dropout=0.1)))
    with pytest.raises(ConfigError, match=r"weights differ.*missing in the checkpoint"):
        resume(setup.module())
    other = tiny_model(tmp_path / "other", layers=2, seed=7)
    changed = adapted(setup, live=False, student=ModelSpec(str(other)))
    with pytest.raises(ConfigError, match=rf"was trained on '{setup.student}' \(\w+\), but the student is '{other}'"):
        trainer(tmp_path).validate(changed, datamodule=setup.data(), ckpt_path=path)


def test_a_checkpoint_that_lacks_a_matrix_is_refused_and_the_base_s_absence_alone_is_forgiven(
    setup: Setup, tmp_path: Path
) -> None:
    module = adapted(setup)
    module.trainer = trainer(tmp_path)  # type: ignore[assignment]
    module.configure_model()
    said: dict[str, Any] = {}
    module.on_save_checkpoint(said)
    state = module.state_dict()
    assert not module.load_state_dict(state, strict=False).missing_keys
    name = "student.model.layers.0.self_attn.q_proj.lora_A.trained.weight"
    del state[name]
    assert module.load_state_dict(state, strict=False).missing_keys == [name]
    with pytest.raises(ConfigError, match=r"1 keys missing, 0 unexpected, for example student\.model\.layers\.0"):
        module.on_load_checkpoint({"state_dict": state} | said)


def test_the_merged_export_says_what_the_adapter_said_live(
    setup: Setup, tmp_path: Path, whole: tuple[PreferenceModule, Seen, Path]
) -> None:
    module, _, root = whole
    out = export_checkpoint(str(root / "checkpoints" / "last.ckpt"), str(tmp_path / "out"))
    merged = load_frozen(ModelSpec(str(out)), "32-true")
    assert not any("lora" in name for name, _ in merged.named_modules())
    live = log_probs(module.student, setup)
    assert torch.allclose(log_probs(merged, setup), live, rtol=1e-5, atol=1e-5)
    assert (live - log_probs(load_frozen(ModelSpec(str(setup.student)), "32-true"), setup)).abs().max() > 0.1
    card = (out / "README.md").read_text("utf-8")
    assert "LoRA adapter (rank 4, alpha 16, all-linear), merged into its base, of last.ckpt." in card
    assert read_manifest(out, "model").results["parameters"] == sum(p.numel() for p in merged.parameters())


def test_an_export_over_a_base_that_changed_is_refused(
    setup: Setup, tmp_path: Path, whole: tuple[PreferenceModule, Seen, Path]
) -> None:
    loaded = torch.load(whole[2] / "checkpoints" / "last.ckpt", weights_only=True)
    other = tiny_model(tmp_path / "other", layers=2, seed=7)
    loaded["dadpo"]["student"]["path"] = str(other)
    torch.save(loaded, tmp_path / "moved.ckpt")
    with pytest.raises(DataError, match=rf"its adapter was trained on another '{other}' \(\w+\) than is there now"):
        export_checkpoint(str(tmp_path / "moved.ckpt"), str(tmp_path / "out"))
    assert not list(tmp_path.glob("out*"))


def test_D7_from_dsft_s_adapter_to_preferences_the_reference_is_the_student_after_dsft(
    setup: Setup, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [make_response(number) for number in range(6)]
    responses = write_artifact(tmp_path / "responses", "responses", rows)
    base = ModelSpec(str(setup.student))
    dsft = SupervisedModule(base, FAST, adapter=ADAPTER)
    fit(dsft, tmp_path / "dsft", SupervisedData(train=ResponseSource(str(responses)), responses_per_step=3), Seen())
    path = str(tmp_path / "dsft" / "checkpoints" / "last.ckpt")

    begun = AdapterSpec(rank=4, alpha=16.0, dropout=0.1, start=path)
    module = adapted(setup, begun)
    loop = trainer(tmp_path / "dpo", [CheckScores(chosen_from_teacher=False), LastCheckpoint()], limit_val_batches=0)
    loop.fit(module, datamodule=setup.data())
    assert "largest difference in loss 0.00e+00" in capsys.readouterr().out
    after_dsft = load_frozen(ModelSpec(str(export_checkpoint(path, str(tmp_path / "merged")))), "32-true")
    batch = collate_pairs(read_pairs(setup.pairs, "train"))
    found, expected = module.scorers["reference"].score(batch), LiveScorer(after_dsft).score(batch)
    assert torch.allclose(found.chosen.total, expected.chosen.total, rtol=1e-5, atol=1e-5)
    bare = LiveScorer(load_frozen(base, "32-true")).score(batch)
    assert (found.chosen.total - bare.chosen.total).abs().max() > 0.1
    assert not module.frozen

    last = tmp_path / "dpo" / "checkpoints" / "last.ckpt"
    saved = torch.load(last, weights_only=True)
    assert all(is_trained_weight(key) for key in saved["state_dict"])  # the frozen copy is not in it
    out = export_checkpoint(str(last), str(tmp_path / "out"))
    merged = load_frozen(ModelSpec(str(out)), "32-true")
    assert torch.allclose(log_probs(merged, setup), log_probs(module.student, setup), rtol=1e-5, atol=1e-5)
    card = (out / "README.md").read_text("utf-8")
    assert "(rank 4, alpha 16, all-linear; it went on from an earlier training's), merged into its base, of" in card
