"""An adapter written alone is what peft loads onto its base."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers

from lightning_dadpo.cli.exporting import export
from lightning_dadpo.errors import ConfigError, DataError
from lightning_dadpo.models.spec import ModelSpec
from tests.models.test_adapters import adapted, checkpoint

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")  # peft on transformers 5


@pytest.mark.parametrize("targets", ["all-linear", ["q_proj", "down_proj"]])
def test_peft_loads_it_and_says_what_the_trained_model_says(tiny_folder: Path, tmp_path: Path, targets: object) -> None:
    from peft import PeftModel

    model = adapted(tiny_folder, rank=2, alpha=6.0, targets=targets)
    path = checkpoint(tmp_path / "last.ckpt", tiny_folder, model, rank=2, alpha=6.0, targets=targets)
    out = export(str(tmp_path / "out"), checkpoint=path, adapter=True)
    assert export(str(tmp_path / "out"), checkpoint=path, adapter=True) == out
    base = transformers.AutoModelForCausalLM.from_pretrained(tiny_folder)
    ids = torch.tensor([[1, 5, 6, 7, 8, 2]])
    with torch.no_grad():
        bare = base(ids).logits
        loaded = PeftModel.from_pretrained(base, str(out)).eval()(ids).logits
        assert torch.allclose(loaded, model(ids).logits, rtol=1e-5, atol=1e-5)
        assert not torch.allclose(loaded, bare, rtol=1e-2, atol=1e-2)
    assert str(tmp_path.parent) not in (out / "adapter_config.json").read_text("utf-8")  # no path of this machine


def test_whole_weights_and_models_have_no_adapter_to_write(tiny_folder: Path, tmp_path: Path) -> None:
    torch.save({"state_dict": {}, "dadpo": {"student": {"path": str(tiny_folder)}}}, tmp_path / "whole.ckpt")
    with pytest.raises(DataError, match="holds whole weights"):
        export(str(tmp_path / "out"), checkpoint=str(tmp_path / "whole.ckpt"), adapter=True)
    with pytest.raises(ConfigError, match="give --checkpoint"):
        export(str(tmp_path / "out"), model=ModelSpec(str(tiny_folder)), adapter=True)
