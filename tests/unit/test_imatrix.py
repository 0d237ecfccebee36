"""Importance matrices as files, against the gguf package and bytes as llama.cpp has them; and collected, against it."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFReader, GGUFWriter
from hypothesis import given, settings
from hypothesis import strategies as st

from pyllm.errors import GGUFError, RequestError
from pyllm.quant.calibrate import text as calibration
from pyllm.quant.calibrate.collection import Collector
from pyllm.quant.imatrix import ImportanceMatrix, Sums
from pyllm.quant.imatrix_statistics import layer_statistics, weight_statistics

GOLDEN = Path(__file__).parents[1] / "golden" / "importance.npz"


def sums(n: int, columns: int, seed: int = 0, counts: list[int] | None = None) -> Sums:
    random = np.random.default_rng(seed)
    # Values that float32 holds exactly, as the files do.
    squares = random.random((n, columns), np.float32).astype(np.float64) * 1000
    return Sums(squares.astype(np.float32).astype(np.float64), np.array(counts or [512] * n))


def example() -> ImportanceMatrix:
    entries = {
        "blk.1.ffn_down_exps.weight": sums(4, 48, 1, [700, 0, 24, 300]),
        "blk.0.attn_q.weight": sums(1, 33, 2, [1024]),
    }
    return ImportanceMatrix(entries, ["a.txt", "größer.txt"], 2, 512)


def legacy(path: Path, entries: dict[str, tuple[int, Any]], tail: bytes = b"") -> Path:
    data = struct.pack("<i", len(entries))
    for name, (calls, values) in entries.items():
        raw = np.asarray(values, "<f4")
        data += struct.pack("<i", len(name)) + name.encode() + struct.pack("<ii", calls, raw.size) + raw.tobytes()
    path.write_bytes(data + tail)
    return path


def test_round_trip(tmp_path: Path) -> None:
    matrix = example()
    matrix.save(tmp_path / "m.gguf")
    back = ImportanceMatrix.load(tmp_path / "m.gguf")
    assert (back.datasets, back.chunks, back.chunk_size) == (matrix.datasets, 2, 512)
    assert back.sums.keys() == matrix.sums.keys()
    for name, entry in matrix.sums.items():
        np.testing.assert_array_equal(back.sums[name].squares, entry.squares)
        np.testing.assert_array_equal(back.sums[name].counts, entry.counts)
    assert list(tmp_path.iterdir()) == [tmp_path / "m.gguf"]


def test_file_is_as_llama_cpp_writes_it(tmp_path: Path) -> None:
    example().save(tmp_path / "m.gguf")
    reader = GGUFReader(tmp_path / "m.gguf")
    fields = [name for name in reader.fields if not name.startswith("GGUF.")]
    assert fields == ["general.type", "imatrix.datasets", "imatrix.chunk_count", "imatrix.chunk_size"]
    assert [reader.fields[f].contents() for f in fields] == ["imatrix", ["a.txt", "größer.txt"], 2, 512]
    assert [reader.fields[f].types[-1].name for f in fields] == ["STRING", "STRING", "UINT32", "UINT32"]
    # by name; innermost axis first, and no trailing axes of one
    shapes = {t.name: t.shape.tolist() for t in reader.tensors}
    assert list(shapes.items()) == [
        ("blk.0.attn_q.weight.in_sum2", [33]),
        ("blk.0.attn_q.weight.counts", [1]),
        ("blk.1.ffn_down_exps.weight.in_sum2", [48, 4]),
        ("blk.1.ffn_down_exps.weight.counts", [1, 4]),
    ]
    assert {t.tensor_type.name for t in reader.tensors} == {"F32"}


def test_a_file_of_the_gguf_package(tmp_path: Path) -> None:
    path, squares = tmp_path / "m.gguf", np.arange(12, dtype=np.float32).reshape(3, 4)
    writer = GGUFWriter(path, "x")
    writer.add_array("imatrix.datasets", ["t"])
    writer.add_uint32("imatrix.chunk_count", 7)
    writer.add_uint32("imatrix.chunk_size", 256)
    writer.add_tensor("w.in_sum2", squares)
    writer.add_tensor("w.counts", np.array([[2], [0], [4]], np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    matrix = ImportanceMatrix.load(path)
    assert (matrix.datasets, matrix.chunks, matrix.chunk_size) == (["t"], 7, 256)
    got = matrix.importance("w")
    assert got is not None
    np.testing.assert_allclose(got[[0, 2]], squares[[0, 2]] / np.array([[2], [4]]))
    # an expert that saw nothing: as all together
    np.testing.assert_allclose(got[1], squares.sum(axis=0) / 6)


def test_what_was_not_seen_has_no_importance() -> None:
    matrix = ImportanceMatrix({"w": Sums(np.zeros((2, 3)), np.zeros(2, np.int64))})
    assert matrix.importance("w") is None
    assert matrix.importance("v") is None


@settings(max_examples=30)
@given(st.integers(1, 5), st.integers(1, 40), st.integers(1, 9), st.integers(0, 100))
def test_legacy_files(tmp_path_factory: pytest.TempPathFactory, n: int, columns: int, calls: int, seed: int) -> None:
    mean = np.random.default_rng(seed).random(n * columns).astype(np.float32)
    path = legacy(
        tmp_path_factory.mktemp("dat") / "m.dat",
        {"w": (calls, mean * np.float32(calls)), "blk.0.x": (1, [1.0])},
        struct.pack("<ii", calls, 5) + b"d.txt",
    )
    matrix = ImportanceMatrix.load(path)
    assert (matrix.datasets, matrix.chunks) == (["d.txt"], calls)
    got = matrix.importance("w", columns)
    assert got is not None
    assert got.shape == (n, columns)
    np.testing.assert_allclose(got.ravel(), mean, rtol=1e-6)


def test_legacy_file_without_tail(tmp_path: Path) -> None:
    matrix = ImportanceMatrix.load(legacy(tmp_path / "m", {"w": (3, [3.0, 6.0])}))
    assert (matrix.datasets, matrix.chunks) == ([], 3)
    np.testing.assert_allclose(matrix.importance("w"), [[1, 2]])


@pytest.mark.parametrize(
    "data",
    [
        b"x",
        b"\0\0\0\0",
        b"\xff\xff\xff\xff" * 8,
        struct.pack("<i", 1) + b"\xff\xff\xff\x7f" + b"x" * 40,
        struct.pack("<ii", 1, 1) + b"w" + struct.pack("<ii", 1, 1 << 30) + b"\0" * 64,
        struct.pack("<ii", 1, 1) + b"w" + struct.pack("<ii", -1, 1) + b"\0" * 64,
        struct.pack("<ii", 1, 2) + b"\xff\xfe" + struct.pack("<ii", 1, 1) + b"\0" * 64,
        struct.pack("<ii", 1, 1) + b"w" + struct.pack("<iif", 1, 1, -1.0),
        struct.pack("<ii", 1, 1) + b"w" + struct.pack("<iif", 1, 1, float("nan")),
        struct.pack("<ii", 1, 1) + b"w" + struct.pack("<iifii", 1, 1, 1.0, 1, 500),
        b"{'not': 'an importance matrix at all, but some text of enough length'}",
    ],
)
def test_files_that_are_none(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "m"
    path.write_bytes(data)
    with pytest.raises(GGUFError, match=r"m\b"):
        ImportanceMatrix.load(path)


@pytest.mark.parametrize("n", range(0, 2000, 97))
def test_truncated_files(tmp_path: Path, n: int) -> None:
    example().save(tmp_path / "m")
    data = (tmp_path / "m").read_bytes()
    (tmp_path / "m").write_bytes(data[: len(data) * n // 2000])
    with pytest.raises(GGUFError):
        ImportanceMatrix.load(tmp_path / "m")


@pytest.mark.parametrize(
    ("tensors", "says"),
    [
        ({}, "no importance matrix"),
        ({"w": np.ones(3, np.float32)}, "no importance matrix"),
        ({"w.in_sum2": np.ones(3, np.float32)}, "no counts"),
        ({"w.in_sum2": np.ones(3, np.float32), "w.counts": np.ones(2, np.float32)}, "no counts"),
        ({"w.in_sum2": np.ones(3, np.float16), "w.counts": np.ones(1, np.float32)}, "F16"),
        ({"w.in_sum2": -np.ones(3, np.float32), "w.counts": np.ones(1, np.float32)}, "negative"),
        ({"w.in_sum2": np.ones(3, np.float32), "w.counts": np.full(1, np.inf, np.float32)}, "infinite"),
    ],
)
def test_gguf_files_that_are_none(tmp_path: Path, tensors: dict[str, Any], says: str) -> None:
    writer = GGUFWriter(tmp_path / "m", "x")
    for name, data in tensors.items():
        writer.add_tensor(name, data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(GGUFError, match=says):
        ImportanceMatrix.load(tmp_path / "m")


def test_merge_is_as_if_read_together() -> None:
    a, b = example(), example()
    b.sums["blk.7.new.weight"] = sums(1, 5, 9)
    b.datasets = ["b.txt", "a.txt"]
    merged = ImportanceMatrix.merge([a, b])
    assert merged.datasets == ["a.txt", "größer.txt", "b.txt"]
    assert merged.chunks == 4
    np.testing.assert_array_equal(merged.sums["blk.1.ffn_down_exps.weight"].counts, [1400, 0, 48, 600])
    np.testing.assert_array_equal(merged.sums["blk.0.attn_q.weight"].squares, 2 * a.sums["blk.0.attn_q.weight"].squares)
    assert "blk.7.new.weight" in merged.sums
    assert a.sums["blk.0.attn_q.weight"].counts == 1024, "what was merged stays as it was"
    with pytest.raises(RequestError, match="no importance"):
        ImportanceMatrix.merge([])


def test_merge_with_experts_that_were_counted_together() -> None:
    together = ImportanceMatrix({"w": Sums(np.arange(6.0)[None], np.array([10]))})
    apart = ImportanceMatrix({"w": Sums(np.ones((3, 2)), np.array([1, 2, 3]))})
    for parts in ([together, apart], [apart, together]):
        merged = ImportanceMatrix.merge(parts).sums["w"]
        np.testing.assert_array_equal(merged.counts, [11, 12, 13])
        np.testing.assert_array_equal(merged.squares, np.arange(6.0).reshape(3, 2) + 1)


def test_matrices_of_different_models() -> None:
    with pytest.raises(RequestError, match="different models"):
        ImportanceMatrix.merge([ImportanceMatrix({"w": sums(1, 8)}), ImportanceMatrix({"w": sums(1, 9)})])
    with pytest.raises(RequestError, match="another model"):
        ImportanceMatrix({"w": sums(1, 8)}).importance("w", 5)
    with pytest.raises(RequestError, match="another model"):
        ImportanceMatrix({"w": sums(2, 8)}).importance("w", 4)


def test_statistics_by_hand() -> None:
    m = np.array([[0.0, 1.0, 1.0, 6.0]])
    matrix = ImportanceMatrix(
        {
            "blk.0.w.weight": Sums(m * 10, np.array([10])),
            "blk.1.w.weight": Sums(np.array([[0.0, 0.0, 0.0, 5.0], [1.0, 1.0, 1.0, 1.0]]), np.array([5, 0])),
            "blk.1.v.weight": Sums(m * 30, np.array([10])),
            "output.weight": Sums(m, np.array([1])),
        }
    )
    by_name = {w.name: w for w in weight_statistics(matrix)}
    assert list(by_name) == ["blk.0.w.weight", "blk.1.v.weight", "blk.1.w.weight", "output.weight"]
    w = by_name["blk.0.w.weight"]
    assert (w.layer, w.n, w.total, w.least, w.most, w.mean) == (0, 4, 8, 0, 6, 2)
    assert w.deviation == pytest.approx(np.sqrt((4 + 1 + 1 + 16) / 4))
    assert w.active == 0.75
    assert w.entropy == pytest.approx(2 * 3 / 8 + 0.75 * np.log2(4 / 3))
    assert w.entropy_share == pytest.approx(w.entropy / 2)
    assert w.outliers == 0.25
    assert w.similarity is None
    seen = by_name["blk.1.w.weight"]
    assert (seen.n, seen.n_unseen, seen.entropy, seen.total) == (4, 1, 0, 1)
    assert by_name["output.weight"].layer is None
    zero, one = layer_statistics(list(by_name.values()))
    assert (zero.layer, zero.total, one.layer, one.total) == (0, 8, 1, (4 * 24 + 4 * 1) / 8)


def test_similarity_of_neighbouring_layers() -> None:
    matrix = ImportanceMatrix({f"blk.{i}.w.weight": sums(1, 8, seed) for i, seed in enumerate((3, 3, 4))})
    first, second, third = (w.similarity for w in weight_statistics(matrix))
    a, b = (matrix.sums[f"blk.{i}.w.weight"].squares[0] for i in (1, 2))
    assert first is None
    assert second == pytest.approx(1)
    assert third == pytest.approx(a @ b / np.sqrt((a @ a) * (b @ b)))


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_collected_is_what_llama_cpp_collects(arch_file: Callable[[str], Path], backend: str) -> None:
    golden = np.load(GOLDEN)
    model = arch_file("llama-moe")
    with Collector(model, n_ctx=96, backend=backend, n_threads=2, kv_dtype="f32") as collector:
        done = list(collector.read(golden["tokens"].ravel(), dataset="random"))
        matrix = collector.matrix()
    assert done == [(2, 2)]
    assert (matrix.chunks, matrix.chunk_size, matrix.datasets) == (2, 96, ["random"])
    names = {key.removesuffix("/sums") for key in golden if key.endswith("/sums")}
    assert len(names) == 4
    for name in names:
        np.testing.assert_array_equal(matrix.sums[name].counts, golden[f"{name}/counts"])
        got, wanted = matrix.sums[name].squares, golden[f"{name}/sums"].astype(np.float64)
        if "attn" in name:  # this file scales the product: llama.cpp after it, pyllm its input
            got, wanted = got / got.sum(), wanted / wanted.sum()
        assert np.abs(got - wanted).sum() <= 2e-3 * wanted.sum(), name
    assert all(name.startswith("blk.") for name in matrix.sums)


@pytest.mark.parametrize(("n_ctx", "n_batch"), [(96, 512), (96, 40), (24, 100), (30, 30)])
def test_windows_may_be_cut_and_joined(arch_file: Callable[[str], Path], n_ctx: int, n_batch: int) -> None:
    """However windows lie in steps, the sums are the same."""
    tokens = np.random.default_rng(0).integers(0, 100, 200)
    results = []
    for batch in (n_batch, 1000):
        with Collector(
            arch_file("qwen2-dense"), n_ctx=n_ctx, n_batch=batch, n_threads=2, process_output=True
        ) as collector:
            *_, last = collector.read(tokens)
            assert last == (200 // n_ctx, 200 // n_ctx)
            results.append(collector.matrix())
    one, other = results
    assert one.sums.keys() == other.sums.keys()
    assert sum(not name.startswith("blk.") for name in one.sums) == 1
    for name in one.sums:
        np.testing.assert_array_equal(one.sums[name].counts, [200 // n_ctx * n_ctx])
        np.testing.assert_allclose(one.sums[name].squares, other.sums[name].squares, rtol=0.05, atol=1e-3)


def test_reading_on_is_adding(arch_file: Callable[[str], Path]) -> None:
    tokens = np.random.default_rng(0).integers(0, 100, 128)
    parts = []
    for skip, n in ((0, 4), (0, 2), (2, None)):
        with Collector(arch_file("qwen2-dense"), n_ctx=32, n_threads=2) as collector:
            list(collector.read(tokens, skip=skip, n_windows=n))
            parts.append(collector.matrix())
    both = ImportanceMatrix.merge(parts[1:])
    assert both.chunks == parts[0].chunks == 4
    for name, whole in parts[0].sums.items():
        np.testing.assert_allclose(both.sums[name].squares, whole.squares, rtol=1e-5)


def test_a_matrix_of_two_parts_has_one_importance(arch_file: Callable[[str], Path]) -> None:
    """The file has experts' gate and up in one tensor, which the program reads as two."""
    with Collector(arch_file("deepseek2-ocr-moe"), n_ctx=32, backend="reference") as collector:
        list(collector.read([1 + i % 100 for i in range(64)]))
        sums = collector.matrix().sums
    assert {name for name in sums if "exps" in name} == {
        "blk.1.ffn_gate_up_exps.weight",
        "blk.1.ffn_down_exps.weight",
    }
    fused = sums["blk.1.ffn_gate_up_exps.weight"]
    assert fused.squares.shape == (8, 256)
    assert fused.counts.sum() == 64 * 3


def test_refusals_of_texts(arch_file: Callable[[str], Path]) -> None:
    with Collector(arch_file("qwen2-dense"), n_ctx=32, n_threads=1) as collector:
        with pytest.raises(RequestError, match=r"31 tokens.*at least 32"):
            collector.read([1] * 31)
        with pytest.raises(RequestError, match="at least 96"):
            collector.read([1] * 70, skip=2)
        with pytest.raises(RequestError, match="token ids"):
            collector.read([1] * 40 + [10**6] * 40)
        assert not collector.matrix().sums


def test_built_in_text_is_of_many_kinds_and_always_the_same() -> None:
    text = calibration.text()
    assert 30_000 < len(text.encode()) < 60_000
    assert text == calibration.text()
    assert all(word in text for word in ("def ", "#include", "fn ", "SELECT", "User:", "\\frac", '"email"', "= ="))
    letters = {
        "LATIN": 0,
        "CYRILLIC": 0,
        "CJK": 0,
        "HIRAGANA": 0,
        "HANGUL": 0,
        "ARABIC": 0,
        "DEVANAGARI": 0,
        "GREEK": 0,
    }
    import unicodedata

    for c in text:
        kind = unicodedata.name(c, "").partition(" ")[0]
        if kind in letters:
            letters[kind] += 1
    assert min(letters.values()) > 50
