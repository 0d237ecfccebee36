"""Safetensors files and the folders around them: what is read, and what hostile or damaged ones are told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from convert_folders import LLAMA, file_bytes, header_of, llama_tensors, write_folder, write_tensors
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pyllm.errors import ModelError
from pyllm_convert.checkpoint import Checkpoint
from pyllm_convert.safetensors import SafetensorsFile

ONE = {"x": np.arange(6, dtype=np.float32).reshape(2, 3)}
ITEM: dict[str, Any] = {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}


def test_reads_rows_where_they_lie(tmp_path: Path) -> None:
    tensors = {"b": np.arange(12, dtype=np.float16).reshape(2, 2, 3), **ONE, "scalar": np.float32([[7]])[0, 0]}
    write_tensors(tmp_path / "a.safetensors", {k: np.asarray(v) for k, v in tensors.items()})
    file = SafetensorsFile(tmp_path / "a.safetensors")
    assert {e.name: e.shape for e in file.entries.values()} == {"b": (2, 2, 3), "x": (2, 3), "scalar": ()}
    x = file.read(file.entries["x"], 3, 6)
    assert x.tolist() == [3, 4, 5]
    assert file.read(file.entries["b"], 0, 12).tolist() == list(range(12))
    assert x.tolist() == [3, 4, 5]  # still valid
    file.close()


def test_metadata_is_no_tensor(tmp_path: Path) -> None:
    header = {"__metadata__": {"format": "pt"}, **header_of(ONE)}
    (tmp_path / "a.safetensors").write_bytes(file_bytes(header, ONE["x"].tobytes()))
    assert list(SafetensorsFile(tmp_path / "a.safetensors").entries) == ["x"]


@pytest.mark.parametrize(
    ("item", "said"),
    [
        (ITEM | {"data_offsets": [0, 28]}, "needs 24 bytes"),
        (ITEM | {"data_offsets": [8, 32]}, "truncated"),
        (ITEM | {"data_offsets": [-8, 16]}, "impossible"),
        (ITEM | {"data_offsets": [0, 1 << 70]}, "impossible"),
        (ITEM | {"data_offsets": [0]}, "lacks"),
        (ITEM | {"shape": [1 << 40, 1 << 40]}, "needs"),
        (ITEM | {"shape": [2.0, 3]}, "impossible"),
        (ITEM | {"shape": [True, 6]}, "impossible"),
        (ITEM | {"shape": [1] * 9}, "impossible"),
        (ITEM | {"shape": "23"}, "impossible"),
        (ITEM | {"dtype": "F4"}, "'F4'"),
        (ITEM | {"dtype": ["F32"]}, "type"),
        ({"dtype": "F32"}, "lacks"),
        (7, "lacks"),
    ],
)
def test_header_that_lies(tmp_path: Path, item: Any, said: str) -> None:
    (tmp_path / "a.safetensors").write_bytes(file_bytes({"x": item}, bytes(24)))
    with pytest.raises(ModelError, match=said):
        SafetensorsFile(tmp_path / "a.safetensors")


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (b"", "empty"),
        (b"version https://git-lfs.github.com/spec/v1\n", "LFS"),
        ((1 << 63).to_bytes(8, "little") + b"{}", "header should have"),
        ((99).to_bytes(8, "little") + b"{}", "header should have"),
        (file_bytes(b"{" * 50_000, b""), "not JSON"),
        (file_bytes(b"[" * 50_000, b""), "not JSON"),
        (file_bytes(b'{"x": ' + b"9" * 10_000 + b"}", b""), "not JSON"),
        (file_bytes(b"\xff\xfe", b""), "not JSON"),
        (file_bytes(b"[]", b""), "no table|not a table"),
        (file_bytes(b'{"x": {}, "x": {}}', b""), "twice"),
        (file_bytes({"x": ITEM, "y": ITEM | {"data_offsets": [8, 32]}}, bytes(32)), "overlap"),
    ],
)
def test_damaged_file(tmp_path: Path, raw: bytes, said: str) -> None:
    (tmp_path / "a.safetensors").write_bytes(raw)
    with pytest.raises(ModelError, match=said):
        SafetensorsFile(tmp_path / "a.safetensors")


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(at=st.integers(0, 400), byte=st.integers(0, 255), cut=st.none() | st.integers(0, 400))
def test_any_byte_changed_is_an_error_or_a_tensor(tmp_path: Path, at: int, byte: int, cut: int | None) -> None:
    raw = bytearray(file_bytes(header_of(ONE | {"y": np.zeros(5, np.uint8)}), bytes(29)))
    raw[at % len(raw)] = byte
    (tmp_path / "a.safetensors").write_bytes(bytes(raw[:cut]))
    try:
        file = SafetensorsFile(tmp_path / "a.safetensors")
    except ModelError:
        return
    for entry in file.entries.values():
        assert file.read(entry, 0, int(np.prod(entry.shape))).nbytes == entry.stop - entry.start
    file.close()


def sharded(folder: Path, weight_map: Any) -> Path:
    tensors = llama_tensors()
    write_folder(folder)
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    for i, part in enumerate((names[::2], names[1::2]), start=1):
        write_tensors(folder / f"model-{i:05d}-of-00002.safetensors", {n: tensors[n] for n in part})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder


def good_map() -> dict[str, str]:
    names = sorted(llama_tensors())
    return {n: f"model-{1 + i % 2:05d}-of-00002.safetensors" for i, n in enumerate(names)}


def test_shards_are_one_model(tmp_path: Path) -> None:
    with Checkpoint(sharded(tmp_path, good_map())) as checkpoint:
        assert {n: t.shape for n, t in checkpoint.tensors.items()} == {n: t.shape for n, t in llama_tensors().items()}
        name = "model.layers.0.mlp.down_proj.weight"
        assert np.array_equal(checkpoint.tensors[name].floats(3, 9), llama_tensors()[name][3:9])


@pytest.mark.parametrize(
    "part", ["../a.safetensors", "/etc/a.safetensors", "a/b.safetensors", "C:a.safetensors", "a.bin", "a\0.safetensors"]
)
def test_shards_lie_beside_their_index(tmp_path: Path, part: str) -> None:
    with pytest.raises(ModelError, match="only safetensors files beside it"):
        Checkpoint(sharded(tmp_path, good_map() | {"lm_head.weight": part}))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"lm_head.weight": "model-00003-of-00003.safetensors"}, "lacks model-00003-of-00003.safetensors"),
        ({"other.weight": "model-00001-of-00002.safetensors"}, "has no tensor other.weight"),
        ({"lm_head.weight": 3}, "weight_map"),
    ],
)
def test_index_that_lies(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    with pytest.raises(ModelError, match=said):
        Checkpoint(sharded(tmp_path, good_map() | change))


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"config.json": "{}"}, "no safetensors"),
        ({"config.json": "{}", "pytorch_model.bin": ""}, "save_pretrained"),
        ({"config.json": "{}", "adapter_model.safetensors": ""}, "adapter"),
        ({"config.json": "{}", "x.gguf": ""}, "pyllm quantize"),
        ({"params.json": "{}"}, "another layout"),
        ({}, "no config.json"),
        ({"config.json": "{"}, "not JSON"),
        ({"config.json": "[1]"}, "no table"),
    ],
)
def test_folder_that_is_no_model(tmp_path: Path, files: dict[str, str], said: str) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(ModelError, match=said):
        Checkpoint(tmp_path)


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="is no folder"):
        Checkpoint(tmp_path / "missing")


def test_agrees_with_the_config(tmp_path: Path) -> None:
    with Checkpoint(write_folder(tmp_path)) as checkpoint:
        assert checkpoint.config == LLAMA


@pytest.mark.parametrize("ending", ["safetensors", "SAFETENSORS"])
def test_shards_are_found_whatever_the_case_of_their_names(tmp_path: Path, ending: str) -> None:
    folder = sharded(tmp_path, {n: p.replace("safetensors", ending) for n, p in good_map().items()})
    for path in folder.glob("model-*.safetensors"):
        path.rename(path.with_name(path.name.upper()))
    (folder / "model.safetensors.index.json").rename(folder / "Model.Safetensors.Index.json")
    with Checkpoint(folder) as checkpoint:
        assert checkpoint.tensors.keys() == llama_tensors().keys()


@pytest.mark.parametrize("name", ["model.SAFETENSORS", "Model.safetensors", "weights.SafeTensors"])
def test_weights_are_found_whatever_the_case_of_their_name(tmp_path: Path, name: str) -> None:
    write_folder(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / name)
    with Checkpoint(tmp_path) as checkpoint:
        assert checkpoint.tensors.keys() == llama_tensors().keys()


def test_json_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    write_folder(tmp_path)
    path = tmp_path / "config.json"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    with Checkpoint(tmp_path) as checkpoint:
        assert checkpoint.config == LLAMA
