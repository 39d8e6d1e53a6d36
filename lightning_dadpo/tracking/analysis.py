"""The analysis of an experiment as one finished wandb run: numbers in its summary; pairs and tokens as tables."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lightning_dadpo.data.analysis import Analysis, TokenMapRow
from lightning_dadpo.data.rows import content_digest, read_rows
from lightning_dadpo.tracking.connection import start_run, wandb_mode

__all__ = ["record_analysis", "summary", "disputed_pairs", "token_map", "MOST_ROWS"]

MOST_ROWS = 10_000
"""wandb cuts longer tables; here it is done knowingly, and counted."""
DISPUTED = (
    "pairs", "anchor", "split", "prompt_id", "prompt", "chosen", "rejected", "chosen_tokens", "rejected_tokens",
    "D_anchor", "D_reference",
)  # fmt: skip
TOKENS = (
    "student", "sampled_by", "prompt_id", "position", "text", "tokens", "teacher", "reference", "student_log_prob",
    "difference",
)  # fmt: skip
TEACHER = "teacher"


def record_analysis(experiment: str, analysis: Path, token_maps: Path, save_dir: Path) -> None:
    """Record what was analysed; whatever goes wrong is one printed line, never an error.

    Args:
        experiment: the group of the run.
        analysis: `analysis.json`; token_maps: `token_maps.jsonl`. What is not there is left out.
        save_dir: the run's files go to `wandb/` under it.
    """
    try:
        mode = wandb_mode()
        found = Analysis.read(analysis) if analysis.is_file() else None
        rows = list(read_rows(token_maps, TokenMapRow)) if token_maps.is_file() else []
        if mode == "disabled" or not (found or rows):
            return
        texts = [path.read_text("utf-8") for path in (analysis, token_maps) if path.is_file()]
        run = start_run(
            mode,
            experiment=experiment,
            name="analysis",
            job_type="analysis",
            run_id=f"analysis-{content_digest(experiment, *texts)[:8]}",
            save_dir=save_dir,
        )
        _log_tables(
            run,
            {
                "disputed_pairs": (DISPUTED, list(disputed_pairs(found)) if found else []),
                "token_map": (TOKENS, list(token_map(rows))),
            },
        )
        if found:
            run.summary.update(summary(found))
        run.finish()
    except Exception as error:  # the experiment is complete; no trouble of its tracking may undo that
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        print(f"wandb: the analysis was not recorded ({reason})", flush=True)


def _log_tables(run: Any, tables: Mapping[str, tuple[tuple[str, ...], list[list[Any]]]]) -> None:
    """All in one step. Plain values, so that no text of a model is ever read as HTML."""
    import wandb

    wanted = {name: one for name, one in tables.items() if one[1]}
    logged = {
        name: wandb.Table(columns=list(columns), data=cells[:MOST_ROWS]) for name, (columns, cells) in wanted.items()
    }
    if logged:
        run.log(logged)
    run.summary.update({f"{name}_left_out": max(len(cells) - MOST_ROWS, 0) for name, (_, cells) in wanted.items()})


def summary(analysis: Analysis) -> dict[str, float]:
    """Agreement with its interval, spread and saturation as flat names, behind that of the pairs if there are several.

    `agreement/ANCHOR/SPLIT` (with `_low`, `_high`), `spread/ANCHOR/SPLIT` (the median of D_anchor - D_reference, nats),
    `advised_beta/ANCHOR/SPLIT` and `saturated/OBJECTIVE/SPLIT`.
    """
    found: dict[str, float] = {}
    for one in analysis.sets:
        named = f"{one.name}/" if len(analysis.sets) > 1 else ""
        for anchor, by_split in one.agreement.items():
            for split, said in by_split.items():
                key = f"{named}agreement/{anchor}/{split}"
                found |= {key: said.share, f"{key}_low": said.low, f"{key}_high": said.high}
        for anchor, spreads in one.spread.items():
            for split, spread in spreads.items():
                found[f"{named}spread/{anchor}/{split}"] = spread.quartiles[1]
                if spread.advised_beta is not None:
                    found[f"{named}advised_beta/{anchor}/{split}"] = spread.advised_beta
        for objective, start in one.saturated.items():
            found |= {f"{named}saturated/{objective}/{split}": share for split, share in start.shares.items()}
    return found


def disputed_pairs(analysis: Analysis) -> Iterator[list[Any]]:
    """Rows of the table, in the order of `DISPUTED`: the most disputed pairs of each anchor first."""
    for one in analysis.sets:
        for anchor, pairs in one.disputed.items():
            for pair in pairs:
                prompt = "\n".join(f"{message.role}: {message.content}" for message in pair.messages)
                texts = [pair.split, pair.prompt_id, prompt, pair.chosen_text, pair.rejected_text]
                numbers = [pair.chosen_tokens, pair.rejected_tokens, pair.gaps[anchor], pair.gaps.get("reference")]
                yield [one.name, anchor, *texts, *numbers]


def token_map(rows: list[TokenMapRow]) -> Iterator[list[Any]]:
    """Rows of the table, in the order of `TOKENS`: a row a unit of text, for a student's answer and the teacher's.

    `position` counts tokens from 0, `tokens` is how many spell the text; log-probs and their difference, the teacher's
    less the student's, are summed over them, in nats.
    """
    for row in rows:
        students = (
            [row.sampled_by] if row.sampled_by != TEACHER else [name for name in row.log_probs if name != TEACHER]
        )
        for student in students:
            at = 0
            for unit in row.units:
                part = slice(at, at + unit.tokens)
                own, teachers = sum(row.log_probs[student][part]), sum(row.log_probs[TEACHER][part])
                reference = sum(row.log_probs[row.reference][part]) if row.reference in row.log_probs else None
                told = [student, row.sampled_by, row.prompt_id, at, unit.text, unit.tokens]
                yield [*told, teachers, reference, own, teachers - own]
                at += unit.tokens
