"""Named models behind a live server: their settings in any API, below a request's own; one copy of the weights."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

import pyllm
from pyllm import hub
from pyllm.config.serving import ServeOptions
from pyllm.hub.modelfile import parse
from pyllm.server.known import Shelf
from pyllm.server.problems import ProblemError
from server_rig import Rig, running
from tiny_gguf import write_tiny_gguf

TEMPLATE = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}[assistant]"
MODELFILE = f'''FROM tiny.gguf
PARAMETER temperature 0
PARAMETER num_predict 6
TEMPLATE """{TEMPLATE}"""
SYSTEM Be brief.
MESSAGE user a
MESSAGE assistant b
'''
OWN = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "a"},
    {"role": "assistant", "content": "b"},
    {"role": "user", "content": "hi"},
]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_gguf(tmp_path_factory.mktemp("models") / "tiny.gguf")


@pytest.fixture(scope="module")
def rig(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYLLM_DATA", str(tmp_path_factory.mktemp("data")))
        hub.create("mario", parse(MODELFILE), tiny.parent)
        with running(tiny) as rig:
            yield rig


def chat(rig: Rig, **body: Any) -> dict[str, Any]:
    body = {"messages": [{"role": "user", "content": "hi"}], **body}
    answer = httpx2.post(rig.url + "/v1/chat/completions", json=body, timeout=60)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def test_its_settings_count_below_those_of_a_request(rig: Rig, tiny: Path) -> None:
    with pyllm.load(tiny, backend="reference", kv_dtype="f32") as llm:
        llm.chat_template = pyllm.ChatTemplate({"default": TEMPLATE}, llm.tokenizer)
        expected = llm.chat(OWN, temperature=0, max_tokens=6)
        other = llm.chat([{"role": "system", "content": "Sing."}, *OWN[1:]], temperature=0, max_tokens=3)
    found = chat(rig, model="mario")
    assert found["model"] == "mario"
    assert found["choices"][0]["message"]["content"] == expected.text
    assert found["usage"]["prompt_tokens"] == expected.usage.n_prompt
    assert found["usage"]["completion_tokens"] == 6
    messages = [{"role": "system", "content": "Sing."}, {"role": "user", "content": "hi"}]
    found = chat(rig, model="Mario:latest", messages=messages, max_tokens=3)
    assert found["choices"][0]["message"]["content"] == other.text
    assert found["usage"]["completion_tokens"] == 3


def test_weights_are_shared_with_the_base(rig: Rig) -> None:
    chat(rig, model="tiny", max_tokens=1)
    chat(rig, model="mario", max_tokens=1)
    assert len(rig.house.models.loaded) == 1
    names = {model["id"] for model in httpx2.get(rig.url + "/v1/models").json()["data"]}
    assert {"tiny", "mario"} <= names


def test_a_base_that_changed_is_said(rig: Rig, tiny: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.gguf"
    other.write_bytes(tiny.read_bytes())
    rig.house.models.shelf.made(hub.create("luigi", parse("FROM other.gguf"), tmp_path))
    other.write_bytes(b"GGUF")
    body = {"model": "luigi", "messages": [{"role": "user", "content": "hi"}]}
    answer = httpx2.post(rig.url + "/v1/chat/completions", json=body, timeout=60)
    assert answer.status_code == 404
    assert "has changed" in answer.json()["error"]["message"]


def test_a_named_model_alone_is_served(rig: Rig) -> None:
    expected = chat(rig, model="mario")["choices"][0]["message"]["content"]
    with running("mario") as alone:
        assert [model["id"] for model in httpx2.get(alone.url + "/v1/models").json()["data"]] == ["mario"]
        found = chat(alone)
        assert (found["model"], found["choices"][0]["message"]["content"]) == ("mario", expected)


def test_a_family_s_name_is_its_first_model(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    local = hub.LocalModel("qwen2.5-coder:0.5b", tiny, 1, "Q4_K_M", None)
    monkeypatch.setattr(hub, "models", lambda: [local])
    shelf = Shelf(ServeOptions())
    for name in ("qwen2.5-coder", "Qwen2.5-Coder:latest", "qwen2.5-coder:0.5b", ""):
        assert shelf.find(name).name == "qwen2.5-coder:0.5b"
    with pytest.raises(ProblemError, match="there is no model"):
        shelf.find("qwen2.5-coder:7b")
