"""`dadpo`: one command. This file imports nothing heavy; each subcommand imports what it needs."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Sequence

from lightning_dadpo import __version__
from lightning_dadpo.cli.ranks import end_behind_rank_zero
from lightning_dadpo.errors import DadpoError

__all__ = ["main"]

LIGHTNING = {
    "fit": "train a student: dSFT, daDPO, DPO (a LightningCLI run; -c FILE, any number of times)",
    "validate": "every metric on the validation split",
    "test": "every metric on the test split",
    "predict": "one row a pair: log-probs of policy and anchors, margin, implicit rewards",
}

# Name: module, function, what it does.
FUNCTIONS = {
    "prune": ("lightning_dadpo.models.pruning", "prune", "take whole layers out of a model, by one measured criterion"),
    "sample": ("lightning_dadpo.sampling.stage", "sample", "draw responses for every prompt"),
    "reread": ("lightning_dadpo.cli.rereading", "reread", "another tokenizer's responses, in the student's ids"),
    "pair": ("lightning_dadpo.data.pairing", "make_pairs", "join chosen and rejected responses into pairs, by a rule"),
    "import": ("lightning_dadpo.cli.importing", "import_preferences", "make pairs of your own preference data"),
    "score": ("lightning_dadpo.scoring.stage", "score", "score pairs once with a frozen model, audited"),
    "mix": ("lightning_dadpo.data.mixing", "mix_pairs", "pairs of several rounds as one artefact"),
    "score-responses": (
        "lightning_dadpo.scoring.responses",
        "score_responses",
        "score responses once with the teacher, for a pairing rule that asks",
    ),
    "evaluate": ("lightning_dadpo.evaluation.evaluate", "evaluate", "measure students against the teacher"),
    "judge": ("lightning_dadpo.evaluation.judging", "judge", "win, tie and lose against another model, by a judge"),
    "validate-judge": (
        "lightning_dadpo.evaluation.judge_validation",
        "validate_judge",
        "how often a judge says what people say",
    ),
    "ifeval-prompts": (
        "lightning_dadpo.evaluation.benchmarks.ifeval_file",
        "ifeval_prompts",
        "IFEval's file as a prompt file to sample from",
    ),
    "ifeval": (
        "lightning_dadpo.evaluation.benchmarks.ifeval",
        "ifeval",
        "which instructions responses to IFEval's prompts followed; no model judges",
    ),
    "lm-eval": (
        "lightning_dadpo.evaluation.benchmarks.harness",
        "lm_eval",
        "any task of lm-eval, with its standard errors",
    ),
    "mt-bench-sample": (
        "lightning_dadpo.evaluation.benchmarks.mt_bench_sampling",
        "mt_bench_sample",
        "a model's answers to both turns of MT-bench",
    ),
    "mt-bench": (
        "lightning_dadpo.evaluation.benchmarks.mt_bench",
        "mt_bench",
        "grade such answers from 1 to 10 by a chat model",
    ),
    "export": ("lightning_dadpo.cli.exporting", "export", "a checkpoint or a model as a plain folder for transformers"),
    "chat": ("lightning_dadpo.cli.chatting", "chat", "talk to teacher and student side by side"),
    "report": ("lightning_dadpo.cli.reporting", "report", "write the HTML report of an experiment"),
    "plan": ("lightning_dadpo.cli.planning", "plan", "what an experiment takes, before anything is loaded"),
    "run": ("lightning_dadpo.cli.running", "run", "walk a whole experiment, stage by stage"),
    "demo": ("lightning_dadpo.cli.running", "demo", "the pipeline on a real 135M chat model, checked"),
    "sweep": ("lightning_dadpo.cli.sweeping", "sweep", "every run of a wandb sweep file's grid, without its server"),
}


DISK_FAULTS = (
    errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST,
    errno.ENAMETOOLONG,
)  # fmt: skip


def _help() -> str:
    lines = [
        "usage: dadpo COMMAND [-c FILE.yaml] [--option value ...]",
        "",
        "Distils a teacher's manners into a small student with daDPO (arXiv 2506.15717).",
        "",
        "training (LightningCLI):",
        *(f"  {name:<15} {text}" for name, text in LIGHTNING.items()),
        "",
        "pipeline:",
        *(f"  {name:<15} {text}" for name, (*_, text) in FUNCTIONS.items()),
        "",
        "dadpo COMMAND --help lists the command's options. Begin with: dadpo demo",
    ]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; 0 when it worked, 2 for a mistake that the person can mend, in one line.

    `sys.argv` is left alone: Lightning's launchers start further processes with it.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    try:
        return _dispatch(arguments)
    except BrokenPipeError:  # `dadpo ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        mistake = _persons_mistake(error)
        if mistake is None:
            raise
        if not end_behind_rank_zero():
            print(f"error: {mistake}", file=sys.stderr)
        return 2
    except SystemExit:  # also a training that was asked to stop
        end_behind_rank_zero()
        raise
    except KeyboardInterrupt:
        print("stopped; the same command goes on where this one was", file=sys.stderr)
        return 130


def _persons_mistake(error: BaseException | None) -> DadpoError | str | None:
    """The mistake behind an exception: jsonargparse wraps what a constructor refuses in an error of its own.

    A folder that may not be written and a disk that is full are the person's too.
    """
    if isinstance(error, OSError) and error.errno in DISK_FAULTS:
        return f"{error.filename or 'disk'}: {os.strerror(error.errno)}"
    while error is not None and not isinstance(error, DadpoError):
        error = error.__cause__
    return error


def _dispatch(arguments: list[str]) -> int:
    name = arguments[0] if arguments else "--help"
    if name in ("-h", "--help", "help"):
        print(_help(), flush=True)
        return 0
    if name in ("-V", "--version"):
        print(__version__)
        return 0
    if name in LIGHTNING:
        from lightning_dadpo.cli.training import run_lightning

        run_lightning(arguments)
        return 0
    if name in FUNCTIONS:
        from lightning_dadpo.cli.functions import run_function

        return run_function(name, *FUNCTIONS[name], arguments[1:])
    from difflib import get_close_matches

    near = get_close_matches(name, [*LIGHTNING, *FUNCTIONS], n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    print(f"error: no command {name!r}{hint} (dadpo --help lists them)", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
