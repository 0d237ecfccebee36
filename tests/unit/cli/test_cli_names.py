"""Names of options: llama.cpp's, what is said of options that are not there, and environment variables."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import click
import pytest
from command import Run

import pyllm
from pyllm import cli, env
from pyllm.cli import _llama_cpp, _options
from pyllm.config import SamplingParams
from pyllm.errors import RequestError

REFERENCE = ("--backend", "reference")
GREEDY = (*REFERENCE, "--temp", "0", "-n", "8")
HAS_A_VARIABLE = {"PYLLM_CACHE", "PYLLM_MODELS", "PYLLM_KERNEL_CACHE", "PYLLM_DATA", "PYLLM_CUDA_EMULATOR"}
"""Variables of the library that no option may be called like."""


def commands() -> dict[str, click.Command]:
    context = click.Context(cli.group)
    found = {name: cli.group.get_command(context, name) for name in cli.group.list_commands(context)}
    return {name: command for name, command in found.items() if command is not None}


def options() -> Iterator[tuple[str, click.Option]]:
    """(command, option) of all."""
    for name, command in commands().items():
        yield from ((name, param) for param in command.params if isinstance(param, click.Option))


def parsed(command: str, *words: str) -> dict[str, Any]:
    """What a command takes its words for."""
    found = commands()[command]
    context = found.make_context(command, list(words), obj={})
    return context.params


# llama.cpp's names


@pytest.mark.parametrize(
    ("command", "theirs", "ours"),
    [
        ("run", ["--ctx-size", "64"], ["--ctx", "64"]),
        ("run", ["--ctx-size=64"], ["-c", "64"]),
        ("run", ["--n-predict", "5"], ["-n", "5"]),
        ("run", ["--predict", "-1"], ["--max-tokens", "-1"]),
        ("run", ["--cache-type-k", "f32"], ["--kv", "f32"]),
        ("run", ["-ctk", "f32"], ["--kv", "f32"]),
        ("run", ["-sys", "Be brief"], ["--system", "Be brief"]),
        ("run", ["--system-prompt", "Be brief"], ["--system", "Be brief"]),
        ("run", ["-sysf", "file"], ["--system-file", "file"]),
        ("run", ["-r", "a", "--reverse-prompt", "b"], ["--stop", "a", "--stop", "b"]),
        ("run", ["--stop", "a", "-r", "b"], ["--stop", "a", "--stop", "b"]),
        ("run", ["-l", "5+1"], ["--logit-bias", "5=1"]),
        ("run", ["--typical", "0.5"], ["--typical-p", "0.5"]),
        ("run", ["--temperature", "1"], ["--temp", "1"]),
        ("run", ["--threads", "3"], ["-t", "3"]),
        ("run", ["--gpu-layers", "3"], ["-ngl", "3"]),
        ("run", ["--prompt", "hi", "--file", "x", "--seed", "7"], ["-p", "hi", "-f", "x", "-s", "7"]),
        ("run", ["--repeat-penalty", "2", "--repeat-last-n", "-1"], ["--repeat-penalty=2", "--repeat-last-n=-1"]),
        ("run", ["-no-cnv"], ["--raw"]),
        ("run", ["--show-timings"], ["--stats"]),
        ("run", ["-s1", "-n5"], ["--seed", "1", "--max-tokens", "5"]),
        ("chat", ["-sys", "s", "-c", "9", "--n-predict", "4"], ["--system", "s", "--ctx", "9", "-n", "4"]),
        ("bench", ["-ctk", "f32", "--cache-type-k", "f16"], ["--kv", "f32", "--kv", "f16"]),
        ("perplexity", ["--save-all-logits", "x"], ["--kl-divergence-base", "x"]),
        ("imatrix", ["--from-chunk", "3", "--save-frequency", "2"], ["--skip", "3", "--save-every", "2"]),
        ("split", ["--split-max-size", "2G", "a", "b"], ["--max-size", "2G", "a", "b"]),
        ("tokenize", ["--no-bos"], ["--no-special"]),
    ],
)
def test_llama_cpps_names_are_other_names(command: str, theirs: list[str], ours: list[str]) -> None:
    assert parsed(command, *theirs) == parsed(command, *ours)


def test_each_other_name_belongs_to_an_option() -> None:
    ours = {name for _, option in options() for name in option.opts}
    assert set(_llama_cpp.ALIASES) <= ours
    theirs = [name for names in _llama_cpp.ALIASES.values() for name in names]
    assert len(theirs) == len(set(theirs))
    assert not set(theirs) & set(_llama_cpp.DIFFERENT)


def test_other_names_are_not_in_help(run: Run) -> None:
    for name in commands():
        text = run(name, "--help").out
        own = {flag for command, option in options() if command == name for flag in option.opts}
        listed = set(text.replace(",", " ").split())
        assert not (listed & {alias for names in _llama_cpp.ALIASES.values() for alias in names}) - own
        assert "--json" not in listed
        assert "foreign" not in text


def test_every_option_has_help() -> None:
    for command, option in options():
        assert option.hidden or option.help, f"{command} {option.opts}"


def test_run_answers_to_llama_cpps_words(run: Run, model: str) -> None:
    ours = run("run", "-m", model, *GREEDY, "-c", "128", "--kv", "f32", "--system", "s", "hi")
    theirs = ["--model", model, "--ctx-size", "128", "-ctk", "f32", "-ctv", "f32", "-sys", "s", "--prompt", "hi"]
    assert ours.code == 0
    assert run("run", *REFERENCE, "--temp", "0", "--n-predict", "8", *theirs) == ours


@pytest.mark.parametrize("order", [1, -1])
def test_keys_and_values_of_two_formats_are_refused(run: Run, order: int) -> None:
    pairs = [["--cache-type-k", "f32"], ["--cache-type-v", "f16"]][::order]
    done = run("run", *pairs[0], *pairs[1], "hi")
    assert done.code == 2
    assert "one format" in done.err


def test_a_format_of_values_alone_is_that_of_both(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = {}
    monkeypatch.setattr(pyllm, "load", lambda model, **options: seen.update(options) or exit(0))
    run("run", "-ctv", "f32", "hi")
    assert seen["kv_dtype"] == "f32"


@pytest.mark.parametrize(
    ("flags", "name"),
    [
        (["-hf", "user/repo"], "hf.co/user/repo"),
        (["--hf-repo", "user/repo:Q4_K_M"], "hf.co/user/repo:Q4_K_M"),
        (["-hfr", "hf.co/user/repo"], "hf.co/user/repo"),
        (["-hf", "https://huggingface.co/user/repo"], "hf.co/user/repo"),
    ],
)
def test_hf_names_a_repository(run: Run, monkeypatch: pytest.MonkeyPatch, flags: list[str], name: str) -> None:
    seen = []
    monkeypatch.setattr(pyllm, "load", lambda model, **options: seen.append(model) or exit(0))
    monkeypatch.setenv("PYLLM_MODEL", "other.gguf")
    run("run", *flags, "hi")
    assert seen == [name]
    done = run("run", "-m", "a.gguf", *flags, "hi")
    assert done.code == 2
    assert "both name a model" in done.err


# Options that are not there


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["-fa", "on"], "attention needs no setting"),
        (["--flash-attn", "on"], "attention needs no setting"),
        (["--flash-attn=on"], "attention needs no setting"),
        (["--jinja"], "leave it out"),
        (["-cnv"], "pyllm chat"),
        (["-tb", "4"], "-t sets the threads"),
        (["-ub", "512"], "512 tokens"),
        (["--mlock"], "mapped into memory"),
        (["-e"], "as they are"),
        (["--format", "json"], "--json-schema holds"),
        (["-mli"], "pyllm chat"),
        (["-st"], "pyllm run"),
        (["--verbose"], "--stats"),
        (["--temperatur", "1"], "--temperature"),
        (["--max-token", "1"], "--max-tokens"),
    ],
)
def test_what_to_do_instead_is_said(run: Run, words: list[str], said: str) -> None:
    done = run("run", *words, "hi")
    assert (done.code, done.out) == (2, "")
    assert "no such option" in done.err
    assert words[0].partition("=")[0] in done.err
    assert said in done.err


def test_a_value_that_looks_like_such_an_option_is_a_value(run: Run, model: str) -> None:
    assert run("tokenize", "-m", model, "--ids", "--no-special", "-p", "-fa").out == "[45, 102, 97]\n"
    assert run("tokenize", "-m", model, "--ids", "--no-special", "--", "-fa").out == "[45, 102, 97]\n"


# Environment variables


def test_each_setting_has_a_variable_named_like_it() -> None:
    without = set()
    for _, option in options():
        long = next((name for name in option.opts if name.startswith("--")), "")
        if option.envvar is None:
            without.add(long)
        else:
            assert option.envvar == "PYLLM_" + long[2:].upper().replace("-", "_")
    assert {"--prompt", "--file", "--overwrite", "--in-place", "--set"} <= without
    assert {"--ctx", "--model", "--temp", "--backend", "--threads", "--system", "--stop", "--kv"}.isdisjoint(without)


def test_a_variable_means_the_same_to_all_commands() -> None:
    kinds: dict[str, set[tuple[str, bool]]] = {}
    for command, option in options():
        if isinstance(option.envvar, str) and command != "bench":  # which takes lists of everything
            kinds.setdefault(option.envvar, set()).add((type(option.type).__name__, option.is_flag))
    kinds.pop("PYLLM_CHUNKS")  # -1 is "all" in one of two
    assert {name: kind for name, kind in kinds.items() if len(kind) > 1} == {"PYLLM_THREADS": kinds["PYLLM_THREADS"]}
    assert not HAS_A_VARIABLE & set(kinds)


def test_variables_set_what_their_options_do(run: Run, model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = json.loads(run("run", "-m", model, *GREEDY, "-c", "128", "--system", "s", "--json", "hi").out)
    for name, value in {
        "MODEL": model, "BACKEND": "reference", "TEMP": "0", "MAX_TOKENS": "8", "CTX": "128", "SYSTEM": "s",
        "OUTPUT": "json",
    }.items():  # fmt: skip
        monkeypatch.setenv(f"PYLLM_{name}", value)
    done = run("run", "hi")
    assert (done.code, done.err) == (0, "")
    found = json.loads(done.out)
    assert [found[name] for name in ("text", "tokens")] == [expected[name] for name in ("text", "tokens")]
    assert json.loads(run("run", "-n", "2", "hi").out)["n_generated"] == 2, "a flag goes before its variable"
    assert json.loads(run("show").out)["path"] == model
    assert json.loads(run("fit").out)["n_ctx"] == 128


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("PYLLM_CTX", "two", "PYLLM_CTX: 'two' is not a whole number of 0 or more"),
        ("PYLLM_CTX", "-1", "PYLLM_CTX: '-1' is not a whole number of 0 or more"),
        ("PYLLM_THREADS", "two", "PYLLM_THREADS: 'two' is not a whole number of 1 or more"),
        ("PYLLM_THREADS", "0", "PYLLM_THREADS: '0' is not a whole number of 1 or more"),
        ("PYLLM_TEMP", "hot", "PYLLM_TEMP: 'hot' is not a valid float"),
        ("PYLLM_KV", "q4_0", "PYLLM_KV: 'q4_0' is not one of"),
        ("PYLLM_CPU_MOE", "maybe", "PYLLM_CPU_MOE: it must be 1 or 0"),
        ("PYLLM_N_GPU_LAYERS", "some", "PYLLM_N_GPU_LAYERS: 'some'"),
        ("PYLLM_CHAT_TEMPLATE_KWARGS", "[]", "PYLLM_CHAT_TEMPLATE_KWARGS: '[]' is not a JSON object"),
        ("PYLLM_TOP_P", "-3", "set in the environment: PYLLM_TOP_P"),
        ("PYLLM_TENSOR_SPLIT", "a,b", "PYLLM_TENSOR_SPLIT: 'a,b' is not a list of numbers"),
        ("PYLLM_TENSOR_SPLIT", "1,-1", "set in the environment: PYLLM_TENSOR_SPLIT"),
    ],
)
def test_a_bad_value_names_its_variable(
    run: Run, model: str, monkeypatch: pytest.MonkeyPatch, name: str, value: str, said: str
) -> None:
    monkeypatch.setenv(name, value)
    done = run("run", "-m", model, "hi")
    assert done.code in (1, 2)
    assert done.out == ""
    assert said in done.err


def test_an_error_of_the_words_does_not_name_a_variable(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYLLM_CTX", "64")
    assert "PYLLM_CTX" not in run("run", "--ctx", "two", "hi").err


@pytest.mark.parametrize(
    ("value", "is_set"), [("1", True), ("true", True), ("0", False), ("false", False), ("", False)]
)
def test_switches_in_the_environment(monkeypatch: pytest.MonkeyPatch, value: str, is_set: bool) -> None:
    monkeypatch.setenv("PYLLM_CPU_MOE", value)
    assert parsed("run", "hi")["cpu_moe"] is is_set


def test_several_values_are_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYLLM_STOP", "the end\n\nThe End\n")
    monkeypatch.setenv("PYLLM_LOGIT_BIAS", "5=1\n6-1")
    assert parsed("run", "hi")["stop"] == ("the end", "The End")
    assert parsed("run", "hi")["logit_bias"] == ((5, 1.0), (6, -1.0))
    assert parsed("run", "--stop", "x y", "hi")["stop"] == ("x y",)


@pytest.mark.parametrize("value", ["two", "0", "-1", "1.5", "²"])
def test_the_library_refuses_a_bad_number_of_threads(model: str, monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("PYLLM_THREADS", value)
    with pytest.raises(RequestError, match="PYLLM_THREADS"):
        pyllm.load(model, backend="reference")
    with pyllm.load(model, backend="reference", n_threads=1) as llm:
        assert llm.n_ctx


def test_a_good_number_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    for text, number in (("3", 3), (" 3 ", 3), ("", None)):
        monkeypatch.setenv("PYLLM_THREADS", text)
        assert env.n_threads() == number


def test_doctor_says_what_is_wrong_with_the_number_of_threads(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYLLM_THREADS", "two")
    done = run("doctor")
    assert done.code == 0
    assert "PYLLM_THREADS must be a number of 1 or more" in done.out


def test_debug_by_variable(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYLLM_DEBUG", "1")
    with pytest.raises(pyllm.PyllmError):
        cli.main(["show", "nonsense"])


# Output formats


@pytest.mark.parametrize("command", ["run", "list", "show", "fit", "perplexity", "quantize", "convert"])
def test_commands_with_json_take_output(command: str) -> None:
    assert parsed(command, "--output", "json")["output_format"] == "json"
    assert parsed(command, "--json")["is_json"] is True
    assert parsed(command)["output_format"] == "text"


def test_json_and_output_json_print_the_same(run: Run, model: str) -> None:
    found = run("show", model, "--output", "json")
    assert found == run("show", model, "--json")
    assert json.loads(found.out)["path"] == model
    assert run("show", model, "--output", "text").out == run("show", model).out
    assert run("list", "--output", "json") == run("list", "--json")
    assert run("show", model, "--output", "xml").code == 2


def test_bench_takes_text_for_a_table(run: Run, model: str) -> None:
    flags = ["-m", model, *REFERENCE, "-p", "4", "-n", "0", "-r", "1"]
    assert run("bench", *flags, "-o", "text").out.splitlines()[0].startswith("| model")


# Values


@pytest.mark.parametrize(
    ("word", "bias"),
    [
        ("15043=-1.5", (15043, -1.5)),
        ("15043+1.5", (15043, 1.5)),
        ("15043-1.5", (15043, -1.5)),
        ("5=-inf", (5, float("-inf"))),
        ("5-inf", (5, float("-inf"))),
        ("5=1e2", (5, 100.0)),
    ],
)
def test_biases(word: str, bias: tuple[int, float]) -> None:
    assert parsed("run", "--logit-bias", word, "hi")["logit_bias"] == (bias,)


@pytest.mark.parametrize("word", ["5", "5=", "=5", "a=1", "5+-1", "5--1", "5+x", "-5=1", "5=1=2", "²=1"])
def test_biases_that_are_none(run: Run, word: str) -> None:
    done = run("run", f"--logit-bias={word}", "hi")
    assert done.code == 2
    assert "15043=-1.5" in done.err


def sampled(*words: str) -> SamplingParams:
    @click.command()
    @_options.sampling_options
    def command(**options: object) -> SamplingParams:
        return SamplingParams(**_options.sampling(options))

    result: SamplingParams = command.main(list(words), standalone_mode=False)
    return result


def test_minus_one_is_the_neutral_value() -> None:
    assert sampled("--seed", "-1", "--top-k", "-1", "--repeat-last-n", "-1") == SamplingParams(
        seed=None, top_k=0, repeat_last_n=-1
    )
    assert sampled("-s", "-1") == sampled("--seed=-1") == SamplingParams()


@pytest.mark.parametrize(("n", "limit"), [("-1", None), ("-2", None), ("0", 0), ("7", 7)])
def test_numbers_of_tokens(run: Run, monkeypatch: pytest.MonkeyPatch, model: str, n: str, limit: int | None) -> None:
    seen = []
    monkeypatch.setattr(pyllm.LLM, "chat", lambda self, messages, **options: seen.append(options) or exit(0))
    run("run", "-m", model, *REFERENCE, "-n", n, "hi")
    run("chat", "-m", model, *REFERENCE, "-n", n, stdin=b"hi\n")
    assert [options["max_tokens"] for options in seen] == [limit, limit]


def test_a_number_of_tokens_that_is_none(run: Run) -> None:
    done = run("run", "-n", "-3", "hi")
    assert (done.code, "'-3' is not a whole number of -2 or more" in done.err) == (2, True)


# Help


def test_help_speaks_of_the_environment(run: Run) -> None:
    assert "PYLLM_CTX=8192 is --ctx 8192" in " ".join(run("--help").out.split())


def test_the_seeds_help_is_in_words(run: Run) -> None:
    text = " ".join(run("run", "--help").out.split())
    assert "Seed of random numbers, to repeat an answer [default: a new one each time]." in text
    assert "None" not in text
