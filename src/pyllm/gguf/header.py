"""The header of one GGUF file: magic, version, counts, metadata, and the tensors' places. Only what is needed to find
the end is decoded, and counts that contradict the file's size allocate nothing.

Source: the GGUF specification (docs/gguf.md in the ggml repository), versions 2 and 3.
"""

from __future__ import annotations

from struct import Struct

from pyllm.gguf.mapped import MappedFile
from pyllm.gguf.metadata import Field, Metadata, locate
from pyllm.gguf.types import BY_ID, REMOVED, GGMLType, ValueType
from pyllm.records import dataclass

VERSIONS = (2, 3)
_MAX_NAME = 65535  # bytes, the specification's limit for keys
_MAX_DIMS = 4
_DIMS = tuple(Struct(f"<{n}Q") for n in range(_MAX_DIMS + 1))
_TYPE_OFFSET = Struct("<IQ")
_KV_LEAST = 8 + 4 + 1  # bytes of the shortest entry
_TENSOR_LEAST = 8 + 4 + 4 + 8

_OTHER_MAGICS = {
    b"vers": "a Git LFS pointer, not the file itself: fetch it with `git lfs pull`",
    b"<!do": "a web page, not a model: download it again",
    b"<htm": "a web page, not a model: download it again",
    b"pk\x03\x04": "a zip archive or PyTorch checkpoint: convert it to GGUF",
    b"tjgg": "a GGML file from before GGUF: convert the original model again",
    b"fmgg": "a GGML file from before GGUF: convert the original model again",
    b"lmgg": "a GGML file from before GGUF: convert the original model again",
}


@dataclass(frozen=True, slots=True)
class TensorRecord:
    """A tensor's entry in the header: `start` and `n_bytes` in the file, `shape` outermost first."""

    name: str
    shape: tuple[int, ...]
    type: GGMLType
    start: int
    n_bytes: int


@dataclass(frozen=True, slots=True)
class Header:
    """One file's header. `data_start` is the base of the tensors' offsets."""

    version: int
    alignment: int
    metadata: Metadata
    tensors: tuple[TensorRecord, ...]
    data_start: int


def read_header(file: MappedFile) -> Header:
    """Read and check a file's header. Raises GGUFError."""
    version = _version(file)
    n_tensors = file.u64(8, "the number of tensors")
    n_fields = file.u64(16, "the number of metadata entries")
    _check_count(file, 8, n_tensors, _TENSOR_LEAST, "tensors")
    _check_count(file, 16, n_fields, _KV_LEAST, "metadata entries")
    fields, pos = _fields(file, 24, n_fields)
    metadata = Metadata(file, fields)
    alignment = _alignment(file, metadata)
    raw: dict[str, _RawTensor] = {}
    for _ in range(n_tensors):
        begin = pos
        name, tensor, pos = _raw_tensor(file, pos)
        if name in raw:
            raise file.error(begin, f"tensor {name!r} occurs twice")
        raw[name] = tensor
    data_start = -(-pos // alignment) * alignment
    tensors = tuple(_place(file, name, t, data_start, alignment) for name, t in raw.items())
    _check_overlap(file, tensors)
    return Header(version, alignment, metadata, tensors, data_start)


def _version(file: MappedFile) -> int:
    magic = file.map[:4]
    if magic != b"GGUF":
        what = _OTHER_MAGICS.get(magic.lower())
        raise file.error(
            0, f"this is {what}" if what else f"this is not a GGUF file: it begins with {magic!r}, not b'GGUF'"
        )
    version = file.u32(4, "the version")
    if version and version & 0xFFFF == 0:
        raise file.error(4, "this is a big-endian GGUF file; convert the model for little-endian machines")
    if version == 1:
        raise file.error(4, "GGUF version 1 is not supported; convert the model again with current tools")
    if version not in VERSIONS:
        raise file.error(4, f"GGUF version {version} is unknown; pyllm reads versions 2 and 3")
    return version


def _check_count(file: MappedFile, offset: int, count: int, least: int, what: str) -> None:
    if count * least > file.size:
        raise file.error(offset, f"{count} {what} cannot fit into {file.size} bytes")


def _name(file: MappedFile, pos: int, what: str) -> tuple[str, int]:
    n = file.u64(pos, f"the length of {what}")
    if n > _MAX_NAME:
        raise file.error(pos, f"{what} is {n} bytes long; at most {_MAX_NAME} are allowed")
    file.need(pos + 8, n, what)
    try:
        return file.map[pos + 8 : pos + 8 + n].decode("utf-8"), pos + 8 + n
    except UnicodeDecodeError:
        raise file.error(pos + 8, f"{what} is not UTF-8") from None


def _fields(file: MappedFile, pos: int, count: int) -> tuple[dict[str, Field], int]:
    fields: dict[str, Field] = {}
    for _ in range(count):
        begin = pos
        key, pos = _name(file, pos, "a metadata key")
        if key in fields:
            raise file.error(begin, f"metadata key {key!r} occurs twice")
        type_id = file.u32(pos, f"the type of {key!r}")
        fields[key], pos = locate(file, pos + 4, type_id)
    return fields, pos


def _alignment(file: MappedFile, metadata: Metadata) -> int:
    if "general.alignment" not in metadata:
        return 32
    field = metadata.field("general.alignment")
    value = metadata["general.alignment"] if field.type in _INTEGERS else 0
    if value < 1 or value & (value - 1):
        raise file.error(field.offset, "general.alignment must be a power of two")
    return int(value)


_INTEGERS = frozenset(t for t in ValueType if t.name.startswith(("UINT", "INT")))


@dataclass(frozen=True, slots=True)
class _RawTensor:
    at: int
    shape: tuple[int, ...]
    type_id: int
    offset: int


def _raw_tensor(file: MappedFile, pos: int) -> tuple[str, _RawTensor, int]:
    begin = pos
    name, pos = _name(file, pos, "a tensor's name")
    n_dims = file.u32(pos, f"the rank of {name!r}")
    if n_dims > _MAX_DIMS:
        raise file.error(pos, f"tensor {name!r} has {n_dims} dimensions; at most {_MAX_DIMS} are allowed")
    file.need(pos + 4, 8 * n_dims + 12, f"the description of {name!r}")
    dims = _DIMS[n_dims].unpack_from(file.map, pos + 4)
    pos += 4 + 8 * n_dims
    type_id, offset = _TYPE_OFFSET.unpack_from(file.map, pos)
    return name, _RawTensor(begin, dims[::-1], type_id, offset), pos + 12


def _place(file: MappedFile, name: str, raw: _RawTensor, data_start: int, alignment: int) -> TensorRecord:
    kind = BY_ID.get(raw.type_id)
    if kind is None:
        known = REMOVED.get(raw.type_id)
        why = f"type {known}, which ggml gave up; quantize again" if known else f"the unknown type {raw.type_id}"
        raise file.error(raw.at, f"tensor {name!r} has {why}")
    n = extent = 1
    for d in raw.shape:
        n *= d
        extent *= max(d, 1)
    if extent >= 1 << 60:
        raise file.error(raw.at, f"tensor {name!r} has the impossible shape {raw.shape}")
    width = raw.shape[-1] if raw.shape else 1
    if width % kind.block_size:
        raise file.error(
            raw.at, f"tensor {name!r} has rows of {width}, not a multiple of {kind.name}'s block of {kind.block_size}"
        )
    if raw.offset % alignment:
        raise file.error(raw.at, f"tensor {name!r} begins at {raw.offset}, which is not a multiple of {alignment}")
    start, n_bytes = data_start + raw.offset, kind.n_bytes(n)
    if start + n_bytes > file.size:
        raise file.error(
            raw.at,
            f"tensor {name!r} should lie at {start} to {start + n_bytes}, but the file ends after {file.size} bytes; "
            "it is truncated or damaged: download it again",
        )
    return TensorRecord(name, raw.shape, kind, start, n_bytes)


def _check_overlap(file: MappedFile, tensors: tuple[TensorRecord, ...]) -> None:
    before: TensorRecord | None = None
    for t in sorted((t for t in tensors if t.n_bytes), key=lambda t: t.start):
        if before is not None and t.start < before.start + before.n_bytes:
            raise file.error(t.start, f"tensors {before.name!r} and {t.name!r} overlap")
        before = t
