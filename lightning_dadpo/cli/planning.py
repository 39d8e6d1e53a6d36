"""`dadpo plan`: what an experiment will take, before anything is downloaded or loaded."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from lightning_dadpo.cli.experiment import Experiment, read_experiment
from lightning_dadpo.cli.needs import needs_of
from lightning_dadpo.cli.recipe import SHARDED, merged_settings, strategy_of
from lightning_dadpo.cli.rounds import check_anchors
from lightning_dadpo.errors import ConfigError
from lightning_dadpo.models.footprint import Footprint
from lightning_dadpo.models.spec import AdapterSpec, ModelSpec
from lightning_dadpo.training.memory import Layout, Parts, scoring_memory, training_memory

__all__ = ["plan", "Mode", "Workload", "plan_modes"]

GIB = 2**30
CHARACTERS_A_TOKEN = 4
TEMPLATE_TOKENS = 20
SHARE_OF_MATMUL_RATE = {"training": 0.65, "scoring": 0.55}
"""Of the rate of large products, measured on a CPU (experiments/throughput, row F, and the scoring stage)."""
SCORE_DISK_BYTES = 190
"""Of one pair's row in a scores artefact."""


@dataclass(frozen=True)
class Workload:
    """What will be trained on.

    Attributes:
        pairs: of the training split.
        prompt_tokens, response_tokens: of one prompt and of one response.
        epochs: of the preference training.
        pairs_per_step: over all devices.
        tokens_per_batch: of a forward pass on one device.
    """

    pairs: int
    prompt_tokens: int
    response_tokens: int
    epochs: int
    pairs_per_step: int
    tokens_per_batch: int

    @property
    def pair_tokens(self) -> int:
        """Tokens that are computed for a pair: the prompt once, and of each response all but its last."""
        return self.prompt_tokens + 2 * self.response_tokens - 2

    def micro_batches(self, devices: int) -> int:
        """Of one step on one device."""
        return max(1, math.ceil(self.pairs_per_step * self.pair_tokens / (self.tokens_per_batch * devices)))


@dataclass(frozen=True)
class Mode:
    """One way to have the anchors' log-probs.

    Attributes:
        name: live, cached or remote.
        parts: bytes of the training on one device.
        scoring_bytes: of the larger model that is scored with, on one device; 0 where nothing is.
        disk_bytes: of checkpoints, the exported model and scores.
        flop: of scoring and training together, linear layers alone.
        hours: of scoring and training.
        server_tokens: that a server has to score.
        fits: whether training and scoring fit on the device.
    """

    name: str
    parts: Parts
    scoring_bytes: float
    disk_bytes: float
    flop: float
    hours: float
    server_tokens: int
    fits: bool


def plan(
    experiment: str,
    objective: str | None = None,
    pairs: int | None = None,
    prompt_tokens: int | None = None,
    response_tokens: int | None = None,
    device: Literal["cpu", "cuda"] | None = None,
    device_memory_gib: float | None = None,
    teraflops: float | None = None,
    models: str = "configs/models",
    out: str | None = None,
) -> int:
    """Say what an experiment's preference training takes: memory by part, disk, FLOPs, hours, for each kind of teacher.

    Nothing is loaded: models are counted from their configs alone. A loss that asks for the teacher's logits is planned
    with a live teacher alone.

    Args:
        experiment: its YAML, as for `dadpo run`.
        objective: whose training; by default the first.
        pairs: training pairs; by default one a training prompt.
        prompt_tokens: of a prompt; by default a fourth of its mean characters, and a chat template.
        response_tokens: of a response; by default half of sampling.max_new_tokens.
        device: what it will run on; by default this machine's.
        device_memory_gib: of one device; by default this machine's.
        teraflops: that one device reaches in large matrix products; by default measured here.
        models: folder with NAME/config.json of models that are not here, NAME as on the hub.
        out: JSON file for the same numbers.
    """
    from lightning_dadpo.models.numerics import default_device

    said = read_experiment(experiment)
    name = objective or next(iter(said.objectives))
    if name not in said.objectives:
        raise ConfigError(f"--objective {name}: {experiment} has {', '.join(said.objectives)}")
    every = {one: needs_of(one, recipe) for one, recipe in said.objectives.items()}
    check_anchors(said, every)  # `dadpo run` would refuse all of it for one of them
    needs = every[name]
    if needs.trains_on != "pairs":
        raise ConfigError(f"--objective {name}: trains on responses; only trainings on pairs can be planned")
    settings = merged_settings(said.objectives[name])
    kind = device or default_device().type
    precision = settings.get("trainer", {}).get("precision") or _precision(kind)
    workload = _workload(said, settings, kind, pairs, prompt_tokens, response_tokens)
    strategy, devices = strategy_of(settings)
    student, teacher = _footprints(said, Path(models), workload, precision, _adapter(settings))
    if strategy in SHARDED and student.rounded:
        raise ConfigError(f"trainer.strategy {strategy}: would spread rounded weights over ranks; expected ddp")
    layout = Layout(strategy, devices, precision == "bf16-mixed", workload.micro_batches(devices))  # type: ignore[arg-type]
    memory = GIB * (device_memory_gib or _memory_here(kind))
    rate = 1e12 * teraflops if teraflops is not None else _rate_here(precision)
    modes = plan_modes(student, teacher, workload, layout, memory, rate)
    if needs.live_teacher:  # its logits are asked for, which no table holds and no server gives
        modes = [mode for mode in modes if mode.name == "live"]
    made = _Plan(f"{said.name}, {name}", student, teacher, workload, layout, modes, memory)
    _show(made)
    if out is not None:
        _write(made, Path(out))
    return 0


@dataclass(frozen=True)
class _Plan:
    """Everything that is shown and written."""

    title: str
    student: Footprint
    teacher: Footprint
    workload: Workload
    layout: Layout
    modes: list[Mode]
    memory: float

    @property
    def taken(self) -> Mode | None:
        return recommended(self.modes)


def plan_modes(
    student: Footprint, teacher: Footprint, workload: Workload, layout: Layout, memory: float, rate: float
) -> list[Mode]:
    """Live, cached and remote anchors.

    Args:
        student, teacher: counted with the workload's micro-batch.
        workload: the pairs.
        layout: of the training.
        memory: bytes of one device.
        rate: FLOP/s of one device in large products.
    """
    tokens, predictions = workload.pairs * workload.pair_tokens, 2 * workload.pairs * workload.response_tokens
    # the head's logits are made once more in the backward pass: 2 + 2 + 4 operations a weight instead of 6;
    # under an adapter the model's own weights have no gradients, which are 2 of them
    own = 2 if student.adapter else 0
    training = (6 - own) * student.matrices * tokens + (8 - own) * student.head * predictions
    training = workload.epochs * (training + 6 * student.adapter * tokens)
    reference, of_teacher = (2 * (m.matrices * tokens + m.head * predictions) for m in (student, teacher))
    devices = layout.devices
    checkpoint = (4 + 8) * student.trained * (2 if layout.strategy != "one" else 1) + 4 * student.parameters
    found = []
    for name in ("live", "cached", "remote"):
        live = name == "live"
        # a live reference of an adapter is the student itself, and the only one of a student in 4 bits
        frozen = ([teacher] if student.adapter else [student, teacher]) if live else []
        parts = training_memory(student, frozen, layout, workload.pairs, 0 if live else 2)
        scored = [] if live else [student, teacher] if name == "cached" else [student]
        scoring_bytes = max((scoring_memory(m, 1, layout.mixed and m is teacher) for m in scored), default=0.0)
        passes = workload.epochs if live or student.rounded else 1
        scoring = passes * reference + {"live": workload.epochs * of_teacher, "cached": of_teacher, "remote": 0}[name]
        seconds = training / (SHARE_OF_MATMUL_RATE["training"] * rate * devices)
        seconds += scoring / (SHARE_OF_MATMUL_RATE["scoring"] * rate * devices)
        found.append(
            Mode(
                name=name,
                parts=parts,
                scoring_bytes=scoring_bytes,
                disk_bytes=checkpoint + (0 if live else 2 * SCORE_DISK_BYTES * workload.pairs),
                flop=float(training + scoring),
                hours=seconds / 3600,
                # a server is sent whole texts: prompt and response, twice
                server_tokens=2 * workload.pairs * (workload.prompt_tokens + workload.response_tokens)
                if name == "remote"
                else 0,
                # rounded weights are not spread (training/sharding.py)
                fits=max(parts.total, scoring_bytes) <= memory
                and not (live and teacher.rounded and layout.strategy in SHARDED),
            )
        )
    return found


def recommended(modes: list[Mode]) -> Mode | None:
    """Cached where it fits, since its scores outlive the run and it is never slower; then live; a server last."""
    order = {"cached": 0, "live": 1, "remote": 2}
    return min((mode for mode in modes if mode.fits), key=lambda mode: order[mode.name], default=None)


def _workload(
    said: Experiment,
    settings: dict[str, Any],
    kind: str,
    pairs: int | None,
    prompt_tokens: int | None,
    response_tokens: int | None,
) -> Workload:
    import torch

    from lightning_dadpo.data.prompts import read_prompts
    from lightning_dadpo.models.numerics import default_tokens_per_batch

    data = settings.get("data", {}).get("init_args", {})
    if pairs is None or prompt_tokens is None:
        rows = [row for _, row in read_prompts({"train": said.prompts["train"]})]
        letters = sum(len(message.content) for row in rows for message in row.messages) / max(1, len(rows))
        pairs = len(rows) if pairs is None else pairs
        prompt_tokens = prompt_tokens or round(letters / CHARACTERS_A_TOKEN) + TEMPLATE_TOKENS
    return Workload(
        pairs=pairs,
        prompt_tokens=prompt_tokens,
        response_tokens=response_tokens or max(2, said.sampling.max_new_tokens // 2),
        epochs=int(settings.get("trainer", {}).get("max_epochs", 1)),
        pairs_per_step=int(data.get("pairs_per_step", 16)),
        tokens_per_batch=data.get("tokens_per_batch") or default_tokens_per_batch(torch.device(kind)),
    )


def _footprints(
    said: Experiment, models: Path, workload: Workload, precision: Any, adapter: AdapterSpec | None
) -> tuple[Footprint, Footprint]:
    import torch

    from lightning_dadpo.models.footprint import footprint

    lengths = (workload.prompt_tokens, workload.response_tokens, workload.response_tokens)
    # a GPU's attention keeps no mask; on a CPU, where this runs, it is counted with one, which is little
    common = (lengths, workload.tokens_per_batch, precision, torch.device("cpu"))
    share = said.prune.share if said.prune is not None else 0.0
    teacher = _found(said.teacher, models)
    student = replace(teacher, quantize=None) if said.student is None else _found(said.student, models)
    return footprint(student, *common, remove_share=share, adapter=adapter), footprint(teacher, *common)


def _adapter(settings: dict[str, Any]) -> AdapterSpec | None:
    """What `model.adapter` of the recipe says.

    Raises:
        ConfigError: it says what no adapter knows.
    """
    given = settings.get("model", {}).get("init_args", {}).get("adapter")
    if given is None:
        return None
    try:
        return AdapterSpec(**given)
    except TypeError as error:
        raise ConfigError(f"model.adapter: expected the fields of an adapter ({error})") from error


def _found(spec: ModelSpec, models: Path) -> ModelSpec:
    """The spec itself, or the folder that describes a hub model."""
    described = models / spec.path
    if not Path(spec.path).is_dir() and (described / "config.json").is_file():
        return replace(spec, path=str(described))
    return spec


def _precision(kind: str) -> Any:
    from lightning_dadpo.models.numerics import training_precision

    return "bf16-mixed" if kind == "cuda" else training_precision()


def _memory_here(kind: str) -> float:
    import torch

    if kind == "cuda":
        if not torch.cuda.is_available():
            raise ConfigError("--device_memory_gib: no GPU here to ask; give the memory of one, for example 80")
        return float(torch.cuda.get_device_properties(0).total_memory) / GIB
    pages = Path("/proc/meminfo")
    if not pages.is_file():
        raise ConfigError("--device_memory_gib: cannot be read on this system; give it")
    return int(pages.read_text().split()[1]) * 1024 / GIB


def _rate_here(precision: Any) -> float:
    from lightning_dadpo.models.numerics import matmul_rate

    return matmul_rate(precision)


PARTS = ("weights", "gradients", "optimizer", "activations", "frozen", "gathered", "scores", "allocator")


def _show(made: _Plan) -> None:
    from rich.console import Console
    from rich.table import Table

    modes, workload, layout, taken = made.modes, made.workload, made.layout, made.taken
    title = f"{made.title}: {layout.strategy}, {layout.devices} devices, GiB on each"
    table = Table(title=title, title_justify="left")
    table.add_column("")
    for mode in modes:
        table.add_column(mode.name, justify="right")
    for part in PARTS:
        table.add_row(part, *(f"{getattr(mode.parts, part) / GIB:.2f}" for mode in modes))
    table.add_row("training, at most", *(f"{mode.parts.total / GIB:.2f}" for mode in modes), style="bold")
    table.add_row("scoring, at most", *(f"{mode.scoring_bytes / GIB:.2f}" for mode in modes))
    table.add_row("fits", *("yes" if mode.fits else "no" for mode in modes))
    table.add_row("disk, GiB", *(f"{mode.disk_bytes / GIB:.2f}" for mode in modes))
    table.add_row("PFLOP", *(f"{mode.flop / 1e15:.3g}" for mode in modes))
    table.add_row("hours", *(f"{mode.hours:.3g}" for mode in modes))
    table.add_row("million tokens for a server", *(f"{mode.server_tokens / 1e6:.3g}" for mode in modes))
    Console().print(table)
    print(
        f"student {_sizes(made.student)}, teacher {_sizes(made.teacher)}; {workload.pairs} pairs of "
        f"{workload.prompt_tokens} + 2 x {workload.response_tokens} tokens, {workload.epochs} epochs, "
        f"{layout.micro_batches} micro-batches of {workload.tokens_per_batch} tokens a step on each device. "
        "Drawing responses and dSFT are the same for all three and not counted; a server's time is its own."
    )
    if taken is None:
        least, way = min(mode.parts.total for mode in modes) / GIB, "more devices"
        if layout.strategy not in SHARDED:
            way = "fsdp2 or deepspeed_zero3 (configs/trainer/)"
        there = made.memory / GIB
        print(f"take none: {least:.1f} GiB at least, {there:.1f} there are; try {way} or fewer tokens_per_batch")
    else:
        print(f"take {taken.name}: {REASONS[taken.name] if len(modes) > 1 else 'the loss asks for its logits'}")


def _sizes(model: Footprint) -> str:
    rounded = f", {model.rounded / 1e6:.1f}M of them in 8 or 4 bits" if model.rounded else ""
    adapter = f" (an adapter of {model.adapter / 1e6:.1f}M is all that trains)" if model.adapter else ""
    return f"{model.parameters / 1e6:.1f}M parameters in {model.layers} layers{rounded}{adapter}"


REASONS = {
    "cached": "scored once, the models are out of memory while the student trains, and later runs use the scores again",
    "live": "the teacher fits beside the student where the strategy spreads it, and on no single device",
    "remote": "the teacher fits nowhere here; a server has to score its side",
}


def _write(made: _Plan, out: Path) -> None:
    from lightning_dadpo.data.artifacts import write_atomically

    said = {name: asdict(getattr(made, name)) for name in ("student", "teacher", "workload", "layout")}
    modes = {mode.name: asdict(mode) | {"training_bytes": mode.parts.total} for mode in made.modes}
    taken = None if made.taken is None else made.taken.name
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(out, json.dumps({"title": made.title, **said, "modes": modes, "take": taken}, indent=1) + "\n")
