"""A finished wandb run for a stage that has no curves: what it was made from, with which inputs, and what came out."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning_dadpo.data.artifacts import Manifest
from lightning_dadpo.tracking.connection import start_run, wandb_mode
from lightning_dadpo.tracking.lineage import made, record_inputs, record_output

__all__ = ["record_stage"]


def record_stage(
    experiment: str,
    stage: str,
    run_id: str,
    folder: Path,
    manifest: Manifest,
    save_dir: Path,
    settings: Mapping[str, Any] | None = None,
) -> None:
    """Record a complete stage as one finished run; whatever goes wrong is one printed line, never an error.

    Args:
        experiment: the group of the run.
        stage: its name; the kind of the artefact is its job type.
        run_id: its identity: recording the stage again continues the same run.
        folder: where the artefact is.
        manifest: of the artefact; what it was made from and the versions become the run's config, its counts,
            results and seconds the run's summary.
        save_dir: the run's files go to `wandb/` under it.
        settings: of the stage; the artefacts that they name are the run's inputs.
    """
    try:
        mode = wandb_mode()
        if mode == "disabled":
            return
        config = {"folder": str(folder), "made_from": manifest.made_from, "versions": manifest.versions}
        output = made(folder)
        run = start_run(
            mode,
            experiment=experiment,
            name=stage,
            job_type=manifest.kind,
            run_id=run_id,
            save_dir=save_dir,
            config=config,
        )
        record_inputs(run, settings or {})
        record_output(run, output)
        run.summary.update({"counts": manifest.counts, "results": manifest.results, "seconds": manifest.seconds})
        run.finish()
    except Exception as error:  # the stage is complete; no trouble of its tracking may undo that
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        print(f"wandb: stage {stage} was not recorded ({reason})", flush=True)
