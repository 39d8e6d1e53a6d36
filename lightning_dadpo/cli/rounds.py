"""The rounds of an experiment's objectives: what is drawn, paired, scored and trained on in each."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from lightning_dadpo.cli import overlays
from lightning_dadpo.cli.experiment import Experiment, FitRecipe
from lightning_dadpo.cli.needs import Needs
from lightning_dadpo.cli.planner import Planner
from lightning_dadpo.data.pairing_rules import RULES
from lightning_dadpo.errors import ConfigError
from lightning_dadpo.models.spec import ModelSpec

__all__ = [
    "RoundPlan", "World", "Sides", "check_anchors", "plan_sides", "plan_first_round", "plan_round", "name_in",
]  # fmt: skip

REFERENCE, TEACHER = "reference", "teacher"


@dataclass(frozen=True)
class RoundPlan:
    """One round of one objective: names of models and folders, for the record.

    Attributes:
        round: from 1.
        objective: its name.
        rejected_from: name of the model that drew the rejected responses; chosen_from: the same for the chosen ones.
        seed: what they were drawn with.
        responses: folder of the rejected responses.
        pairs: folder of what was paired of them.
        trained_on: folder of the pairs that were trained on; another one where earlier rounds were mixed in.
        scores: scores folders by anchor, of `trained_on`.
        reference: name of the model that is the reference.
        start: name of the model that training started from.
        training: folder of the training.
        student: folder of the model that came of it.
    """

    round: int
    objective: str
    rejected_from: str
    chosen_from: str
    seed: int
    responses: str
    pairs: str
    trained_on: str
    scores: dict[str, str]
    reference: str
    start: str
    training: str
    student: str


@dataclass
class World:
    """What all rounds have in common.

    Attributes:
        planner: takes the stages.
        teacher: as a model that can be loaded; answers: folder of its responses.
        dsft: the student after dSFT.
        needs: of each objective.
        rounds: what was planned so far.
        paired: by objective, the pairs folders of its rounds so far.
    """

    planner: Planner
    teacher: ModelSpec
    answers: str
    dsft: ModelSpec
    needs: dict[str, Needs]
    rounds: list[RoundPlan] = field(default_factory=list)
    paired: dict[str, list[str]] = field(default_factory=dict)

    @property
    def anchors(self) -> dict[str, ModelSpec]:
        """Every frozen model that an objective may name, in the order in which they score."""
        return {TEACHER: self.teacher, REFERENCE: self.dsft} | self.planner.experiment.anchors


@dataclass(frozen=True)
class Sides:
    """Pairs and where they come from: folders, and the name and seed of the model that drew the rejected responses."""

    rejected: str
    pairs: str
    rejected_from: str
    seed: int

    @property
    def students(self) -> str | None:
        """Responses of a student, to show beside those of the one in training; None where the teacher drew them."""
        return None if self.rejected_from == TEACHER else self.rejected


def name_in(objective: str, number: int) -> str:
    """What an objective's student is called in a round."""
    return objective if number == 1 else f"{objective}-round{number}"


def check_anchors(experiment: Experiment, needs: dict[str, Needs]) -> None:
    """Refuse an objective that names a model which the experiment does not have.

    Args:
        experiment: whose models there are.
        needs: of its objectives, by name.

    Raises:
        ConfigError: naming the objective and the anchor.
    """
    known = (TEACHER, REFERENCE, *experiment.anchors)
    for name, one in needs.items():
        if unknown := [anchor for anchor in one.anchors if anchor not in known]:
            raise ConfigError(
                f"experiment.objectives.{name}: its loss needs anchor {unknown[0]!r}, and there are "
                f"{', '.join(known)}; add it under `anchors`: {{{unknown[0]}: {{path: FOLDER}}}}"
            )


def plan_sides(world: World, suffix: str, student: ModelSpec, student_name: str, number: int) -> Sides:
    """Rejected responses of a student, what a rule wants to know of them, and the pairs.

    Args:
        world: see there.
        suffix: behind the stages' names.
        student: who draws.
        student_name: what it is called.
        number: of the round: it moves the seed.
    """
    planner, said = world.planner, world.planner.experiment
    drawn_by, seed = student_name, said.sampling.seed + number
    if said.rejected_from == TEACHER:
        rejected, drawn_by, seed = world.answers, TEACHER, said.sampling.seed
    else:
        splits, candidates = ["train", "validation"], said.responses_per_prompt
        rejected = planner.sample(f"rejected{suffix}", student, splits, seed, candidates)
    chosen = rejected if said.chosen_from == "student" else world.answers
    settings: dict[str, Any] = {"chosen": chosen, "rejected": rejected, "keep_cut_chosen": said.keep_cut}
    if RULES[said.pairing].asks_teacher:
        settings["rule"] = said.pairing
        if drawn_by != TEACHER:
            judged = {"model": asdict(world.teacher), "responses": rejected, "tokens_per_batch": said.tokens_per_batch}
            side = "chosen_scores" if chosen == rejected else "rejected_scores"
            settings[side] = planner.add(f"judged{suffix}", "score-responses", judged, planner.identity(world.teacher))
    return Sides(rejected, planner.add(f"pairs{suffix}", "pair", settings), drawn_by, seed)


def plan_first_round(world: World, sides: Sides | None, objectives: dict[str, FitRecipe]) -> dict[str, ModelSpec]:
    """Every objective from the student after dSFT, those on pairs on the same pairs and scores; the students.

    Args:
        world: see there.
        sides: the pairs; None where no objective trains on any.
        objectives: by name.
    """
    scores: dict[str, str] = {}
    if sides is not None:
        wanted = {anchor for needs in world.needs.values() for anchor in needs.scored}
        scores = {
            anchor: _score(world, f"score-{anchor}", anchor, model, sides.pairs)
            for anchor, model in world.anchors.items()
            if anchor in wanted
        }
    students = {}
    for name, recipe in objectives.items():
        if sides is None or world.needs[name].trains_on == "responses":
            students[name] = _distil(world, name, recipe, sides)
            continue
        mine = {anchor: folder for anchor, folder in scores.items() if anchor in world.needs[name].scored}
        students[name] = _train(world, name, recipe, 1, world.dsft, sides, sides.pairs, mine, "dsft", "dsft")
    return students


def _distil(world: World, name: str, recipe: FitRecipe, sides: Sides | None) -> ModelSpec:
    rejected = None if sides is None else sides.students
    overlay = overlays.distillation(world.dsft, world.teacher, world.answers, world.planner.experiment.keep_cut)
    checks, sampling = [overlays.check_scores(world.teacher, True, True)], world.planner.experiment.sampling
    overlay |= overlays.callbacks(checks, world.teacher, world.answers, rejected, recipe, sampling)
    return ModelSpec(world.planner.fit(name, recipe, overlay, [world.answers])[1])


def plan_round(world: World, name: str, recipe: FitRecipe, number: int, student: ModelSpec) -> ModelSpec:
    """A further round of one objective, from its current student; the new one."""
    planner, said, needs = world.planner, world.planner.experiment, world.needs[name]
    suffix, start = f"-{name}-round{number}", name_in(name, number - 1)
    sides = plan_sides(world, suffix, student, start, number)
    earlier = world.paired[name]
    pairs = sides.pairs
    if said.mix.earlier > 0:
        mixed = {"latest": pairs, "earlier": list(earlier), "share": said.mix.earlier, "seed": said.sampling.seed}
        pairs = planner.add(f"mix{suffix}", "mix", mixed)
    moved = said.reference == "moved"
    models = world.anchors | ({REFERENCE: student} if moved else {})
    scores = {
        anchor: _score(world, f"{anchor}-scores{suffix}", anchor, model, pairs)
        for anchor, model in models.items()
        if anchor in needs.scored
    }
    return _train(world, name, recipe, number, student, sides, pairs, scores, start, start if moved else "dsft")


def _score(world: World, name: str, anchor: str, model: ModelSpec, pairs: str) -> str:
    further = anchor in world.planner.experiment.anchors
    return world.planner.score(name, anchor, model, pairs, tokenizer=world.dsft if further else None)


def _train(
    world: World,
    name: str,
    recipe: FitRecipe,
    number: int,
    student: ModelSpec,
    sides: Sides,
    pairs: str,
    scores: dict[str, str],
    start: str,
    reference: str,
) -> ModelSpec:
    planner, said, needs = world.planner, world.planner.experiment, world.needs[name]
    anchors: dict[str, Any] = {anchor: {"scores": folder} for anchor, folder in scores.items()}
    if needs.live_teacher:
        anchors[TEACHER] = {"model": asdict(world.teacher)}
    by_text = [scores[anchor] for anchor in said.anchors if anchor in scores]
    checks = [overlays.check_scores(world.teacher, start == reference, said.chosen_from == TEACHER)]
    overlay = overlays.preference(student, pairs, anchors, by_text)
    overlay |= overlays.callbacks(checks, world.teacher, world.answers, sides.students, recipe, said.sampling)
    made_with = [world.answers, sides.rejected, sides.pairs]
    training, made = planner.fit(name_in(name, number), recipe, overlay, made_with)
    world.paired.setdefault(name, []).append(sides.pairs)
    chosen_from = TEACHER if said.chosen_from == TEACHER else sides.rejected_from
    world.rounds.append(
        RoundPlan(
            round=number,
            objective=name,
            rejected_from=sides.rejected_from,
            chosen_from=chosen_from,
            seed=sides.seed,
            responses=sides.rejected,
            pairs=sides.pairs,
            trained_on=pairs,
            scores=scores,
            reference=reference,
            start=start,
            training=training,
            student=made,
        )
    )
    return ModelSpec(made)
