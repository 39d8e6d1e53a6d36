"""`python -m tests.cli.waiting_stage FOLDER STATUS`: a stage that works until it is asked to go."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

FOLDER = Path(sys.argv[1])


def finish(number: int, frame: Any) -> None:
    time.sleep(0.2)  # the rest of a step
    (FOLDER / "checkpoint").write_text("whole", "utf-8")
    sys.exit(int(sys.argv[2]))


if __name__ == "__main__":
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, finish)
    spec = sys.modules["__main__"].__spec__
    seen = {"process": os.getpid(), "argv": sys.argv[1:], "module": spec and spec.name, "cwd": os.getcwd()}
    seen["environment"] = os.environ["DADPO_IN_EXPERIMENT"]
    (FOLDER / "writing").write_text(json.dumps(seen), "utf-8")
    (FOLDER / "writing").rename(FOLDER / "ready")
    time.sleep(60)
