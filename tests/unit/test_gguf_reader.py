"""The reader against files that the gguf package and llama.cpp wrote, and against values written by hand."""

from __future__ import annotations

import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import gguf
import gguf_bytes as g
import numpy as np
import pytest

from pyllm.errors import ClosedError
from pyllm.gguf import open_gguf


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def written_by_gguf(path: Path, alignment: int | None = None) -> dict[str, np.ndarray]:
    """A file with values of all types and three tensors; returns the tensors' bytes."""
    w = gguf.GGUFWriter(path, "llama")
    if alignment:
        w.add_custom_alignment(alignment)
    for name, value in SCALARS.items():
        getattr(w, f"add_{name}")(f"x.{name}", value)
    for name, value in ARRAYS.items():
        w.add_array(f"a.{name}", value)
    rng = np.random.default_rng(1)
    tensors = {
        "plain": rng.standard_normal((3, 5)).astype(np.float32),
        "half": rng.standard_normal((2, 3, 7)).astype(np.float16),
        "blocks": rng.integers(0, 256, (4, 2 * 34), dtype=np.uint8),
    }
    w.add_tensor("plain", tensors["plain"])
    w.add_tensor("half", tensors["half"])
    w.add_tensor("blocks", tensors["blocks"], raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()
    return tensors


SCALARS = {
    "uint8": 255,
    "int8": -128,
    "uint16": 65535,
    "int16": -32768,
    "uint32": 2**32 - 1,
    "int32": -(2**31),
    "uint64": 2**64 - 1,
    "int64": -(2**63),
    "float32": 0.15625,
    "float64": 1e-300,
    "bool": True,
    "string": "żółw 🐢 \0 end",
}
ARRAYS = {
    "ints": [1, -2, 3],
    "floats": [0.5, -1.25],
    "bools": [True, False, True],
    "strings": ["", "a", "Ġthe", "長い" * 200, "nul\0inside"],
}


@pytest.mark.parametrize("alignment", [None, 64, 4096])
@pytest.mark.parametrize("version", [2, 3])
def test_reads_what_the_gguf_package_writes(tmp_path: Path, alignment: int | None, version: int) -> None:
    path = tmp_path / "all.gguf"
    tensors = written_by_gguf(path, alignment)
    with open(path, "r+b") as file:
        file.seek(4)
        file.write(struct.pack("<I", version))
    with open_gguf(path) as f:
        assert (f.version, f.alignment) == (version, alignment or 32)
        for name, value in SCALARS.items():
            assert f.metadata[f"x.{name}"] == value
            assert type(f.metadata[f"x.{name}"]) is type(value)
            assert str(f.metadata.field(f"x.{name}")) == name
        for name, items in ARRAYS.items():
            assert list(f.metadata[f"a.{name}"]) == items
        assert f.metadata["a.ints"].dtype == np.int32
        assert f.metadata["a.floats"].dtype == np.float32
        assert f.metadata["a.bools"].dtype == np.bool_
        assert str(f.metadata.field("a.strings")) == "string[5]"
        assert list(f.tensors) == list(tensors)
        assert {n: (t.shape, t.format) for n, t in f.tensors.items()} == {
            "plain": ((3, 5), "F32"),
            "half": ((2, 3, 7), "F16"),
            "blocks": ((4, 64), "Q8_0"),
        }
        for name, want in tensors.items():
            assert f.tensors[name].data.tobytes() == want.tobytes()
            assert not f.tensors[name].data.flags.writeable


@pytest.mark.parametrize(
    "name", ["archs/llama-dense", "archs/gpt-oss-moe", "vocabs/ggml-vocab-bert-bge", "vocabs/ggml-vocab-llama-spm"]
)
def test_agrees_with_the_gguf_package_on_real_files(shared_data: Path, name: str) -> None:
    path = shared_data / f"{name}.gguf"
    theirs = gguf.GGUFReader(path)
    with open_gguf(path) as f:
        fields = {k: v for k, v in theirs.fields.items() if not k.startswith("GGUF.")}
        assert list(f.metadata) == list(fields)
        for key, field in fields.items():
            got, want = f.metadata[key], field.contents()
            np.testing.assert_equal(got.tolist() if isinstance(got, np.ndarray) else got, want, err_msg=key)
        assert list(f.tensors) == [t.name for t in theirs.tensors]
        for t in theirs.tensors:
            mine = f.tensors[t.name]
            assert (mine.format, mine.shape) == (t.tensor_type.name, tuple(t.shape.tolist()[::-1]))
            assert mine.data.tobytes() == t.data.tobytes()


def test_nested_arrays(tmp_path: Path) -> None:
    strings = g.array(g.STRING, [g.string("a"), g.string("bc")])
    numbers = g.array(g.U16, [g.scalar(g.U16, 7), g.scalar(g.U16, 9)])
    deep = g.array(g.ARRAY, [g.array(g.ARRAY, [numbers, g.array(g.U16, [])]), strings])
    path = write(tmp_path / "n.gguf", g.file([g.kv("deep", g.ARRAY, deep), g.kv("after", g.U8, b"\5")]))
    with open_gguf(path) as f:
        assert f.metadata["after"] == 5
        (seven, empty), texts = f.metadata["deep"]
        assert (seven.tolist(), empty.tolist(), texts) == ([7, 9], [], ["a", "bc"])


@pytest.mark.parametrize("kind", [t for t in gguf.GGUFValueType if t.name not in ("STRING", "ARRAY")])
def test_arrays_of_every_type(tmp_path: Path, kind: gguf.GGUFValueType) -> None:
    items = [0, 1, 1, 0, 1]
    array = g.array(kind, [g.scalar(kind, i) for i in items])
    path = write(tmp_path / "a.gguf", g.file([g.kv("a", g.ARRAY, array), g.kv("empty", g.ARRAY, g.array(kind, []))]))
    with open_gguf(path) as f:
        assert f.metadata["a"].tolist() == items
        assert f.metadata["a"].dtype == ("bool" if kind.name == "BOOL" else kind.name.lower())
        assert f.metadata["empty"].shape == (0,)
        assert str(f.metadata.field("a")) == f"{kind.name.lower()}[5]"


def test_text_that_is_not_utf8(tmp_path: Path) -> None:
    """Tokens keep their bytes; a single string stays printable."""
    tokens = [b"\xff\xfe", b"ok", b"\xe2\x82"]
    array = g.array(g.STRING, [g.string(t) for t in tokens])
    path = write(tmp_path / "t.gguf", g.file([g.kv("t", g.ARRAY, array), g.kv("s", g.STRING, g.string(b"a\xffb"))]))
    with open_gguf(path) as f:
        assert [t.encode("utf-8", "surrogateescape") for t in f.metadata["t"]] == tokens
        assert f.metadata["s"] == "a�b"


def test_values_are_kept_and_arrays_read_only(tmp_path: Path) -> None:
    path = tmp_path / "k.gguf"
    written_by_gguf(path)
    with open_gguf(path) as f:
        assert f.metadata["a.strings"] is f.metadata["a.strings"]
        with pytest.raises(ValueError):
            f.metadata["a.ints"][0] = 5
        assert "a.ints" in f.metadata
        assert "nothing" not in f.metadata
        assert f.metadata.get("nothing", 3) == 3
        with pytest.raises(KeyError):
            f.metadata["nothing"]


def test_scalars_and_empty_tensors(tmp_path: Path) -> None:
    tensors = [g.tensor("none", (0, 4)), g.tensor("one", ())]
    with open_gguf(write(tmp_path / "z.gguf", g.file([], tensors, struct.pack("<f", 2.5)))) as f:
        assert (f.tensors["none"].shape, f.tensors["none"].n_bytes) == ((4, 0), 0)
        assert f.tensors["one"].shape == ()
        assert f.tensors["one"].data.view(np.float32)[0] == 2.5


def test_what_was_taken_outlives_close(tmp_path: Path) -> None:
    path = tmp_path / "c.gguf"
    tensors = written_by_gguf(path)
    f = open_gguf(path)
    taken, metadata = f.tensors["plain"], f.metadata
    ints = metadata["a.ints"]
    f.close()
    f.close()
    assert taken.data.tobytes() == tensors["plain"].tobytes()
    assert ints.tolist() == [1, -2, 3]
    f.release("plain")
    for ask in (lambda: f.tensors, lambda: f.metadata, lambda: metadata["a.strings"]):
        with pytest.raises(ClosedError, match=r"c\.gguf was closed"):
            ask()


def resident(path: Path) -> int:
    """Kilobytes of a mapped file that are in this process's memory, as Linux counts them."""
    kilobytes, inside = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.split(" ")[0]:
            inside = line.endswith(str(path))
        elif inside and line.startswith("Rss:"):
            kilobytes += int(line.split()[1])
    return kilobytes


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="counts resident pages the way Linux shows them")
def test_release_gives_pages_back(tmp_path: Path) -> None:
    path = (tmp_path / "big.gguf").resolve()
    size = 8 << 20
    data = np.random.default_rng(0).bytes(2 * size)
    write(path, g.file([], [g.tensor("a", (size // 4,)), g.tensor("b", (size // 4,), 0, size)], data))
    with open_gguf(path) as f:
        assert resident(path) < size / 1024, "opening reads the header only (the system may map more around it)"
        f.prefetch("a")
        for t in f.tensors.values():
            t.data.sum()
        before = resident(path)
        f.release("a")
        assert before - resident(path) > 0.9 * size / 1024
        assert f.tensors["b"].data.tobytes() == data[size:]
        assert f.tensors["a"].data.tobytes() == data[:size], "released data can be read again"


@pytest.mark.parametrize(("model", "n_tokens"), [("smollm2", 49152), ("qwen-coder", 151936)])
def test_opens_quickly(model_path: Callable[[str], Path], model: str, n_tokens: int) -> None:
    """In a small part of the processor time that the gguf package takes."""
    path, ours = model_path(model), []
    for _ in range(5):
        start = time.process_time()
        f = open_gguf(path)
        assert len(f.metadata["tokenizer.ggml.tokens"]) == n_tokens
        ours.append(time.process_time() - start)
        f.close()
    start = time.process_time()
    gguf.GGUFReader(path)
    assert min(ours) < (time.process_time() - start) / 5


def test_imports_nothing_heavy() -> None:
    code = "import sys, pyllm.gguf; print({'numba', 'gguf', 'llvmlite'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
