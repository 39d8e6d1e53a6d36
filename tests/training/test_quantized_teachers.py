"""Teachers in 8 and 4 bits through the stages: scored and audited, live beside a student, in no checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.strategies import ModelParallelStrategy

from lightning_dadpo.data.artifacts import read_manifest
from lightning_dadpo.data.rows import ScoreRow, read_rows
from lightning_dadpo.errors import ConfigError
from lightning_dadpo.models.spec import ModelSpec, Quantization
from lightning_dadpo.scoring.stage import score
from lightning_dadpo.training.checkpoints import LastCheckpoint
from lightning_dadpo.training.preference import AnchorSource
from lightning_dadpo.training.sharding import refuse_to_spread_quantized
from tests.scoring.example import Setup, make_setup, trainer
from tests.training.test_resume import Losses

pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed: pip install 'lightning-dadpo[quantize]'")
pytestmark = pytest.mark.filterwarnings(
    "ignore:.*module.* in eval mode at the start of training",
    "ignore:.*Checkpoint directory .* exists and is not empty",
)
KINDS: tuple[Quantization, ...] = ("int8", "nf4")


@pytest.fixture(scope="module")
def setup(tmp_path_factory: pytest.TempPathFactory) -> Setup:
    return make_setup(tmp_path_factory.mktemp("quantized"))


def trained(setup: Setup, root: Path, teacher: AnchorSource, **settings: Any) -> tuple[dict[int, float], Any]:
    L.seed_everything(0, verbose=False)
    losses = Losses()
    module = setup.module(anchors={"reference": AnchorSource(scores=str(setup.reference_scores)), "teacher": teacher})
    loop = trainer(root, [losses, LastCheckpoint()], limit_val_batches=0, **settings)
    loop.fit(module, datamodule=setup.data())
    return losses.losses, module


def gaps(scores: Path) -> torch.Tensor:
    """D of each pair."""
    rows = read_rows(scores / "rows.jsonl", ScoreRow)
    return torch.tensor([row.chosen_log_prob - row.rejected_log_prob for row in rows])


@pytest.mark.parametrize("kind", KINDS)
def test_scored_beforehand_and_asked_live_it_says_the_same_and_not_what_the_whole_one_says(
    setup: Setup, tmp_path: Path, kind: Quantization
) -> None:
    held = ModelSpec(str(setup.teacher), quantize=kind)
    scores = score(held, str(setup.pairs), str(tmp_path / "scores"), tokens_per_batch=70, precision="32-true")
    manifests = [read_manifest(folder, "scores") for folder in (scores, setup.teacher_scores)]
    assert manifests[0].made_from["model"] != manifests[1].made_from["model"]  # C1: another cache
    ours, whole = gaps(scores), gaps(setup.teacher_scores)
    assert 0.01 < (ours - whole).square().mean().sqrt() < 30
    cached, _ = trained(setup, tmp_path / "cached", AnchorSource(scores=str(scores)))
    live, module = trained(setup, tmp_path / "live", AnchorSource(model=held))
    assert live == pytest.approx(cached, rel=1e-5)
    assert not any(parameter.requires_grad for parameter in module.frozen.parameters())
    saved = torch.load(tmp_path / "live" / "checkpoints" / "last.ckpt", weights_only=True)
    assert not any(key.startswith("frozen.") for key in saved["state_dict"])


def test_a_live_teacher_that_is_held_otherwise_is_another_one_to_a_resumed_training(
    setup: Setup, tmp_path: Path
) -> None:
    trained(setup, tmp_path, AnchorSource(model=ModelSpec(str(setup.teacher), quantize="nf4")))
    whole = setup.module(
        anchors={
            "reference": AnchorSource(scores=str(setup.reference_scores)),
            "teacher": AnchorSource(model=ModelSpec(str(setup.teacher))),
        }
    )
    with pytest.raises(ConfigError, match=r"anchors.teacher was \S+/teacher nf4 and is \S+/teacher now"):
        trainer(tmp_path, [LastCheckpoint()], max_epochs=2).fit(
            whole, datamodule=setup.data(), ckpt_path=tmp_path / "checkpoints" / "last.ckpt"
        )


def test_weights_that_are_spread_over_ranks_stay_whole() -> None:
    strategy = ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1)
    with pytest.raises(ConfigError, match=r"nf4: ModelParallelStrategy would spread rounded weights .*; expected ddp"):
        refuse_to_spread_quantized(strategy, "model 'teacher': quantize nf4")
