"""Files of saved pages: what is read is what was written, whatever happened to the file."""

from __future__ import annotations

import hashlib
import struct
import tracemalloc
from dataclasses import replace
from pathlib import Path

import pytest
from cache_tools import LAYOUT, RECURRENT, SIZE, content, sequence, state_after, write
from hypothesis import given
from hypothesis import strategies as st

from pyllm.cache import Layout, SavedFile
from pyllm.errors import CacheError

PAGES = sequence(0, 3)


def read(path: Path, layout: Layout = LAYOUT) -> tuple[list[tuple[int, bytes, bytes, bytes]], str]:
    """Contents of the pages, and the damage."""
    with SavedFile(path, layout) as file:
        return [content(page) for page in file], file.damage


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return write(tmp_path_factory.mktemp("saved") / "whole", PAGES).read_bytes()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("saved") / "file"


def test_what_was_written_is_read(tmp_path: Path) -> None:
    path = write(tmp_path / "a", PAGES)
    assert read(path) == ([content(page) for page in PAGES], "")
    assert write(tmp_path / "b", PAGES[:1]).stat().st_size == LAYOUT.file_bytes


def test_a_page_is_named_by_all_tokens_before_it() -> None:
    tokens = b"".join(page.tokens for page in PAGES)
    digest = bytes(16)
    for i, page in enumerate(PAGES):
        assert page.parent == digest
        own = tokens[4 * SIZE * i : 4 * SIZE * (i + 1)]
        digest = hashlib.blake2b(digest + own, digest_size=16).digest()
        assert page.digest == digest


@given(at=st.integers(0), bit=st.integers(0, 7))
def test_a_wrong_bit_costs_no_more_than_its_page(whole: bytes, place: Path, at: int, bit: int) -> None:
    data = bytearray(whole)
    at %= len(data)
    data[at] ^= 1 << bit
    place.write_bytes(data)
    head = len(write(place.with_name("empty"), []).read_bytes())
    if at < 8:
        with pytest.raises(CacheError, match="is no prefix cache"):
            read(place)
        return
    found, damage = read(place)
    assert damage
    assert set(found) < {content(page) for page in PAGES}
    if at < head:
        assert found == []
    elif damage.endswith("as written"):
        assert len(found) == 2


@given(n=st.integers(0))
def test_a_file_without_its_end_is_read_up_to_there(whole: bytes, place: Path, n: int) -> None:
    n %= len(whole)
    place.write_bytes(whole[:n])
    empty = len(write(place.with_name("empty"), []).read_bytes())
    size = (len(whole) - empty) // 3
    found, damage = read(place)
    n_whole = max(0, n - empty) // size
    assert found == [content(page) for page in PAGES[:n_whole]]
    assert (damage != "") == (n < empty or (n - empty) % size != 0)


@given(data=st.binary(max_size=4000))
def test_any_bytes_are_no_pages(place: Path, data: bytes) -> None:
    place.write_bytes(data)
    try:
        found, damage = read(place)
    except CacheError:
        return
    assert (found, bool(damage)) == ([], True)


@given(data=st.binary(max_size=300))
def test_any_bytes_behind_the_pages_are_none(whole: bytes, place: Path, data: bytes) -> None:
    place.write_bytes(whole + data)
    found, damage = read(place)
    assert found == [content(page) for page in PAGES]
    assert bool(damage) == bool(data)


def test_states_are_read_after_their_pages(tmp_path: Path) -> None:
    items = [PAGES[0], state_after(PAGES[0]), PAGES[1], PAGES[2], state_after(PAGES[2], 1)]
    path = write(tmp_path / "file", items, RECURRENT)
    assert read(path, RECURRENT) == ([content(item) for item in items], "")
    (tmp_path / "state").write_bytes(write(tmp_path / "one", [state_after(PAGES[0])], RECURRENT).read_bytes())
    assert (tmp_path / "state").stat().st_size == RECURRENT.state_file_bytes


@given(at=st.integers(0), bit=st.integers(0, 7))
def test_a_wrong_bit_costs_no_more_than_its_state(place: Path, at: int, bit: int) -> None:
    items = [PAGES[0], state_after(PAGES[0]), PAGES[1]]
    data = bytearray(write(place, items, RECURRENT).read_bytes())
    start = len(write(place, items[:1], RECURRENT).read_bytes())
    at = start + at % (len(write(place, items[:2], RECURRENT).read_bytes()) - start)
    data[at] ^= 1 << bit
    place.write_bytes(data)
    found, damage = read(place, RECURRENT)
    assert damage
    assert found in ([content(PAGES[0])], [content(PAGES[0]), content(PAGES[1])])


@pytest.mark.parametrize("field", ["text", "tokens", "data"])
def test_sizes_are_checked_before_memory_is_taken(whole: bytes, tmp_path: Path, field: str) -> None:
    empty = len(write(tmp_path / "empty", []).read_bytes())
    data = bytearray(whole)
    if field == "text":
        struct.pack_into("<I", data, 12, 0xFFFFFFFF)
    elif field == "tokens":
        struct.pack_into("<I", data, empty + 8, 0xFFFFFFFF)
    else:
        struct.pack_into("<Q", data, empty + 16, 1 << 62)
    path = tmp_path / "file"
    path.write_bytes(data)
    tracemalloc.start()
    try:
        found, damage = read(path)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()
    assert (found, bool(damage)) == ([], True)


def test_a_record_of_an_unknown_kind_is_passed_over(tmp_path: Path) -> None:
    one, two = (write(tmp_path / name, PAGES[:n]).read_bytes() for name, n in (("one", 1), ("two", 2)))
    more = struct.pack("<IIIIQ16s", 7, 0, 1, 0, 5, bytes(16)) + bytes(4 + 5)
    more += hashlib.blake2b(more, digest_size=16).digest()
    path = tmp_path / "file"
    path.write_bytes(one + more + two[len(one) :])
    assert read(path) == ([content(page) for page in PAGES[:2]], "")


@pytest.mark.parametrize(
    ("layout", "words"),
    [
        (replace(LAYOUT, identity={"model": "two", "KV cache": "f16"}), "model one, not two"),
        (replace(LAYOUT, identity={"model": "one", "KV cache": "q8_0"}), "KV cache f16, not q8_0"),
        (replace(LAYOUT, identity={"model": "one"}), "KV cache f16, not none"),
        (replace(LAYOUT, page_size=8), "page_size 4, not 8"),
        (replace(LAYOUT, page_bytes=1001), "page_bytes 1000, not 1001"),
        (RECURRENT, "state_bytes none, not 5000"),
    ],
)
def test_another_model_is_refused_and_the_difference_said(tmp_path: Path, layout: Layout, words: str) -> None:
    path = write(tmp_path / "file", PAGES)
    with pytest.raises(CacheError, match=f"file is a prefix cache of {words}; load the model as it was, "):
        SavedFile(path, layout)
    assert layout.key != LAYOUT.key


def test_what_was_written_by_a_later_form_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "file", [])
    data = path.read_bytes()[:-16]
    data = data[:8] + struct.pack("<I", 2) + data[12:]
    path.write_bytes(data + hashlib.blake2b(data, digest_size=16).digest())
    with pytest.raises(CacheError, match="of form 2; this pyllm reads form 1"):
        SavedFile(path, LAYOUT)


def test_another_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF" + bytes(100))
    with pytest.raises(CacheError, match=r"model\.gguf is no prefix cache of pyllm; name another file"):
        SavedFile(path, LAYOUT)
