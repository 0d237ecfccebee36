"""Flags that say which device computes what: what they become, and what they refuse."""

from __future__ import annotations

import json
from typing import Any

import click
import pytest
from command import Run

from pyllm.cli import _options
from pyllm.config import PlacementOptions


def parsed(*arguments: str) -> PlacementOptions:
    @click.command()
    @_options.placement_options
    def command(**options: Any) -> PlacementOptions:
        found = _options.placement(options)
        assert not options
        return found

    result: PlacementOptions = command.main(list(arguments), standalone_mode=False)
    return result


def test_defaults_are_the_settings_own() -> None:
    assert parsed() == PlacementOptions()


@pytest.mark.parametrize(
    ("arguments", "placement"),
    [
        (["-ngl", "20"], PlacementOptions(n_gpu_layers=20)),
        (["--n-gpu-layers", "ALL"], PlacementOptions(n_gpu_layers="all")),
        (["--gpu-layers=-1"], PlacementOptions(n_gpu_layers="auto")),
        (["-dev", "cuda0,cuda1", "-dev", "mlx0"], PlacementOptions(devices=("cuda0", "cuda1", "mlx0"))),
        (["-ot", "a=cpu,b[01]=cuda0"], PlacementOptions(override_tensors=(("a", "cpu"), ("b[01]", "cuda0")))),
        (["-ot", r"blk\.\d{1,2}\.ffn=cpu"], PlacementOptions(override_tensors=((r"blk\.\d{1,2}\.ffn", "cpu"),))),
        (["-ot", "a=cpu", "-ot", "b=cpu"], PlacementOptions(override_tensors=(("a", "cpu"), ("b", "cpu")))),
        (["-ncmoe", "7"], PlacementOptions(n_cpu_moe=7)),
        (["--cpu-moe"], PlacementOptions(n_cpu_moe=_options.ALL_LAYERS)),
        (["-mg", "1", "-ts", "3,1"], PlacementOptions(main_gpu=1, tensor_split=(3.0, 1.0))),
        (["-nkvo"], PlacementOptions(kv_offload=False)),
    ],
)
def test_flags(arguments: list[str], placement: PlacementOptions) -> None:
    assert parsed(*arguments) == placement


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["-ngl", "some"], "20, auto or all"),
        (["-ngl", "1.5"], "20, auto or all"),
        (["-ot", "a"], "PATTERN=DEVICE"),
        (["-ot", "a=cpu,b"], "PATTERN=DEVICE"),
        (["-ot", "=cpu"], "PATTERN=DEVICE"),
        (["-ot", "a="], "PATTERN=DEVICE"),
        (["-ot", "(=cpu"], "regular expression"),
        (["-ts", "a,b"], "3,1"),
        (["-ts", "0,0"], "not all 0"),
        (["-ts", "1,-1"], "0 or more"),
        (["-ncmoe", "-1"], "n-cpu-moe"),
        (["-dev", ""], "a name is empty"),
        (["-dev", "cuda0,"], "a name is empty"),
    ],
)
def test_refusals(run: Run, arguments: list[str], words: str) -> None:
    for command in ("run", "fit"):
        done = run(command, *arguments)
        assert done.code == 2
        assert words in done.err


def test_layers_for_a_gpu_that_is_not_there(run: Run, model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyllm.backends.devices.list_gpus", lambda names: [])
    asked = run("run", "-m", model, "-ngl", "2", "-n", "1", "hi")
    assert asked.code == 0
    assert "no GPU is used" in asked.err
    assert "GPU" not in run("run", "-m", model, "-n", "1", "hi").err


def test_bench_with_a_preset(run: Run) -> None:
    flags = ["--backend", "reference", "-p", "4", "-n", "2", "-r", "1", "--no-warmup", "-ngl", "0,all", "-o", "jsonl"]
    lines = run("bench", "--preset", "tiny:q8_0,tiny-moe", *flags).out.splitlines()
    results = [json.loads(line) for line in lines]
    assert [r["model_type"] for r in results] == ["llama tiny Q8_0"] * 4 + ["qwen3moe tiny.moe Q4_K - Medium"] * 4
    assert {r["n_gpu_layers"] for r in results} == {0}
    assert {r["devices"] for r in results} == {"reference"}
    assert run("bench", "--preset", "llama7-1b").code == 1


def test_layers_on_mlx_and_the_cpu(run: Run) -> None:
    pytest.importorskip("mlx.core")
    flags = ["--backend", "mlx", "-p", "4", "-n", "2", "-r", "1", "--no-warmup", "-ngl", "0,2,99", "-ncmoe", "0,1"]
    lines = run("bench", "--preset", "tiny-moe:Q8_0", *flags, "-o", "jsonl").out.splitlines()
    found = {(r["n_gpu_layers"], r["n_cpu_moe"]): r["devices"] for r in map(json.loads, lines)}
    assert found == {
        (0, 0): "cpu",
        (0, 1): "cpu",
        (2, 0): "mlx0/cpu",
        (2, 1): "mlx0/cpu",
        (4, 0): "mlx0",
        (4, 1): "mlx0/cpu",
    }


@pytest.mark.parametrize(
    ("rule", "words"),
    [("ffm=cpu", "no tensor of the model matches 'ffm'"), ("ffn=cuda7", "no device 'cuda7' among those that are used")],
)
def test_wrong_patterns_are_refused_without_a_gpu_too(run: Run, model: str, rule: str, words: str) -> None:
    for command in (["run", "-m", model, "-n", "1", "hi"], ["fit", "-m", model], ["bench", "-m", model, "-p", "1"]):
        done = run(*command, "--backend", "cpu", "-ot", rule)
        assert done.code == 1
        assert words in done.err


def test_run_says_where_it_ran(run: Run, model: str) -> None:
    done = run("run", "-m", model, "--backend", "reference", "-n", "1", "--raw", "--stats", "--json", "hi")
    assert json.loads(done.out)["devices"] == ["reference"]
    assert done.err.strip().endswith("; on reference")


@pytest.mark.parametrize(("n", "where"), [("1", "mlx0+cpu, 1 of 3 layers on GPUs"), ("all", "mlx0")])
def test_run_says_how_much_is_on_gpus(run: Run, model: str, n: str, where: str) -> None:
    pytest.importorskip("mlx.core")
    done = run("run", "-m", model, "--backend", "mlx", "-ngl", n, "-n", "1", "--raw", "--stats", "--json", "hi")
    assert json.loads(done.out)["n_gpu_layers"] == (1 if n == "1" else 3)
    assert done.err.strip().endswith(f"; on {where}")


def test_fit(run: Run) -> None:
    done = run("fit", "--preset", "tiny", "-c", "128", "--backend", "cpu")
    assert done.code == 0
    assert "tiny:Q4_K_M, context of 128 tokens, 0 of 5 layers on GPUs" in done.out
    assert run("fit", "--preset", "tiny", "-m", "model").code == 2


def test_fit_says_what_does_not(run: Run) -> None:
    done = run("fit", "--preset", "tiny", "-c", "2147483647", "--backend", "cpu")
    assert "does not fit: cpu" in done.out.splitlines()
    (cpu,) = [line.split() for line in done.out.splitlines() if line.startswith("cpu ")]
    assert cpu[1] == "5", "the token table is no layer"
    assert "does not fit" not in run("fit", "--preset", "tiny", "-c", "128", "--backend", "cpu").out
