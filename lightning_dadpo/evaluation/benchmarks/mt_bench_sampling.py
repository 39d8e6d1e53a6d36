"""The stage `dadpo mt-bench-sample`: a model answers MT-bench's first turn, then the second behind its own answer."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

from lightning_dadpo.data.prompts import PromptFile
from lightning_dadpo.data.rows import PromptRow
from lightning_dadpo.errors import DataError
from lightning_dadpo.evaluation.answers import read_answers
from lightning_dadpo.evaluation.benchmarks.mt_bench_file import (
    first_turn,
    read_questions,
    second_turn,
    write_prompts,
)
from lightning_dadpo.models.server_spec import ServerSpec
from lightning_dadpo.models.spec import ModelSpec, Precision
from lightning_dadpo.sampling.base import SamplerSettings
from lightning_dadpo.sampling.stage import Backend, sample

__all__ = ["mt_bench_sample", "SPLIT"]

SPLIT = "heldout"


def mt_bench_sample(
    model: ModelSpec | None,
    questions: str,
    out: str,
    settings: SamplerSettings | None = None,
    batch_size: int = 32,
    precision: Precision | None = None,
    backend: Backend = "transformers",
    server: ServerSpec | None = None,
) -> Path:
    """Let a model answer both turns of every question; a killed run goes on where it stopped.

    Makes two artefacts of kind "responses", `OUT/turn-1` and `OUT/turn-2`. A question whose first answer is empty has
    no second turn: a conversation with an empty turn is none that chat templates know.

    Args:
        model: which model answers.
        questions: MT-bench's question.jsonl.
        out: folder for the two artefacts.
        settings: one sampler for all categories; MT-bench itself draws writing and roleplay at temperature 0.7, stem
            and humanities at 0.1, the rest at 0, and caps an answer at 1024 tokens.
        batch_size: responses drawn at a time.
        precision: number format; by default what this machine is fast in.
        backend: what runs the model.
        server: where the model is served, in place of `model`.

    Raises:
        ConfigError, DataError, ArtifactError: see the message.
    """
    asked, folder = read_questions(questions), Path(out)
    with TemporaryDirectory() as prompts:

        def draw(turn: int, rows: list[PromptRow]) -> None:
            file, made = Path(prompts) / f"turn-{turn}.jsonl", str(folder / f"turn-{turn}")
            write_prompts(file, rows)
            sample(model, {SPLIT: PromptFile(str(file))}, made, settings, batch_size, precision, backend, server=server)

        draw(1, [first_turn(question) for question in asked])
        answers = read_answers("the model", folder / "turn-1", SPLIT).rows
        spoken = [(question, answers[question.prompt_id(1)].text) for question in asked]
        further = [second_turn(question, answer) for question, answer in spoken if answer.strip()]
        if not further:
            raise DataError(f"{folder / 'turn-1'}: every answer is empty, so nothing can be asked behind one")
        draw(2, further)
    return folder
