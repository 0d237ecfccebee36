"""`pyllm create`, `cp`, and named models in the other commands, on a small random model."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from command import Run

import pyllm
from pyllm.hub.modelfile import parse

REFERENCE = ("--backend", "reference")
JINJA = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}[assistant]"


@pytest.fixture
def modelfile(model: str, tmp_path: Path) -> Path:
    path = tmp_path / "Modelfile"
    path.write_text(
        f"FROM {model}\nPARAMETER temperature 0\nPARAMETER num_predict 8\nPARAMETER num_ctx 128\n"
        f'TEMPLATE """{JINJA}"""\nSYSTEM Be brief.\nMESSAGE user a\nMESSAGE assistant b\n'
    )
    return path


def test_a_named_model_answers_with_its_settings(run: Run, model: str, modelfile: Path) -> None:
    assert run("create", "mario", "-f", str(modelfile)).code == 0
    with pyllm.load(model, backend="reference", n_ctx=128, max_seqs=1) as llm:
        llm.chat_template = pyllm.ChatTemplate({"default": JINJA}, llm.tokenizer)
        before = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
        asked = {"role": "user", "content": "hi"}
        own = [{"role": "system", "content": "Be brief."}, *before, asked]
        other = [{"role": "system", "content": "Be long."}, *before, asked]
        answer = llm.chat(own, temperature=0, max_tokens=8)
        long = llm.chat(other, temperature=0, max_tokens=8).text
        prompt = llm.chat_tokens(own)
    for arguments in (["mario", "hi"], ["-m", "Mario:latest", "hi"]):
        done = run("run", *REFERENCE, "--output", "json", *arguments)
        found = json.loads(done.out)
        assert (found["text"], found["n_prompt"], found["n_generated"]) == (answer.text, len(prompt), 8)
    assert (
        json.loads(run("run", *REFERENCE, "--output", "json", "--system", "Be long.", "mario", "hi").out)["text"]
        == long
    )
    assert json.loads(run("run", *REFERENCE, "--output", "json", "-n", "3", "mario", "hi").out)["n_generated"] == 3
    with pyllm.load("mario", backend="reference", max_seqs=1) as llm:
        assert llm.n_ctx == 128
        assert llm.chat_tokens("hi") == prompt
        assert llm.chat("hi").text == answer.text
        assert llm.complete("hi", temperature=0.0).usage.n_generated == 8
    with pyllm.load("mario", backend="reference", n_ctx=64, max_seqs=1) as llm:
        assert llm.n_ctx == 64


def test_a_named_model_is_listed_copied_shown_and_removed(run: Run, model: str, modelfile: Path) -> None:
    assert run("create", "mario", "-f", str(modelfile)).out == f"created mario from {model}\n"
    assert run("cp", "mario", "luigi:v2").code == 0
    listed = {m["name"]: m for m in json.loads(run("list", "--output", "json").out)}
    assert listed["luigi:v2"]["path"] == listed["mario"]["path"] == listed["mario"]["base"] == model
    assert listed["mario"]["sha256"] == hashlib.sha256(Path(model).read_bytes()).hexdigest()
    shown = run("show", "luigi:v2", "--modelfile").out
    assert parse(shown) == parse(modelfile.read_text())
    assert run("pull", "luigi:v2").out == f"{model}\n"
    assert run("rm", "mario").code == 0
    assert run("run", "-m", "mario", "hi").code == 1
    assert Path(model).exists()
    assert run("show", "--modelfile", model).out == f"FROM {model}\n"


def test_a_folder_of_the_same_name_changes_nothing(
    run: Run, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "Modelfile").write_text(f"FROM {model}")
    assert run("create", "mario").code == 0
    (tmp_path / "mario").mkdir()
    assert run("run", *REFERENCE, "-n", "1", "mario", "hi").code == 0


def test_a_modelfile_from_standard_input(run: Run, model: str) -> None:
    assert run("create", "mario", "-f", "-", stdin=f"FROM {model}\nRENDERER x".encode()).code == 0


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("FROM nowhere.gguf", "there is no file"),
        ("FROM {model}\nTEMPLATE {{{{ if }}", "the template"),
        ("FROM {model}\nTEMPLATE {% if %}", "does not parse"),
        ("FROM {model}\nPARAMETER top_p 7", "top_p must be"),
        ("FROM {model}\nPARAMETER num_ctx -5", "n_ctx must be"),
        ("SYSTEM x", "no FROM"),
    ],
)
def test_what_is_wrong_is_one_line(run: Run, model: str, text: str, reason: str) -> None:
    done = run("create", "mario", "-f", "-", stdin=text.replace("{model}", model).replace("{{{{", "{{").encode())
    assert done.code == 1
    assert reason in done.err
    assert done.err.count("\n") == 1
    assert run("show", "mario").code == 1
