"""A Hugging Face folder: its config.json, and its tensors by name, wherever in the shards they lie."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from pyllm.errors import ModelError
from pyllm.gguf.beside import beside
from pyllm_convert.lazy import Lazy
from pyllm_convert.safetensors import Entry, SafetensorsFile

_WHOLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_ENDING = ".safetensors"
_MAX_JSON = 32 << 20  # bytes


class Checkpoint:
    """An open folder: `config` is config.json, `tensors` those of all its safetensors files.

    Raises ModelError where something is missing, damaged, or of a kind that cannot be converted.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        if not folder.is_dir():
            raise ModelError(f"{folder} is no folder; give the one that holds config.json and the safetensors files")
        self.config = _config(folder)
        self._files: list[SafetensorsFile] = []
        try:
            self.tensors = self._tensors()
        except BaseException:
            self.close()
            raise

    @property
    def files(self) -> tuple[Path, ...]:
        """The files with tensors."""
        return tuple(file.path for file in self._files)

    def module(self, name: str) -> dict[str, Lazy]:
        """Tensors of a module in a folder of its own, such as "2_Dense"."""
        path = beside(self.folder / name / _WHOLE, _WHOLE)
        if path is None:
            raise ModelError(f"{self.folder / name} has no {_WHOLE}; download the weights of all modules")
        file = self._open(path)
        return {entry.name: _stored(file, entry) for entry in file.entries.values()}

    def close(self) -> None:
        """Unmap all files."""
        for file in self._files:
            file.close()

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def _tensors(self) -> dict[str, Lazy]:
        index = beside(self.folder / _INDEX, _INDEX)
        if index is not None:
            return self._from_index(_weight_map(index))
        tensors: dict[str, Lazy] = {}
        for path in _safetensors(self.folder):
            file = self._open(path)
            for entry in file.entries.values():
                if entry.name in tensors:
                    raise ModelError(f"tensor {entry.name} is in {path.name} and in another file of {self.folder}")
                tensors[entry.name] = _stored(file, entry)
        return tensors

    def _from_index(self, weight_map: dict[str, str]) -> dict[str, Lazy]:
        places = {name: beside(self.folder / _INDEX, name) for name in sorted(set(weight_map.values()))}
        missing = [name for name, path in places.items() if path is None]
        if missing:
            raise ModelError(f"{self.folder} lacks {', '.join(missing)}, which {_INDEX} names; download the rest")
        files = {name: self._open(path) for name, path in places.items() if path is not None}
        tensors = {}
        for name, part in weight_map.items():
            entry = files[part].entries.get(name)
            if entry is None:
                raise ModelError(f"{part} has no tensor {name}, though {_INDEX} says so; download it again")
            tensors[name] = _stored(files[part], entry)
        return tensors

    def _open(self, path: Path) -> SafetensorsFile:
        file = SafetensorsFile(path)
        self._files.append(file)
        return file


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file that holds a table. Raises ModelError where it is not there, too large or not JSON."""
    value = _parsed(path)
    if not isinstance(value, dict):
        raise ModelError(f"{path} holds no table")
    return value


def read_list(path: Path) -> list[Any]:
    """A JSON file that holds a list. Raises ModelError like `read_json`."""
    value = _parsed(path)
    if not isinstance(value, list):
        raise ModelError(f"{path} holds no list")
    return value


def _parsed(path: Path) -> Any:
    try:
        if path.stat().st_size > _MAX_JSON:
            raise ModelError(f"{path} is larger than {_MAX_JSON >> 20} MB; it cannot be what it is called")
        return json.loads(path.read_bytes())  # as bytes: UTF-8 with or without a mark at the beginning
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path} is not JSON: {error}") from None


def _config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    if not path.is_file():
        other = "; params.json belongs to another layout, take the one for transformers"
        hint = other if (folder / "params.json").is_file() else ""
        raise ModelError(f"{folder} has no config.json, so it is no model of transformers{hint}")
    return read_json(path)


def _weight_map(path: Path) -> dict[str, str]:
    table = read_json(path).get("weight_map")
    if not isinstance(table, dict) or not table or not all(isinstance(part, str) for part in table.values()):
        raise ModelError(f"{path} has no weight_map from tensors to files")
    for part in table.values():
        if not part.lower().endswith(_ENDING) or not part.isprintable() or any(c in part for c in '/\\:*?"<>|'):
            raise ModelError(f"{path} names the file {part!r}; only safetensors files beside it are read")
    return table


def _safetensors(folder: Path) -> list[Path]:
    """The files with weights of a folder without index. Raises ModelError, saying what is there instead."""
    whole = beside(folder / _WHOLE, _WHOLE)
    if whole is not None:
        return [whole]
    others = ("adapter", "consolidated")
    files = sorted(p for p in folder.iterdir() if p.suffix.lower() == _ENDING and p.is_file())
    found = [p for p in files if not p.name.lower().startswith(others)]
    if found:
        return found
    if (folder / "adapter_model.safetensors").is_file():
        raise ModelError(f"{folder} holds an adapter (LoRA), not a model")
    if any(folder.glob("*.bin")) or any(folder.glob("*.pt*")):
        raise ModelError(
            f"{folder} has weights as Python pickles (pytorch_model.bin), which can run any code and are not read; "
            "write them as safetensors with transformers: "
            'AutoModelForCausalLM.from_pretrained(folder, dtype="auto").save_pretrained(other)'
        )
    if any(folder.glob("*.gguf")):
        raise ModelError(f"{folder} holds GGUF files; these go to `pyllm quantize`")
    raise ModelError(f"{folder} has no safetensors files (model.safetensors); download the weights, too")


def _stored(file: SafetensorsFile, entry: Entry) -> Lazy:
    columns = entry.shape[-1] if entry.shape else 1
    return Lazy(
        entry.name,
        entry.shape,
        entry.dtype,
        lambda start, stop: file.read(entry, start * columns, stop * columns).reshape(stop - start, columns),
    )


def text_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of the language model: config.json with its text_config, if it has one, laid over."""
    inner = config.get("text_config")
    if not isinstance(inner, dict):
        return dict(config)
    return {**config, **{key: value for key, value in inner.items() if value is not None}}
