"""`pyllm quantize --bpw` and `--size`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command import Run

from pyllm.gguf import open_gguf
from pyllm.quant.calibrate import target_size


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("The harbour lay still, and nobody spoke of the night before. " * 12)
    return path


def test_bits_per_weight(run: Run, model: str, text: Path, tmp_path: Path) -> None:
    target = tmp_path / "q.gguf"
    done = run("quantize", model, str(target), "--bpw", "6", "--calibrate", str(text), "-t", "1")
    assert done.code == 0
    assert "total" in done.out
    with open_gguf(target) as file:
        assert "general.file_type" not in file.metadata
        tensors = list(file.tensors.values())
        assert 5.8 <= 8 * sum(t.n_bytes for t in tensors) / sum(t.n_elements for t in tensors) <= 6
    again = run("run", "-m", str(target), "-n", "2", "x")
    assert again.code == 0


def test_size_as_a_dry_run(run: Run, model: str) -> None:
    done = run("quantize", model, "--size", "36k", "--fast", "--dry-run", "--json", "-t", "1")
    assert done.code == 0
    plan = json.loads(done.out)
    assert 0.97 * 36_000 <= plan["bytes"] <= 36_000
    formats = {t["name"]: t["format"] for t in plan["tensors"]}
    assert formats["output_norm.weight"] == "F32"
    assert formats["blk.0.ffn_gate.weight"] == formats["blk.0.ffn_up.weight"]


@pytest.mark.parametrize("size", [["--bpw", "40"], ["--size", "9G"]])
def test_a_size_above_the_sources_is_a_copy_and_nothing_is_measured(
    run: Run, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: list[str]
) -> None:
    def measure(*_: object, **__: object) -> None:
        raise AssertionError("nothing is to be measured")

    monkeypatch.setattr(target_size, "measure_errors", measure)
    monkeypatch.setattr(target_size, "sensitivities", measure)
    target = tmp_path / "q.gguf"
    done = run("quantize", model, str(target), *size, "-t", "1")
    assert done.code == 0
    assert "note: the size has room for the tensors as they are; they are copied" in done.err
    with open_gguf(model) as before, open_gguf(target) as after:
        for name, tensor in before.tensors.items():
            assert after.tensors[name].format == tensor.format
            assert after.tensors[name].data.tobytes() == tensor.data.tobytes()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["Q4_K_M", "--bpw", "4"], "takes the place of the recipe"),
        (["--bpw", "4", "--size", "1M"], "both name a size"),
        (["Q4_K_M", "--fast"], "--calibrate and --fast go with --bpw or --size"),
        (["--bpw", "4", "--pure", "--fast"], "--pure gives all matrices one format"),
        (["--bpw", "0"], "0"),
        (["--bpw", "2", "--fast"], "with the smallest formats"),
        (["--size", "1k", "--fast"], "with the smallest formats"),
    ],
)
def test_refusals_leave_nothing(run: Run, model: str, tmp_path: Path, arguments: list[str], message: str) -> None:
    target = tmp_path / "q.gguf"
    done = run("quantize", model, str(target), *arguments)
    assert done.code != 0
    assert message in done.err
    assert not list(tmp_path.iterdir())
