"""`save_cache`, `load_cache` and `cache_dir`: answers stay the same to the bit, and other models' files are refused."""

from __future__ import annotations

import asyncio
import os
import random
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import pyllm
from arch_models import ArchModel
from cuda_devices import unavailable
from pyllm import backends
from pyllm.errors import CacheError, ClosedError, PyllmWarning

MODEL = ArchModel.load("llama-dense")
PAGE = 32
PROMPT = [(7 * i) % MODEL.n_vocab for i in range(3 * PAGE + 5)]
SAVING = Path(__file__).with_name("cache_saving.py")


@pytest.fixture(scope="module")
def path(arch_file: Callable[[str], Path]) -> Path:
    return arch_file("llama-dense")


def load(path: Path, backend: str = "reference", **options: Any) -> pyllm.LLM:
    return pyllm.load(path, **{"backend": backend, "n_ctx": 256, "max_seqs": 4, **options})


def answer(llm: pyllm.LLM, prompt: list[int] = PROMPT) -> tuple[Any, ...]:
    """An answer with the probabilities of its tokens, to the last bit."""
    result = llm.complete(prompt, max_tokens=4, temperature=0, logprobs=5)
    assert result.logprobs is not None
    return result.tokens, [(token.logprob, token.top) for token in result.logprobs]


def cached(llm: pyllm.LLM, prompt: list[int] = PROMPT) -> int:
    return llm.complete(prompt, max_tokens=1).usage.n_cached


KINDS = [
    (backend, kv_dtype)
    for backend in ("cpu", "reference")
    for kv_dtype in ("f16", "f32", "q8_0")
    if kv_dtype in backends.get(backend).kv_dtypes
]


@pytest.mark.parametrize(("backend", "kv_dtype"), KINDS)
def test_answers_after_loading_are_those_of_the_process_that_saved(
    path: Path, tmp_path: Path, backend: str, kv_dtype: str
) -> None:
    file = tmp_path / "cache"
    with load(path, backend, kv_dtype=kv_dtype) as llm:
        answer(llm)
        wanted = answer(llm)  # the prompt's beginning comes out of the cache, as it will there
        counts = llm.save_cache(file)
        assert (counts.n_pages, counts.n_tokens) == (3, 3 * PAGE)
    with load(path, backend, kv_dtype=kv_dtype) as llm:
        assert llm.load_cache(file) == counts
        assert answer(llm) == wanted
        assert cached(llm) == 3 * PAGE
        llm.engine.check()


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_a_folder_outlives_the_model(path: Path, tmp_path: Path, backend: str) -> None:
    with load(path, backend, cache_dir=tmp_path / "cache") as llm:
        answer(llm)
        wanted = answer(llm)
    with load(path, backend, cache_dir=tmp_path / "cache") as llm:
        assert cached(llm) == 3 * PAGE
        assert answer(llm) == wanted
        llm.engine.check()


RECURRENT = ["qwen35-dense", "mamba", "rwkv7", "lfm2-dense.window"]


@pytest.mark.parametrize("model", RECURRENT)
@pytest.mark.parametrize("backend", ["cpu", "cuda", "reference"])
def test_recurrent_states_are_saved_with_their_pages(
    arch_file: Callable[[str], Path], cuda_devices: None, tmp_path: Path, backend: str, model: str
) -> None:
    if (reason := unavailable(backend)) is not None:
        pytest.skip(f"backend {backend}: {reason}")
    given, prompt = arch_file(model), [token % 60 for token in PROMPT]
    with load(given, backend) as llm:
        answer(llm, prompt)
        wanted = answer(llm, prompt)
        counts = llm.save_cache(tmp_path / "cache")
        assert counts.n_pages == 3
    with load(given, backend) as llm:
        assert llm.load_cache(tmp_path / "cache") == counts
        assert answer(llm, prompt) == wanted
        assert cached(llm, prompt) == 3 * PAGE
        llm.engine.check()


@pytest.mark.parametrize("model", RECURRENT[:2])
def test_a_folder_keeps_recurrent_states(arch_file: Callable[[str], Path], tmp_path: Path, model: str) -> None:
    given, prompt = arch_file(model), [token % 60 for token in PROMPT]
    longer = [*prompt, *prompt]
    with load(given, cache_dir=tmp_path / "cache") as llm:
        answer(llm, prompt)
        wanted = answer(llm, prompt)
    with load(given, cache_dir=tmp_path / "cache") as llm:
        assert cached(llm, prompt) == 3 * PAGE
        assert answer(llm, prompt) == wanted
        assert cached(llm, longer) == 3 * PAGE  # pages that are in memory; the state after them was in the folder
        llm.engine.check()
    states = sorted((tmp_path / "cache").glob("*/*.state"))
    assert len(states) == 2
    states[0].unlink()
    with load(given, cache_dir=tmp_path / "cache") as llm:
        assert cached(llm, longer) == 6 * PAGE
        assert cached(llm, prompt) == 0  # pages without a state are of no use
        llm.engine.check()


def test_only_what_is_asked_for_is_saved(path: Path, tmp_path: Path) -> None:
    file, other = tmp_path / "cache", PROMPT[::-1]
    with load(path) as llm:
        cached(llm)
        cached(llm, other)
        assert llm.save_cache(file).n_pages == 6
        assert llm.save_cache(file, prompts=[other[: 2 * PAGE + 1], [1, 2, 3]]).n_pages == 2
    with load(path) as llm:
        assert llm.load_cache(file).n_pages == 2
        assert (cached(llm), cached(llm, other)) == (0, 2 * PAGE)


def test_beginnings_in_common_are_saved_once(path: Path, tmp_path: Path) -> None:
    file = tmp_path / "cache"
    prompts = [[*PROMPT[: 2 * PAGE], *([token] * PAGE), 1] for token in range(3)]
    with load(path) as llm:
        for prompt in prompts:
            cached(llm, prompt)
        assert llm.save_cache(file).n_pages == 5
    with load(path) as llm:
        assert llm.load_cache(file).n_pages == 5
        assert [cached(llm, prompt) for prompt in prompts] == [3 * PAGE] * 3
        assert llm.load_cache(file).n_pages == 5
        llm.engine.check()


def test_as_much_as_fits_is_loaded_what_was_used_last_first(path: Path, tmp_path: Path) -> None:
    file, others = tmp_path / "cache", [[token] * (2 * PAGE + 1) for token in range(4)]
    with load(path, n_kv=600) as llm:
        for prompt in others:
            cached(llm, prompt)
        assert llm.save_cache(file).n_pages == 8
    with load(path, n_ctx=160, n_kv=160) as llm:
        assert llm.load_cache(file).n_pages == 5
        llm.engine.check()
        assert cached(llm, others[3]) == 2 * PAGE
        assert cached(llm, others[2]) == 2 * PAGE


def test_loading_beside_running_answers(path: Path, tmp_path: Path) -> None:
    file = tmp_path / "cache"
    with load(path) as llm:
        wanted = llm.complete([5, 6, 7], max_tokens=60, temperature=0).tokens
        answer(llm)
        llm.save_cache(file)
    with load(path) as llm:
        with llm.complete([5, 6, 7], max_tokens=60, temperature=0, stream=True) as stream:
            next(stream, None)
            llm.load_cache(file)
            llm.save_cache(file)
            for _ in stream:
                pass
            assert stream.result.tokens == wanted
        assert cached(llm) == 3 * PAGE


def test_event_loops_save_and_load(path: Path, tmp_path: Path) -> None:
    async def main() -> None:
        async with pyllm.AsyncLLM(load(path)) as llm:
            await llm.complete(PROMPT, max_tokens=1)
            assert (await llm.save_cache(tmp_path / "cache")).n_pages == 3
        async with pyllm.AsyncLLM(load(path)) as llm:
            assert (await llm.load_cache(tmp_path / "cache")).n_pages == 3

    asyncio.run(main())


@pytest.fixture(scope="module")
def saved(path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("saved") / "cache"
    with load(path) as llm:
        answer(llm)
        llm.save_cache(file)
    return file


def test_other_models_and_settings_are_refused(
    path: Path, saved: Path, arch_file: Callable[[str], Path], tmp_path: Path
) -> None:
    changed = tmp_path / "changed.gguf"
    data = bytearray(path.read_bytes())
    with pyllm.open_gguf(path) as file:
        first = next(iter(file.tensors.values())).data.tobytes()[:64]
    data[data.index(first)] ^= 1
    changed.write_bytes(data)
    for given, options, words in (
        (changed, {}, "model "),
        (arch_file("qwen2-dense"), {}, "model "),
        (path, {"kv_dtype": "f32"}, "KV cache f16, not f32"),
        (path, {"backend": "cpu"}, "device reference 1, not cpu 1"),
    ):
        with load(given, **options) as llm:
            with pytest.raises(CacheError, match=f"is a prefix cache of .*{words}.*; load the model as it was"):
                llm.load_cache(saved)
            assert cached(llm) == 0


def test_a_longer_context_takes_the_same_file(path: Path, saved: Path) -> None:
    with load(path, n_ctx=512, max_seqs=2, n_batch=64) as llm:
        assert llm.load_cache(saved).n_pages == 3


def test_what_is_damaged_is_said_and_the_rest_is_used(path: Path, saved: Path, tmp_path: Path) -> None:
    file = tmp_path / "cache"
    data = saved.read_bytes()
    for n_bytes, n_pages, words in (
        (len(data) - 1, 2, "its end is missing; 2 of its pages are used"),
        (20, 0, "its head is not as written; it is not used"),
    ):
        file.write_bytes(data[:n_bytes])
        with load(path) as llm:
            with pytest.warns(PyllmWarning, match=f"is damaged: {words}"):
                assert llm.load_cache(file).n_pages == n_pages
            assert cached(llm) == n_pages * PAGE
    changed = bytearray(data)
    changed[len(data) // 2] ^= 1  # of the second page: the third is no continuation of the first
    file.write_bytes(changed)
    with load(path) as llm:
        with pytest.warns(PyllmWarning, match="1 of its pages is not as written; 1 of its pages are used"):
            assert llm.load_cache(file).n_pages == 1
        answer(llm)
        llm.engine.check()


def test_files_that_cannot_be_read_or_written_are_errors(path: Path, tmp_path: Path) -> None:
    with load(path) as llm:
        with pytest.raises(CacheError, match="nothing cannot be read: No such file"):
            llm.load_cache(tmp_path / "nothing")
        with pytest.raises(CacheError, match="cannot be written: "):
            llm.save_cache(tmp_path / "no folder" / "cache")
        with pytest.raises(CacheError, match="is no prefix cache of pyllm"):
            llm.load_cache(path)
    with pytest.raises(ClosedError):
        llm.save_cache(tmp_path / "cache")
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_used_is_an_error_before_anything_is_held(path: Path, tmp_path: Path) -> None:
    with pytest.raises(CacheError, match="cannot hold a prefix cache"):
        load(path, cache_dir=path)
    with pytest.raises(CacheError, match="holds no page"):
        load(path, cache_dir=tmp_path, cache_size=10)


def test_processes_with_other_hash_seeds_take_each_others_files(path: Path, tmp_path: Path) -> None:
    file = tmp_path / "cache"
    for seed, wanted in (("1", "saved 3"), ("2", "loaded 3")):
        done = subprocess.run(
            [sys.executable, str(SAVING), str(path), str(file)],
            capture_output=True, text=True, timeout=300, env={**os.environ, "PYTHONHASHSEED": seed},
        )  # fmt: skip
        assert done.stdout.splitlines()[-1] == wanted, done.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="kills by signals of POSIX")
def test_a_save_that_is_killed_leaves_the_file_as_it_was(
    path: Path, saved: Path, tmp_path: Path, pytestconfig: pytest.Config
) -> None:
    file = tmp_path / "cache"
    file.write_bytes(saved.read_bytes())
    kills: int = pytestconfig.getoption("--kills")
    moments = random.Random(kills)
    for _ in range(kills):
        process = subprocess.Popen([sys.executable, str(SAVING), str(path), str(file), "again"], stdout=subprocess.PIPE)
        with process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"loaded 3\n"
            time.sleep(moments.uniform(0, 0.1))
            process.kill()
        with load(path) as llm, warnings.catch_warnings():
            warnings.simplefilter("error")
            assert llm.load_cache(file).n_pages == 3
            llm.save_cache(file)
    assert [entry.name for entry in tmp_path.iterdir()] == ["cache"]
