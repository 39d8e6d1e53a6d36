"""No number is typed into a README: the tables there are what the script makes of results.json."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]
RESULTS = sorted((ROOT / "experiments").glob("*/results.json"))


@pytest.fixture(scope="module")
def tables() -> ModuleType:
    spec = importlib.util.spec_from_file_location("tables", ROOT / "experiments" / "tables.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.parent.name)
def test_the_tables_are_what_the_results_say(path: Path, tables: ModuleType) -> None:
    results = json.loads(path.read_text("utf-8"))
    own = (path.parent / "README.md").read_text("utf-8")
    for marker in tables.tables(path.parent.name, results):
        assert f"<!-- results: {marker} -->" in own
    for text in (own, (ROOT / "README.md").read_text("utf-8")):
        assert tables.written(text, path.parent.name, results) == text


def test_the_demo_s_table_stands_in_the_project_s_readme() -> None:
    assert "<!-- results: demo -->" in (ROOT / "README.md").read_text("utf-8")


def test_a_changed_number_would_be_seen(tables: ModuleType) -> None:
    row = {"model": "dsft", "parameters": 106_194_240, "prompts": 32}
    row |= {f"{column}{end}": 0.5 for column in tables.COLUMNS for end in ("", "_low", "_high")}
    results = {
        "rows": [row], "command": "dadpo run x", "hardware": "one core", "precision": "32-true", "minutes": 1.0,
        "versions": {"torch": "2", "transformers": "5", "lightning": "2"},
    }  # fmt: skip
    text = "before\n<!-- results: x -->\nold\n<!-- end -->\nafter"
    made = tables.written(text, "x", results)
    assert made.startswith("before\n")
    assert made.endswith("\nafter")
    assert "| dsft | 106.2 M | 50% [50%, 50%] |" in made
    row["forward_kl"] = 0.6
    assert tables.written(text, "x", results) != made
