"""Arrays of strings: the guessed walk must find exactly what was written, whatever the strings hold."""

from __future__ import annotations

from pathlib import Path

import gguf_bytes as g
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pyllm.errors import GGUFError
from pyllm.gguf import open_gguf, strings

SETTINGS = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
TEXTS = st.one_of(
    st.binary(max_size=12),
    st.text(max_size=8).map(str.encode),
    st.binary(min_size=250, max_size=600),
    st.integers(0, 20).map(bytes),  # nothing but NULs: looks like lengths
    st.tuples(st.integers(1, 9), st.binary(max_size=3)).map(lambda t: b"x" + bytes(t[0]) + t[1]),
)


def check(path: Path, texts: list[bytes]) -> None:
    kvs = [g.kv("a", g.ARRAY, g.array(g.STRING, [g.string(t) for t in texts])), g.kv("after", g.U8, b"\7")]
    path.write_bytes(g.file(kvs))
    with open_gguf(path) as f:
        assert f.metadata["after"] == 7, "the array's end was found"
        assert [t.encode("utf-8", "surrogateescape") for t in f.metadata["a"]] == texts


@SETTINGS
@given(texts=st.lists(TEXTS, max_size=40))
def test_any_strings(tmp_path: Path, texts: list[bytes]) -> None:
    check(tmp_path / "s.gguf", texts)


@SETTINGS
@given(texts=st.lists(TEXTS, max_size=40), chunk=st.integers(8, 300), short=st.integers(1, 4))
def test_any_strings_in_small_chunks(tmp_path: Path, texts: list[bytes], chunk: int, short: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(strings, "_CHUNK", chunk)
        patch.setattr(strings, "_SHORT", short)
        check(tmp_path / "s.gguf", texts)


@pytest.mark.parametrize(
    "texts",
    [
        [f"token{i}".encode() for i in range(40_000)],
        [b""] * 40_000,
        [b"a\0", b"b"] * 20_000,
        [b"x" * 300, b"y"] * 3_000,
        [b"z" * 200_000, b"1", b"22"] * 3,
        [bytes(16)] * 10_000,
    ],
    ids=["tokens", "empty", "ending in NUL", "longer than a byte says", "longer than a chunk", "all NUL"],
)
def test_many(tmp_path: Path, texts: list[bytes]) -> None:
    check(tmp_path / "s.gguf", texts)


@pytest.mark.parametrize("n", [300, 40_000])
def test_every_string_must_be_there(tmp_path: Path, n: int) -> None:
    """A count one too large takes the next key's length for a string, and so on to the file's end."""
    path = tmp_path / "s.gguf"
    array = g.array(g.STRING, [g.string(f"t{i}") for i in range(n)], n + 1)
    path.write_bytes(g.file([g.kv("a", g.ARRAY, array)], alignment=1))
    with pytest.raises(GGUFError, match="the length of a string in an array needs 8 bytes"):
        open_gguf(path)
