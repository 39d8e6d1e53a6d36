"""The one place that imports wandb: in which mode it runs here, and how a run is opened.

Nothing here asks a question or waits without a limit. wandb is imported when the first run is opened, never before.
"""

from __future__ import annotations

import netrc
import os
import socket
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, get_args
from urllib.parse import SplitResult, urlsplit

from lightning_dadpo.errors import ConfigError

__all__ = ["Mode", "wandb_mode", "start_run", "end_service", "project"]

Mode = Literal["online", "offline", "disabled"]

API = "https://api.wandb.ai"
ANSWER_SECONDS = 2.0
START_SECONDS = 20.0
FINISH_SECONDS = 60.0


def wandb_mode() -> Mode:
    """WANDB_MODE where it is set; else online when there is a key and the API host answers within 2 s; else offline.

    The key is WANDB_API_KEY or an entry in the netrc file for the host of WANDB_BASE_URL; it is not read here. Only
    a direct connection is tried: behind a proxy, set WANDB_MODE=online.

    Raises:
        ConfigError: WANDB_MODE or WANDB_BASE_URL is none.
    """
    declared = os.environ.get("WANDB_MODE")
    if declared:
        for mode in get_args(Mode):
            if declared == mode:
                return mode  # type: ignore[no-any-return]
        raise ConfigError(f"WANDB_MODE={declared}: expected online, offline or disabled")
    return "online" if _has_key() and _answers() else "offline"


def project() -> str:
    """The wandb project that runs go to: WANDB_PROJECT, or `dadpo`."""
    return os.environ.get("WANDB_PROJECT") or "dadpo"


def start_run(
    mode: Mode,
    *,
    experiment: str,
    name: str,
    job_type: str,
    run_id: str | None,
    save_dir: str | Path,
    config: dict[str, Any] | None = None,
) -> Any:
    """A wandb run in this process; one that exists under `run_id` is continued.

    Tracking never stops the work it tracks: where wandb refuses, the run falls back from online to offline and from
    there to a run that keeps nothing, with a printed line each time. A service of wandb that has died is replaced. No
    code is saved, no console captured.

    Args:
        mode: what `wandb_mode` said.
        experiment: the group of the run.
        name: what the run is called.
        job_type: the kind of work.
        run_id: the run's identity; None for a new one.
        save_dir: the run's files go to `wandb/` under it.
        config: what the work was made from, as plain values.

    Raises:
        ConfigError: WANDB_MODE=online without a key, where wandb would ask for one.
    """
    if mode == "online" and not _has_key():
        raise ConfigError(f"WANDB_MODE=online: no API key for {_api().netloc}; set WANDB_API_KEY or run `wandb login`")
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # wandb reports its own crashes, also when offline
    import wandb

    Path(save_dir).mkdir(parents=True, exist_ok=True)
    # the message about the key is printed before a run's own settings count
    wandb.setup(settings=wandb.Settings(silent=True))
    modes: tuple[Mode, ...] = get_args(Mode)
    for attempt in modes[modes.index(mode) :]:
        for last in (False, True):
            try:
                return wandb.init(
                    mode=attempt,
                    project=project(),
                    group=experiment,
                    name=name,
                    job_type=job_type,
                    id=run_id,
                    resume="allow",
                    dir=str(save_dir),
                    config=config,
                    settings=_settings(),
                )
            except Exception as error:
                end_service()  # it holds on to the id of a run that failed to start
                died = not isinstance(error, wandb.Error)  # wandb's own process, left by an earlier run
                if last or not died:
                    print(f"wandb: {name}: no {attempt} run ({_first_line(error)})", flush=True)
                    break
    raise AssertionError("a disabled run always starts")


def end_service() -> None:
    """End the process that wandb keeps beside this one, also when it is dead already: the next run starts another."""
    import wandb

    with suppress(OSError):  # dead: there is nobody to say goodbye to
        wandb.teardown()


def _settings() -> Any:
    import wandb

    return wandb.Settings(
        silent=True,
        console="off",
        save_code=False,
        disable_code=True,
        init_timeout=START_SECONDS,
        finish_timeout=FINISH_SECONDS,
        finish_timeout_raises=True,
        reinit="create_new",  # a run that is still open in this process is another one
    )


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _api() -> SplitResult:
    address = os.environ.get("WANDB_BASE_URL") or API
    parts = urlsplit(address)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError(f"WANDB_BASE_URL={address}: expected an address such as {API}")
    return parts


def _has_key() -> bool:
    """Whether there is a key, without reading it."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    path = Path(os.environ.get("NETRC") or "~/.netrc").expanduser()
    try:
        return _api().netloc in netrc.netrc(path).hosts
    except (OSError, netrc.NetrcParseError):
        return False


def _answers() -> bool:
    """Whether the API host takes a TCP connection; in a thread, since looking up a name knows no time limit."""
    parts, answered = _api(), threading.Event()
    address = (parts.hostname, parts.port or (80 if parts.scheme == "http" else 443))

    def attempt() -> None:
        with suppress(OSError), socket.create_connection(address, timeout=ANSWER_SECONDS):
            answered.set()

    thread = threading.Thread(target=attempt, daemon=True)
    thread.start()
    thread.join(ANSWER_SECONDS)
    return answered.is_set()
