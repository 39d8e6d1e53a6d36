"""What every training of a student shares: loading it, its optimizer, and checkpoints that hold it alone."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, Protocol, runtime_checkable

import lightning as L
import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn

from lightning_dadpo.errors import ConfigError
from lightning_dadpo.models.loading import load_model
from lightning_dadpo.models.log_probs import check_trunk_and_head, describe_kernels
from lightning_dadpo.models.spec import ModelSpec
from lightning_dadpo.training.metrics import ExampleMeans
from lightning_dadpo.training.optimization import Schedule, parameter_groups, warmup_then_cosine

__all__ = ["StudentModule", "DescribesBatches", "logging_interval"]

FROZEN = "frozen."


@runtime_checkable
class DescribesBatches(Protocol):
    """Data that can say how it cuts a step."""

    def describe_batches(self) -> str:
        """One phrase for the log."""


class StudentModule(L.LightningModule):
    """A student in training, and frozen models beside it that are registered but neither trained nor saved.

    Args:
        student: the model it starts from.
        optimizer: made from the student's trainable parameters alone.
        schedule: the learning rate over the run.
        names: the values that are averaged for the logs.
    """

    def __init__(
        self, student: ModelSpec, optimizer: OptimizerCallable, schedule: Schedule | None, names: list[str]
    ) -> None:
        super().__init__()
        self.student_spec = student
        self.optimizer = optimizer
        self.schedule = schedule or Schedule()
        self.student: Any = None
        self.frozen = nn.ModuleDict()
        self.training_means = ExampleMeans(names)
        self.evaluation_means = ExampleMeans(names)
        self._random_state: dict[str, Tensor] = {}
        self.strict_loading = False  # the frozen models' keys are not in a checkpoint; on_load_checkpoint is strict
        self.register_state_dict_post_hook(_drop_frozen)  # type: ignore[no-untyped-call]
        self.register_load_state_dict_post_hook(_forgive_frozen)  # type: ignore[no-untyped-call]

    def configure_model(self) -> None:
        """Load the student, in float32 and in training mode; Lightning may call this more than once."""
        if self.student is not None:
            return
        precision = str(self.trainer.precision)
        if precision not in ("32-true", "bf16-mixed"):
            # bf16 weights round most updates of a small learning rate away (trap D8)
            raise ConfigError(f"trainer.precision {precision}: expected 32-true or bf16-mixed (float32 weights)")
        self.student = load_model(self.student_spec)
        check_trunk_and_head(self.student, self.student_spec.path)
        self.student.train()

    def on_fit_start(self) -> None:
        """Say what was chosen for this machine, in one line, and what sets it."""
        if not self.trainer.is_global_zero:
            return
        with self.trainer.precision_plugin.forward_context():
            kernels = describe_kernels(self.student)
        data = getattr(self.trainer, "datamodule", None)
        batches = f", {data.describe_batches()}" if isinstance(data, DescribesBatches) else ""
        print(
            f"{self.device.type}, {self.trainer.precision}, {kernels}{batches} (set by trainer.precision, "
            "student.attention, student.chunk_tokens, data.tokens_per_batch)"
        )

    def train(self, mode: bool = True) -> StudentModule:
        """Training mode for the student; a frozen model never leaves eval mode (trap B6)."""
        super().train(mode)
        self.frozen.eval()
        return self

    def configure_optimizers(self) -> Any:
        """The optimizer over the student, warm-up and cosine over the run's estimated steps.

        Raises:
            ConfigError: the run has no end.
        """
        optimizer = self.optimizer(parameter_groups(self.student))
        steps = self.trainer.estimated_stepping_batches
        if steps == float("inf"):
            raise ConfigError("trainer.max_epochs and trainer.max_steps are both -1: the schedule needs one of them")
        scheduler = warmup_then_cosine(optimizer, self.schedule, int(steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def describe(self) -> dict[str, Any]:
        """What a checkpoint says of itself, in plain values."""
        return {"student": asdict(self.student_spec)}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Say what the weights are."""
        checkpoint["dadpo"] = self.describe()
        checkpoint["random_state"] = self._random_state_now()

    def _random_state_now(self) -> dict[str, Tensor]:
        state = {"cpu": torch.get_rng_state()}
        return state | ({"cuda": torch.cuda.get_rng_state(self.device)} if self.device.type == "cuda" else {})

    def on_train_start(self) -> None:
        """Dropout goes on where the checkpoint left it: exactly on one device; of several, rank 0's is everyone's."""
        if self._random_state:
            torch.set_rng_state(self._random_state["cpu"].cpu())
            if self.device.type == "cuda" and "cuda" in self._random_state:
                torch.cuda.set_rng_state(self._random_state["cuda"].cpu(), self.device)
            self._random_state = {}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Hold the checkpoint to this student, key by key.

        Raises:
            ConfigError: it is another model's.
        """
        expected, found = set(self.state_dict()), set(checkpoint["state_dict"])
        if expected != found:
            example = sorted(expected ^ found)[0]
            raise ConfigError(
                f"checkpoint and student do not fit: {len(expected - found)} keys missing, "
                f"{len(found - expected)} unexpected, for example {example}"
            )
        self._random_state = checkpoint.get("random_state", {})

    def log_training_means(self) -> None:
        """Means since the last time, once every `log_every_n_steps`: no other step waits for a GPU."""
        due = (self.trainer.global_step + 1) % logging_interval(self.trainer) == 0
        if due and not self.trainer.fit_loop._should_accumulate():
            self._log_means("train", self.training_means)
            self.log("train/learning_rate", self.trainer.optimizers[0].param_groups[0]["lr"])

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """The gradient norm before clipping, on steps that are logged."""
        if (self.trainer.global_step + 1) % logging_interval(self.trainer) == 0:
            gradients = [p.grad for p in self.student.parameters() if p.grad is not None]
            self.log("train/gradient_norm", torch.nn.utils.get_total_norm(gradients))

    def _log_means(self, part: str, means: ExampleMeans) -> None:
        self.log_dict({f"{part}/{name}": value.float() for name, value in means.compute().items()})
        means.reset()

    def on_validation_epoch_end(self) -> None:
        """Every mean over the validation split."""
        self._log_means("val", self.evaluation_means)

    def on_test_epoch_end(self) -> None:
        """Every mean over the test split."""
        self._log_means("test", self.evaluation_means)


def logging_interval(trainer: L.Trainer) -> int:
    """Optimizer steps between two logged ones; an attribute that Lightning sets without declaring it."""
    return int(trainer.log_every_n_steps)  # type: ignore[attr-defined]


def _drop_frozen(module: nn.Module, state: dict[str, Tensor], prefix: str, metadata: Any) -> None:
    for key in [key for key in state if key.startswith(prefix + FROZEN)]:
        del state[key]


def _forgive_frozen(module: nn.Module, incompatible: Any) -> None:
    incompatible.missing_keys[:] = [key for key in incompatible.missing_keys if FROZEN not in key]
