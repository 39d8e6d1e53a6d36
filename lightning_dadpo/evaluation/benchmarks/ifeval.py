"""The stage `dadpo ifeval`: which share of instructions that a program can check did candidates follow (2311.07911)?

No model judges. A prompt counts as followed when all of its instructions are; instructions are counted beside. As the
authors do it, each is read strictly and loosely, loosely being an upper bound.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lightning_dadpo.data.artifacts import draft, finished, write_atomically
from lightning_dadpo.data.rows import Message, RowWriter
from lightning_dadpo.errors import ConfigError, DataError
from lightning_dadpo.evaluation.answers import Answers, read_answers
from lightning_dadpo.evaluation.benchmarks.ifeval_checks import Checkers
from lightning_dadpo.evaluation.benchmarks.ifeval_file import IfevalPrompt, ifeval_digest, read_ifeval
from lightning_dadpo.evaluation.benchmarks.ifeval_tables import IfevalRow, accuracies, summarise
from lightning_dadpo.evaluation.benchmarks.responses import check_one_sampler, with_interval
from lightning_dadpo.evaluation.left_out import leave_out as leave_out_trained
from lightning_dadpo.evaluation.left_out import training_digests

__all__ = ["ifeval"]

PARROT = "repeating_the_prompt"


def ifeval(
    candidates: dict[str, str],
    ifeval_file: str,
    out: str,
    split: str = "heldout",
    leave_out: list[str] | None = None,
    trained_on: list[str] | None = None,
    resamples: int = 2000,
) -> Path:
    """Check responses to IFEval's prompts (`dadpo ifeval-prompts`, then `dadpo sample`).

    Makes an artefact of kind "ifeval": `rows.jsonl`, a row a model and prompt, and `ifeval.json` with `rows`, one a
    model: `prompts`, `instructions` and the estimates X = `prompt_strict`, `instruction_strict`, `prompt_loose`,
    `instruction_loose`, `finished`, `mean_tokens`, each with `X_low` and `X_high` (95 %, bootstrap over prompts);
    `families`, one a model and instruction family, with `strict` and `loose`; and `differences` of the four accuracies
    between every two models, paired by prompt; and `repeating_the_prompt`, the accuracies of doing just that.

    Args:
        candidates: artefacts of kind "responses" by the name of their model; they answered the same prompts.
        ifeval_file: IFEval's JSONL, whole, or google/IFEval; prompts that were not answered do not count.
        out: folder to make; complete or absent.
        split: under which the prompts were sampled.
        leave_out: instructions (FAMILY:NAME) whose prompts do not count, for example those whose checkers lack their
            data on this machine; the manifest says how many.
        trained_on: what the models were trained on, prompt files (.jsonl) or artefacts of kind "responses" or "pairs";
            prompts that stand there too, exactly or nearly (`data.overlap`), are left out likewise.
        resamples: bootstrap draws over prompts.

    Raises:
        ConfigError: a checker's package or data is missing, or a setting is not usable.
        ArtifactError: an artefact is incomplete.
        DataError: candidates cannot be compared, a response is not to one of IFEval's prompts, or every prompt was
            trained on.
    """
    if resamples < 1:
        raise ConfigError(f"resamples {resamples}: expected at least 1")
    answered = [read_answers(name, folder, split) for name, folder in candidates.items()]
    check_one_sampler(answered)
    prompts = _answered_prompts(read_ifeval(ifeval_file), answered, ifeval_file)
    checkers = Checkers()
    kept, left_out = _split(prompts, checkers, leave_out or [])
    checkers.try_out(kept)
    made_from = {
        "ifeval": ifeval_digest(ifeval_file),
        "responses": {one.name: one.digest for one in answered},
        "split": split,
        "leave_out": sorted(leave_out or []),
        "checkers": checkers.identity(),
        "resamples": resamples,
    } | ({"trained_on": training_digests(trained_on)} if trained_on else {})
    if finished(out, "ifeval", made_from):
        return Path(out)
    if left_out:
        print(
            f"ifeval: {len(left_out)} of {len(prompts)} prompts left out: {'; '.join(sorted(set(left_out.values())))}"
        )
    trained = leave_out_trained(_messages(answered[0], kept), trained_on or [], f"prompts of split {split!r}")
    kept = [prompt for prompt in kept if prompt.prompt_id not in trained]
    left_out |= {prompt: str(overlap) for prompt, overlap in trained.items()}
    with draft(out, "ifeval", made_from) as work:
        rows = [_row(one, prompt, checkers) for one in answered for prompt in kept]
        summary = {**summarise(rows, resamples), PARROT: _parrot(kept, checkers, resamples)}
        _write(work.path, rows, summary)
        work.counts = {"models": len(answered), "prompts": len(kept), "left_out": len(left_out)}
        work.results = {"left_out": left_out, "sampler": {one.name: one.sampler for one in answered}}
    for line in summary["rows"]:
        print(_said(line), flush=True)
    print(f"repeating the prompt would be {summary[PARROT]['prompt_strict']:.1%} of prompts", flush=True)
    return Path(out)


def _write(folder: Path, rows: list[IfevalRow], summary: dict[str, Any]) -> None:
    (folder / "rows.jsonl").unlink(missing_ok=True)  # a killed run may have left it; checking again takes a minute
    with RowWriter(folder / "rows.jsonl") as writer:
        writer.write(*rows)
    write_atomically(folder / "ifeval.json", json.dumps(summary, indent=1, allow_nan=False) + "\n")


def _answered_prompts(prompts: list[IfevalPrompt], answered: list[Answers], place: str) -> list[IfevalPrompt]:
    """The prompts that the responses answer, in the file's order; their words must be the file's."""
    by_id = {prompt.prompt_id: prompt for prompt in prompts}
    for one in answered:
        for prompt_id, row in one.rows.items():
            if prompt_id not in by_id:
                raise DataError(
                    f"{one.folder}: prompt {prompt_id!r} is none of {place}; sample what dadpo ifeval-prompts writes"
                )
            if [message.content for message in row.messages if message.role != "system"] != [by_id[prompt_id].prompt]:
                raise DataError(f"{one.folder}: prompt {prompt_id!r} has other words there than in {place}")
    return [prompt for prompt in prompts if prompt.prompt_id in answered[0].rows]


def _messages(answers: Answers, prompts: list[IfevalPrompt]) -> dict[str, list[Message]]:
    """What was asked, by prompt id."""
    return {prompt.prompt_id: answers.rows[prompt.prompt_id].messages for prompt in prompts}


def _split(
    prompts: list[IfevalPrompt], checkers: Checkers, leave_out: list[str]
) -> tuple[list[IfevalPrompt], dict[str, str]]:
    """Prompts that count, and why others do not."""
    used = {name for prompt in prompts for name, _ in prompt.instructions}
    if unused := sorted(set(leave_out) - used):
        raise ConfigError(f"leave_out {unused[0]!r}: no prompt has it; expected some of {', '.join(sorted(used))}")
    left_out: dict[str, str] = {}
    for prompt in prompts:
        named = [name for name, _ in prompt.instructions if name in leave_out]
        fault = f"{named[0]} left out" if named else checkers.fault(prompt)
        if fault is not None:
            left_out[prompt.prompt_id] = fault
    kept = [prompt for prompt in prompts if prompt.prompt_id not in left_out]
    if not kept:
        raise ConfigError(f"ifeval: all {len(prompts)} prompts are left out, nothing remains to check")
    return kept, left_out


def _row(answers: Answers, prompt: IfevalPrompt, checkers: Checkers) -> IfevalRow:
    response = answers.rows[prompt.prompt_id]
    verdict = checkers.check(prompt, response.text)
    return IfevalRow(
        model=answers.name,
        prompt_id=prompt.prompt_id,
        instructions=[name for name, _ in prompt.instructions],
        strict=verdict.strict,
        loose=verdict.loose,
        tokens=len(response.token_ids),
        finished=response.finish_reason == "stop",
    )


def _parrot(prompts: list[IfevalPrompt], checkers: Checkers, resamples: int) -> dict[str, Any]:
    """The four accuracies of a program that repeats each prompt: a quarter of the public file's, to be set beside."""
    names = [[name for name, _ in prompt.instructions] for prompt in prompts]
    found = [checkers.check(prompt, prompt.prompt) for prompt in prompts]
    rows = [
        IfevalRow(PARROT, prompt.prompt_id, instructions, verdict.strict, verdict.loose, 0, True)
        for prompt, instructions, verdict in zip(prompts, names, found, strict=True)
    ]
    return with_interval(accuracies(rows, resamples))


def _said(line: dict[str, Any]) -> str:
    share = "{:.1%} [{:.1%}, {:.1%}]"
    prompt, instruction = (
        share.format(line[name], line[f"{name}_low"], line[f"{name}_high"])
        for name in ("prompt_strict", "instruction_strict")
    )
    return (
        f"{line['model']}: IFEval strict {prompt} of {line['prompts']} prompts, {instruction} of "
        f"{line['instructions']} instructions; {line['finished']:.0%} finished"
    )
