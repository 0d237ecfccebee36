"""The writer of GGUF files: what the gguf package reads back, and that nothing stays of what failed."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import gguf_bytes as g
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pyllm.errors import FormatError, GGUFError
from pyllm.gguf import GGUFWriter, TensorSpec, Value, copy_metadata, open_gguf
from pyllm.gguf.types import TYPES, ValueType

ARCH = {"general.architecture": Value.of("llama")}
TWO = [TensorSpec("a", (3, 32), "Q8_0"), TensorSpec("b", (5,), "F32")]


def data_of(spec: TensorSpec, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, spec.n_bytes, np.uint8)


def write(path: Path, metadata: dict[str, Value], specs: list[TensorSpec], **options: Any) -> tuple[Path, ...]:
    with GGUFWriter(path, metadata, specs, **options) as writer:
        for i, spec in enumerate(specs):
            writer.write(data_of(spec, i))
    return writer.paths


# What other readers find

SCALARS = {
    ValueType.UINT8: st.integers(0, 2**8 - 1),
    ValueType.INT8: st.integers(-(2**7), 2**7 - 1),
    ValueType.UINT16: st.integers(0, 2**16 - 1),
    ValueType.INT16: st.integers(-(2**15), 2**15 - 1),
    ValueType.UINT32: st.integers(0, 2**32 - 1),
    ValueType.INT32: st.integers(-(2**31), 2**31 - 1),
    ValueType.UINT64: st.integers(0, 2**64 - 1),
    ValueType.INT64: st.integers(-(2**63), 2**63 - 1),
    ValueType.FLOAT32: st.floats(width=32, allow_nan=False),
    ValueType.FLOAT64: st.floats(allow_nan=False),
    ValueType.BOOL: st.booleans(),
    ValueType.STRING: st.text(st.characters(exclude_categories=["Cs"]), max_size=20),
}


@st.composite
def values(draw: st.DrawFn) -> Value:
    kind = draw(st.sampled_from(list(SCALARS)))
    if draw(st.booleans()):
        return Value(kind, draw(SCALARS[kind]))
    return Value(ValueType.ARRAY, draw(st.lists(SCALARS[kind], max_size=5)), kind)


KINDS = [t for t in TYPES if gguf.GGML_QUANT_SIZES.get(t.id) == (t.block_size, t.block_bytes)]
"""Those that the gguf package can read; it is wrong about Q8_1's size, for one."""


@st.composite
def specs(draw: st.DrawFn) -> list[TensorSpec]:
    out = []
    for i in range(draw(st.integers(0, 6))):
        kind = draw(st.sampled_from(KINDS))
        rows = draw(st.lists(st.integers(1, 4), max_size=3))
        out.append(TensorSpec(f"t{i}", (*rows, kind.block_size * draw(st.integers(1, 3))), kind.name))
    return out


KEYS = st.text("abcdefgh._0", min_size=1, max_size=12)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(KEYS, values(), max_size=6), specs(), st.sampled_from([None, 8, 32, 128]))
def test_what_the_gguf_package_reads(
    tmp_path: Path, metadata: dict[str, Value], tensors: list[TensorSpec], alignment: int | None
) -> None:
    path = tmp_path / "m.gguf"
    assert write(path, metadata, tensors, alignment=alignment, overwrite=True) == (path,)
    reader = gguf.GGUFReader(path)
    fields = {k: f for k, f in reader.fields.items() if not k.startswith("GGUF.")}
    if alignment not in (None, 32):
        assert fields.pop("general.alignment").contents() == alignment
        assert reader.alignment == alignment
    assert list(fields) == list(metadata)
    for key, value in metadata.items():
        assert [int(t) for t in fields[key].types][:1] == [value.type]
        if value.item is not None and len(value.value):  # an empty array's type is not shown
            assert int(fields[key].types[1]) == value.item
        if value.item is None or len(value.value):
            assert fields[key].contents() == value.value
    assert [t.name for t in reader.tensors] == [t.name for t in tensors]
    for i, (read, spec) in enumerate(zip(reader.tensors, tensors, strict=True)):
        assert tuple(int(d) for d in read.shape[::-1]) == spec.shape
        assert read.tensor_type.name == spec.format
        assert np.array_equal(read.data.view(np.uint8).ravel(), data_of(spec, i))
        assert read.data_offset % (alignment or 32) == 0


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(KEYS, values(), max_size=6), specs())
def test_a_copy_is_the_same_file(tmp_path: Path, metadata: dict[str, Value], tensors: list[TensorSpec]) -> None:
    first, second = tmp_path / "first.gguf", tmp_path / "second.gguf"
    write(first, metadata, tensors, overwrite=True)
    with open_gguf(first) as file:
        write(second, copy_metadata(file.metadata), tensors, overwrite=True)
    assert first.read_bytes() == second.read_bytes()


def test_a_file_of_another_writer_is_copied_byte_by_byte(tmp_path: Path) -> None:
    """Text that is not UTF-8, arrays of arrays, an alignment of its own; all kept."""
    nested = g.array(g.ARRAY, [g.array(g.I32, []), g.array(g.STRING, [g.string(b"\xff\0"), g.string("")])])
    kvs = [
        g.kv("general.name", g.STRING, g.string(b"caf\xe9")),
        g.kv("general.alignment", g.U32, g.scalar(g.U32, 64)),
        g.kv("nested", g.ARRAY, nested),
        g.kv("flags", g.ARRAY, g.array(g.BOOL, [b"\1", b"\0"])),
    ]
    raw = g.file(kvs, [g.tensor("x", (16,))], bytes(range(64)), alignment=64)
    (tmp_path / "a.gguf").write_bytes(raw)
    with open_gguf(tmp_path / "a.gguf") as file:
        writer = GGUFWriter(tmp_path / "b.gguf", copy_metadata(file.metadata), [TensorSpec("x", (16,), "F32")])
        with writer:
            writer.write(file.tensors["x"].data)
    assert (tmp_path / "b.gguf").read_bytes() == raw


def test_pieces_of_any_size(tmp_path: Path) -> None:
    data = [data_of(t, i) for i, t in enumerate(TWO)]
    joined = np.concatenate(data).tobytes()
    write(tmp_path / "whole.gguf", ARCH, TWO)
    with GGUFWriter(tmp_path / "pieces.gguf", ARCH, TWO) as writer:
        writer.write(b"")
        writer.write(bytearray(joined[:7]))
        writer.write(memoryview(joined)[7:110])  # across the end of a tensor
        writer.write(np.frombuffer(joined[110:], "<u2"))
    assert (tmp_path / "pieces.gguf").read_bytes() == (tmp_path / "whole.gguf").read_bytes()


def test_arrays_of_any_layout(tmp_path: Path) -> None:
    weights = np.arange(12, dtype=np.float32).reshape(3, 4).T
    with GGUFWriter(
        tmp_path / "m.gguf", {}, [TensorSpec("w", (4, 3), "F32"), TensorSpec("z", (0, 4), "F32")]
    ) as writer:
        writer.write(weights)
        writer.write(np.empty((0, 4), np.float32))
    assert np.array_equal(gguf.GGUFReader(tmp_path / "m.gguf").tensors[0].data, weights)


def test_files_may_be_read_by_others(tmp_path: Path) -> None:
    write(tmp_path / "m.gguf", ARCH, TWO)
    (tmp_path / "plain").write_bytes(b"")
    assert (tmp_path / "m.gguf").stat().st_mode == (tmp_path / "plain").stat().st_mode


# Values


@pytest.mark.parametrize(
    ("value", "kind", "item"),
    [
        (True, ValueType.BOOL, None),
        (np.bool_(False), ValueType.BOOL, None),
        (7, ValueType.UINT32, None),
        (-7, ValueType.INT32, None),
        (2**32, ValueType.UINT64, None),
        (-(2**31) - 1, ValueType.INT64, None),
        (np.int8(3), ValueType.UINT32, None),
        (1e-5, ValueType.FLOAT32, None),
        ("text", ValueType.STRING, None),
        (["a", "b"], ValueType.ARRAY, ValueType.STRING),
        ([1, 2], ValueType.ARRAY, ValueType.INT32),
        ([1, 2**31], ValueType.ARRAY, ValueType.UINT32),
        ([-1, 2**31], ValueType.ARRAY, ValueType.INT64),
        ([1, 2.5], ValueType.ARRAY, ValueType.FLOAT32),
        ([True, False], ValueType.ARRAY, ValueType.BOOL),
        ([[1], ["a"]], ValueType.ARRAY, ValueType.ARRAY),
        (np.zeros(2, np.uint16), ValueType.ARRAY, ValueType.UINT16),
        (np.zeros(2, ">i4"), ValueType.ARRAY, ValueType.INT32),
        (np.zeros(2, np.float16), ValueType.ARRAY, ValueType.FLOAT32),
        (np.zeros(2, np.float64), ValueType.ARRAY, ValueType.FLOAT64),
        (np.zeros(2, np.bool_), ValueType.ARRAY, ValueType.BOOL),
        (np.zeros((2, 3), np.int8), ValueType.ARRAY, ValueType.ARRAY),
    ],
)
def test_types_that_suit(value: object, kind: ValueType, item: ValueType | None) -> None:
    made = Value.of(value)
    assert (made.type, made.item) == (kind, item)
    assert made.to_bytes()


@pytest.mark.parametrize(
    "value",
    [None, [], {}, b"raw", 2**64, -(2**64), [1, "a"], [None], [True, 2], np.zeros(2, np.complex64), np.zeros(())],
)
def test_what_has_no_type(value: object) -> None:
    with pytest.raises(GGUFError, match="GGUF metadata has no"):
        Value.of(value)


@pytest.mark.parametrize(
    ("value", "what"),
    [
        (Value(ValueType.UINT8, 256), "UINT8"),
        (Value(ValueType.UINT32, -1), "UINT32"),
        (Value(ValueType.INT32, 1.5), "INT32"),
        (Value(ValueType.UINT32, "5"), "UINT32"),
        (Value(ValueType.STRING, 5), "STRING"),
        (Value(ValueType.BOOL, 2), "BOOL"),
        (Value(ValueType.ARRAY, [1, 2]), "ARRAY"),
        (Value(ValueType.ARRAY, ["a"], ValueType.FLOAT32), "an array of FLOAT32"),
        (Value(ValueType.ARRAY, 5, ValueType.FLOAT32), "an array of FLOAT32"),
        (Value(ValueType.ARRAY, [300], ValueType.INT8), "an array of INT8"),
        (Value(ValueType.ARRAY, [1], ValueType.ARRAY), "an array of ARRAY"),
    ],
)
def test_values_that_do_not_fit_their_type(tmp_path: Path, value: Value, what: str) -> None:
    with pytest.raises(GGUFError, match=f"'some.key': .* cannot be stored as {what}$"):
        GGUFWriter(tmp_path / "m.gguf", {"some.key": value}, [])


# Tensors and alignments that cannot be


def test_specs_are_checked() -> None:
    with pytest.raises(FormatError, match=r"'w' of shape \(2, 33\) cannot be Q4_0: .* blocks of 32"):
        TensorSpec("w", (2, 33), "Q4_0")
    with pytest.raises(FormatError, match="'Q4_9' is not a tensor format"):
        TensorSpec("w", (2, 32), "Q4_9")
    with pytest.raises(GGUFError, match="at most 4 dimensions"):
        TensorSpec("w", (1, 1, 1, 1, 1), "F32")
    with pytest.raises(GGUFError, match="a tensor's name is text"):
        TensorSpec("", (1,), "F32")


def test_headers_are_checked(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    with pytest.raises(GGUFError, match="'b' occurs twice"):
        GGUFWriter(path, {}, [TWO[1], TWO[1]])
    with pytest.raises(GGUFError, match="a metadata key is text of 1 to 65535 bytes"):
        GGUFWriter(path, {"k" * 70000: Value.of(1)}, [])
    with pytest.raises(GGUFError, match="a metadata key is text"):
        GGUFWriter(path, {"\udcff": Value.of(1)}, [])
    with pytest.raises(GGUFError, match="power of two, not 48"):
        GGUFWriter(path, {}, [], alignment=48)
    with pytest.raises(GGUFError, match="power of two, not 'much'"):
        GGUFWriter(path, {"general.alignment": Value.of("much")}, [])


# Split files


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(specs(), st.integers(300, 3000), st.sampled_from([None, 1, 2]), st.sampled_from([32, 64]))
def test_split(tmp_path: Path, tensors: list[TensorSpec], most: int, count: int | None, alignment: int) -> None:
    folder = tmp_path / "split"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    options: dict[str, Any] = {"split_bytes": most, "split_tensors": count, "alignment": alignment}
    paths = write(folder / "m.gguf", {**ARCH, "split.count": Value.of(99)}, tensors, **options)
    assert sorted(folder.iterdir()) == sorted(paths)
    with open_gguf(paths[0]) as file:
        assert file.parts == paths
        assert list(file.tensors) == [t.name for t in tensors]
        for i, spec in enumerate(tensors):
            assert np.array_equal(file.tensors[spec.name].data, data_of(spec, i))
    if len(paths) == 1:
        assert paths[0].name == "m.gguf"
        assert not [k for k in gguf.GGUFReader(paths[0]).fields if k.startswith("split.")]
        return
    for i, path in enumerate(paths):
        reader = gguf.GGUFReader(path)
        marks = {k: (f.types[0].name, f.contents()) for k, f in reader.fields.items() if k.startswith("split.")}
        assert marks == {
            "split.no": ("UINT16", i),
            "split.count": ("UINT16", len(paths)),
            "split.tensors.count": ("INT32", len(tensors)),
        }
        assert ("general.architecture" in reader.fields) == (i == 0)
        assert path.name == f"m-{i + 1:05d}-of-{len(paths):05d}.gguf"
        assert path.stat().st_size <= most or len(reader.tensors) == 1
        assert count is None or 1 <= len(reader.tensors) <= count


def test_sizes_are_known_before(tmp_path: Path) -> None:
    for options in ({}, {"split_tensors": 1}):
        writer = GGUFWriter(tmp_path / "m.gguf", ARCH, TWO, **options)
        assert not any(p.exists() for p in writer.paths)
        assert write(tmp_path / "m.gguf", ARCH, TWO, **options) == writer.paths
        assert sum(p.stat().st_size for p in writer.paths) == writer.n_bytes


# What must not happen


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A folder that must be as it was afterwards."""
    path = tmp_path / "folder"
    path.mkdir()
    (path / "old.gguf").write_bytes(b"old")
    yield path
    assert [p.name for p in path.iterdir()] == ["old.gguf"]
    assert (path / "old.gguf").read_bytes() == b"old"


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError, SystemExit])
@pytest.mark.parametrize("options", [{}, {"split_tensors": 1}])
def test_exceptions_leave_nothing(folder: Path, error: type[BaseException], options: dict[str, int]) -> None:
    def write_some() -> None:
        with GGUFWriter(folder / "new.gguf", ARCH, TWO, **options) as writer:
            writer.write(data_of(TWO[0]))
            writer.write(b"12")
            raise error

    with pytest.raises(error):
        write_some()


@pytest.mark.parametrize("at", [1, 2, 4])
@pytest.mark.parametrize("name", ["new.gguf", "old.gguf"])
def test_a_full_disk(folder: Path, monkeypatch: pytest.MonkeyPatch, at: int, name: str) -> None:
    real, calls = os.write, 0

    def full(file: int, data: memoryview) -> int:
        nonlocal calls
        calls += 1
        if calls == at:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(file, data[:100])

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(GGUFError, match=rf"{name} cannot be written: the disk is full after \d+ B of \d+ B; free"):
        write(folder / name, ARCH, TWO, overwrite=True)


def test_too_little_room_is_seen_before(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(folder)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=200))
    with pytest.raises(GGUFError, match=r"needs \d+ B, but only 200 B are free there"):
        write(folder / "new.gguf", ARCH, TWO)


@pytest.mark.parametrize("call", ["open", "fsync", "replace"])
def test_other_failures(folder: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(GGUFError, match=r"new\.gguf cannot be written: Input/output error"):
        write(folder / "new.gguf", ARCH, TWO, split_tensors=1)


def test_a_second_part_that_cannot_be_placed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.replace

    def fail(source: Path, target: Path) -> None:
        if "00001-of" in str(target):
            raise PermissionError(errno.EACCES, "Permission denied")
        real(source, target)

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(GGUFError, match="Permission denied"):
        write(folder / "new.gguf", ARCH, TWO, split_tensors=1)


@pytest.mark.parametrize("n", [0, 1, 102, 103, 121])
def test_too_few_bytes(folder: Path, n: int) -> None:
    with (
        pytest.raises(GGUFError, match="not complete: the data of its tensors ended too early"),
        GGUFWriter(folder / "new.gguf", ARCH, TWO) as writer,
    ):
        writer.write(bytes(n))


def test_too_many_bytes(folder: Path) -> None:
    with (
        pytest.raises(GGUFError, match="3 bytes came after the last tensor's data"),
        GGUFWriter(folder / "new.gguf", ARCH, TWO) as writer,
    ):
        writer.write(bytes(125))


def test_what_exists_is_kept(folder: Path) -> None:
    with pytest.raises(GGUFError, match=r"old\.gguf exists; name another file"):
        write(folder / "old.gguf", ARCH, TWO)


def test_what_came_meanwhile_is_kept(tmp_path: Path) -> None:
    writer = GGUFWriter(tmp_path / "m.gguf", ARCH, TWO).__enter__()
    writer.write(bytes(122))
    (tmp_path / "m.gguf").write_bytes(b"other")
    with pytest.raises(GGUFError, match="exists"):
        writer.__exit__(None, None, None)
    assert [p.name for p in tmp_path.iterdir()] == ["m.gguf"]
    assert (tmp_path / "m.gguf").read_bytes() == b"other"


def test_the_source_is_kept(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "link.gguf").symlink_to(folder / "old.gguf")
    with pytest.raises(GGUFError, match=r"link\.gguf is the file that is read"):
        write(tmp_path / "link.gguf", ARCH, TWO, overwrite=True, sources=[folder / "old.gguf"])


def test_places_where_no_file_can_be(folder: Path) -> None:
    with pytest.raises(GGUFError, match="there is no folder"):
        write(folder / "missing" / "m.gguf", ARCH, TWO)
    with pytest.raises(GGUFError, match="it is a folder; name a file in it"):
        write(folder, ARCH, TWO, overwrite=True)
    with pytest.raises(GGUFError, match="it is no file that could be replaced"):
        write(Path(os.devnull), ARCH, TWO, overwrite=True)


def test_overwriting(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(b"old")
    write(path, ARCH, TWO, overwrite=True)
    assert [t.name for t in gguf.GGUFReader(path).tensors] == ["a", "b"]
    assert list(tmp_path.iterdir()) == [path]
