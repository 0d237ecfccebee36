"""The command line as a program: exit codes, errors in one line, what is written where."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import click
import pytest
from command import Run

import pyllm
from pyllm import cli
from pyllm.cli import _options, _output
from pyllm.config import SamplingParams
from pyllm.errors import HubError
from pyllm.units import size

# The program


def test_every_command_has_help(run: Run) -> None:
    names = cli.group.list_commands(click.Context(cli.group))
    assert {"run", "chat", "bench", "tokenize", "show", "pull", "list", "rm", "doctor", "perplexity"} <= set(names)
    listed = run("--help").out
    for name in names:
        assert re.search(rf"^  {name} +\w", listed, re.MULTILINE)
        done = run(name, "--help")
        assert done.code == 0
        assert "--debug" in done.out


def test_version(run: Run) -> None:
    assert run("--version").out == f"pyllm {pyllm.__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["shw"], "did you mean 'show'"),
        (["run", "--temperatur", "1", "hi"], "--temperature"),
        (["run", "hi", "-p", "ho"], "not both"),
        (["run", "--raw", "--system", "s", "hi"], "--raw"),
        (["run", "--logit-bias", "x", "hi"], "15043=-1.5"),
        (["bench", "-o", "xml"], "jsonl"),
        (["bench", "-p", "1-"], "range"),
        (["tokenize", "a", "-p", "b"], "one of them"),
        (["rm"], "MODEL"),
    ],
)
def test_usage_errors(run: Run, arguments: list[str], words: str) -> None:
    done = run(*arguments)
    assert done.code == 2
    assert done.out == ""
    assert words in done.err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["show", "nowhere.gguf"], "no file"),
        (["run", "-m", "nonsense", "hi"], "nonsense"),
        (["run", "-f", "nowhere.txt"], "nowhere.txt: No such file"),
        (["tokenize", "-m", __file__, "hi"], "GGUF"),
        (["pull", "nonsense"], "`pyllm list` shows all"),
        (["rm", "smollm2:135m"], "not here"),
        (["show", "hf.co/x"], "hf.co/user/repo"),
    ],
)
def test_failures_are_one_line(run: Run, arguments: list[str], words: str) -> None:
    done = run(*arguments)
    assert done.code == 1
    assert done.out == ""
    assert done.err.startswith("error: ")
    assert done.err.count("\n") == 1
    assert words in done.err


def test_debug_shows_the_trace(run: Run) -> None:
    with pytest.raises(HubError):
        cli.main(["--debug", "show", "nonsense"])
    with pytest.raises(HubError):
        cli.main(["show", "nonsense", "--debug"])


def test_a_reader_that_leaves(model: str) -> None:
    if os.name == "nt":
        pytest.skip("needs a POSIX shell")
    script = f"{sys.executable} -m pyllm show {model} --json | head -c 10; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True)
    assert done.stderr == ""
    assert done.stdout == '{"path": "'
    assert done.returncode in (0, 141)


def test_control_characters_are_shown() -> None:
    hostile = "a\x1b]0;title\x07\x9b31m\x7f\r\b\t\nö"
    shown = _output.neutralize(hostile)
    assert shown == "a␛]0;title␇�31m␡␍␈\t\nö"
    assert _output.describe(HubError(hostile)).isprintable()


def test_table() -> None:
    assert _output.table([("A", "BB"), ("ccc", "1")], right=(1,)) == "A    BB\nccc   1\n"
    assert _output.table([]) == ""


@pytest.mark.parametrize(("n", "text"), [(0, "0 B"), (1023, "1023 B"), (98362432, "93.8 MiB"), (1 << 30, "1.00 GiB")])
def test_size(n: int, text: str) -> None:
    assert size(n) == text


def test_sampling_flags_cover_the_settings() -> None:
    @click.command()
    @_options.sampling_options
    def command(**options: object) -> SamplingParams:
        return SamplingParams(**_options.sampling(options))

    for field in fields(SamplingParams):
        if field.name == "logits_processors":  # functions
            continue
        (option,) = (p for p in command.params if p.name == field.name)
        assert isinstance(option, click.Option)
        assert option.help
    given = [
        "--temp",
        "0.5",
        "--top-k",
        "7",
        "--min-p",
        "0",
        "-s",
        "3",
        "--logit-bias",
        "5=-inf",
        "--logit-bias",
        "6=1",
    ]
    params = command.main(given, standalone_mode=False)
    assert params == SamplingParams(temperature=0.5, top_k=7, min_p=0.0, seed=3, logit_bias={5: float("-inf"), 6: 1.0})
    assert command.main([], standalone_mode=False) == SamplingParams()


def test_readme_tells_the_truth() -> None:
    from pyllm import archs
    from pyllm.quant import formats

    text = (Path(__file__).parents[3] / "README.md").read_text(encoding="utf-8")
    listed = {}
    for kind in ("Formats", "Architectures"):
        found = re.search(rf"^- {kind}: (.*?)\.$", text, re.MULTILINE | re.DOTALL)
        assert found is not None
        listed[kind] = set(re.sub(r" \([^)]*\)", "", re.sub(r"\s+", " ", found[1])).split(", "))
    assert listed["Formats"] == set(formats.names())
    assert listed["Architectures"] == set(archs.names())
    code = "".join(re.findall(r"^```\w*\n(.*?)^```", text, re.MULTILINE | re.DOTALL))
    commands = set(re.findall(r"^(?:pip install \. && )?pyllm (\w+)", code, re.MULTILINE))
    assert commands == set(cli.group.list_commands(click.Context(cli.group)))


# Commands that need no backend


def test_list(run: Run) -> None:
    done = run("list")
    assert done.out.splitlines()[0].split() == ["TO", "BE", "FETCHED", "SIZE", "FORMAT", "LICENCE"]
    assert re.search(r"^qwen2\.5-coder:0\.5b +468\.6 MiB +Q4_K_M +Apache-2\.0 ", done.out, re.MULTILINE)
    assert re.search(r"^llama3\.2:3b \* +~1\.86 GiB +Q4_K_M +Llama", done.out, re.MULTILINE)
    assert "* on Hugging Face; not among the models that pyllm is tested with" in done.out
    models = json.loads(run("list", "--json").out)
    assert [m["name"] for m in models][:1] == ["qwen2.5-coder:0.5b"]
    fields = {"name", "path", "size", "parameters", "format", "licence", "sha256", "description", "checked", "base"}
    assert all(set(m) == fields for m in models)


def test_list_shows_first_what_is_here(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    snapshot = tmp_path / "hub" / "models--user--repo" / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (snapshot / "m-Q8_0.gguf").write_bytes(bytes(2048))
    (snapshot / "mmproj-m-F16.gguf").write_bytes(b"not a language model")
    first, second, third = run("list").out.splitlines()[:3]
    assert first.split() == ["NAME", "SIZE", "FORMAT", "PATH"]
    assert second.split() == ["hf.co/user/repo/m-Q8_0.gguf", "2.0", "KiB", "Q8_0", str(snapshot / "m-Q8_0.gguf")]
    assert third == ""
    model = json.loads(run("list", "--json").out)[0]
    assert (model["name"], model["size"], model["format"], model["checked"]) == (second.split()[0], 2048, "Q8_0", None)


@pytest.mark.parametrize(
    "arguments",
    [
        ["run", "hi"],
        ["run", "-m", "smollm2:135m", "hi"],
        ["pull", "smollm2:135m"],
        ["pull", "hf.co/user/repo:Q4_K_M"],
        ["show", "smollm2:135m"],
        ["tokenize", "-m", "smollm2:135m", "hi"],
        ["bench", "-m", "smollm2:135m"],
        ["fit", "-m", "smollm2:135m"],
        ["perplexity", "-m", "smollm2:135m", "-f", __file__],
        ["imatrix", "-m", "smollm2:135m", "-o", "OUT"],
        ["quantize", "smollm2:135m", "OUT", "Q4_0"],
        ["split", "smollm2:135m", "OUT", "--max-tensors", "1"],
        ["merge", "smollm2:135m", "OUT"],
    ],
    ids=" ".join,
)
def test_offline_fetches_nothing(
    run: Run, arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pyllm.hub.sources import huggingface, pypi

    for kind in (huggingface, pypi):
        monkeypatch.setattr(kind, "fetch", lambda *_: pytest.fail("the network is asked"))
    done = run(*(word.replace("OUT", str(tmp_path / "out")) for word in arguments), "--offline")
    assert done.code == 1
    assert "is not here, and nothing may be fetched (--offline" in done.err
    assert "PYLLM_OFFLINE" not in os.environ


def test_show_says_what_sampling_the_file_advises(run: Run, model: str, tmp_path: Path) -> None:
    assert "sampling by default" not in run("show", model).out
    other = str(tmp_path / "advised.gguf")
    keys = {"temp:f32": "0.25", "top_k:i32": "12", "sequence:str": "top_k;temperature"}
    run("show", model, *(f"--set=general.sampling.{key}={value}" for key, value in keys.items()), "-o", other)
    assert "sampling by default: top_k 12, temperature 0.25, samplers top_k temperature\n" in run("show", other).out
    with pyllm.load(other, backend="reference") as llm:
        assert (llm.sampling.top_k, llm.sampling.temperature) == (12, 0.25)


def test_show(run: Run, model: str) -> None:
    text = run("show", model).out
    assert re.search(r'^general.architecture +str +"llama"$', text, re.MULTILINE)
    assert re.search(r"^F32 +21 +37152 +145\.1 KiB +100\.0 %$", text, re.MULTILINE)
    assert "blk.0.ffn_down.weight" not in text
    assert re.search(
        r"^blk.0.ffn_down.weight +32 x 64 +F32 +8\.0 KiB$", run("show", model, "--tensors").out, re.MULTILINE
    )
    raw = json.loads(run("show", model, "--json").out)
    assert raw["metadata"]["tokenizer.ggml.tokens"][-2:] == ["<eos>", "<bos>"]
    assert raw["tensors"][0] == {"name": "token_embd.weight", "shape": [258, 32], "format": "F32", "bytes": 33024}
    assert run("show", model, "--key", "llama.block_count").out == "2\n"
    assert run("show", model, "--key", "nothing").code == 1
    assert run("show", model, "--arch").out.splitlines()[1] == "layers 0-1"
    assert json.loads(run("show", model, "--arch", "--json").out)[0] == "token_embd"


def test_tokenize(run: Run, model: str) -> None:
    assert (
        run("tokenize", "-m", model, "hé").out
        == '    257  "<bos>"\n    104  "h"\n' + "    195  b'\\xc3'\n    169  b'\\xa9'\n"
    )
    assert run("tokenize", "-m", model, "--ids", "--no-special", "hi").out == "[104, 105]\n"
    assert run("tokenize", "-m", model, "--ids", stdin="é\n".encode()).out == "[257, 195, 169, 10]\n"
    assert run("tokenize", "-m", model, "--count", "--no-special", "a<eos>").out == "6\n"
    assert run("tokenize", "-m", model, "--count", "--no-special", "--parse-special", "a<eos>").out == "2\n"
    assert run("tokenize", "-m", model, "--decode", "[104, 105]").out == "hi\n"
    assert run("tokenize", "-m", model, "--decode", "999").code == 2


def test_text_that_is_not_utf8(run: Run, model: str) -> None:
    done = run("tokenize", "-m", model, stdin=b"\xff\xfe")
    assert done.code == 1
    assert "not UTF-8" in done.err


def test_doctor(run: Run) -> None:
    done = run("doctor")
    assert done.code == 0
    assert re.search(r"^  reference  available", done.out, re.MULTILINE)
    for word in ("versions", "processor", "threads", "memory", "models", "kernels"):
        assert word in done.out


def test_pull_and_rm_say_what_they_did(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from pyllm import hub

    monkeypatch.setattr(hub, "pull", lambda name, progress: tmp_path / name)
    monkeypatch.setattr(hub, "remove", lambda name: [tmp_path / name])
    assert run("pull").out == f"{tmp_path / 'qwen2.5-coder:0.5b'}\n"
    assert run("pull", "a", "b").out == f"{tmp_path / 'a'}\n{tmp_path / 'b'}\n"
    assert run("rm", "a").out == f"removed {tmp_path / 'a'}\n"
