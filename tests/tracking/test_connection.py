from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lightning_dadpo.errors import ConfigError
from lightning_dadpo.tracking import connection
from lightning_dadpo.tracking.connection import end_service, project, start_run, wandb_mode
from tests.wandb_records import kill_service


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No mode, no key, no netrc file, and no server but a loopback one."""
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_PROJECT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setattr(connection, "ANSWER_SECONDS", 1.0)


@pytest.fixture
def listener(monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """A server that takes connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{server.getsockname()[1]}")
        yield server


def connections(server: socket.socket) -> int:
    count = 0
    while True:
        try:
            server.accept()[0].close()
        except BlockingIOError:
            return count
        count += 1


@pytest.mark.parametrize("declared", ["online", "offline", "disabled"])
def test_wandb_mode_is_obeyed_when_set(declared: str, listener: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", declared)
    monkeypatch.setenv("WANDB_API_KEY", "k")
    assert wandb_mode() == declared
    assert connections(listener) == 0


def test_an_unknown_mode_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "on")
    with pytest.raises(ConfigError, match="WANDB_MODE=on: expected online, offline or disabled"):
        wandb_mode()


def test_an_address_without_a_host_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_BASE_URL", "wandb.example")
    monkeypatch.setenv("WANDB_API_KEY", "k")
    with pytest.raises(ConfigError, match=r"WANDB_BASE_URL=wandb\.example"):
        wandb_mode()


def test_offline_without_a_key_and_nobody_is_asked(listener: socket.socket) -> None:
    assert wandb_mode() == "offline"
    assert connections(listener) == 0


def test_online_with_a_key_and_a_host_that_answers(listener: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "k")
    assert wandb_mode() == "online"
    assert connections(listener) == 1


def test_offline_with_a_key_and_a_host_that_refuses(listener: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "k")
    listener.close()
    assert wandb_mode() == "offline"


def test_a_name_that_is_never_looked_up_counts_as_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    """Looking up a name has no time limit of its own."""
    monkeypatch.setenv("WANDB_API_KEY", "k")
    monkeypatch.setattr(connection, "ANSWER_SECONDS", 0.05)
    let_go = connection.threading.Event()

    def never(*_: object, **__: object) -> None:
        let_go.wait(10)
        raise OSError

    monkeypatch.setattr(connection.socket, "create_connection", never)
    assert wandb_mode() == "offline"
    let_go.set()


def test_a_netrc_entry_for_this_host_is_a_key(listener: socket.socket, tmp_path: Path) -> None:
    host = f"127.0.0.1:{listener.getsockname()[1]}"
    for entry, mode in (("machine elsewhere", "offline"), (f"machine {host}", "online"), ("machine", "offline")):
        (tmp_path / "netrc").write_text(f"{entry}\n  login user\n  password secret\n")
        assert wandb_mode() == mode


def test_online_without_a_key_is_refused_before_wandb_can_ask(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no API key for 127\.0\.0\.1:9; set WANDB_API_KEY or run `wandb login`"):
        start_run("online", experiment="e", name="n", job_type="j", run_id="r", save_dir=tmp_path)


def test_a_server_that_never_answers_leaves_an_offline_run(
    listener: socket.socket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(connection, "START_SECONDS", 1.0)
    monkeypatch.setenv("WANDB_API_KEY", "0123456789" * 4)
    run = start_run("online", experiment="e", name="n", job_type="j", run_id="kept", save_dir=tmp_path / "runs")
    run.finish()
    assert (run.settings.mode, run.id) == ("offline", "kept")
    assert len(list((tmp_path / "runs" / "wandb").glob("offline-run-*-kept"))) == 1
    said = capsys.readouterr()
    assert said.out.startswith("wandb: n: no online run (")
    assert said.out.count("\n") == 1
    assert "0123456789" not in said.out + said.err


def test_a_service_that_died_is_replaced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for run_id in ("before", "after"):
        run = start_run("offline", experiment="e", name="n", job_type="j", run_id=run_id, save_dir=tmp_path)
        if run_id == "before":
            kill_service()
    run.finish()
    end_service()
    assert (run.settings.mode, run.id, capsys.readouterr().out) == ("offline", "after", "")
    assert list((tmp_path / "wandb").glob("offline-run-*-after*/run-after.wandb"))


def test_the_project_has_a_name_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    assert project() == "dadpo"
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    assert project() == "mine"


def test_wandb_is_imported_by_nobody_until_a_run_starts() -> None:
    program = "import sys, lightning_dadpo.tracking.runs, lightning_dadpo.tracking.connection as c; c.wandb_mode()"
    asked = f"{program}; print('wandb' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"
