"""Models in several files, as the gguf package splits them."""

from __future__ import annotations

import struct
from pathlib import Path

import gguf
import gguf_bytes as g
import numpy as np
import pytest

from pyllm.errors import GGUFError
from pyllm.gguf import open_gguf
from pyllm.gguf.parts import part_path


@pytest.fixture
def parts(tmp_path: Path) -> list[Path]:
    """Five tensors of one float in three files."""
    w = gguf.GGUFWriter(tmp_path / "m.gguf", "llama", split_max_tensors=2)
    w.add_string("general.name", "split")
    for i in range(5):
        w.add_tensor(f"t{i}", np.full((i + 1,), i, np.float32))
    w.write_header_to_file(tmp_path / "m.gguf")
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()
    return sorted(tmp_path.glob("m-*.gguf"))


def test_the_first_opens_all(parts: list[Path]) -> None:
    assert [p.name for p in parts] == [f"m-0000{i}-of-00003.gguf" for i in (1, 2, 3)]
    with open_gguf(parts[0]) as f:
        assert f.parts == tuple(parts)
        assert f.metadata["general.name"] == "split"
        assert f.n_bytes == sum(p.stat().st_size for p in parts)
        assert list(f.tensors) == [f"t{i}" for i in range(5)]
        for i in range(5):
            assert f.tensors[f"t{i}"].data.view(np.float32).tolist() == [i] * (i + 1)
            f.prefetch(f"t{i}")
            f.release(f"t{i}")


def test_another_than_the_first(parts: list[Path]) -> None:
    with pytest.raises(GGUFError, match=r"part 2 of 3 .* open the first, m-00001-of-00003\.gguf"):
        open_gguf(parts[1])


def test_a_missing_part(parts: list[Path]) -> None:
    parts[2].unlink()
    with pytest.raises(GGUFError, match=r"m-00003-of-00003\.gguf is not beside it"):
        open_gguf(parts[0])


def test_a_renamed_part(parts: list[Path]) -> None:
    with pytest.raises(GGUFError, match="call it NAME-00001-of-00003"):
        open_gguf(parts[0].rename(parts[0].with_name("other.gguf")))


def test_a_part_of_another_place(parts: list[Path]) -> None:
    parts[1].write_bytes(parts[2].read_bytes())
    with pytest.raises(GGUFError, match=r"m-00002-of-00003\.gguf is not part 2 of this model"):
        open_gguf(parts[0])


def part(no: int, count: int, total: int, name: str) -> bytes:
    kvs = [
        g.kv("split.no", g.U16, g.scalar(g.U16, no)),
        g.kv("split.count", g.U16, g.scalar(g.U16, count)),
        g.kv("split.tensors.count", g.I32, g.scalar(g.I32, total)),
    ]
    return g.file(kvs, [g.tensor(name, (1,))], struct.pack("<f", no))


@pytest.mark.parametrize(
    ("names", "total", "message"),
    [("ab", 2, None), ("aa", 2, "'a' is in an earlier part"), ("ab", 3, "hold 2 tensors, not 3")],
)
def test_parts_must_agree(tmp_path: Path, names: str, total: int, message: str | None) -> None:
    for i in (0, 1):
        (tmp_path / f"x-{i + 1:05d}-of-00002.gguf").write_bytes(part(i, 2, total, names[i]))
    if message is None:
        with open_gguf(tmp_path / "x-00001-of-00002.gguf") as f:
            assert list(f.tensors) == ["a", "b"]
        return
    with pytest.raises(GGUFError, match=message):
        open_gguf(tmp_path / "x-00001-of-00002.gguf")


def test_counts_of_no_split(tmp_path: Path) -> None:
    """Files that hold every known key have zeros here; such a file is whole."""
    (tmp_path / "x.gguf").write_bytes(part(0, 0, 0, "a"))
    with open_gguf(tmp_path / "x.gguf") as f:
        assert list(f.tensors) == ["a"]


def test_a_count_that_is_no_number(tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(g.file([g.kv("split.count", g.STRING, g.string("three"))]))
    with pytest.raises(GGUFError, match="must be integers"):
        open_gguf(tmp_path / "x.gguf")


@pytest.mark.parametrize("endings", [("GGUF", "GGUF", "GGUF"), ("gguf", "GGUF", "Gguf"), ("Gguf", "gguf", "gguf")])
def test_parts_are_found_whatever_the_case_of_their_endings(parts: list[Path], endings: tuple[str, ...]) -> None:
    renamed = [p.rename(p.with_suffix(f".{e}")) for p, e in zip(parts, endings, strict=True)]
    with open_gguf(renamed[0]) as f:
        assert f.parts == tuple(renamed)
        assert list(f.tensors) == [f"t{i}" for i in range(5)]
    with pytest.raises(GGUFError, match=r"part 2 of 3 .* open the first"):
        open_gguf(renamed[1])


def test_parts_are_found_whatever_the_case_of_their_names(parts: list[Path]) -> None:
    renamed = parts[0].rename(parts[0].with_name("M-00001-OF-00003.gguf"))
    with open_gguf(renamed) as f:
        assert f.parts == (renamed, *parts[1:])


def test_a_part_of_the_same_case_goes_before_others(parts: list[Path]) -> None:
    parts[1].with_name("M-00002-of-00003.gguf").write_bytes(b"another model")
    with open_gguf(parts[0]) as f:
        assert f.parts == tuple(parts)


def test_a_missing_part_is_said_by_the_name_it_should_have(parts: list[Path]) -> None:
    first = parts[0].rename(parts[0].with_suffix(".GGUF"))
    parts[2].unlink()
    with pytest.raises(GGUFError, match=r"m-00003-of-00003\.gguf is not beside it"):
        open_gguf(first)


@pytest.mark.parametrize(
    ("name", "part"),
    [("m.gguf", "m-00002-of-00003.gguf"), ("M.GGUF", "M-00002-of-00003.gguf"), ("m", "m-00002-of-00003.gguf")],
)
def test_parts_are_named_without_the_ending_of_the_whole(name: str, part: str) -> None:
    assert part_path(Path(name), 1, 3) == Path(part)
