"""--chat-template-file, --chat-template-kwargs and --system-file, on a small model that repeats nothing by chance."""

from __future__ import annotations

from pathlib import Path

import pytest
from command import Run

import pyllm

GREEDY = ("--backend", "reference", "--temp", "0", "-n", "8")
TEMPLATE = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}{{ mood | default('calm') }}"


@pytest.fixture
def template(tmp_path: Path) -> str:
    (tmp_path / "template.jinja").write_text(TEMPLATE)
    return str(tmp_path / "template.jinja")


def shown(text: str) -> str:
    return text if text.endswith("\n") or not text else text + "\n"


def continued(model: str, prompt: str) -> str:
    with pyllm.load(model, backend="reference", max_seqs=1) as llm:
        return shown(llm.complete(prompt, temperature=0, max_tokens=8).text)


def test_a_template_file_takes_the_place_of_the_models_own(run: Run, model: str, template: str) -> None:
    expected = continued(model, "[user]hicalm")
    assert run("run", "-m", model, *GREEDY, "--chat-template-file", template, "hi").out == expected
    assert run("chat", "-m", model, *GREEDY, "--chat-template-file", template, stdin=b"hi\n").out == expected
    assert run("run", "-m", model, *GREEDY, "hi").out != expected


def test_variables_reach_the_template(run: Run, model: str, template: str, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = continued(model, "[user]higlad")
    flags = ["--chat-template-file", template, "--chat-template-kwargs", '{"mood": "glad"}']
    assert run("run", "-m", model, *GREEDY, *flags, "hi").out == expected
    assert run("chat", "-m", model, *GREEDY, *flags, stdin=b"hi\n").out == expected
    monkeypatch.setenv("PYLLM_CHAT_TEMPLATE_KWARGS", '{"mood": "glad"}')
    assert run("run", "-m", model, *GREEDY, *flags[:2], "hi").out == expected


def test_a_model_without_a_template_takes_one(run: Run, tmp_path: Path, template: str) -> None:
    from tiny_gguf import write_tiny_gguf

    bare = str(write_tiny_gguf(tmp_path / "bare.gguf", template=None))
    done = run("run", "-m", bare, *GREEDY, "--chat-template-file", template, "hi")
    assert (done.code, done.out) == (0, continued(bare, "[user]hicalm"))


def test_a_system_message_out_of_a_file(run: Run, model: str, tmp_path: Path) -> None:
    (tmp_path / "system.txt").write_text("s")
    for command, stdin in ((["run", "hi"], b""), (["chat"], b"hi\n")):
        told = run(*command, "-m", model, *GREEDY, "--system", "s", stdin=stdin)
        assert told.code == 0
        assert run(*command, "-m", model, *GREEDY, "-sysf", str(tmp_path / "system.txt"), stdin=stdin) == told


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--chat-template-file", "nowhere.jinja"], "nowhere.jinja: No such file"),
        (["--chat-template-kwargs", "[1]"], "not a JSON object"),
        (["--chat-template-kwargs", '{"a":'], "not JSON"),
        (["--chat-template-kwargs", '{"messages": []}'], "messages"),
        (["--chat-template-kwargs", "{}", "--raw"], "does not go with --raw"),
        (["--chat-template-file", "x", "--raw"], "does not go with --raw"),
        (["--system", "s", "--system-file", "x"], "not both"),
    ],
)
def test_refusals(run: Run, model: str, flags: list[str], said: str) -> None:
    done = run("run", "-m", model, *GREEDY, *flags, "hi")
    assert done.code in (1, 2)
    assert done.out == ""
    assert said in done.err


def test_a_template_that_does_not_parse_is_said_before_a_model_is_loaded(run: Run, tmp_path: Path) -> None:
    (tmp_path / "broken.jinja").write_text("{% if %}")
    done = run("run", "-m", "nowhere.gguf", "--chat-template-file", str(tmp_path / "broken.jinja"), "hi")
    assert done.code == 1
    assert "does not parse" in done.err


def test_raw_leaves_out_what_the_environment_says_of_chats(
    run: Run, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = run("run", "-m", model, *GREEDY, "--raw", "hi")
    monkeypatch.setenv("PYLLM_SYSTEM", "s")
    monkeypatch.setenv("PYLLM_CHAT_TEMPLATE_FILE", "nowhere.jinja")
    assert run("run", "-m", model, *GREEDY, "--raw", "hi") == expected


def test_the_library_takes_a_template(model: str) -> None:
    with pyllm.load(model, backend="reference", max_seqs=1) as llm:
        llm.chat_template = pyllm.ChatTemplate({"default": TEMPLATE}, llm.tokenizer)
        assert llm.chat_tokens("hi") == llm.tokenizer.encode("[user]hicalm")
        begun = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "It is"}]
        prompt = llm.tokenizer.encode("[user]hi[assistant]It is")
        assert llm.chat_tokens(begun, continue_final_message=True) == prompt
        answer = llm.chat(begun, continue_final_message=True, max_tokens=1)
        assert answer.usage.n_prompt == len(prompt)
        llm.chat_template = None
        with pytest.raises(pyllm.RequestError, match="no chat template"):
            llm.chat("hi")


def test_ignore_eos_goes_on(run: Run, model: str) -> None:
    import json

    bias = ["--logit-bias", "256=99", "-n", "5", "--output", "json", "hi"]
    stopped = json.loads(run("run", "-m", model, "--backend", "reference", *bias).out)
    gone_on = json.loads(run("run", "-m", model, "--backend", "reference", "--ignore-eos", *bias).out)
    assert (stopped["finish_reason"], gone_on["finish_reason"]) == ("stop", "length")
    assert gone_on["n_generated"] == 5


def test_context_shift_goes_on(run: Run, model: str) -> None:
    import json

    flags = ["--backend", "reference", "-c", "64", "-n", "60", "--temp", "0", "--ignore-eos", "--output", "json"]
    done = run("run", "-m", model, *flags, "--context-shift", "--keep", "4", "hi")
    assert json.loads(done.out)["n_generated"] == 60
