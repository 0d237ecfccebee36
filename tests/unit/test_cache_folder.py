"""A folder of saved pages: its bound, what goes first, several processes, processes that are killed."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from cache_tools import LAYOUT, RECURRENT, content, sequence, state_after
from hypothesis import given
from hypothesis import strategies as st

from pyllm.cache import CacheFolder, SavedPage
from pyllm.errors import CacheError, PyllmWarning

COST = 1 << 16
"""What a small page counts for."""
FILLING = Path(__file__).with_name("cache_filling.py")


def kept(folder: CacheFolder, pages: Sequence[SavedPage], first: int = 0) -> list[SavedPage]:
    return list(folder.read([page.tokens for page in pages], first))


def n_files(folder: Path) -> int:
    return len(list(folder.glob("*/*.page")))


def test_what_was_written_is_read_in_another_process_too(tmp_path: Path) -> None:
    pages = sequence(0, 4)
    CacheFolder(tmp_path, 100 * COST, LAYOUT).write(pages)
    other = CacheFolder(tmp_path, 100 * COST, LAYOUT)
    assert [content(page) for page in kept(other, pages)] == [content(page) for page in pages]
    assert [content(page) for page in kept(other, pages, 2)] == [content(page) for page in pages[2:]]
    assert kept(other, pages, 4) == []
    assert kept(other, sequence(1, 4)) == []
    branch = [*pages[:2], *sequence(2, 2, before=pages[:2])]
    assert len(kept(other, branch)) == 2


def test_another_layout_has_other_pages(tmp_path: Path) -> None:
    pages = sequence(0, 2)
    CacheFolder(tmp_path, 100 * COST, LAYOUT).write(pages)
    other = CacheFolder(tmp_path, 100 * COST, replace(LAYOUT, identity={"model": "two"}))
    assert kept(other, pages) == []
    other.write(pages)
    assert n_files(tmp_path) == 4


def test_the_folder_holds_no_more_than_its_size(tmp_path: Path) -> None:
    folder = CacheFolder(tmp_path, 10 * COST, LAYOUT)
    for seed in range(12):
        folder.write(sequence(seed, 3))
        assert n_files(tmp_path) <= 10
    assert len(kept(folder, sequence(11, 3))) == 3
    folder.write(sequence(99, 30))
    assert n_files(tmp_path) <= 10
    assert kept(folder, sequence(99, 30))[0].number == 0


def test_what_was_used_longest_ago_goes_first_and_the_ends_of_sequences_before_their_beginnings(tmp_path: Path) -> None:
    folder = CacheFolder(tmp_path, 10 * COST, LAYOUT)
    old, used, new = (sequence(seed, 3) for seed in range(3))
    for pages in (old, used, new):
        folder.write(pages)
        time.sleep(0.01)
    kept(folder, used)
    time.sleep(0.01)
    folder.write(sequence(3, 2))  # one page more than there is room for; a twentieth stays free
    assert [len(kept(folder, pages)) for pages in (old, used, new)] == [1, 3, 3]


def test_pages_are_read_up_to_the_last_one_with_a_state(tmp_path: Path) -> None:
    folder, pages = CacheFolder(tmp_path, 20 * COST, RECURRENT), sequence(0, 5)
    folder.write(pages)
    assert kept(folder, pages) == []
    folder.write([state_after(pages[1]), state_after(pages[3], 1)])
    wanted = [content(item) for item in (*pages[:4], state_after(pages[3], 1))]
    assert [content(item) for item in kept(folder, pages)] == wanted
    assert [content(item) for item in kept(folder, pages, 2)] == wanted[2:]
    assert kept(folder, pages, 4) == []
    (state,) = tmp_path.glob("*/000003-*.state")
    state.write_bytes(b"no state")
    with pytest.warns(PyllmWarning, match="is damaged"):
        assert len(kept(folder, pages)) == 4
    assert [content(item) for item in kept(folder, pages)][-1] == content(state_after(pages[1]))


def test_a_state_goes_before_its_page(tmp_path: Path) -> None:
    folder, pages = CacheFolder(tmp_path, 6 * COST + COST // 2, RECURRENT), sequence(0, 4)
    folder.write([*pages, state_after(pages[3]), state_after(pages[1])])
    time.sleep(0.01)
    folder.write(sequence(1, 1))
    assert n_files(tmp_path) == 5
    assert [path.name[:6] for path in tmp_path.glob("*/*.state")] == ["000001"]
    with pytest.raises(CacheError, match="holds no page with its state"):
        CacheFolder(tmp_path, COST + COST // 2, RECURRENT)


def test_a_page_that_is_written_later_keeps_those_before_it(tmp_path: Path) -> None:
    folder = CacheFolder(tmp_path, 10 * COST, LAYOUT)
    pages = sequence(0, 4)
    folder.write(pages[:2])
    time.sleep(0.01)
    folder.write(sequence(1, 4))
    time.sleep(0.01)
    folder.write(pages[2:], [(page.number, page.digest) for page in pages[:2]])
    time.sleep(0.01)
    folder.write(sequence(2, 3))
    assert len(kept(folder, pages)) == 4
    assert len(kept(folder, sequence(1, 4))) == 2


def test_pages_of_all_models_count(tmp_path: Path) -> None:
    one = CacheFolder(tmp_path, 8 * COST, LAYOUT)
    two = CacheFolder(tmp_path, 8 * COST, replace(LAYOUT, identity={"model": "two"}))
    one.write(sequence(0, 6))
    two.write(sequence(1, 6))
    assert n_files(tmp_path) <= 8
    assert len(kept(two, sequence(1, 6))) == 6


def test_a_page_that_is_not_whole_is_removed_and_said(tmp_path: Path) -> None:
    folder = CacheFolder(tmp_path, 100 * COST, LAYOUT)
    pages = sequence(0, 3)
    folder.write(pages)
    (path,) = tmp_path.glob("*/000001-*.page")
    data = bytearray(path.read_bytes())
    data[-100] ^= 1
    path.write_bytes(data)
    with pytest.warns(PyllmWarning, match=r"000001-\w+\.page is damaged \(1 of its pages is not as written\)"):
        assert len(kept(folder, pages)) == 1
    assert not path.exists()
    folder.write(pages)
    assert len(kept(folder, pages)) == 3


@given(at=st.integers(0), keep=st.integers(0), bit=st.integers(0, 8))
def test_damage_gives_no_other_content(tmp_path_factory: pytest.TempPathFactory, at: int, keep: int, bit: int) -> None:
    root = tmp_path_factory.mktemp("folder")
    folder = CacheFolder(root, 100 * COST, LAYOUT)
    pages = sequence(0, 1)
    folder.write(pages)
    (path,) = root.glob("*/*.page")
    data = bytearray(path.read_bytes())
    if bit < 8:
        data[at % len(data)] ^= 1 << bit
    else:
        del data[keep % len(data) :]
    path.write_bytes(data)
    with pytest.warns(PyllmWarning, match="is damaged"):
        assert kept(folder, pages) == []


def test_a_page_under_anothers_name_is_not_taken(tmp_path: Path) -> None:
    folder = CacheFolder(tmp_path, 100 * COST, LAYOUT)
    one, two = sequence(0, 1), sequence(1, 1)
    folder.write([*one, *two])
    names = {page.digest: next(tmp_path.glob(f"*/*{page.digest.hex()}.page")) for page in (*one, *two)}
    os.replace(names[one[0].digest], names[two[0].digest])
    with pytest.warns(PyllmWarning, match="it holds another page"):
        assert kept(folder, two) == []


def test_a_folder_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CacheError, match="file cannot hold a prefix cache: "):
        CacheFolder(tmp_path / "file", 100 * COST, LAYOUT)
    with pytest.raises(CacheError, match=r"a prefix cache of 1\.0 KiB holds no page, which takes 64\.0 KiB"):
        CacheFolder(tmp_path / "small", 1024, LAYOUT)


def test_a_folder_that_can_no_longer_be_written_costs_one_warning(tmp_path: Path) -> None:
    folder = CacheFolder(tmp_path / "cache", 100 * COST, LAYOUT)
    folder.write(sequence(0, 2))
    for path in [*(tmp_path / "cache").glob("*/*"), *(tmp_path / "cache").glob("*")]:
        path.rmdir() if path.is_dir() else path.unlink()
    (tmp_path / "cache").rmdir()
    (tmp_path / "cache").write_text("a file now")
    with pytest.warns(PyllmWarning, match="is not written: "):
        folder.write(sequence(1, 2))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        folder.write(sequence(2, 2))


def test_processes_share_a_folder_and_its_bound(tmp_path: Path) -> None:
    size = 20 * COST
    processes = [
        subprocess.Popen([sys.executable, str(FILLING), str(tmp_path), str(size), str(seed), "12"])
        for seed in range(1, 3)
    ]
    most = 0
    while any(process.poll() is None for process in processes):
        most = max(most, n_files(tmp_path))
        time.sleep(0.001)
    assert [process.returncode for process in processes] == [0, 0]
    assert 0 < most <= 20
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        folder = CacheFolder(tmp_path, size, LAYOUT)
        assert sum(len(kept(folder, sequence(1000 * seed + n, 5))) for seed in (1, 2) for n in range(12)) > 0


@pytest.mark.skipif(sys.platform == "win32", reason="kills by signals of POSIX")
def test_a_killed_process_leaves_no_damage(tmp_path: Path, pytestconfig: pytest.Config) -> None:
    kills: int = pytestconfig.getoption("--kills")
    moments = random.Random(kills)
    size = 40 * COST
    for seed in range(1, kills + 1):
        process = subprocess.Popen(
            [sys.executable, str(FILLING), str(tmp_path), str(size), str(seed)], stdout=subprocess.PIPE
        )
        with process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"begun\n"
            time.sleep(moments.uniform(0, 0.2))
            process.kill()
        assert n_files(tmp_path) <= 40
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        folder = CacheFolder(tmp_path, size, LAYOUT)
        assert not list(tmp_path.glob("*/.pyllm-*"))
        folder.write(sequence(1, 5))
        for seed in range(1, kills + 1):
            for n in range(1000):
                for got, page in zip(
                    kept(folder, sequence(1000 * seed + n, 5)), sequence(1000 * seed + n, 5), strict=False
                ):
                    assert content(got) == content(page)
    assert n_files(tmp_path) <= 40
