"""--spec: of answers, comparisons and memory."""

from __future__ import annotations

import json

import pytest
from command import Run

CPU = ("--backend", "cpu", "-t", "2")


@pytest.mark.parametrize("spec", ["ngram", "draft"])
def test_bench_compares_answers_with_and_without(run: Run, model: str, spec: str) -> None:
    method = f"draft={model}" if spec == "draft" else spec
    done = run("bench", model, *CPU, "--spec", method, "-n", "12", "-r", "1", "-o", "jsonl")
    assert done.code == 0, done.err
    rows = [json.loads(line) for line in done.out.splitlines()]
    assert [(row["task"], row["spec"]) for row in rows] == [(task, method) for task in ("edit", "code", "free")]
    assert all(0 <= row["n_accepted"] <= row["n_drafted"] for row in rows)
    table = run("bench", model, *CPU, "--spec", "ngram", "-n", "6", "-r", "1").out.splitlines()
    assert [line.split(" | ")[0] for line in table[2:]] == ["| edit", "| code", "| free"]


def test_bench_refuses_what_does_not_go_with_it(run: Run, model: str) -> None:
    done = run("bench", model, "--spec", "ngram", "-o", "csv")
    assert done.code == 2
    assert "-o csv: with --spec there are md, json, jsonl" in done.err


def test_an_answer_says_how_many_guesses_were_right(run: Run, model: str) -> None:
    plain = json.loads(run("run", "-m", model, *CPU, "abcabcabc", "--temp", "0", "-n", "40", "--json").out)
    found = json.loads(
        run("run", "-m", model, *CPU, "abcabcabc", "--temp", "0", "-n", "40", "--json", "--spec", "ngram").out
    )
    assert found["tokens"] == plain["tokens"]
    assert (plain["n_drafted"], plain["n_accepted"]) == (0, 0)
    assert 0 <= found["n_accepted"] <= found["n_drafted"]


def test_an_unknown_method_is_refused(run: Run, model: str) -> None:
    done = run("run", "-m", model, "hi", "--spec", "medusa")
    assert done.code == 2
    assert "spec must be off, ngram, mtp, auto or draft=MODEL, not 'medusa'" in done.err


def test_fit_counts_a_draft_model(run: Run, model: str) -> None:
    alone, both = (
        json.loads(run("fit", model, "--backend", "cpu", "--json", *more).out)["devices"][-1]
        for more in (["--spec", "ngram"], ["--spec", f"draft={model}"])
    )
    assert both["weights"] == 2 * alone["weights"]
    assert both["kv"] == 2 * alone["kv"]
