"""Quantizing files: the pipeline piece by piece, plans, what is refused, and that nothing stays of what failed."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from numpy.typing import NDArray

import pyllm
from pyllm.errors import FormatError, GGUFError, RequestError
from pyllm.gguf import GGUFWriter, TensorSpec, Value, open_gguf
from pyllm.quant import formats, pipeline
from pyllm.quant import source as source_module
from pyllm.quant.imatrix import ImportanceMatrix, Sums
from pyllm.quant.pipeline import total_error, write_model
from pyllm.quant.quantize import plan, planned_bytes, quantized_metadata
from pyllm.quant.recipes import Choice, RecipeOptions
from pyllm.quant.source import SourceTensor, sources_of

ARCH = {"general.architecture": Value.of("llama"), "llama.block_count": Value.of(1)}
RANDOM = np.random.default_rng(7)


def weights(*shape: int) -> NDArray[np.float32]:
    return RANDOM.standard_normal(shape, np.float32)


def source(name: str, values: NDArray[Any], format: str = "F32") -> SourceTensor:
    """A tensor in memory, in F32 or encoded as `format` already."""
    data = values.view(np.uint8) if format == "F32" else formats.get(format).encode(values)
    rows = data.reshape(-1, data.shape[-1])
    return SourceTensor(name, values.shape, format, lambda start, stop: rows[start:stop])


def tensor(path: Path, name: str) -> NDArray[np.uint8]:
    """A tensor's bytes as the gguf package reads them."""
    (found,) = (t for t in gguf.GGUFReader(path).tensors if t.name == name)
    return np.array(found.data).view(np.uint8).ravel()


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A folder that must be empty in the end, as must be the list of threads that write."""
    path = tmp_path / "folder"
    path.mkdir()
    yield path
    assert not list(path.iterdir())
    assert not [t for t in threading.enumerate() if t.name == "pyllm-writer"]


# The pipeline


@pytest.mark.parametrize("piece", [1, 100, 1 << 22])
def test_pieces_give_what_the_whole_gives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, piece: int) -> None:
    monkeypatch.setattr(pipeline, "_PIECE", piece)
    values, other, norm = weights(5, 64), weights(2, 3, 32), weights(64)
    sources = [source("w", values), source("q", other, "Q8_0"), source("n", norm), source("c", values, "Q8_0")]
    wanted = {"w": "Q8_0", "q": "F16", "n": "F32"}
    told: list[str] = []
    shares: list[float] = []
    summary = write_model(
        tmp_path / "m.gguf",
        ARCH,
        sources,
        wanted,
        n_threads=2,
        progress=lambda text, share: shares.append(share) if text in ("w", "q", "n", "c") else None,
        on_tensor=lambda result: told.append(result.name),
    )
    decoded = formats.get("Q8_0").decode(formats.get("Q8_0").encode(other))
    assert np.array_equal(tensor(tmp_path / "m.gguf", "w"), formats.get("Q8_0").encode(values).ravel())
    assert np.array_equal(tensor(tmp_path / "m.gguf", "q"), decoded.astype(np.float16).view(np.uint8).ravel())
    assert np.array_equal(tensor(tmp_path / "m.gguf", "n"), norm.view(np.uint8))
    assert np.array_equal(tensor(tmp_path / "m.gguf", "c"), formats.get("Q8_0").encode(values).ravel())
    assert told == [t.name for t in summary.tensors] == ["w", "q", "n", "c"]
    assert [(t.source_format, t.format, t.is_copy) for t in summary.tensors] == [
        ("F32", "Q8_0", False),
        ("Q8_0", "F16", False),
        ("F32", "F32", True),
        ("Q8_0", "Q8_0", True),
    ]
    assert shares == sorted(shares)
    assert shares[-1] <= 1
    assert summary.paths == (tmp_path / "m.gguf",)
    assert summary.n_bytes == (tmp_path / "m.gguf").stat().st_size
    assert summary.bits_per_weight == pytest.approx(8 * (2 * 5 * 68 + 192 * 2 + 256) / (640 + 192 + 64))
    assert {f: [t.name for t in g] for f, g in summary.by_format().items()} == {
        "Q8_0": ["w", "c"],
        "F16": ["q"],
        "F32": ["n"],
    }


def test_errors_are_summed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "_PIECE", 64)
    values = weights(6, 32)
    summary = write_model(tmp_path / "m.gguf", {}, [source("w", values)], {"w": "Q8_0"}, n_threads=1)
    decoded = formats.get("Q8_0").decode(tensor(tmp_path / "m.gguf", "w").reshape(6, -1)).astype(np.float64)
    (result,) = summary.tensors
    assert result.error.squared == pytest.approx(np.square(decoded - values).sum(), rel=1e-5)
    assert result.error.power == pytest.approx(np.square(values.astype(np.float64)).sum(), rel=1e-5)
    assert total_error(summary.tensors) == result.error
    assert result.is_weighted is False


class Matrix:
    """An importance matrix of given values."""

    def __init__(self, **values: NDArray[np.float32]) -> None:
        self.values = values

    def importance(self, name: str, columns: int | None = None) -> NDArray[np.float32] | None:
        return self.values.get(name)


@pytest.mark.parametrize("n_matrices", [1, 3])
def test_experts_have_importance_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, n_matrices: int) -> None:
    monkeypatch.setattr(pipeline, "_PIECE", 100)
    values, importance = weights(3, 5, 64), np.exp(3 * weights(n_matrices, 64))
    summary = write_model(
        tmp_path / "m.gguf",
        {},
        [source("experts", values)],
        {"experts": "Q4_0"},
        imatrix=Matrix(experts=importance),
        n_threads=1,
    )
    q4 = formats.get("Q4_0")
    each = [q4.encode(values[i], importance[i % n_matrices]) for i in range(3)]
    assert np.array_equal(tensor(tmp_path / "m.gguf", "experts"), np.concatenate(each).ravel())
    errors = np.square(q4.decode(np.stack(each)).astype(np.float64) - values) * importance[:, None]
    (result,) = summary.tensors
    assert result.is_weighted
    assert result.error.squared == pytest.approx(errors.sum(), rel=1e-4)


def test_a_split_file(tmp_path: Path) -> None:
    sources = [source(f"w{i}", weights(8, 32)) for i in range(4)]
    summary = write_model(tmp_path / "m.gguf", ARCH, sources, {}, n_threads=1, split_bytes=2500)
    assert [p.name for p in summary.paths] == ["m-00001-of-00002.gguf", "m-00002-of-00002.gguf"]
    with open_gguf(summary.paths[0]) as file:
        again = write_model(tmp_path / "w.gguf", ARCH, sources_of(file), {}, n_threads=1)
        assert [t.name for t in again.tensors] == ["w0", "w1", "w2", "w3"]
        assert all(np.array_equal(tensor(tmp_path / "w.gguf", t.name), t.data) for t in file.tensors.values())


def test_rows_are_read_ahead_and_given_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    specs = [TensorSpec(name, (64, 1024), "F32") for name in "ab"]
    with GGUFWriter(tmp_path / "m.gguf", ARCH, specs) as writer:
        writer.write(np.arange(2 * 64 * 1024, dtype=np.float32))
    asked: list[tuple[str, int, int]] = []
    monkeypatch.setattr(source_module, "_READ_AHEAD", 8 * 4096)
    with open_gguf(tmp_path / "m.gguf") as file:
        begin = {n: t.data.ctypes.data - file.tensors["a"].data.ctypes.data for n, t in file.tensors.items()}

        def advise(name: str, start: int, stop: int | None, advice: str, *, inside: bool) -> None:
            n_bytes = file.tensors[name].n_bytes
            asked.append((advice, begin[name] + start, begin[name] + (n_bytes if stop is None else stop)))

        monkeypatch.setattr(file, "_advise", advise)
        at = 0
        for s in sources_of(file):
            for row in range(0, 64, 16):
                asked.clear()
                rows = s.read(row, row + 16).view(np.float32)
                assert np.array_equal(rows.ravel(), np.arange(at, at + 16 * 1024))
                used, ahead = 4 * at, min(4 * at + 24 * 4096, 2 * 64 * 4096)
                at += 16 * 1024
                assert max(stop for advice, _, stop in asked if advice == "MADV_DONTNEED") == used
                wanted = [(start, stop) for advice, start, stop in asked if advice == "MADV_WILLNEED"]
                assert wanted[0][0] == used
                assert wanted[-1][1] == ahead


def test_memory_is_bounded(tmp_path: Path) -> None:
    """A tensor of 200 MB (a hole in the file) is quantized in less than half of that."""
    path = tmp_path / "m.gguf"
    rows, columns = 25_000, 4096
    with GGUFWriter(path, ARCH, [TensorSpec("w", (1, 32), "F16")]) as writer:
        writer.write(bytes(64))
    specs = [TensorSpec("w", (rows, columns), "F16")]
    header = GGUFWriter(path, ARCH, specs).parts[0].header
    with open(path, "wb") as file:
        file.write(header)
        file.truncate(len(header) + specs[0].n_bytes)
    script = """
import re, sys
from pyllm.gguf import open_gguf
from pyllm.quant.encoder import Encoder
from pyllm.quant.formats import get
from pyllm.quant.pipeline import write_model
from pyllm.quant.source import sources_of
import numpy as np
def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) << 10
with open_gguf(sys.argv[1]) as file, Encoder(1) as encoder:
    encoder.encode(get("Q8_0"), np.zeros((1, 64), np.uint8), "F16")
    before = peak()
    write_model(sys.argv[2], {}, sources_of(file), {"w": "Q8_0"}, n_threads=1)
    print(peak() - before)
"""
    if not Path("/proc/self/status").exists():
        pytest.skip("only Linux tells the peak of a process's memory so")
    done = subprocess.run(
        [sys.executable, "-c", script, str(path), str(tmp_path / "q.gguf")], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) < 100 << 20


# What goes wrong in the pipeline


def test_weights_that_are_none(folder: Path) -> None:
    values = weights(4, 32)
    values[2, 5] = np.nan
    with pytest.raises(FormatError, match=r"^w, from row 0 on: 1 rows hold values that are infinite or no numbers"):
        write_model(folder / "m.gguf", {}, [source("w", values)], {"w": "Q8_0"}, n_threads=1)


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_a_source_that_fails(folder: Path, error: type[BaseException]) -> None:
    def read(start: int, stop: int) -> NDArray[np.uint8]:
        raise error

    sources = [source("w", weights(4, 32)), SourceTensor("x", (4, 32), "F32", read)]
    with pytest.raises(error):
        write_model(folder / "m.gguf", {}, sources, {"w": "Q8_0"}, n_threads=1)


@pytest.mark.parametrize("at", [1, 2, 3])
def test_a_full_disk(folder: Path, monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    """Whether it is noticed at the next piece or in the end."""
    real, calls = os.write, 0

    def full(file: int, data: memoryview) -> int:
        nonlocal calls
        calls += 1
        if calls >= at:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(file, data)

    sources = [source(f"w{i}", weights(4, 32)) for i in range(6)]
    monkeypatch.setattr(os, "write", full)
    with pytest.raises(GGUFError, match="the disk is full"):
        write_model(folder / "m.gguf", {}, sources, {}, n_threads=1)


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({"v": "Q8_0"}, "there is no tensor 'v' to give a format to"),
        ({"w": "Q4_K"}, "'w' of shape .4, 32. cannot be Q4_K"),
        ({"w": "Q9_0"}, "'Q9_0'"),
        ({"w": "Q8_K"}, "cannot encode Q8_K|cannot be Q8_K"),
    ],
)
def test_formats_that_cannot_be(folder: Path, wanted: dict[str, str], message: str) -> None:
    with pytest.raises(FormatError, match=message):
        write_model(folder / "m.gguf", {}, [source("w", weights(4, 32))], wanted, n_threads=1)


def test_importance_of_another_shape(folder: Path) -> None:
    for importance in (np.ones((2, 32), np.float32), np.ones((1, 64), np.float32)):
        with pytest.raises(RequestError, match=r"importance of w is .* the importance matrix is of another model"):
            write_model(
                folder / "m.gguf",
                {},
                [source("w", weights(4, 32))],
                {"w": "Q8_0"},
                imatrix=Matrix(w=importance),
                n_threads=1,
            )


# Files


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model of one layer with a table, a norm and three matrices."""
    path = tmp_path / "f32.gguf"
    shapes = {
        "token_embd.weight": (40, 64),
        "blk.0.attn_norm.weight": (64,),
        "blk.0.attn_q.weight": (64, 64),
        "blk.0.ffn_down.weight": (64, 96),
        "output.weight": (40, 64),
    }
    specs = [TensorSpec(name, shape, "F32") for name, shape in shapes.items()]
    metadata = ARCH | {"general.file_type": Value.of(0), "quantize.imatrix.file": Value.of("old")}
    with GGUFWriter(path, metadata, specs) as writer:
        for spec in specs:
            writer.write(weights(*spec.shape))
    return path


def matrix_for(*names: str, columns: int = 64) -> ImportanceMatrix:
    sums = {name: Sums(np.ones((1, columns)), np.array([10])) for name in names}
    return ImportanceMatrix(sums, ["text.txt"], chunks=4)


def fields(path: Path) -> dict[str, Any]:
    return {k: f.contents() for k, f in gguf.GGUFReader(path).fields.items() if not k.startswith("GGUF.")}


def test_a_file_by_a_recipe(model: Path, tmp_path: Path) -> None:
    target = tmp_path / "q.gguf"
    summary = pyllm.quantize(model, target, "q4_0", n_threads=1, options=RecipeOptions(leave_output=True))
    assert [t.format for t in summary.tensors] == ["Q4_0", "F32", "Q4_0", "Q4_0", "F32"]
    assert fields(target) == {
        "general.architecture": "llama",
        "llama.block_count": 1,
        "general.quantization_version": 2,
        "general.file_type": 2,
    }
    with open_gguf(model) as file:
        values = file.tensors["blk.0.attn_q.weight"].data.view(np.float32).reshape(64, 64)
    assert np.array_equal(tensor(target, "blk.0.attn_q.weight"), formats.get("Q4_0").encode(values).ravel())


def test_an_importance_matrix(model: Path, tmp_path: Path) -> None:
    matrix_for("blk.0.attn_q.weight").save(tmp_path / "i.gguf")
    target = tmp_path / "q.gguf"
    summary = pyllm.quantize(model, target, "Q4_0", imatrix=tmp_path / "i.gguf", n_threads=1)
    assert [t.is_weighted for t in summary.tensors] == [False, False, True, False, False]
    found = fields(target)
    assert {k.rpartition(".")[2]: v for k, v in found.items() if k.startswith("quantize.imatrix.")} == {
        "file": "i.gguf",
        "dataset": "text.txt",
        "entries_count": 1,
        "chunks_count": 4,
    }


def test_plans(model: Path) -> None:
    with open_gguf(model) as file:
        choices = [Choice(t.name, t.format) for t in file.tensors.values()]
        choices[2] = Choice("blk.0.attn_q.weight", "Q8_0", "because")
        choices[4] = Choice("output.weight", "Q8_0")
        planned = plan(file, choices, None, imatrix=matrix_for("blk.0.ffn_down.weight", "output.weight"))
        assert planned.fallbacks == {"blk.0.attn_q.weight": "because"}
        assert planned.unweighted == ("blk.0.attn_q.weight",)
        assert planned.source_formats == ("F32",) * 5
        assert planned.formats["blk.0.attn_q.weight"] == "Q8_0"
        metadata = quantized_metadata({}, planned.file_type)
        assert list(metadata) == ["general.quantization_version"]


@pytest.mark.parametrize("split_bytes", [None, 5000])
def test_sizes_are_known_before(model: Path, tmp_path: Path, split_bytes: int | None) -> None:
    target = tmp_path / "q.gguf"
    with open_gguf(model) as file:
        choices = [Choice(t.name, "Q8_0" if len(t.shape) > 1 else "F32") for t in file.tensors.values()]
        expected = planned_bytes(file, plan(file, choices, 7), split_bytes)
    summary = pyllm.quantize(model, target, "Q8_0", n_threads=1, split_bytes=split_bytes)
    assert sum(p.stat().st_size for p in summary.paths) == summary.n_bytes == expected


def refused(model: Path, match: str, kind: type[Exception], recipe: str = "Q8_0", **options: Any) -> None:
    target = options.pop("target", model.with_name("q.gguf"))
    before = sorted(model.parent.iterdir())
    with pytest.raises(kind, match=match):
        pyllm.quantize(model, target, recipe, n_threads=1, **options)
    assert sorted(model.parent.iterdir()) == before


def test_what_is_quantized_already(model: Path, tmp_path: Path) -> None:
    q8 = tmp_path / "q8.gguf"
    pyllm.quantize(model, q8, "Q8_0", n_threads=1)
    refused(q8, r"token_embd\.weight is Q8_0 already, .* \(--allow-requantize\)", FormatError, "Q4_0")
    assert pyllm.quantize(q8, tmp_path / "same.gguf", "Q8_0", n_threads=1).tensors[0].is_copy
    again = pyllm.quantize(q8, tmp_path / "f16.gguf", "F16", n_threads=1, allow_requantize=True)
    assert again.tensors[0].format == "F16"


@pytest.mark.parametrize("matrix", [None, matrix_for("output.weight")])
def test_recipes_that_need_importance(model: Path, matrix: ImportanceMatrix | None) -> None:
    message = "useless without an importance matrix: collect one" if matrix is None else "has none of it"
    with open_gguf(model) as file:
        choices = [Choice(t.name, t.format) for t in file.tensors.values()]
        choices[2] = Choice("blk.0.attn_q.weight", "Q8_0", needs_importance=True)
        choices[4] = Choice("output.weight", "Q8_0")
        with pytest.raises(RequestError, match=rf"Q8_0, which blk\.0\.attn_q\.weight should be, .*{message}"):
            plan(file, choices, 7, imatrix=matrix)


def test_importance_of_another_model(model: Path, tmp_path: Path) -> None:
    matrix_for("blk.9.attn_q.weight").save(tmp_path / "names.gguf")
    refused(model, "of another model: it has 1 weights, but none", RequestError, imatrix=tmp_path / "names.gguf")
    matrix_for("blk.0.attn_q.weight", columns=80).save(tmp_path / "sizes.gguf")
    refused(model, "importance matrix is of another model", RequestError, imatrix=tmp_path / "sizes.gguf")


def test_other_refusals(model: Path) -> None:
    refused(model, "'Q4_K_L' is not a recipe; did you mean Q4_K_S or Q4_K_M", FormatError, "Q4_K_L")
    refused(model, "f32.gguf exists", GGUFError, target=model)
    refused(model, "f32.gguf is the file that is read", GGUFError, target=model, overwrite=True)
    refused(model, "there is no folder", GGUFError, target=model.parent / "no" / "q.gguf")


def test_interrupted(model: Path) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = sorted(model.parent.iterdir())
    with pytest.raises(KeyboardInterrupt):
        pyllm.quantize(model, model.with_name("q.gguf"), "Q8_0", n_threads=2, on_tensor=interrupt)
    assert sorted(model.parent.iterdir()) == before
