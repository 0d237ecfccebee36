"""Arguments of the wrong kind, in every public function: a RequestError that says what fits, never another error."""

from __future__ import annotations

import contextlib
import copy
import math
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import pyllm
from pyllm.config.options import GenerateOptions, LoadOptions
from tiny_gguf import write_tiny_gguf

BRIEF: Any = {"max_tokens": 3, "temperature": 0}


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_gguf(tmp_path_factory.mktemp("requests") / "tiny.gguf")


@pytest.fixture(scope="module")
def llm(path: Path) -> Iterator[pyllm.LLM]:
    with pyllm.load(path, backend="reference", n_ctx=96) as llm:
        yield llm


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        (b"abc", r"prompt must be a text or a list of token ids, not b'abc'; decode it first"),
        (None, "prompt must be a text or a list of token ids, not None"),
        (5, "prompt must be a text or a list of token ids, not 5"),
        ({"a": 1}, "not a dict"),
        ({1, 2}, "not a set"),
        ([1.5, 2.0], r"prompt\[0\] must be a whole number, not 1.5"),
        ([1, True], r"prompt\[1\] must be a whole number, not True"),
        ([1, "a"], r"prompt\[1\] must be a whole number, not 'a'"),
        (np.array([1.0]), r"prompt\[0\] must be a whole number, not 1.0"),
        (["a", "b"], r"not a list; generate\(\) takes several prompts"),
        ([[1, 2]], r"not a list; generate\(\) takes several prompts"),
        (np.array([[1, 2]]), r"not an array; generate\(\) takes several prompts"),
        ([], "the prompt is empty"),
        ([258], "token 258 is not in the vocabulary"),
        ([-1], "token -1 is not in the vocabulary"),
        ([10**30], "tokens must be whole numbers from 0 to 257"),
    ],
)
def test_complete_refuses_what_is_no_prompt(llm: pyllm.LLM, prompt: Any, words: str) -> None:
    with pytest.raises(pyllm.RequestError, match=words):
        llm.complete(prompt, **BRIEF)


@pytest.mark.parametrize(
    ("prompts", "words"),
    [
        ("hello", r"prompts must be a list of prompts.*not 'hello'; complete\(\) takes one prompt"),
        (b"hello", "decode it first"),
        (None, "prompts must be a list of prompts"),
        ([1, 2], r"complete\(\) takes the token ids of one prompt"),
        (np.array([1, 2]), r"complete\(\) takes the token ids of one prompt"),
        ([["a", "b"]], r"prompts\[0\] must be a text or a list of token ids, not a list"),
        ([[[1]]], r"prompts\[0\] must be a text or a list of token ids, not a list"),
        (["a", None], r"prompts\[1\] must be a text or a list of token ids, not None"),
        ([b"a"], r"prompts\[0\] .*decode it first"),
        (["a", [1.5]], r"prompts\[1\]\[0\] must be a whole number, not 1.5"),
        ({"a"}, "not a set"),
    ],
)
def test_generate_refuses_what_are_no_prompts(llm: pyllm.LLM, prompts: Any, words: str) -> None:
    with pytest.raises(pyllm.RequestError, match=words):
        llm.generate(prompts, **BRIEF)


def test_prompts_may_be_texts_lists_arrays_and_iterators(llm: pyllm.LLM) -> None:
    expected = llm.complete([97, 98], **BRIEF).tokens
    for prompt in (np.array([97, 98]), np.array([97, 98], np.uint8), (97, 98), range(97, 99), iter([97, np.int32(98)])):
        assert llm.complete(prompt, **BRIEF).tokens == expected
    assert [r.tokens for r in llm.generate(np.array([[97, 98], [97, 98]]), **BRIEF)] == [expected] * 2
    assert [r.tokens for r in llm.generate(iter(["a", [97, 98]]), **BRIEF)] == [
        llm.complete("a", **BRIEF).tokens,
        expected,
    ]
    assert llm.generate([]) == []
    np.testing.assert_array_equal(llm.logits(np.array([97, 98])), llm.logits([97, 98]))
    np.testing.assert_array_equal(llm.embed(np.array([[97, 98]])), llm.embed([[97, 98]]))


@pytest.mark.parametrize(
    ("messages", "words"),
    [
        (None, "messages must be a text or a list of messages such as {'role': 'user', 'content'.*not None"),
        ([], "one message at least"),
        (5, "messages must be a text or a list of messages"),
        (b"hi", "not b'hi'"),
        ({"role": "user", "content": "hi"}, "not a dict; put it into a list"),
        (["hi"], r"messages\[0\] must be a dictionary with a 'role' and a 'content', not 'hi'"),
        ([{"content": "hi"}], r"messages\[0\] must have a 'role'"),
        ([{"role": None, "content": "hi"}], r"messages\[0\] must have a 'role'"),
        ([{"role": "user"}], r"messages\[0\] has no 'content'"),
        ([{"role": "user", "content": b"hi"}], r"the content of messages\[0\] must be a text or a list of parts"),
        ([{"role": "user", "content": 5}], "not 5"),
        (
            [pyllm.Completion("", (), "stop", pyllm.Usage(0, 0, 0, 0.0, 0.0))],
            "not a Completion; its property 'message' is one",
        ),
    ],
)
@pytest.mark.parametrize("method", ["chat", "chat_tokens"])
def test_chat_refuses_what_are_no_messages(llm: pyllm.LLM, method: str, messages: Any, words: str) -> None:
    with pytest.raises(pyllm.RequestError, match=words):
        getattr(llm, method)(messages)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"temperature": "0.5"}, "temperature must be a number, not '0.5'"),
        ({"temperature": math.nan}, "temperature must be a number, not nan"),
        ({"top_k": 2.5}, "top_k must be a whole number, not 2.5"),
        ({"top_k": -2}, "top_k must be 1 or more, or 0"),
        ({"seed": "x"}, "seed must be a whole number, not 'x'"),
        ({"seed": -2}, "seed must be 0 or more"),
        ({"stop": 5}, "stop must be a text or a list of texts, not 5"),
        ({"stop": [1]}, r"stop\[0\] must be a text, not 1"),
        ({"stop": ""}, "stop must be a text that is not empty"),
        ({"logprobs": True}, "logprobs must be a whole number, not True"),
        ({"logprobs": -1}, "logprobs must be 0 or more"),
        ({"max_tokens": "5"}, "max_tokens must be a whole number, not '5'"),
        ({"max_tokens": -2}, "max_tokens must be 0 or more"),
        ({"n_keep": -1}, "n_keep must be 0 or more"),
        ({"ignore_eos": "no"}, "ignore_eos must be True or False, not 'no'"),
        ({"sampling": {"top_k": 1}}, "sampling must be a SamplingParams, not a dict"),
        ({"logit_bias": {"x": 1}}, "a key of logit_bias must be a whole number, not 'x'"),
        ({"logit_bias": {258: 1}}, "logit_bias names token 258"),
        ({"stream": "yes"}, "stream must be True or False or 'events', not 'yes'"),
        ({"tools": {}}, "tools must be a list of dictionaries, not a dict"),
        ({"tools": "x"}, "tools must be a list of dictionaries, not 'x'"),
        ({"tools": [print]}, r"tools\[0\] must be a dictionary, not a builtin"),
        ({"variables": {"tools": []}}, "variables must not hold 'tools', which is an argument of its own"),
        ({"variables": {"messages": []}}, "variables must not hold 'messages'"),
        ({"variables": {1: 2}}, "a key of variables must be a text, not 1"),
        ({"variables": ["x"]}, "variables must be a dictionary, not a list"),
        ({"truncate": "newest"}, "truncate must be 'oldest', not 'newest'"),
        ({"truncate": True}, "truncate must be 'oldest', not True"),
    ],
)
def test_chat_refuses_options_that_do_not_fit(llm: pyllm.LLM, options: dict[str, Any], words: str) -> None:
    with pytest.raises(pyllm.RequestError, match=words):
        llm.chat("hi", **options)


@pytest.mark.parametrize("nothing", ["temperature", "top_k", "stop", "logit_bias", "sampling", "ignore_eos", "stream"])
def test_none_stands_for_what_has_a_default(llm: pyllm.LLM, nothing: str) -> None:
    usual = llm.complete("ab", max_tokens=5, seed=1).tokens
    assert llm.complete("ab", max_tokens=5, seed=1, **{nothing: None}).tokens == usual


def test_numbers_that_other_programs_take_are_taken(llm: pyllm.LLM) -> None:
    assert llm.complete("ab", logit_bias={"90": 100}, max_tokens=2).text == "ZZ"  # type: ignore[call-overload]
    assert llm.complete("ab", logit_bias=[[90, 100]], max_tokens=2).text == "ZZ"  # type: ignore[call-overload]
    assert len(llm.complete("ab", top_k=-1, seed=-1, max_tokens=np.int64(4)).tokens) == 4
    full = llm.complete([97] * 90, temperature=np.float32(0), max_tokens=-1)
    assert (len(full.tokens), full.finish_reason) == (7, "length")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"model": 123}, "model must be a path"),
        ({"model": None}, "model must be a path"),
        ({"model": ""}, "model is '', which no file can be called"),
        ({"model": b"tiny.gguf"}, "decode it first"),
        ({"n_ctx": "128"}, "n_ctx must be a whole number, not '128'"),
        ({"n_ctx": 1.5}, "n_ctx must be a whole number, not 1.5"),
        ({"n_ctx": 10**18}, "n_ctx must be between 0 and 2147483647"),
        ({"n_threads": "2"}, "n_threads must be a whole number, not '2'"),
        ({"n_threads": 10**6}, "n_threads must be between 1 and 1024"),
        ({"backend": 5}, "backend must be a text, not 5"),
        ({"kv_dtype": "q8"}, "kv_dtype must be 'f16', 'f32' or 'q8_0', not 'q8'"),
        ({"max_seqs": "4"}, "max_seqs must be a whole number"),
        ({"n_gpu_layers": "5"}, "n_gpu_layers must be a whole number or 'auto' or 'all', not '5'"),
        ({"n_gpu_layers": -2}, "n_gpu_layers must be 0 or more, 'auto' or 'all', not -2"),
        ({"devices": [5]}, r"devices\[0\] must be a text"),
        ({"override_tensors": ["ab"]}, r"override_tensors\[0\] must be a pair of a text and a text, not 'ab'"),
        ({"override_tensors": [("(", "cpu")]}, "not a regular expression"),
        ({"tensor_split": "3,1"}, "tensor_split must be a list of numbers, not '3,1'"),
        ({"adapters": [5]}, r"adapters\[0\] must be a path or a pair of a path and a number, not 5"),
        ({"adapters": [("a.gguf", "x")]}, r"adapters\[0\] must be a path or a pair"),
        ({"kv_offload": "no"}, "kv_offload must be True or False"),
        ({"progress": 5}, "progress must be a function, not 5"),
        ({"max_waiting": -1}, "max_waiting must be 0 or more, or None, not -1"),
        ({"n_ctxx": 64}, r"load\(\) has no option n_ctxx; did you mean n_ctx\?"),
    ],
)
def test_load_refuses_what_does_not_fit(path: Path, options: dict[str, Any], words: str) -> None:
    with pytest.raises(pyllm.RequestError, match=words):
        pyllm.load(**{"model": path, "backend": "reference", **options})


def test_load_takes_the_conventions_of_the_field(path: Path) -> None:
    with pyllm.load(str(path), backend="reference", n_ctx=0, n_gpu_layers=-1, max_seqs=np.int32(1)) as llm:
        assert llm.n_ctx == 512  # as trained
    with pyllm.load(path, backend="reference", n_ctx=None, n_threads=None, kv_dtype=None, devices=None) as llm:
        assert llm.n_ctx == 512


def test_names_that_are_too_long_for_a_file_are_one_clear_error(path: Path) -> None:
    for call in (pyllm.load, pyllm.load_tokenizer, pyllm.open_gguf):
        with pytest.raises(pyllm.PyllmError):
            call("x" * 5000)  # type: ignore[operator]
    with pytest.raises(pyllm.ModelError, match="there is no adapter"):
        pyllm.load(path, backend="reference", adapters="x" * 5000)  # type: ignore[arg-type]


def test_memory_that_is_not_there_is_one_clear_error(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise MemoryError("Unable to allocate 3.64 TiB")

    monkeypatch.setattr("pyllm.engine.Engine.__init__", fail)
    with pytest.raises(pyllm.OutOfMemoryError, match=r"3\.64 TiB.*smaller n_ctx"):
        pyllm.load(path, backend="reference")


# Any object at all, for any argument.

ODD: list[Any] = [
    object(),
    print,
    int,
    np.zeros((2, 2)),
    np.float32("nan"),
    np.array("a"),
    {1, 2},
    b"",
    1j,
    ...,
    math.inf,
]
plain = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 300), st.floats(), st.text(max_size=5), st.binary(max_size=3)
)
values = st.recursive(
    st.one_of(plain, st.sampled_from(ODD)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.one_of(st.sampled_from(["role", "content", "default"]), plain), inner, max_size=3),
    ),
    max_leaves=5,
)

CALLS: dict[str, Callable[[pyllm.LLM, Any], Any]] = {
    "complete": lambda llm, v: llm.complete(v, **BRIEF),
    "generate": lambda llm, v: llm.generate(v, **BRIEF),
    "chat": lambda llm, v: llm.chat(v, truncate="oldest", **BRIEF),
    "tools": lambda llm, v: llm.chat("hi", tools=v, **BRIEF),
    "variables": lambda llm, v: llm.chat("hi", variables=v, **BRIEF),
    "logits": lambda llm, v: llm.logits(v),
    "embed": lambda llm, v: llm.embed(v),
    "chat_tokens": lambda llm, v: llm.chat_tokens(v),
    "render": lambda llm, v: llm.chat_template.render(v),  # type: ignore[union-attr]
    "encode a chat": lambda llm, v: llm.chat_template.encode(v, tools=v),  # type: ignore[union-attr]
    "ChatTemplate": lambda llm, v: pyllm.ChatTemplate(v),
    "ChatTemplate's tokenizer": lambda llm, v: pyllm.ChatTemplate({"default": ""}, v),
    "encode": lambda llm, v: llm.tokenizer.encode(v),
    "decode": lambda llm, v: llm.tokenizer.decode(v),
    "partition": lambda llm, v: llm.tokenizer.partition(v, v),
    "encode_pieces": lambda llm, v: llm.tokenizer.encode_pieces(v),
    "token_bytes": lambda llm, v: llm.tokenizer.token_bytes(v),
    "token_text": lambda llm, v: llm.tokenizer.token_text(v),
    "token_id": lambda llm, v: llm.tokenizer.token_id(v),
    "is_special": lambda llm, v: llm.tokenizer.is_special(v),
    "stream": lambda llm, v: llm.tokenizer.stream(v, v),
    "open_gguf": lambda llm, v: pyllm.open_gguf(v),
    "GGUFFile": lambda llm, v: pyllm.GGUFFile(v),
    "load_tokenizer": lambda llm, v: pyllm.load_tokenizer(v),
    "load": lambda llm, v: pyllm.load(v),
    "quantize": lambda llm, v: pyllm.quantize(v, v, v, options=v, imatrix=v),
    "quantize by": lambda llm, v: pyllm.quantize(llm.path, "/nowhere/x.gguf", v),
    **{
        f"option {name}": lambda llm, v, name=name: llm.complete("ab", **{**BRIEF, name: v})  # type: ignore[misc]
        for name in GenerateOptions.__annotations__
    },
    **{
        f"load {name}": lambda llm, v, name=name: pyllm.load("/nowhere/x.gguf", **{name: v})  # type: ignore[misc]
        for name in LoadOptions.__annotations__
    },
    **{
        f"RecipeOptions {name}": lambda llm, v, name=name: pyllm.RecipeOptions(**{name: v})  # type: ignore[misc]
        for name in pyllm.RecipeOptions.__dataclass_fields__
    },
}


@pytest.mark.parametrize("call", CALLS)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(value=values)
def test_any_object_is_taken_or_refused_in_words(
    llm: pyllm.LLM, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, call: str, value: Any
) -> None:
    monkeypatch.setenv("PYLLM_MODELS", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    with contextlib.suppress(pyllm.PyllmError):
        CALLS[call](llm, value)


# Pickling.


def test_a_model_says_that_it_cannot_be_pickled(llm: pyllm.LLM) -> None:
    for attempt in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(pyllm.RequestError, match="hand on its path"):
            attempt(llm)


def test_results_can_be_pickled(llm: pyllm.LLM) -> None:
    result = llm.complete("ab", logprobs=1, **BRIEF)
    assert pickle.loads(pickle.dumps(result)) == result
