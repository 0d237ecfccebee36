"""`pyllm run --prompt-cache` and `--cache-dir`: what one run has read, the next one need not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from command import Run

from pyllm.errors import PyllmWarning

PROMPT = "x" * 100  # 100 tokens of the tiny model, and BOS
PAGES = 96


def ask(run: Run, model: str, *more: str, prompt: str = PROMPT) -> dict[str, Any]:
    options = ["--backend", "reference", "--raw", "-n", "4", "--temp", "0", "--json"]
    done = run("run", "-m", model, *options, *more, prompt)
    assert done.code == 0, done.err
    found: dict[str, Any] = json.loads(done.out)
    return found


def test_a_prompt_is_read_once(run: Run, model: str, tmp_path: Path) -> None:
    file = tmp_path / "notes.cache"
    first = ask(run, model, "--prompt-cache", str(file))
    second = ask(run, model, "--prompt-cache", str(file), prompt=PROMPT + "yes")
    assert (first["n_cached"], second["n_cached"]) == (0, PAGES)
    again = ask(run, model, "--prompt-cache", str(file))
    assert again["n_cached"] == PAGES
    assert again["tokens"] == first["tokens"]


def test_a_file_that_is_left_as_it_is(run: Run, model: str, tmp_path: Path) -> None:
    file = tmp_path / "notes.cache"
    ask(run, model, "--prompt-cache", str(file), "--prompt-cache-ro")
    assert not file.exists()
    ask(run, model, "--prompt-cache", str(file))
    before = file.read_bytes()
    other = ask(run, model, "--prompt-cache", str(file), "--prompt-cache-ro", prompt="z" * 100)
    assert other["n_cached"] == 0
    assert file.read_bytes() == before


def test_another_models_file_is_refused_and_stays(run: Run, model: str, tmp_path: Path) -> None:
    file = tmp_path / "notes.cache"
    ask(run, model, "--prompt-cache", str(file))
    before = file.read_bytes()
    done = run("run", "-m", model, "--backend", "reference", "--kv", "f32", "--prompt-cache", str(file), "hi")
    assert done.code == 1
    assert "is a prefix cache of KV cache f16, not f32" in done.err
    assert file.read_bytes() == before
    done = run("run", "-m", model, "--backend", "reference", "--prompt-cache", model, "hi")
    assert (done.code, "is no prefix cache of pyllm" in done.err) == (1, True)


def test_a_damaged_file_is_said_and_replaced(run: Run, model: str, tmp_path: Path) -> None:
    file = tmp_path / "notes.cache"
    ask(run, model, "--prompt-cache", str(file))
    whole = file.read_bytes()
    file.write_bytes(whole[:40])
    with pytest.warns(PyllmWarning, match="is damaged"):
        assert ask(run, model, "--prompt-cache", str(file))["n_cached"] == 0
    assert file.read_bytes() == whole


def test_a_folder_keeps_prompts_of_all_runs(run: Run, model: str, tmp_path: Path) -> None:
    folder = str(tmp_path / "cache")
    first = ask(run, model, "--cache-dir", folder, "--cache-size", "1MiB")
    again = ask(run, model, "--cache-dir", folder, "--cache-size", "1MiB")
    assert (first["n_cached"], again["n_cached"]) == (0, PAGES)
    assert again["tokens"] == first["tokens"]
    done = run("run", "-m", model, "--backend", "reference", "--cache-dir", folder, "--cache-size", "1K", "hi")
    assert done.code == 1
    assert "holds no page" in done.err
