"""llama-server's own API: fields and values as its documentation (tools/server/README.md) and its source have them."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
from gguf import GGUFWriter

from pyllm.config import SamplingParams
from server_rig import Rig, running, until
from tiny_gguf import TEMPLATE, write_tiny_gguf

ENDS = {
    "index", "content", "tokens", "id_slot", "stop", "model", "tokens_predicted", "tokens_evaluated",
    "generation_settings", "prompt", "has_new_line", "truncated", "stop_type", "stopping_word", "tokens_cached",
    "timings",
}  # fmt: skip
"""What llama-server says at an answer's end (server-task.cpp, to_json_non_oaicompat)."""
TIMINGS = {
    "cache_n", "prompt_n", "prompt_ms", "prompt_per_token_ms", "prompt_per_second", "predicted_n", "predicted_ms",
    "predicted_per_token_ms", "predicted_per_second",
}  # fmt: skip
SETTINGS = {
    "seed", "temperature", "dynatemp_range", "dynatemp_exponent", "top_k", "top_p", "min_p", "top_n_sigma",
    "xtc_probability", "xtc_threshold", "typical_p", "repeat_last_n", "repeat_penalty", "presence_penalty",
    "frequency_penalty", "dry_multiplier", "dry_base", "dry_allowed_length", "dry_penalty_last_n",
    "dry_sequence_breakers", "mirostat", "mirostat_tau", "mirostat_eta", "adaptive_target", "adaptive_decay", "stop",
    "max_tokens", "n_predict", "n_keep", "ignore_eos", "stream", "logit_bias", "n_probs", "grammar", "samplers",
    "timings_per_token", "post_sampling_probs", "lora",
}  # fmt: skip
VARIABLES = "{% if not add_generation_prompt %}, unasked, {% endif %}{{ mood }}"
GREEDY = {"temperature": 0, "n_predict": 6}


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    with running(write_tiny_gguf(tmp_path_factory.mktemp("models") / "tiny.gguf")) as rig:
        yield rig


def post(rig: Rig, path: str, body: Any = None, **fields: Any) -> Any:
    answer = httpx2.post(rig.url + path, json=fields if body is None else body, timeout=60)
    assert answer.status_code == 200, answer.text
    return answer.json()


def get(rig: Rig, path: str) -> Any:
    answer = httpx2.get(rig.url + path, timeout=60)
    assert answer.status_code == 200, answer.text
    return answer.json()


def refused(rig: Rig, path: str, body: Any = None, **fields: Any) -> tuple[int, str, str]:
    answer = httpx2.post(rig.url + path, json=fields if body is None else body, timeout=60)
    error = answer.json()["error"]
    assert error["code"] == answer.status_code
    return answer.status_code, error["type"], error["message"]


def chunks(rig: Rig, **fields: Any) -> list[dict[str, Any]]:
    answer = httpx2.post(rig.url + "/completion", json={**fields, "stream": True}, timeout=60)
    assert answer.headers["content-type"].startswith("text/event-stream")
    frames = [frame for frame in answer.text.split("\n\n") if frame and not frame.startswith(":")]
    return [json.loads(frame.removeprefix("data: ")) for frame in frames]


# --- completion


def test_an_answer_has_llama_servers_fields(rig: Rig) -> None:
    found = post(rig, "/completion", prompt="Hello", return_tokens=True, **GREEDY)
    assert set(found) == ENDS
    assert set(found["timings"]) == TIMINGS
    assert set(found["generation_settings"]) >= SETTINGS
    # Bytes are this model's tokens, and BOS comes first.
    assert (found["tokens_predicted"], found["tokens_evaluated"]) == (6, 6)
    assert bytes(found["tokens"]).decode(errors="replace") == found["content"]
    assert (found["stop"], found["stop_type"], found["stopping_word"]) == (True, "limit", "")
    assert (found["index"], found["model"], found["prompt"], found["truncated"]) == (0, "tiny", "Hello", False)
    assert found["timings"]["predicted_n"] == 6
    assert found["timings"]["prompt_n"] + found["timings"]["cache_n"] == 6


def test_streamed_is_as_whole(rig: Rig) -> None:
    whole = post(rig, "/completion", prompt="Hello", **GREEDY)
    *deltas, last = chunks(rig, prompt="Hello", **GREEDY)
    assert all(set(delta) == {"index", "content", "tokens", "stop", "id_slot"} for delta in deltas)
    assert not any(delta["stop"] for delta in deltas)
    assert "".join(delta["content"] for delta in deltas) == whole["content"]
    assert set(last) == ENDS
    assert (last["stop"], last["content"]) == (True, "")
    same = ("stop_type", "tokens_predicted", "tokens_evaluated", "prompt", "has_new_line")
    assert {name: last[name] for name in same} == {name: whole[name] for name in same}


def test_token_ids_and_probabilities(rig: Rig) -> None:
    whole = post(rig, "/completion", prompt="Hello", n_probs=3, return_tokens=True, **GREEDY)
    rows = whole["completion_probabilities"]
    assert [row["id"] for row in rows] == whole["tokens"]
    for row in rows:
        assert set(row) == {"id", "token", "bytes", "logprob", "top_logprobs"}
        assert row["bytes"] == [row["id"]]
        assert len(row["top_logprobs"]) == 3
        # The most likely token is chosen, and comes first.
        assert row["top_logprobs"][0] == {key: row[key] for key in ("id", "token", "bytes", "logprob")}
    found = chunks(rig, prompt="Hello", n_probs=3, return_tokens=True, **GREEDY)
    assert [t for chunk in found for t in chunk["tokens"]] == whole["tokens"]
    assert [row for chunk in found for row in chunk.get("completion_probabilities", ())] == rows


@pytest.mark.parametrize(
    ("prompt", "said"),
    [
        ("Hi", "Hi"),
        ([257, 72, 105], "<bos>Hi"),
        ([72, "i<eos>", 33], "Hi<eos>!"),
        ({"prompt_string": "Hi"}, "Hi"),
    ],
)
def test_forms_of_a_prompt(rig: Rig, prompt: Any, said: str) -> None:
    found = post(rig, "/completion", prompt=prompt, **GREEDY)
    assert found["prompt"] == said
    by_hand = {"Hi": [257, 72, 105], "<bos>Hi": [257, 72, 105], "Hi<eos>!": [72, 105, 256, 33]}[said]
    assert found["tokens_evaluated"] == len(by_hand)
    assert found["content"] == post(rig, "/completion", prompt=by_hand, **GREEDY)["content"]


@pytest.mark.parametrize("stream", [False, True])
def test_several_prompts(rig: Rig, stream: bool) -> None:
    prompts = ["one", [116, "wo"], {"prompt_string": "three"}]
    alone = [post(rig, "/completion", prompt=prompt, **GREEDY)["content"] for prompt in prompts]
    if not stream:
        found = post(rig, "/completion", prompt=prompts, **GREEDY)
        assert [(one["index"], one["content"]) for one in found] == list(enumerate(alone))
        return
    texts, ends = ["", "", ""], 0
    for chunk in chunks(rig, prompt=prompts, **GREEDY):
        texts[chunk["index"]] += chunk["content"]
        ends += chunk["stop"]
    assert (texts, ends) == (alone, 3)


def test_several_answers(rig: Rig) -> None:
    found = post(rig, "/completion", prompt=["a", "b"], n_cmpl=2, seed=1, temperature=1.5, n_predict=8)
    assert [one["index"] for one in found] == [0, 1, 2, 3]
    assert len({one["content"] for one in found}) == 4


@pytest.mark.parametrize("stream", [False, True])
def test_stop_words(rig: Rig, stream: bool) -> None:
    asked = {"prompt": "x", "choice": ["one two three"], "stop": [" thr"]}
    if stream:
        *deltas, last = chunks(rig, **asked)
        assert "".join(delta["content"] for delta in deltas) == "one two"
    else:
        last = post(rig, "/completion", **asked)
        assert last["content"] == "one two"
    assert (last["stop_type"], last["stopping_word"]) == ("word", " thr")


def test_the_end_of_a_text(rig: Rig) -> None:
    found = post(rig, "/completion", prompt="x", grammar='root ::= "one\\n"')
    assert (found["content"], found["stop_type"], found["has_new_line"]) == ("one\n", "eos", True)


def test_a_schema(rig: Rig) -> None:
    schema = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}
    schema |= {"additionalProperties": False}
    # A random model may write as much indent as the grammar admits, four times 66 characters.
    found = post(rig, "/completion", prompt="x", json_schema=schema, n_predict=400)
    assert json.loads(found["content"])["ok"] in (True, False)


def test_a_grammar_counts_above_a_schema(rig: Rig) -> None:
    found = post(rig, "/completion", prompt="x", grammar='root ::= "one"', json_schema={"type": "number"})
    assert found["content"] == "one"


@pytest.mark.parametrize("name", ["n_predict", "max_tokens", "max_completion_tokens"])
def test_names_of_the_limit(rig: Rig, name: str) -> None:
    found = post(rig, "/completion", prompt="x", ignore_eos=True, **{name: 3})
    assert (found["tokens_predicted"], found["generation_settings"]["n_predict"]) == (3, 3)


def test_nothing_is_generated_with_n_predict_0(rig: Rig) -> None:
    found = post(rig, "/completion", prompt="x", n_predict=0)
    assert (found["content"], found["tokens_predicted"], found["stop_type"]) == ("", 0, "limit")


def test_options_of_sampling_are_taken_and_shown(rig: Rig) -> None:
    asked = {
        "temperature": 0.3, "dynatemp_range": 0.1, "dynatemp_exponent": 1.5, "top_k": 7, "top_p": 0.8, "min_p": 0.01,
        "top_n_sigma": 2.0, "xtc_probability": 0.5, "xtc_threshold": 0.2, "typical_p": 0.9, "repeat_last_n": 32,
        "repeat_penalty": 1.1, "presence_penalty": 0.1, "frequency_penalty": 0.2, "dry_multiplier": 0.8,
        "dry_base": 1.5, "dry_allowed_length": 3, "dry_penalty_last_n": 16, "dry_sequence_breakers": ["x"],
        "mirostat_tau": 4.0, "mirostat_eta": 0.2, "seed": 5, "stop": ["q"], "n_predict": 3, "ignore_eos": True,
        "samplers": ["top_k", "typ_p", "infill", "temperature"],
    }  # fmt: skip
    ignored = {"id_slot": 3, "cache_prompt": True, "n_indent": 0, "min_keep": 0, "n_discard": 0, "t_max_predict_ms": 0}
    settings = post(rig, "/completion", prompt="x", **asked, **ignored)["generation_settings"]
    assert {name: settings[name] for name in asked if name != "samplers"} == {
        name: value for name, value in asked.items() if name != "samplers"
    }
    assert settings["max_tokens"] == 3
    assert settings["samplers"] == ["top_k", "typ_p", "temperature"]


@pytest.mark.parametrize("bias", [[[65, False]], {"65": -100.0}, [["A", -100]], {"A": False}])
def test_logit_bias(rig: Rig, bias: Any) -> None:
    assert post(rig, "/completion", prompt="x", logit_bias=[[65, 100]], **GREEDY)["content"] == "A" * 6
    both = [[66, 100], [65, 150]]
    other = [[66, 100], *bias] if isinstance(bias, list) else {"66": 100, **bias}
    assert post(rig, "/completion", prompt="x", logit_bias=both, **GREEDY)["content"] == "A" * 6
    assert post(rig, "/completion", prompt="x", logit_bias=other, **GREEDY)["content"] == "B" * 6


def test_seeds_repeat_answers(rig: Rig) -> None:
    def answer(seed: int) -> str:
        content: str = post(rig, "/completion", prompt="x", seed=seed, temperature=2, n_predict=20)["content"]
        return content

    assert answer(7) == answer(7) != answer(8)
    assert answer(-1) != answer((1 << 32) - 1)


def test_response_fields(rig: Rig) -> None:
    wanted = ["content", "generation_settings/n_predict", "no_such"]
    assert set(post(rig, "/completion", prompt="x", response_fields=wanted, **GREEDY)) == {"content", "n_predict"}


def test_a_known_prefix_is_not_computed_again(rig: Rig) -> None:
    prompt = "A prompt that is long enough to have pages of its own. " * 4
    first = post(rig, "/completion", prompt=prompt, **GREEDY)
    again = post(rig, "/completion", prompt=prompt, **GREEDY)
    assert again["tokens_cached"] == again["timings"]["cache_n"] > first["tokens_cached"]
    assert again["content"] == first["content"]


def test_refusals(rig: Rig) -> None:
    assert refused(rig, "/completion", prompt=1)[:2] == (400, "invalid_request_error")
    assert refused(rig, "/completion", prompt="x" * 600)[:2] == (400, "exceed_context_size_error")
    assert refused(rig, "/completion", prompt="x", temperature="hot")[2].startswith("temperature")
    assert refused(rig, "/completion", prompt="x", grammar="root ::= (")[:2] == (400, "invalid_request_error")
    assert refused(rig, "/completion", prompt="x", logit_bias=3)[2].startswith("logit_bias")
    assert refused(rig, "/completion", prompt="x", n_probs=1, post_sampling_probs=True)[:2] == (
        501,
        "not_supported_error",
    )
    assert refused(rig, "/completion", prompt="x", lora=[{"id": 0, "scale": 1}])[:2] == (501, "not_supported_error")
    image = {"prompt_string": "x", "multimodal_data": ["AA=="]}
    assert "multimodal_data" in refused(rig, "/completion", prompt=image)[2]
    assert refused(rig, "/completion", prompt="x", model="other")[:2] == (404, "not_found_error")


def test_a_client_that_leaves_ends_its_request(rig: Rig) -> None:
    body = {"prompt": "x", "n_predict": 400, "ignore_eos": True, "stream": True}
    with httpx2.stream("POST", rig.url + "/completion", json=body) as answer:
        next(answer.iter_lines())
    (served,) = rig.house.models.loaded
    until(lambda: not rig.house.busy and not served.n_users and served.llm.llm.engine.load().n_running == 0)


# --- texts


def test_tokenize_and_detokenize(rig: Rig) -> None:
    assert post(rig, "/tokenize", content="Hé<eos>") == {"tokens": [72, 195, 169, 256]}
    assert post(rig, "/tokenize", content="<eos>", parse_special=False) == {"tokens": list(b"<eos>")}
    assert post(rig, "/tokenize", content="H", add_special=True) == {"tokens": [257, 72]}
    assert post(rig, "/tokenize", content=[1, "H", 2]) == {"tokens": [1, 72, 2]}
    pieces = post(rig, "/tokenize", content="Hé", with_pieces=True)["tokens"]
    assert pieces == [{"id": 72, "piece": "H"}, {"id": 195, "piece": [195]}, {"id": 169, "piece": [169]}]
    assert post(rig, "/detokenize", tokens=[72, 195, 169, 256]) == {"content": "Hé<eos>"}
    assert post(rig, "/tokenize") == {"tokens": []}
    assert refused(rig, "/tokenize", content=3)[0] == 400
    assert refused(rig, "/tokenize", content=[999, "a"], with_pieces=True)[0] == 400
    assert refused(rig, "/detokenize", tokens=[999])[0] == 400


def test_apply_template(rig: Rig) -> None:
    messages = [{"role": "system", "content": "S"}, {"role": "user", "content": [{"type": "text", "text": "U"}]}]
    assert post(rig, "/apply-template", messages=messages) == {"prompt": "<|system|>S\n<|user|>U\n<|assistant|>"}
    tool = {"type": "function", "function": {"name": "look_around", "parameters": {"type": "object"}}}
    assert "look_around" in post(rig, "/apply-template", messages=messages, tools=[tool])["prompt"]
    begun = [messages[1], {"role": "assistant", "content": "A"}]
    found = post(rig, "/apply-template", messages=begun, continue_final_message=True)
    assert found == {"prompt": "<|user|>U\n<|assistant|>A"}


def test_embedding(rig: Rig) -> None:
    found = post(rig, "/embedding", content=["one", "two"])
    assert [one["index"] for one in found] == [0, 1]
    openai = post(rig, "/v1/embeddings", input=["one", "two"], encoding_format="float")["data"]
    for one, other in zip(found, openai, strict=True):
        assert one["embedding"] == [pytest.approx(other["embedding"], abs=1e-6)]
        assert sum(x * x for x in one["embedding"][0]) == pytest.approx(1, abs=1e-5)
    (raw,) = post(rig, "/embedding", content="one", embd_normalize=-1)
    assert sum(x * x for x in raw["embedding"][0]) != pytest.approx(1, abs=1e-2)


@pytest.mark.parametrize("path", ["/rerank", "/reranking", "/v1/rerank", "/v1/reranking"])
def test_a_model_without_a_classifier_does_not_rank(rig: Rig, path: str) -> None:
    assert refused(rig, path, query="q", documents=["a"])[:2] == (501, "not_supported_error")
    assert refused(rig, path, query="q")[:2] == (400, "invalid_request_error")
    assert refused(rig, path, query="q", documents=[1])[:2] == (400, "invalid_request_error")


# --- state


def test_props(rig: Rig) -> None:
    found = get(rig, "/props")
    assert found["chat_template"] == TEMPLATE
    assert (found["bos_token"], found["eos_token"], found["model_alias"]) == ("<bos>", "<eos>", "tiny")
    assert found["total_slots"] == 16
    settings = found["default_generation_settings"]
    assert settings["n_ctx"] == 512
    assert set(settings["params"]) >= SETTINGS
    assert found["modalities"] == {"vision": False, "audio": False}
    assert found == get(rig, "/props?model=tiny")
    assert refused(rig, "/props", n=1)[0] == 501


def test_slots_show_what_runs(rig: Rig) -> None:
    slots = get(rig, "/slots")
    assert [slot["id"] for slot in slots] == list(range(16))
    assert all(slot["n_ctx"] == 512 and not slot["is_processing"] for slot in slots)
    go_on = threading.Event()

    def hold(tokens: Any, logits: Any) -> Any:
        go_on.wait(60)
        return logits

    llm = rig.house.models.loaded[0].llm.llm
    usual, llm.sampling = llm.sampling, SamplingParams(logits_processors=(hold,))
    try:
        with ThreadPoolExecutor() as pool:
            answer = pool.submit(post, rig, "/completion", prompt="x", n_predict=2)
            until(lambda: sum(slot["is_processing"] for slot in get(rig, "/slots")) == 1)
            go_on.set()
            assert answer.result()["tokens_predicted"] == 2
    finally:
        llm.sampling = usual
        go_on.set()
    until(lambda: not any(slot["is_processing"] for slot in get(rig, "/slots")))
    assert refused(rig, "/slots/0?action=save", filename="x")[0] == 501


def test_adapters_of_a_model_without(rig: Rig) -> None:
    assert get(rig, "/lora-adapters") == []
    assert post(rig, "/lora-adapters", []) == {"success": True}
    assert refused(rig, "/lora-adapters", [{"id": 0, "scale": 0.5}])[0] == 501
    assert refused(rig, "/lora-adapters", {"id": 0})[0] == 400


def test_the_model_is_the_one_that_is_named_or_was_used_last(tmp_path: Path) -> None:
    models = [
        write_tiny_gguf(tmp_path / f"{name}.gguf", f"{name}{VARIABLES}{TEMPLATE}", name=name) for name in ("one", "two")
    ]
    with running(*models) as rig:
        assert post(rig, "/completion", prompt="x", **GREEDY)["model"] == "one"
        assert get(rig, "/props")["model_alias"] == "one"
        assert post(rig, "/completion", prompt="x", model="two", **GREEDY)["model"] == "two"
        assert get(rig, "/props")["model_alias"] == "two"
        assert get(rig, "/props?model=one")["chat_template"].startswith("one")
        messages = [{"role": "user", "content": "U"}]
        assert post(rig, "/apply-template", messages=messages, model="two")["prompt"].startswith("two<|")
        more = {"add_generation_prompt": False, "chat_template_kwargs": {"mood": "calm"}}
        assert post(rig, "/apply-template", messages=messages, **more)["prompt"].startswith("one, unasked, calm<|")
        assert httpx2.get(rig.url + "/props?model=three").status_code == 404


# --- gaps


def test_infill(tmp_path: Path) -> None:
    path = write_tiny_gguf(tmp_path / "tiny.gguf")
    with running(path) as rig:
        status, _, message = refused(rig, "/infill", input_prefix="a", input_suffix="b")
        assert status == 400
        assert message.startswith("input_suffix needs a model that can fill in a middle")
        assert refused(rig, "/infill", input_prefix="a")[2] == "input_suffix is missing"
        extra = refused(rig, "/infill", input_prefix="a", input_suffix="b", input_extra=[{"filename": "f"}])
        assert extra[2].startswith("input_extra[0] must be")


def test_adapters(tmp_path: Path) -> None:
    model, adapter = write_tiny_gguf(tmp_path / "tiny.gguf"), tmp_path / "adapter.gguf"
    writer = GGUFWriter(adapter, "llama")
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", 2.0)
    random = np.random.default_rng(0)
    for half, shape in (("a", (2, 32)), ("b", (32, 2))):
        writer.add_tensor(f"blk.0.attn_q.weight.lora_{half}", random.standard_normal(shape, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    load = {"backend": "reference", "kv_dtype": "f32", "adapters": [(str(adapter), 0.5)]}
    with running(model, load=load) as rig:
        until(lambda: rig.house.models.loaded)
        assert get(rig, "/lora-adapters") == [{"id": 0, "path": str(adapter), "scale": 0.5}]
        assert post(rig, "/lora-adapters", [{"id": 0, "scale": 0.5}]) == {"success": True}
        # An adapter that is not in the list is turned off, as llama-server has it.
        assert refused(rig, "/lora-adapters", [])[:2] == (501, "not_supported_error")
        assert post(rig, "/completion", prompt="x", lora=[{"id": 0, "scale": 0.5}], **GREEDY)["tokens_predicted"] == 6
        assert refused(rig, "/completion", prompt="x", lora=[{"id": 0, "scale": 1.0}])[0] == 501
