"""`pyllm ps` and `pyllm stop`, with a live server."""

from __future__ import annotations

import json
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from pyllm.cli import ps, stop
from server_rig import Rig, running, until
from tiny_gguf import write_tiny_gguf


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_gguf(tmp_path_factory.mktemp("models") / "tiny.gguf")


@pytest.fixture
def rig(path: Path) -> Iterator[Rig]:
    with running(path, api_keys=("secret",)) as rig:
        until(lambda: not rig.house.models.starting)
        yield rig


def told(command: click.Command, *arguments: str) -> tuple[int, str]:
    done = CliRunner().invoke(command, [*arguments], obj={})
    return done.exit_code, done.output


def test_ps_shows_what_is_loaded_and_stop_unloads_it(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYLLM_URL", rig.url)
    monkeypatch.setenv("PYLLM_API_KEY", "secret\nother")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")  # not for this machine's own servers
    code, text = told(ps.command)
    assert code == 0
    header, row = text.splitlines()
    assert header.split() == ["NAME", "MEMORY", "CONTEXT", "UNTIL"]
    name, amount, unit, context, moment = row.split()
    assert (name, unit, context) == ("tiny", "MiB", "512")
    assert float(amount) > 0
    assert moment.count(":") == 2
    (found,) = json.loads(told(ps.command, "--output", "json")[1])
    assert (found["name"], found["context_length"]) == ("tiny", 512)
    assert told(stop.command, "tiny") == (0, "stopped tiny\n")
    until(lambda: not rig.house.models.loaded)
    assert told(ps.command) == (0, "NAME  MEMORY  CONTEXT  UNTIL\n")


def test_pinned_models_have_no_end(path: Path) -> None:
    with running(path, pinned=(str(path),)) as rig:
        until(lambda: not rig.house.models.starting)
        assert "in use, or for good" in told(ps.command, "--url", rig.url)[1]


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("ftp://a", "'ftp://a' is not an address such as http://127.0.0.1:11500"),
        ("http://a:b", "'http://a:b' is not an address such as"),
        ("unix:/none", "no server answers at unix:/none: No such file or directory; `pyllm serve` starts one"),
    ],
)
def test_addresses_of_nothing_are_named(url: str, words: str) -> None:
    code, text = told(ps.command, "--url", url)
    assert code in (1, 2)
    assert words in text


def test_a_server_that_is_not_there_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    code, text = told(ps.command, "--url", f"127.0.0.1:{port}")
    assert code == 1
    assert f"no server answers at 127.0.0.1:{port}: " in text


def test_refusals_of_the_server_are_told(rig: Rig) -> None:
    at = ("--url", rig.url)
    assert told(ps.command, *at, "--api-key", "wrong")[0] == 1
    assert "the key is missing or wrong" in told(ps.command, *at)[1]
    code, text = told(stop.command, *at, "--api-key", "secret", "other")
    assert code == 1
    assert "there is no model 'other' here; there are: tiny" in text


@pytest.mark.skipif(sys.platform == "win32", reason="no unix sockets")
def test_a_unix_socket_is_served_and_removed(path: Path, short: Callable[[], Path]) -> None:
    uds = short()
    with running(path, uds=str(uds)) as rig:
        assert rig.url == f"unix:{uds}"
        assert uds.stat().st_mode & 0o777 == 0o600
        assert told(stop.command, "--url", rig.url, "tiny") == (0, "stopped tiny\n")
    assert not uds.exists()


@pytest.fixture
def short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], Path]:
    """A path that is short enough for a socket: relative to the current folder."""

    def make() -> Path:
        monkeypatch.chdir(tmp_path)
        return Path("s")

    return make
