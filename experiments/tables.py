"""Numbers get into READMEs through this script alone.

    python experiments/tables.py collect runs/demo experiments/demo   # a finished run -> results.json
    python experiments/tables.py write                                # every results.json -> the READMEs, figures

`write` replaces what stands between `<!-- results: NAME -->` and `<!-- end -->` in README.md and in
experiments/NAME/README.md. An experiment may have further tables; the names of their markers begin with its own.
"""

from __future__ import annotations

import json
import re
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from experiments.hardware import processor
from experiments.wording import cell, markdown, packages

ROOT = Path(__file__).resolve().parents[1]
COLUMNS = {
    "finished": ("ends by itself", "{:.0%}"),
    "mean_tokens": ("tokens", "{:.1f}"),
    "teacher_nll": ("teacher's nats/token on its samples", "{:.2f}"),
    "forward_kl": ("forward KL, nats/token", "{:.2f}"),
    "reverse_kl": ("reverse KL, nats/token", "{:.2f}"),
}


def collect(run: Path, experiment: Path) -> None:
    """From a run's own files, with hardware and versions, to results.json."""
    index = json.loads((run / "experiment.json").read_text("utf-8"))
    manifests = {
        stage["name"]: json.loads((Path(stage["folder"]) / "manifest.json").read_text("utf-8"))
        for stage in index["stages"]
    }
    evaluation = manifests["evaluation"]
    times = [json.loads(line) for line in (run / "times.jsonl").read_text("utf-8").splitlines()]
    folders = {Path(stage["folder"]).name for stage in index["stages"]}
    results = {
        "name": index["name"],
        "command": index["command"],
        "hardware": processor(),
        "precision": evaluation["results"].get("precision"),
        "versions": evaluation["versions"],
        "minutes": round(sum(row["seconds"] for row in times if row["folder"] in folders) / 60, 1),
        "pairs": manifests["pairs"]["counts"],
        "pruned": {key: manifests["pruned"]["results"][key] for key in ("layers_removed", "share_removed")},
        "rows": json.loads((run / "summary.json").read_text("utf-8")),
    }
    (experiment / "results.json").write_text(json.dumps(results, indent=1) + "\n", "utf-8")


def table(results: dict[str, Any]) -> str:
    """The result table in Markdown, with what it was measured on."""
    rows = [
        [
            row["model"],
            f"{row['parameters'] / 1e6:.1f} M",
            *(cell(row, column, form) for column, (_, form) in COLUMNS.items()),
        ]
        for row in results["rows"]
    ]
    said = (
        f"{results['rows'][0]['prompts']} held-out prompts, one seed; in brackets 95 % bootstrap intervals over "
        f"prompts. `{results['command']}` on {results['hardware']}, {results['precision']}: {results['minutes']} "
        f"minutes in its stages, with {packages(results)}."
    )
    return f"{markdown(['model', 'parameters', *(name for name, _ in COLUMNS.values())], rows)}\n\n{said}"


def tables(name: str, results: dict[str, Any]) -> dict[str, str]:
    """Every table of an experiment, by the name of its markers; one of its own kind has a module that writes them."""
    if "kind" not in results:
        return {name: table(results)}
    found: dict[str, str] = _report(results).tables(results)
    return found


def _report(results: dict[str, Any]) -> ModuleType:
    return import_module(f"experiments.{results['kind']}.report")


def written(text: str, name: str, results: dict[str, Any]) -> str:
    """`text` with the tables between their markers made anew."""
    for marker, made in tables(name, results).items():
        pattern = rf"(<!-- results: {marker} -->\n).*?(\n?<!-- end -->)"
        text = re.sub(pattern, lambda found, made=made: f"{found[1]}{made}\n<!-- end -->", text, flags=re.DOTALL)
    return text


def write() -> None:
    """Every experiment's results into its README and the project's."""
    for file in sorted((ROOT / "experiments").glob("*/results.json")):
        results = json.loads(file.read_text("utf-8"))
        if "kind" in results and (draw := getattr(_report(results), "figures", None)):
            draw(results, file.parent)
        own = (file.parent / "README.md").read_text("utf-8")
        if lost := [marker for marker in tables(file.parent.name, results) if f"<!-- results: {marker} -->" not in own]:
            sys.exit(f"{file.parent / 'README.md'}: has no place for table {lost[0]!r} (<!-- results: {lost[0]} -->)")
        for readme in (ROOT / "README.md", file.parent / "README.md"):
            readme.write_text(written(readme.read_text("utf-8"), file.parent.name, results), "utf-8")


def main(arguments: list[str]) -> None:
    """See the module."""
    match arguments:
        case ["collect", run, experiment]:
            collect(Path(run), Path(experiment))
        case ["write"]:
            write()
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    main(sys.argv[1:])
