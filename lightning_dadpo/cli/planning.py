"""`dadpo plan`: what an experiment will take, before anything is downloaded or loaded."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from lightning_dadpo.cli.experiment import Experiment, read_experiment
from lightning_dadpo.cli.needs import Needs, needs_of
from lightning_dadpo.cli.plan_modes import Mode, Workload, plan_modes, recommended
from lightning_dadpo.cli.recipe import SHARDED, merged_settings, strategy_of
from lightning_dadpo.cli.rounds import REFERENCE, TEACHER, check_anchors
from lightning_dadpo.errors import ConfigError
from lightning_dadpo.models.footprint import Footprint
from lightning_dadpo.models.spec import AdapterSpec, ModelSpec
from lightning_dadpo.training.memory import Layout

__all__ = ["plan"]

GIB = 2**30
CHARACTERS_A_TOKEN = 4
TEMPLATE_TOKENS = 20


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
    student, others = _footprints(said, needs, Path(models), workload, precision, _adapter(settings))
    if strategy in SHARDED and student.rounded:
        raise ConfigError(f"trainer.strategy {strategy}: would spread rounded weights over ranks; expected ddp")
    layout = Layout(strategy, devices, precision == "bf16-mixed", workload.micro_batches(devices))  # type: ignore[arg-type]
    memory = GIB * (device_memory_gib or _memory_here(kind))
    rate = 1e12 * teraflops if teraflops is not None else _rate_here(precision)
    modes = plan_modes(student, others, REFERENCE in needs.anchors, workload, layout, memory, rate)
    if needs.live_teacher:  # its logits are asked for, which no table holds and no server gives
        modes = [mode for mode in modes if mode.name == "live"]
    made = _Plan(f"{said.name}, {name}", student, others, workload, layout, modes, memory)
    _show(made)
    if out is not None:
        _write(made, Path(out))
    return 0


@dataclass(frozen=True)
class _Plan:
    """Everything that is shown and written."""

    title: str
    student: Footprint
    others: dict[str, Footprint]
    workload: Workload
    layout: Layout
    modes: list[Mode]
    memory: float

    @property
    def taken(self) -> Mode | None:
        return recommended(self.modes)


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
    said: Experiment, needs: Needs, models: Path, workload: Workload, precision: Any, adapter: AdapterSpec | None
) -> tuple[Footprint, dict[str, Footprint]]:
    """The student, and by name the further models that the objective asks."""
    import torch

    from lightning_dadpo.models.footprint import footprint

    lengths = (workload.prompt_tokens, workload.response_tokens, workload.response_tokens)
    # a GPU's attention keeps no mask; on a CPU, where this runs, it is counted with one, which is little
    common = (lengths, workload.tokens_per_batch, precision, torch.device("cpu"))
    share = said.prune.share if said.prune is not None else 0.0
    student = _found(replace(said.teacher, quantize=None) if said.student is None else said.student, models)
    asked = dict.fromkeys([*needs.anchors, *([TEACHER] if needs.live_teacher else [])])
    specs = {TEACHER: said.teacher} | said.anchors
    others = {name: footprint(_found(specs[name], models), *common) for name in asked if name != REFERENCE}
    return footprint(student, *common, remove_share=share, adapter=adapter), others


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
    sizes = ", ".join(f"{name} {_sizes(model)}" for name, model in ({"student": made.student} | made.others).items())
    print(
        f"{sizes}; {workload.pairs} pairs of "
        f"{workload.prompt_tokens} + 2 x {workload.response_tokens} tokens, {workload.epochs} epochs, "
        f"{layout.micro_batches} micro-batches of {workload.tokens_per_batch} tokens a step on each device. "
        "Drawing responses and dSFT are the same for all and not counted; a server's time is its own."
    )
    if taken is None:
        least, way = min(mode.parts.total for mode in modes) / GIB, "more devices"
        if layout.strategy not in SHARDED:
            way = "fsdp2 or deepspeed_zero3 (configs/trainer/)"
        there = made.memory / GIB
        print(f"take none: {least:.1f} GiB at least, {there:.1f} there are; try {way} or fewer tokens_per_batch")
    else:
        logits = taken.name == "live" and len(modes) == 1
        print(f"take {taken.name}: {'the loss asks for its logits' if logits else REASONS[taken.name]}")


def _sizes(model: Footprint) -> str:
    rounded = f", {model.rounded / 1e6:.1f}M of them in 8 or 4 bits" if model.rounded else ""
    adapter = f" (an adapter of {model.adapter / 1e6:.1f}M is all that trains)" if model.adapter else ""
    return f"{model.parameters / 1e6:.1f}M parameters in {model.layers} layers{rounded}{adapter}"


REASONS = {
    "cached": "scored once, the models are out of memory while the student trains, and later runs use the scores again",
    "alone": "the loss asks no other model",
    "live": "the teacher fits beside the student where the strategy spreads it, and on no single device",
    "remote": "the teacher fits nowhere here; a server has to score its side",
}


def _write(made: _Plan, out: Path) -> None:
    from lightning_dadpo.data.artifacts import write_atomically

    said = {name: asdict(getattr(made, name)) for name in ("student", "workload", "layout")}
    said["anchors"] = {name: asdict(model) for name, model in made.others.items()}
    modes = {mode.name: asdict(mode) | {"training_bytes": mode.parts.total} for mode in made.modes}
    taken = None if made.taken is None else made.taken.name
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(out, json.dumps({"title": made.title, **said, "modes": modes, "take": taken}, indent=1) + "\n")
