"""Writes the report: one HTML file that opens offline, without scripts, on a desk, a phone and paper."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from lightning_dadpo.data.artifacts import write_atomically
from lightning_dadpo.reports import table
from lightning_dadpo.reports.agreement import OPEN_DISPUTES, agreement_section
from lightning_dadpo.reports.charts import interval_chart
from lightning_dadpo.reports.conversations import conversations
from lightning_dadpo.reports.costs import duration
from lightning_dadpo.reports.curves import curve_section
from lightning_dadpo.reports.decision import decide
from lightning_dadpo.reports.inputs import ReportInputs
from lightning_dadpo.reports.instructions import HEAD as INSTRUCTION_HEAD
from lightning_dadpo.reports.preference import HEAD as PREFERENCE_HEAD
from lightning_dadpo.reports.preference import SET_HEAD
from lightning_dadpo.reports.reading import comparisons, headlines
from lightning_dadpo.reports.rounds import HEAD as ROUND_HEAD
from lightning_dadpo.reports.rounds import round_section
from lightning_dadpo.reports.sections import one_line, reward_section, score_section
from lightning_dadpo.reports.sources import read_each, read_heldout, read_metrics
from lightning_dadpo.reports.token_maps import STEPS, read_maps, students

__all__ = ["write_report"]

TEMPLATES = Path(__file__).parent
OPEN_CONVERSATIONS = 4


def write_report(inputs: ReportInputs, out: Path) -> Path:
    """Write the report to `out`, whole or not at all.

    Sources that are missing or broken are named on the page; numbers that are not finite are shown as such.

    Returns:
        the path of the written file.
    """
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["drawing"] = Markup  # only ever given what drawing.finish has made
    page = environment.get_template("report.html.jinja").render(_content(inputs))
    out = Path(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    # Half a surrogate pair, which JSON can spell and UTF-8 cannot, becomes a question mark.
    write_atomically(out, page.encode("utf-8", "replace").decode("utf-8"))
    return out


def _content(inputs: ReportInputs) -> dict[str, Any]:
    curves, curve_problems = read_each(inputs.curves, read_metrics)
    answers, answer_problems = read_each(inputs.responses, partial(read_heldout, split=inputs.split))
    page_one = decide(inputs, answers)
    picked, shown, prompts = conversations(answers, page_one.picked)
    maps, map_problems = read_each({"token maps": inputs.evaluation} if inputs.evaluation else {}, read_maps)
    found = comparisons(inputs.summary, inputs.nearness)
    order = list(dict.fromkeys([*inputs.curves, *inputs.predictions]))
    return {
        "inputs": inputs,
        "one": page_one,
        "heads": {"preference": PREFERENCE_HEAD, "sets": SET_HEAD, "instructions": INSTRUCTION_HEAD},
        "table": table,
        "intervals": [interval_chart(inputs.summary, column) for column in table.ESTIMATES] if inputs.summary else [],
        "comparisons": found,
        "headlines": headlines(found),
        "picked": picked,
        "conversations": shown,
        "all_prompts": prompts,
        "open_conversations": OPEN_CONVERSATIONS,
        "answer_problems": answer_problems,
        "token_maps": students(maps.get("token maps", [])),
        "token_steps": STEPS,
        "token_problems": map_problems,
        "agreement": agreement_section(inputs.analysis, inputs.analysis_problems),
        "open_disputes": OPEN_DISPUTES,
        "rounds": round_section(inputs.rounds),
        "round_head": ROUND_HEAD,
        "curves": curve_section(curves, order),
        "curve_problems": curve_problems,
        "scores": score_section(inputs),
        "rewards": reward_section(inputs),
        "stages": [_stage(stage) for stage in inputs.stages],
        "versions": _versions(inputs.stages),
    }


def _stage(stage: Mapping[str, Any]) -> dict[str, str]:
    return {
        "name": str(stage.get("name", "unnamed")),
        "folder": str(stage.get("folder", "")),
        "time": duration(stage.get("seconds")),
        "counts": one_line(stage["counts"]) if stage.get("counts") else "",
        "results": one_line(stage["results"]) if stage.get("results") else "",
    }


def _versions(stages: list[dict[str, Any]]) -> dict[str, list[str]]:
    """Package -> every version that some stage ran with."""
    found: dict[str, list[str]] = {}
    for stage in stages:
        for package, version in (stage.get("versions") or {}).items():
            known = found.setdefault(str(package), [])
            if str(version) not in known:
                known.append(str(version))
    return found
