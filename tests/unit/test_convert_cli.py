"""`pyllm convert`: a folder with a vocabulary to a file that runs, and one clear line where that cannot be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from convert_folders import write_whole_folder

import pyllm
from pyllm.cli import main

TEMPLATE = "{{ messages[0]['content'] }}"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_whole_folder(tmp_path / "tiny", TEMPLATE)


def run(capsys: pytest.CaptureFixture[str], *arguments: Any) -> tuple[int, str, str]:
    """Exit code, standard output and standard error."""
    with pytest.raises(SystemExit) as left:
        main([str(a) for a in arguments])
    out, err = capsys.readouterr()
    return int(left.value.code or 0), out, err


def test_a_folder_becomes_a_model_that_runs(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = folder.parent / "out.gguf"
    code, out, err = run(capsys, "convert", folder, target, "Q8_0", "--tensor-type", "ffn_down=F16", "-t", 1)
    assert code == 0
    assert "out.gguf: " in out
    assert "[12/12]" in err
    with pyllm.open_gguf(target) as file:
        assert file.metadata["general.name"] == "tiny"
        assert file.metadata["general.file_type"] == 7
        assert file.metadata["tokenizer.chat_template"] == TEMPLATE
        assert file.tensors["blk.0.ffn_down.weight"].format == "F16"
        assert file.tensors["blk.0.attn_q.weight"].format == "Q8_0"
    with pyllm.load(target, backend="reference", n_threads=1) as llm:
        assert llm.tokenizer.encode("hello w") == [llm.tokenizer.encode(part)[0] for part in ("he", "ll", "o", " w")]
        assert llm.complete("hello", max_tokens=3, temperature=0).usage.n_generated <= 3


def test_dry_run_and_json(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "convert", folder, "Q8_0", "--dry-run", "--json")
    planned = json.loads(out)
    assert code == 0
    target = folder.parent / "out.gguf"
    code, out, _ = run(capsys, "convert", folder, target, "Q8_0", "--json")
    done = json.loads(out)
    assert [t["format"] for t in done["tensors"]] == [t["format"] for t in planned["tensors"]]
    assert done["bytes"] == planned["bytes"] == target.stat().st_size


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["{folder}", "{out}", "Q9_9"], "Q9_9"),
        (["{folder}", "{out}", "IQ2_XXS", "--imatrix", "{folder}/none"], "none"),
        (["{folder}/none", "{out}"], "is no folder"),
        (["{folder}", "{folder}/config.json"], "config.json"),
        (["{folder}", "{out}", "--tensor-type", "[=Q8_0"], "not a regular expression"),
        (["{folder}"], "a folder and a target"),
        (["{folder}", "{out}", "--imatrix", "x"], "goes with a recipe"),
    ],
)
def test_one_clear_line_and_nothing_left(
    folder: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    target = folder.parent / "out.gguf"
    code, out, err = run(capsys, "convert", *(a.format(folder=folder, out=target) for a in arguments))
    assert code in (1, 2)
    assert said in err.splitlines()[-1]
    assert out == ""
    assert sorted(p.name for p in folder.parent.iterdir()) == ["tiny"]


def test_without_a_vocabulary(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "tokenizer.json").unlink()
    code, _, err = run(capsys, "convert", folder, "--dry-run")
    assert code == 1
    assert "--no-tokenizer" in err
    assert run(capsys, "convert", folder, "--dry-run", "--no-tokenizer")[0] == 0


def test_notes_say_what_the_file_cannot(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = json.loads((folder / "config.json").read_text())
    config |= {"architectures": ["MistralForCausalLM"], "model_type": "mistral", "sliding_window": 16}
    (folder / "config.json").write_text(json.dumps(config))
    assert "note: windows of 16 positions" in run(capsys, "convert", folder, "--dry-run")[2]


def test_only_the_command_line_knows_of_conversion() -> None:
    source = Path(pyllm.__file__).parent
    knowing = {p.relative_to(source).parts[0] for p in source.rglob("*.py") if "pyllm_convert" in p.read_text("utf-8")}
    assert knowing <= {"cli"}


def with_templates(folder: Path, **templates: str) -> Path:
    """The folder with named chat templates, in the list form of tokenizer_config.json."""
    path = folder / "tokenizer_config.json"
    listed = [{"name": name, "template": text} for name, text in templates.items()]
    path.write_text(json.dumps(json.loads(path.read_text()) | {"chat_template": listed}))
    return folder


def test_a_broken_template_for_tools_is_said_and_keeps_nobody_from_chatting(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = folder.parent / "out.gguf"
    said = "note: the chat template 'tool_use' does not parse, line 1: "
    code, _, err = run(capsys, "convert", with_templates(folder, default=TEMPLATE, tool_use="{% if %}"), target)
    assert code == 0
    assert said in err
    assert said in run(capsys, "show", target)[1]
    with pyllm.load(target, backend="reference", n_threads=1) as llm:
        assert llm.chat_tokens("hello") == llm.tokenizer.encode("hello", add_special=True)
        with pytest.raises(pyllm.TemplateError, match="'tool_use' does not parse"):
            llm.chat_tokens("hello", tools=[{"type": "function", "function": {"name": "x"}}])


def test_a_broken_template_keeps_nobody_from_completing(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = folder.parent / "out.gguf"
    said = "note: the chat template does not parse, line 1: "
    code, _, err = run(capsys, "convert", with_templates(folder, default="{% if %}"), target)
    assert code == 0
    assert said in err
    code, out, _ = run(capsys, "show", target)
    assert code == 0
    assert said in out
    with pyllm.load(target, backend="reference", n_threads=1) as llm:
        assert llm.complete("hello", max_tokens=2, temperature=0).usage.n_prompt > 0
        with pytest.raises(pyllm.TemplateError, match="does not parse"):
            llm.chat("hello")


def test_tools_without_a_place_in_the_template_are_described(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = folder.parent / "out.gguf"
    assert run(capsys, "convert", folder, target)[0] == 0
    with pyllm.load(target, backend="reference", n_threads=1) as llm:
        tools = [{"type": "function", "function": {"name": "weather"}}]
        prompt = llm.tokenizer.decode(llm.chat_tokens("What is it like outside?", tools=tools))
        assert '{"name": "weather"}' in prompt
        assert prompt.endswith("What is it like outside?")
