"""Who is preferred, by a judge that was first held against people; without that, nobody is."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lightning_dadpo.data.artifacts import read_manifest
from lightning_dadpo.errors import DadpoError, DataError
from lightning_dadpo.reports.picked import short
from lightning_dadpo.reports.table import display_name, number, plain_name

__all__ = ["HEAD", "SET_HEAD", "percent_of", "points_of", "Bar", "PreferenceSection", "preference_section", "NO_CLAIM"]

NO_CLAIM = "No preference result is claimed"
FILE = "preference.json"
NOTHING = "\u2013"
ESTIMATES = {
    "win": "Win", "tie": "Tie", "lose": "Lose", "preference_rate": "Preference rate", "longer_wins": "Longer wins",
    "length_controlled": "At equal length", "consistent": "Same in both orders",
}  # fmt: skip
TOKENS = {"mean_tokens": "Mean tokens", "opponent_mean_tokens": "Opponent's mean tokens"}
HEAD = ("Model", "Prompts", *ESTIMATES.values(), *TOKENS.values())


@dataclass(frozen=True)
class Bar:
    """Shares of one student's answers that were better, as good or worse; widths in hundredths."""

    name: str
    win: str
    tie: str
    lose: str
    widths: tuple[float, float, float]


@dataclass
class PreferenceSection:
    """What page one says of preferences, and the tables behind it.

    Attributes:
        believed: the judge passed its validation.
        claim: what is claimed, or that nothing is and why. rate: the student's numbers in one sentence.
        trust: how often the judge agrees with people.
        bar: the student's shares; None when nothing is claimed.
        verdicts: prompt id -> win, tie or lose of the student against the teacher; empty when nothing is claimed.
        rows: cells in the order of `HEAD`. differences: model, other, difference. sets: of the validations.
        reasons: why the judge did not pass. judge: its name. opponent: whom the students were held against.
    """

    believed: bool = False
    claim: str = ""
    rate: str = ""
    trust: str = ""
    bar: Bar | None = None
    verdicts: dict[str, str] = field(default_factory=dict)
    judge: str = ""
    opponent: str = ""
    rows: list[list[str]] = field(default_factory=list)
    differences: list[list[str]] = field(default_factory=list)
    sets: list[list[str]] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def preference_section(
    verdicts: Path | None,
    validations: Sequence[Path],
    student: str | None,
    responses: Mapping[str, Path],
    scores: Mapping[str, Path],
) -> PreferenceSection:
    """The section; whatever is missing or broken becomes a sentence, and nothing is claimed then.

    Args:
        verdicts: the artefact of `dadpo judge`. validations: those of `dadpo validate-judge`.
        student: the student in question.
        responses: model name -> responses artefact, to know whom the students were held against, and the teacher.
        scores: anchor -> scores artefact: a model that a student was trained after is no judge of it.
    """
    section = PreferenceSection()
    if verdicts is None:
        section.claim = f"{NO_CLAIM}: no judge compared the answers."
        return section
    try:
        found = _read(verdicts)
    except (DadpoError, OSError) as error:
        section.problems.append(f"verdicts: {error}")
        section.claim = f"{NO_CLAIM}: the judge's verdicts cannot be read."
        return section
    section.judge = str(found["judge"].get("name"))
    section.opponent = next(
        (name for name, folder in responses.items() if folder.name == Path(str(found["opponent"])).name),
        Path(str(found["opponent"])).name,
    )
    section.rows = [_cells(row) for row in found["rows"]]
    section.differences = [_difference(row) for row in found["differences"]]
    _believe(section, _results(found["judge"], validations, section.problems))
    if _had_a_hand(found["judge"], [*([responses["teacher"]] if "teacher" in responses else []), *scores.values()]):
        section.believed = False
        section.claim = f"{NO_CLAIM}: the judge is a model that the student was trained after."
    mine = next((row for row in found["rows"] if row.get("model") == student), None)
    if section.believed and (mine is None or _estimate(mine, "preference_rate") is None):
        section.believed = False
        section.claim = f"{NO_CLAIM}: the judge did not compare this student."
    elif section.believed and mine is not None:
        _claim(section, mine)
        if section.opponent == "teacher":
            section.verdicts = _verdicts(verdicts, str(student), section.problems)
    return section


def _read(folder: Path) -> dict[str, Any]:
    read_manifest(folder, "verdicts")
    path = folder / FILE
    try:
        found = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise DataError(f"{path}: not JSON ({error})") from error
    shapes = {"judge": dict, "opponent": str, "rows": list, "differences": list}
    for key, kind in shapes.items():
        if not isinstance(found, dict) or not isinstance(found.get(key), kind):
            raise DataError(f"{path}: `{key}`: expected a {kind.__name__}")
    if not all(isinstance(row, dict) for row in (*found["rows"], *found["differences"])):
        raise DataError(f"{path}: expected an object a row")
    return dict(found)


def _verdicts(folder: Path, student: str, problems: list[str]) -> dict[str, str]:
    """Single verdicts, of which nothing is claimed: a line that cannot be read is named."""
    path, found = folder / "rows.jsonl", dict[str, str]()
    try:
        for line_number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
            try:
                row = json.loads(line)
                if row["model"] == student:
                    found[str(row["prompt_id"])] = str(row["verdict"])
            except (ValueError, KeyError, TypeError):
                raise DataError(f"{path}:{line_number}: expected `model`, `prompt_id` and `verdict`") from None
    except (DadpoError, OSError, UnicodeDecodeError) as error:
        problems.append(f"verdicts: {error}")
    return found


def _results(judge: Mapping[str, Any], validations: Sequence[Path], problems: list[str]) -> list[dict[str, Any]]:
    """What validations of this very judge came to; one of another judge is named and does not count."""
    found = [one for one in judge.get("validations") or [] if isinstance(one, dict)]
    for folder in validations:
        try:
            manifest = read_manifest(folder, "judge-validation")
        except (DadpoError, OSError) as error:
            problems.append(f"validation of the judge: {error}")
            continue
        if manifest.made_from.get("judge") != [judge.get("name"), judge.get("identity")]:
            problems.append(f"{folder.name}: validates another judge than the one that was asked.")
        elif manifest.results not in found:
            found.append(manifest.results)
    return found


def _had_a_hand(judge: Mapping[str, Any], folders: Sequence[Path]) -> bool:
    """Whether the judge's identity names the teacher or an anchor; folders that cannot be read are named elsewhere."""
    identity = json.dumps(judge.get("identity"))
    for folder in folders:
        try:
            digest = read_manifest(folder).made_from.get("model")
        except (DadpoError, OSError):
            continue
        if isinstance(digest, str) and digest and f'"{digest}"' in identity:
            return True
    return False


def _believe(section: PreferenceSection, results: Sequence[Mapping[str, Any]]) -> None:
    """A judge is believed when it was held against people and passed every time."""
    sets = [one for result in results for one in result.get("sets") or [] if isinstance(one, dict)]
    section.sets = [_set(one) for one in sets]
    section.reasons = [str(reason) for result in results for reason in result.get("reasons") or []]
    section.trust = _trust(sets)
    section.believed = bool(results) and all(result.get("passes") is True for result in results)
    if not results:
        section.claim = f"{NO_CLAIM}: the judge was not held against people's judgements, so it is not believed."
    elif not section.believed:
        section.claim = f"{NO_CLAIM}: held against people's judgements, the judge did not pass."


def _claim(section: PreferenceSection, row: Mapping[str, Any]) -> None:
    whom = "the teacher" if section.opponent == "teacher" else short(plain_name(section.opponent), 40)
    low, high = number(row, "preference_rate_low"), number(row, "preference_rate_high")
    seen = f"sees no clear difference between the answers of the student and of {whom}"
    if low is not None and high is not None and low > 0:
        seen = f"prefers the student's answers to those of {whom}"
    elif low is not None and high is not None and high < 0:
        seen = f"prefers the answers of {whom} to the student's"
    rate = points_of(row, "preference_rate")
    section.claim = f"The judge {seen}: wins less losses come to {rate} of 100; 0 is a draw."
    shares = [number(row, key) for key in ("win", "tie", "lose")]
    section.rate = (
        f"At equal length in characters it would be {points_of(row, 'length_controlled')}; always taking the longer "
        f"comes to {points_of(row, 'longer_wins')}. Mean tokens: {_tokens(row, 'mean_tokens')} against "
        f"{_tokens(row, 'opponent_mean_tokens')}."
    )
    if all(share is not None and math.isfinite(share) for share in shares):
        win, tie, lose = (round(100 * (share or 0.0), 2) for share in shares)
        said = [percent_of(row, key) for key in ("win", "tie", "lose")]
        section.bar = Bar(whom, said[0], said[1], said[2], (win, tie, lose))


def _estimate(row: Mapping[str, Any], key: str) -> tuple[float, float | None, float | None] | None:
    value = number(row, key)
    if value is None or not math.isfinite(value):
        return None
    low, high = (number(row, f"{key}{bound}") for bound in ("_low", "_high"))
    return value, low, high


def percent_of(row: Mapping[str, Any], key: str) -> str:
    """A share of 1 with its interval, in per cent."""
    found = _estimate(row, key)
    if found is None:
        return NOTHING
    value, low, high = found
    return f"{100 * value:.0f}\u00a0%" + (
        "" if low is None or high is None else f" [{100 * low:.0f}, {100 * high:.0f}]"
    )


def points_of(row: Mapping[str, Any], key: str) -> str:
    """A difference of shares with its interval, in points of 100."""
    found = _estimate(row, key)
    if found is None:
        return NOTHING
    value, low, high = found
    bounds = "" if low is None or high is None else f" [{100 * low:+.0f}, {100 * high:+.0f}]"
    return f"{100 * value:+.0f} points{bounds}".replace("-", "\u2212")


def _tokens(row: Mapping[str, Any], key: str) -> str:
    found = _estimate(row, key)
    return NOTHING if found is None else f"{found[0]:.0f}"


def _cells(row: Mapping[str, Any]) -> list[str]:
    prompts = number(row, "prompts")
    said = [display_name(str(row.get("model"))), NOTHING if prompts is None else f"{prompts:.0f}"]
    points = ("preference_rate", "longer_wins", "length_controlled")
    said += [points_of(row, key) if key in points else percent_of(row, key) for key in ESTIMATES]
    return said + [_tokens(row, key) for key in TOKENS]


def _difference(row: Mapping[str, Any]) -> list[str]:
    names = [display_name(str(row.get(key))) for key in ("model", "other")]
    found = _estimate(row, "difference")
    state = "cannot be compared"
    if found is not None and found[1] is not None and found[2] is not None:
        state = "higher" if found[1] > 0 else "lower" if found[2] < 0 else "undecided, the interval holds 0"
    return [*names, points_of(row, "difference"), state]


SET_HEAD = ("People's judgements", "Pairs", "Agrees with people", "Longer wins", "Gain over it", "Chance",
            "Same in both orders")  # fmt: skip


def _set(row: Mapping[str, Any]) -> list[str]:
    """Cells in the order of `SET_HEAD`."""
    counts = [number(row, key) for key in ("pairs", "untied")]
    pairs = " / ".join(NOTHING if count is None else f"{count:.0f}" for count in counts)
    shares = [percent_of(row, key) for key in ("agreement", "longer_wins")]
    return [str(row.get("set")), pairs, *shares, points_of(row, "difference"), percent_of(row, "chance"),
            percent_of(row, "consistent")]  # fmt: skip


def _trust(sets: Sequence[Mapping[str, Any]]) -> str:
    """The two agreements that decide, beside what they must beat."""
    said = []
    by_name = {str(row.get("set")): row for row in sets}
    if row := by_name.get("PandaLM"):
        said.append(
            f"{percent_of(row, 'agreement')} of everyday comparisons (PandaLM), where taking the longer one (in "
            f"characters) agrees in {percent_of(row, 'longer_wins')}"
        )
    if row := by_name.get("LLMBar"):
        said.append(
            f"{percent_of(row, 'agreement')} of hard ones (LLMBar), where chance agrees in {percent_of(row, 'chance')}"
        )
    return f"The judge agrees with people in {'; and in '.join(said)}." if said else ""
