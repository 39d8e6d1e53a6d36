"""What every training of a student shares: loading it, its optimizer, and checkpoints that hold it alone."""

from __future__ import annotations

import math
from dataclasses import asdict, replace
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

import lightning as L
import torch
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.strategies import DeepSpeedStrategy
from torch import Tensor, nn

from lightning_dadpo.errors import ConfigError
from lightning_dadpo.models.adapters import attach_adapter, describe_adapter, is_trained_weight, require_peft
from lightning_dadpo.models.loading import load_model
from lightning_dadpo.models.log_probs import check_trunk_and_head, describe_kernels
from lightning_dadpo.models.modes import in_eval_mode
from lightning_dadpo.models.quantization import require_bitsandbytes, warn_of_noise
from lightning_dadpo.models.spec import AdapterSpec, ModelSpec, refuse_quantized
from lightning_dadpo.training.metrics import ExampleMeans
from lightning_dadpo.training.optimization import Schedule, parameter_groups, warmup_then_cosine
from lightning_dadpo.training.resuming import ObeyFlags
from lightning_dadpo.training.sharding import (
    gradient_norm,
    loading_under,
    prepare_strategy,
    refuse_to_spread_quantized,
    shard_under,
)

__all__ = ["StudentModule", "DescribesBatches", "logging_interval", "in_eval_mode"]

FROZEN = "frozen."
STUDENT = "student."


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
        adapter: train a LoRA adapter on the student, whose own weights then stand still and are in no checkpoint.
    """

    trains_on: ClassVar[Literal["pairs", "responses"]]
    """What its steps are given; a data module says what it `gives`."""

    def __init__(
        self,
        student: ModelSpec,
        optimizer: OptimizerCallable,
        schedule: Schedule | None,
        names: list[str],
        adapter: AdapterSpec | None,
    ) -> None:
        super().__init__()
        refuse_quantized(student, "weights of a student are trained (model.adapter.quantize is for an adapter's base)")
        self.student_spec, self.adapter = student, adapter
        self._adapter_contents: dict[str, Any] = {}
        self.optimizer = optimizer
        self.schedule = schedule or Schedule()
        self.student: Any = None
        self.frozen = nn.ModuleDict()
        self.training_means = ExampleMeans(names)
        self.evaluation_means = ExampleMeans(names)
        self._random_states: list[dict[str, Tensor]] = []
        self.strict_loading = False  # the frozen models' keys are not in a checkpoint; on_load_checkpoint is strict
        self.register_state_dict_post_hook(_drop_unsaved)  # type: ignore[no-untyped-call]
        self.register_load_state_dict_post_hook(_forgive_unsaved)  # type: ignore[no-untyped-call]

    def setup(self, stage: str) -> None:
        """Tell the strategy what it cannot find out, and refuse an adapter that cannot work here.

        Raises:
            ConfigError: it needs a package or another strategy.
        """
        strategy = self.trainer.strategy
        prepare_strategy(strategy)
        if self.adapter is not None:
            require_peft()
            if self.adapter.quantize is not None:
                setting = f"model.adapter.quantize {self.adapter.quantize}"
                require_bitsandbytes(setting)
                refuse_to_spread_quantized(strategy, setting)

    def configure_model(self) -> None:
        """Load the student, in float32 and in training mode, with its adapter; Lightning may call this twice."""
        if self.student is not None:
            return
        precision = str(self.trainer.precision)
        if precision not in ("32-true", "bf16-mixed"):
            # bf16 weights round most updates of a small learning rate away (trap D8)
            raise ConfigError(f"trainer.precision {precision}: expected 32-true or bf16-mixed (float32 weights)")
        if self.adapter is not None:
            self._adapter_contents = describe_adapter(self.adapter, self.student_spec)
        self.student = self.load(self.student_spec, trainable=True, adapter=self.adapter)
        self.student.train()

    def load(self, spec: ModelSpec, trainable: bool, adapter: AdapterSpec | None = None) -> Any:
        """A model in float32, in eval mode, spread over ranks where the strategy does so.

        Args:
            spec: which model. trainable: whether its weights are trained. adapter: or this adapter on it.
        """
        strategy = self.trainer.strategy
        held = spec if adapter is None else replace(spec, quantize=adapter.quantize)
        if held.quantize is not None:
            refuse_to_spread_quantized(strategy, f"model {spec.path!r}: quantize {held.quantize}")
        if not trainable and self.trainer.is_global_zero:
            warn_of_noise(spec)
        with loading_under(strategy):
            model = load_model(held, device=strategy.root_device)
        if adapter is None:
            model.requires_grad_(trainable)
        else:
            attach_adapter(model, adapter, spec)
        shard_under(strategy, model)
        return model

    def _check_models(self) -> None:
        """Hold every model to what the fast path needs, as it will run; here, since a sharded one answers no earlier.

        Raises:
            ConfigError: naming the model.
        """
        with self.trainer.precision_plugin.forward_context():
            with in_eval_mode(self.student):
                check_trunk_and_head(self.student, self.student_spec.path)
            for name, model in self.frozen.items():
                check_trunk_and_head(model, name)

    def on_fit_start(self) -> None:
        """Hold every model to what the fast path needs; say what was chosen for this machine, and what sets it."""
        self._check_models()
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
        if self.adapter is not None:
            shapes = self._shapes().values()
            print(
                f"adapter of rank {self.adapter.rank} on {len(shapes) // 2} layers: {sum(map(math.prod, shapes)):,} "
                "weights are trained, the student's own stand still"
            )

    def on_validation_start(self) -> None:
        """As in `on_fit_start`, where nothing is trained."""
        if self.trainer.state.fn != "fit":
            self._check_models()

    def on_test_start(self) -> None:
        """As in `on_fit_start`."""
        self._check_models()

    def on_predict_start(self) -> None:
        """As in `on_fit_start`."""
        self._check_models()

    def train(self, mode: bool = True) -> StudentModule:
        """Training mode for the student; a frozen model never leaves eval mode (trap B6)."""
        super().train(mode)
        self.frozen.eval()
        return self

    def configure_callbacks(self) -> list[L.Callback]:
        """A training that goes on is held to its own flags, whatever else a person names."""
        return [ObeyFlags()]

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
        said: dict[str, Any] = {"student": asdict(self.student_spec)}
        return said | ({"adapter": self._adapter_contents} if self.adapter is not None else {})

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Say what the weights are, and where every rank's dropout stands."""
        checkpoint["dadpo"] = self.describe() | {"weights": self._shapes()}
        states = [self._random_state_now()]
        if self.trainer.world_size > 1:
            states *= self.trainer.world_size
            torch.distributed.all_gather_object(states, states[0])
        checkpoint["random_states"] = states

    def _random_state_now(self) -> dict[str, Tensor]:
        state = {"cpu": torch.get_rng_state()}
        return state | ({"cuda": torch.cuda.get_rng_state(self.device)} if self.device.type == "cuda" else {})

    def _shapes(self) -> dict[str, list[int]]:
        """Of the trained weights, also where this rank holds parts of them."""
        trained = ((name, p) for name, p in self.student.named_parameters() if p.requires_grad)
        return {name: list(getattr(p, "ds_shape", p.shape)) for name, p in trained}

    def is_saved(self, key: str) -> bool:
        """Whether a checkpoint holds this key of the state: frozen models and a base under an adapter stay out."""
        if key.startswith(FROZEN):
            return False
        return self.adapter is None or not key.startswith(STUDENT) or is_trained_weight(key)

    def on_train_start(self) -> None:
        """Dropout goes on where the checkpoint left it, rank by rank; in a new run ranks drop different units."""
        rank, states = self.trainer.global_rank, self._random_states
        if states:
            torch.set_rng_state(states[rank]["cpu"].cpu())
            if self.device.type == "cuda" and "cuda" in states[rank]:
                torch.cuda.set_rng_state(states[rank]["cuda"].cpu(), self.device)
            self._random_states = []
        elif self.trainer.world_size > 1:
            torch.manual_seed(torch.initial_seed() + rank)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Hold the checkpoint to this student, weight by weight, and a resumed run to what it began with.

        Raises:
            ConfigError: it is another model's, or training would go on with something else.
        """
        said = checkpoint.get("dadpo")
        if not isinstance(said, dict) or "weights" not in said:
            raise ConfigError("no checkpoint of this project: no entry `dadpo` that says what its weights are")
        expected, found = self._shapes(), said["weights"]
        if expected != found:
            example = sorted(name for name in expected | found if expected.get(name) != found.get(name))
            raise ConfigError(
                f"checkpoint and student do not fit: {len(example)} weights differ, for example {example[0]}: "
                f"{found.get(example[0], 'missing')} in the checkpoint, {expected.get(example[0], 'missing')} here"
            )
        if "state_dict" in checkpoint:  # else the strategy has loaded the weights already
            keys, here = set(checkpoint["state_dict"]), set(self.state_dict())
            missing, unexpected = here - keys, keys - here
            if missing | unexpected:
                raise ConfigError(
                    f"checkpoint and student do not fit: {len(missing)} keys missing, {len(unexpected)} unexpected, "
                    f"for example {min(missing | unexpected)}"
                )
        self._check_base(said)
        if self.trainer.state.fn != "fit":
            return
        if "state_dict" in checkpoint and "optimizer_states" not in checkpoint:
            raise ConfigError("cannot resume: the checkpoint holds weights alone; a training goes on from last.ckpt")
        for name, (was, now) in self._continued_from(said).items():
            if was != now:
                raise ConfigError(f"cannot resume: {name} was {was} and is {now} now")
        if len(checkpoint["random_states"]) != self.trainer.world_size:
            was, now = len(checkpoint["random_states"]), self.trainer.world_size
            raise ConfigError(f"cannot resume: world_size was {was} and is {now} now")
        self._random_states = checkpoint["random_states"]

    def _check_base(self, said: dict[str, Any]) -> None:
        """An adapter on another base is another model, which no weight in the checkpoint would show.

        Raises:
            ConfigError: naming both bases.
        """
        was_on = said["student"]["path"]
        was, now = said.get("adapter", {}).get("base"), self._adapter_contents.get("base")
        if was != now:
            raise ConfigError(
                f"the checkpoint's adapter was trained on {was_on!r} ({was}), "
                f"but the student is {self.student_spec.path!r} ({now})"
            )

    def _continued_from(self, said: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
        """What must not change under a run that goes on: its value in the checkpoint, and now."""
        names = ("path", "revision", "gguf_file")
        now = asdict(self.student_spec)
        same = {f"student.{name}": (said["student"].get(name), now[name]) for name in names}
        same |= _kinds(said["objective"], self.describe()["objective"])
        if self.adapter is not None:
            there, here = said["adapter"], self._adapter_contents
            settings = {name for name in here["settings"] if name != "start"}  # its weights are what counts
            same |= {f"adapter.{name}": (there["settings"].get(name), here["settings"][name]) for name in settings}
            same["adapter.start"] = (there["start"], here["start"])
        return same

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_index: int) -> None:
        """DeepSpeed's own gradient norm, which it knows behind the step."""
        strategy = self.trainer.strategy
        due = self.trainer.global_step % logging_interval(self.trainer) == 0
        if isinstance(strategy, DeepSpeedStrategy) and due and not self.trainer.fit_loop._should_accumulate():
            self.log("train/gradient_norm", float(strategy.deepspeed_engine.get_global_grad_norm() or 0.0))

    def log_training_means(self) -> None:
        """Means since the last time, once every `log_every_n_steps`: no other step waits for a GPU."""
        due = (self.trainer.global_step + 1) % logging_interval(self.trainer) == 0
        if due and not self.trainer.fit_loop._should_accumulate():
            self._log_means("train", self.training_means)
            self.log("train/learning_rate", self.trainer.optimizers[0].param_groups[0]["lr"])

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """The gradient norm before clipping, on steps that are logged."""
        if (self.trainer.global_step + 1) % logging_interval(self.trainer) == 0:
            norm = gradient_norm(self.trainer, self.student)
            if norm is not None:
                self.log("train/gradient_norm", norm)

    def _log_means(self, part: str, means: ExampleMeans) -> None:
        self.log_dict({f"{part}/{name}": value.float() for name, value in means.compute().items()})
        means.reset()

    def on_validation_epoch_end(self) -> None:
        """Every mean over the validation split."""
        self._log_means("val", self.evaluation_means)

    def on_test_epoch_end(self) -> None:
        """Every mean over the test split."""
        self._log_means("test", self.evaluation_means)


def _kinds(was: dict[str, Any], now: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """An objective's class and those of its terms; its numbers are flags, which are obeyed."""
    kinds = [{name: term["name"] for name, term in said.get("terms", {}).items()} for said in (was, now)]
    return {"objective": (was["name"], now["name"]), "terms": (kinds[0], kinds[1])}


def logging_interval(trainer: L.Trainer) -> int:
    """Optimizer steps between two logged ones; an attribute that Lightning sets without declaring it."""
    return int(trainer.log_every_n_steps)  # type: ignore[attr-defined]


def _drop_unsaved(module: StudentModule, state: dict[str, Tensor], prefix: str, metadata: Any) -> None:
    for key in [key for key in state if key.startswith(prefix) and not module.is_saved(key.removeprefix(prefix))]:
        del state[key]


def _forgive_unsaved(module: StudentModule, incompatible: Any) -> None:
    incompatible.missing_keys[:] = [key for key in incompatible.missing_keys if module.is_saved(key)]
