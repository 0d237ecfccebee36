"""Progress where standard error is no terminal: lines, the fewer the longer it takes."""

from __future__ import annotations

import pytest
from command import Run

from pyllm.cli import _progress
from pyllm.cli._progress import Display, Lines


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(_progress.time, "monotonic", lambda: now[0])
    return now


def test_lines_come_after_seconds_and_the_fewer_the_longer_it_takes(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    lines = Lines()
    for second in range(1000):
        clock[0] = 100.0 + second
        lines.report("reading", second / 1000)
    shown = [int(line.split()[1].rstrip("%")) for line in capsys.readouterr().err.splitlines()]
    # 0.5 % is 5 seconds; from 50 seconds on, the time between lines is a tenth of what has passed.
    assert shown[:4] == [0, 1, 2, 2]
    assert 30 <= len(shown) <= 45


def test_what_is_quick_shows_nothing(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with Display(lines=True) as display:
        assert display.progress is not None
        display.progress("reading", 0.5)
    assert capsys.readouterr().err == ""
    assert Display().progress is None


def test_quantize_and_imatrix_write_lines(
    run: Run, model: str, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_progress, "_LINE_EVERY", 0.0)
    monkeypatch.setattr(_progress, "_LINE_SHARE", 0.0)
    folder = tmp_path_factory.mktemp("files")
    text = folder / "text.txt"
    text.write_text("The harbour lay still, and nobody spoke of the night before. " * 12)
    done = run("quantize", model, str(folder / "q.gguf"), "--bpw", "6", "--calibrate", str(text), "-t", "1")
    assert "measuring errors of blk.0" in done.err
    assert "measuring blk.0" in done.err
    done = run("imatrix", "-m", model, "-f", str(text), "-o", str(folder / "i.gguf"), "--ctx", "16", "-t", "1")
    assert "reading windows (" in done.err


@pytest.mark.parametrize(("command", "default"), [("imatrix", "[default: 512]"), ("perplexity", "[default: 512;")])
def test_help_says_the_default_context(run: Run, command: str, default: str) -> None:
    assert default in run(command, "--help").out
