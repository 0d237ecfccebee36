"""Files that are not what they should be: a GGUFError that names file, offset and reason; nothing else ever."""

from __future__ import annotations

import os
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import gguf
import gguf_bytes as g
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pyllm.errors import GGUFError
from pyllm.gguf import open_gguf
from pyllm.gguf.types import by_name

ONE = [g.tensor("t", (8,))]
DATA = bytes(32)
KV = g.kv("k", g.U8, b"\0")
HUGE = 2**63

DAMAGED: dict[str, tuple[bytes, int | None, str]] = {
    "empty": (b"", 0, "empty"),
    "one byte": (b"G", 0, "not a GGUF file"),
    "wrong magic": (g.file(magic=b"FOOL"), 0, "b'FOOL'"),
    "old file": (g.file(magic=b"tjgg"), 0, "before GGUF"),
    "git lfs": (b"version https://git-lfs.github.com/spec/v1\n", 0, "git lfs pull"),
    "html": (b"<!DOCTYPE html>", 0, "web page"),
    "magic only": (b"GGUF", 4, "version needs 4 bytes"),
    "big endian": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), 4, "big-endian"),
    "version 0": (g.file(version=0), 4, "version 0 is unknown"),
    "version 1": (g.file(version=1), 4, "version 1 is not supported"),
    "version 4": (g.file(version=4), 4, "version 4 is unknown"),
    "no counts": (b"GGUF" + struct.pack("<I", 3), 8, "number of tensors needs 8 bytes"),
    "absurd entries": (g.file([KV], n_kv=HUGE), 16, "metadata entries cannot fit"),
    "absurd tensors": (g.file([KV], n_tensors=HUGE), 8, "tensors cannot fit"),
    "one entry too many": (g.file([KV, g.kv("b", g.U64, bytes(8))], n_kv=3, alignment=1), 59, "needs 8 bytes"),
    "long key": (g.file([struct.pack("<Q", 65536) + bytes(70000)]), 24, "65536 bytes long"),
    "endless key": (g.file([struct.pack("<Q", 60000) + bytes(60)]), 32, "truncated"),
    "key not utf-8": (g.file([g.kv(b"\xff", g.U8, b"\0")]), 32, "not UTF-8"),
    "key twice": (g.file([KV, KV]), 38, "'k' occurs twice"),
    "value type": (g.file([g.kv("k", 13, bytes(8))]), 37, "value type 13 is unknown"),
    "endless string": (g.file([g.kv("k", g.STRING, struct.pack("<Q", HUGE))]), 45, "a string needs"),
    "item type": (g.file([g.kv("k", g.ARRAY, g.array(99, []))]), 37, "value type 99 is unknown"),
    "endless array": (g.file([g.kv("k", g.ARRAY, g.array(g.U64, [], HUGE))]), 49, "an array of"),
    "endless strings": (g.file([g.kv("k", g.ARRAY, g.array(g.STRING, [], HUGE))]), 49, "an array of"),
    "a long string among many": (
        g.file([g.kv("k", g.ARRAY, g.array(g.STRING, [g.string("ab")] * 9 + [struct.pack("<Q", HUGE)]))]),
        139,
        "a string in an array needs",
    ),
    "endless arrays": (g.file([g.kv("k", g.ARRAY, g.array(g.ARRAY, [], HUGE))]), 49, "an array of"),
    "deep arrays": (g.file([g.kv("k", g.ARRAY, struct.pack("<IQ", 9, 1) * 40)]), None, "nested more than"),
    "alignment 0": (g.file([g.kv("general.alignment", g.U32, bytes(4))], ONE, DATA), 53, "power of two"),
    "alignment 24": (g.file([g.kv("general.alignment", g.U32, b"\x18\0\0\0")], ONE, DATA), 53, "power of two"),
    "alignment text": (g.file([g.kv("general.alignment", g.STRING, g.string("32"))]), 61, "power of two"),
    "name not utf-8": (g.file([], [g.tensor(b"\xff", (8,))], DATA), 32, "not UTF-8"),
    "name twice": (g.file([], [*ONE, g.tensor("t", (8,), 0, 32)], DATA + DATA), 57, "'t' occurs twice"),
    "five dimensions": (g.file([], [g.tensor("t", (1,) * 5)], DATA), 33, "5 dimensions"),
    "absurd dimensions": (g.file([], [g.string("t") + b"\xff" * 4], DATA), 33, "dimensions"),
    "tensor type": (g.file([], [g.tensor("t", (8,), 77)], DATA), 24, "unknown type 77"),
    "removed type": (g.file([], [g.tensor("t", (32,), 31)], DATA), 24, "Q4_0_4_4"),
    "part of a block": (g.file([], [g.tensor("t", (33,), 2)], bytes(64)), 24, "not a multiple of Q4_0's block of 32"),
    "past the end": (g.file([], [g.tensor("t", (9,))], DATA), 24, "should lie at 64 to 100"),
    "offset past the end": (g.file([], [g.tensor("t", (8,), 0, 2**62)], DATA), 24, "truncated or damaged"),
    "misaligned": (g.file([], [g.tensor("t", (1,), 0, 4)], DATA), 24, "4, which is not a multiple of 32"),
    "impossible shape": (g.file([], [g.tensor("t", (2**32, 2**32, 2**32))], DATA), 24, "impossible shape"),
    "impossible empty shape": (g.file([], [g.tensor("t", (0, 2**63))], DATA), 24, "impossible shape"),
    "overlap": (g.file([], [g.tensor("a", (16,)), g.tensor("b", (8,), 0, 32)], bytes(64)), 128, "'a' and 'b' overlap"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_damage_is_named(tmp_path: Path, case: str) -> None:
    data, offset, reason = DAMAGED[case]
    path = tmp_path / "broken.gguf"
    path.write_bytes(data)
    tracemalloc.start()
    with pytest.raises(GGUFError) as caught:
        open_gguf(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    message = str(caught.value)
    assert str(path) in message
    assert reason in message
    assert offset is None or f"at byte {offset}:" in message
    assert peak < 4 << 20


def test_a_boolean_of_two(tmp_path: Path) -> None:
    kvs = [g.kv("b", g.BOOL, b"\2"), g.kv("bs", g.ARRAY, g.array(g.BOOL, [b"\0", b"\3"]))]
    path = tmp_path / "b.gguf"
    path.write_bytes(g.file(kvs))
    with open_gguf(path) as f:
        for key, value in (("b", 2), ("bs", 3)):
            with pytest.raises(GGUFError, match=f"a boolean has the value {value}"):
                f.metadata[key]


@pytest.mark.parametrize("what", ["missing.gguf", "."])
def test_no_file(tmp_path: Path, what: str) -> None:
    with pytest.raises(GGUFError, match="cannot be opened"):
        open_gguf(tmp_path / what)


def small_file(path: Path) -> bytes:
    w = gguf.GGUFWriter(path, "llama")
    w.add_custom_alignment(64)
    w.add_array("words", ["alpha", "", "beta" * 80, "γ"])
    w.add_array("numbers", [1, 2, 3])
    w.add_array("flags", [True, False])
    w.add_key_value("bytes", [1, 2, 3, 4, 5], gguf.GGUFValueType.ARRAY, gguf.GGUFValueType.UINT8)
    w.add_float32("x", 1.5)
    w.add_tensor("a", np.arange(12, dtype=np.float32).reshape(3, 4))
    w.add_tensor("b", np.full((2, 34), 0xAA, np.uint8), raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()
    return path.read_bytes()


def test_every_truncation(tmp_path: Path) -> None:
    data = small_file(tmp_path / "small.gguf")
    end = data.rindex(b"\xaa") + 1  # padding follows, which nobody needs
    (tmp_path / "cut.gguf").write_bytes(data[:end])
    open_gguf(tmp_path / "cut.gguf").close()
    for n in range(end):
        path = tmp_path / "cut.gguf"
        path.write_bytes(data[:n])
        with pytest.raises(GGUFError):
            open_gguf(path)


def use(path: Path) -> None:
    """Open a file and look at everything in it: works, or is refused properly."""
    refusals: list[str] = []
    try:
        with open_gguf(path) as f:
            for key in f.metadata:
                field = f.metadata.field(key)
                try:
                    value = f.metadata[key]
                    assert field.item_type is None or len(value) == field.count
                except GGUFError as e:
                    refusals.append(str(e))
            for t in f.tensors.values():
                kind = by_name(t.format)
                assert t.data.nbytes == kind.n_bytes(t.n_elements) == t.n_bytes
                assert t.data[-1:].sum() >= 0
    except GGUFError as e:
        refusals.append(str(e))
    assert all(str(path) in r for r in refusals)


NUMBERS = st.sampled_from(
    [0, 1, 2, 7, 8, 9, 12, 13, 31, 255, 256, 65535, 2**31, 2**32 - 1, 2**32, 2**60, 2**63, 2**64 - 1]
)
EDITS = st.lists(
    st.one_of(
        st.tuples(st.just("set"), st.floats(0, 1), st.binary(min_size=1, max_size=4)),
        st.tuples(st.just("set"), st.floats(0, 1), NUMBERS.map(lambda n: struct.pack("<Q", n))),
        st.tuples(st.just("set"), st.floats(0, 1), NUMBERS.map(lambda n: struct.pack("<I", n & 0xFFFFFFFF))),
        st.tuples(st.just("insert"), st.floats(0, 1), st.binary(min_size=1, max_size=16)),
        st.tuples(st.just("delete"), st.floats(0, 1), st.binary(min_size=1, max_size=16)),
        st.tuples(st.just("cut"), st.floats(0, 1), st.just(b"")),
    ),
    min_size=1,
    max_size=3,
)
FUZZ = settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def edited(header: bytes, edits: list[tuple[str, float, bytes]]) -> bytes:
    for kind, where, raw in edits:
        at = int(where * len(header))
        keep = {"set": len(raw), "insert": 0, "delete": len(raw), "cut": len(header)}[kind]
        header = header[:at] + (raw if kind in ("set", "insert") else b"") + header[at + keep :]
    return header


@FUZZ
@given(edits=EDITS)
def test_mutated_small_file(tmp_path_factory: pytest.TempPathFactory, edits: list[tuple[str, float, bytes]]) -> None:
    folder = tmp_path_factory.getbasetemp()
    if not (folder / "small.gguf").exists():
        small_file(folder / "small.gguf")
    path = folder / "mutant.gguf"
    path.write_bytes(edited((folder / "small.gguf").read_bytes(), edits))
    use(path)


@FUZZ
@given(edits=EDITS, name=st.sampled_from(["llama-dense", "gpt-oss-moe", "gemma3-dense"]))
def test_mutated_real_header(
    arch_file: Callable[[str], Path],
    tmp_path_factory: pytest.TempPathFactory,
    edits: list[tuple[str, float, bytes]],
    name: str,
) -> None:
    original = arch_file(name)
    size = original.stat().st_size
    with open_gguf(original) as f, open(original, "rb") as file:
        header = file.read(size - sum(-(-t.n_bytes // 32) * 32 for t in f.tensors.values()))
    path = tmp_path_factory.getbasetemp() / "mutant-real.gguf"
    with open(path, "wb") as file:
        file.write(edited(header, edits))
    os.truncate(path, size)  # the tensors are a hole
    use(path)
