"""The wandb run of a training: curves and samples."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities import rank_zero_only

from lightning_dadpo.tracking.connection import end_service, project, start_run, wandb_mode
from lightning_dadpo.tracking.lineage import record_inputs, record_output, trained

__all__ = ["ExperimentLogger"]


class ExperimentLogger(WandbLogger):
    """Logs a training to wandb as one run of an experiment; the mode is chosen by `wandb_mode`.

    wandb is imported and the run started when the first value is logged, on rank 0 alone. Checkpoints and code are
    never uploaded. When the process that wandb keeps beside the training dies, the training goes on, and so does its
    run, in another one.

    Args:
        experiment: the group of the run; every stage of an experiment shares it.
        stage: the name of the run.
        run_id: its identity; a resumed training with the same one continues its run. None makes a new run.
        save_dir: the run's files go to `wandb/` under it.
    """

    def __init__(self, experiment: str, stage: str, run_id: str | None = None, save_dir: str = "runs") -> None:
        super().__init__(name=stage, save_dir=save_dir, id=run_id, project=project(), group=experiment, log_model=False)
        self.group, self.stage, self.run_id = experiment, stage, run_id
        self._saved = False

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The wandb run, started on first use.

        Raises:
            ConfigError: the environment asks for a mode that there is not, or for online without a key.
        """
        if self._experiment is None:
            mode = wandb_mode()
            run = start_run(
                mode,
                experiment=self.group,
                name=self.stage,
                job_type="fit",
                run_id=self.run_id,
                save_dir=str(self.save_dir),
            )
            run.define_metric("trainer/global_step")
            run.define_metric("*", step_metric="trainer/global_step", step_sync=True)
            _say_where(run)
            self._experiment = run
        return self._experiment

    @rank_zero_only
    def log_hyperparams(self, params: Any) -> None:
        """The run's config; the artefacts that it names, such as pairs, scores and models, are the run's inputs."""
        super().log_hyperparams(params)
        record_inputs(self.experiment, params)

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Values of one step.

        Args:
            metrics: by name.
            step: optimizer steps so far.
        """
        try:
            super().log_metrics(metrics, step)
        except OSError as error:
            print(f"wandb: {self.stage}: its service died ({error}); the run goes on in a new one", flush=True)
            end_service()
            self._experiment = None
            super().log_metrics(metrics, step)

    def after_save_checkpoint(self, checkpoint_callback: Any) -> None:
        """A checkpoint is what a training makes; it stays where it is."""
        self._saved = True

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Name what was trained as the run's output; wandb closes the run when the process ends."""
        if status == "success" and self._saved:
            record_output(self.experiment, trained(self.experiment.id))

    def log_samples(self, rows: list[dict[str, Any]], step: int) -> None:
        """A table `samples`; its cells are plain values, so that no text of a model is ever read as HTML.

        Args:
            rows: at least one; all with the same keys, which become the columns.
            step: optimizer steps so far.
        """
        columns = list(rows[0])
        self.log_table("samples", columns, [[row[column] for column in columns] for row in rows], step=step)


def _say_where(run: Any) -> None:
    if run.settings.mode == "online":
        print(f"wandb: {run.url}", flush=True)
    elif run.settings.mode == "offline":
        print(f"wandb: kept offline; upload it with `wandb sync {Path(run.dir).parent}`", flush=True)
