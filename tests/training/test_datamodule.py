"""What the DataModules read, drop, refuse and hand out."""

from __future__ import annotations

from pathlib import Path

import pytest

from lightning_dadpo.data.importing import PreferenceSource
from lightning_dadpo.errors import ArtifactError, ConfigError, DataError
from lightning_dadpo.training.datamodule import PairSource, PreferenceData, ResponseSource
from tests.scoring.example import make_pairs, make_response, trainer, write_artifact


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    return write_artifact(tmp_path / "pairs", "pairs", make_pairs(7) + make_pairs(4, "validation"))


def test_only_the_split_that_was_asked_for_is_read(pairs: Path) -> None:
    assert [row.prompt_id for row in PairSource(str(pairs), "validation").read()] == [
        f"validation-{number}" for number in range(4)
    ]
    with pytest.raises(DataError, match=r"no pairs of split 'heldout'; it has train 7, validation 4"):
        PairSource(str(pairs), "heldout").read()


def test_a_source_is_a_folder_or_preferences_never_both_or_none(pairs: Path) -> None:
    with pytest.raises(ConfigError, match="one of the two"):
        PairSource()
    with pytest.raises(ConfigError, match="one of the two"):
        PairSource(str(pairs), preferences=PreferenceSource("x.jsonl"))
    with pytest.raises(ConfigError, match="needs `tokenizer"):
        PairSource(preferences=PreferenceSource("x.jsonl"))


def test_A7_cut_responses_are_dropped_and_counted_unless_they_are_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [make_response(0), make_response(1, finish="length"), make_response(2), make_response(3, "validation")]
    folder = str(write_artifact(tmp_path / "responses", "responses", rows))
    assert [row.prompt_id for row in ResponseSource(folder).read()] == ["train-0", "train-2"]
    assert "2 responses of split train; dropped 0 empty and 1 cut ones" in capsys.readouterr().out
    assert len(ResponseSource(folder, keep_cut=True).read()) == 3
    with pytest.raises(ArtifactError, match="holds responses, expected pairs"):
        PairSource(folder).read()


def test_the_loaders_hold_steps_of_the_configured_size_and_every_validation_row_once(
    pairs: Path, tmp_path: Path
) -> None:
    data = PreferenceData(PairSource(str(pairs)), PairSource(str(pairs), "validation"), None, 3, 3)
    data.trainer = trainer(tmp_path, accumulate_grad_batches=2)
    data.setup("fit")
    batches = list(data.train_dataloader())
    assert [batch.pairs_in_step for batch in batches] == [3, 3, 3, 3, 1, 1]
    assert sum(float(batch.weights.sum()) for batch in batches) == 7
    assert sorted(len(batch) for batch in data.val_dataloader()) == [1, 3]
    assert data.test_dataloader() == []


def test_stages_read_what_they_need_alone(pairs: Path, tmp_path: Path) -> None:
    sources = [PairSource(str(pairs)), PairSource(str(pairs), "validation"), PairSource(str(tmp_path / "none"))]
    data = PreferenceData(*sources)
    data.setup("fit")
    assert sorted(data.rows) == ["train", "validation"]
    with pytest.raises(ArtifactError, match="no manifest"):
        data.setup("test")
    only = PreferenceData(*sources)
    only.setup("validate")
    assert sorted(only.rows) == ["validation"]


def test_nothing_to_train_on_is_refused(pairs: Path, tmp_path: Path) -> None:
    data = PreferenceData(validation=PairSource(str(pairs), "validation"))
    data.trainer = trainer(tmp_path)
    data.setup("fit")
    with pytest.raises(ConfigError, match=r"data\.train: nothing to train on"):
        data.train_dataloader()
