"""QLoRA with bitsandbytes itself, whose CPU kernels do what the GPU's do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_dadpo.losses import DPO
from lightning_dadpo.models.adapters import is_trained_weight
from lightning_dadpo.models.export import export_checkpoint
from lightning_dadpo.models.loading import load_frozen
from lightning_dadpo.models.spec import AdapterSpec, ModelSpec
from lightning_dadpo.training.checks import CheckScores
from tests.scoring.example import Setup, make_setup, trainer
from tests.training.test_adapters import KilledError, Seen, adapted, fit, log_probs, trained_weights

pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed: pip install 'lightning-dadpo[qlora]'")
pytestmark = pytest.mark.filterwarnings("ignore:.*Checkpoint directory .* exists and is not empty")

ADAPTER = AdapterSpec(rank=4, alpha=16.0, dropout=0.1, quantize="nf4")


@pytest.fixture(scope="module")
def setup(tmp_path_factory: pytest.TempPathFactory) -> Setup:
    return make_setup(tmp_path_factory.mktemp("4-bit"))


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_the_reference_is_the_4_bit_student_with_its_adapter_off(
    setup: Setup, tmp_path: Path, capsys: pytest.CaptureFixture[str], precision: Any
) -> None:
    checks = [CheckScores(chosen_from_teacher=False)]
    loop = trainer(tmp_path, checks, precision=precision, limit_val_batches=0)
    loop.fit(adapted(setup, ADAPTER, loss=DPO(0.1)), datamodule=setup.data())
    assert (
        "step-0 oracle: student = reference on 8 pairs; largest difference in loss 0.00e+00" in capsys.readouterr().out
    )


def test_trained_resumed_and_exported_as_what_was_trained(setup: Setup, tmp_path: Path) -> None:
    whole, uninterrupted = adapted(setup, ADAPTER), Seen()
    fit(whole, tmp_path / "whole", setup.data(), uninterrupted)
    before, after, again = Seen(dies_before=2), Seen(), adapted(setup, ADAPTER)
    with pytest.raises(KilledError):
        fit(adapted(setup, ADAPTER), tmp_path / "killed", setup.data(), before)
    fit(again, tmp_path / "killed", setup.data(), after, resume=True)
    assert before.losses | after.losses == uninterrupted.losses
    for name, value in trained_weights(whole).items():
        assert torch.equal(trained_weights(again)[name], value), name
    path = tmp_path / "whole" / "checkpoints" / "last.ckpt"
    assert all(is_trained_weight(key) for key in torch.load(path, weights_only=True)["state_dict"])

    out = export_checkpoint(str(path), str(tmp_path / "out"))
    live = log_probs(whole.student, setup)
    assert torch.allclose(log_probs(load_frozen(ModelSpec(str(out)), "32-true"), setup), live, rtol=1e-5, atol=1e-5)
    assert "merged into its base rounded to nf4, of last.ckpt." in (out / "README.md").read_text("utf-8")
