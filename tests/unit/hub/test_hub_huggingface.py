"""Models on Hugging Face: found, fetched, continued, checked, listed, removed; the hub is a server made here."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from downloads import DATA, REVISION, SHA, Server, Use, entry
from huggingface_hub import constants

import pyllm
from pyllm import hub
from pyllm.errors import HubError
from pyllm.hub import disk
from pyllm.hub.sources import huggingface

NAME = "hf.co/user/repo:Q4_0"


def blobs(cache: Path) -> list[str]:
    return sorted(p.name for p in (cache / "models--user--repo" / "blobs").iterdir())


def test_a_file_is_fetched_into_the_cache_that_other_programs_share(server: Server, cache: Path) -> None:
    seen: list[tuple[str, float]] = []
    path = hub.resolve(NAME, lambda text, share: seen.append((text, share)))
    assert path.read_bytes() == DATA
    assert path == cache / "models--user--repo" / "snapshots" / REVISION / "m-Q4_0.gguf"
    assert huggingface_hub.try_to_load_from_cache("user/repo", "m-Q4_0.gguf") == str(path)
    assert blobs(cache) == [SHA]
    assert server.asked == [None]
    assert ("downloading hf.co/user/repo/m-Q4_0.gguf (293.0 KiB)", 1.0) in seen


def test_what_another_program_fetched_is_not_fetched_again(server: Server) -> None:
    path = Path(huggingface_hub.hf_hub_download("user/repo", "m-Q4_0.gguf"))
    server.status = 500
    assert hub.resolve(NAME) == path
    assert server.asked == [None]


def test_what_was_fetched_is_found_without_network(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    path = hub.resolve(NAME)
    server.status = 500
    monkeypatch.setenv("PYLLM_OFFLINE", "1")
    for name in (NAME, "hf.co/user/repo", "hf.co/user/repo/m-Q4_0.gguf", "https://huggingface.co/user/repo"):
        assert hub.resolve(name) == path
        assert hub.pull(name) == path
    (local,) = [m for m in hub.models() if m.path is not None]
    assert (local.name, local.path, local.size, local.format) == (
        "hf.co/user/repo/m-Q4_0.gguf",
        path,
        len(DATA),
        "Q4_0",
    )
    assert hub.resolve(local.name) == path
    assert hub.remove(local.name) == [path]
    assert not path.exists()
    with pytest.raises(HubError, match="not here"):
        hub.remove(local.name)


def test_load_takes_the_name_of_a_file_on_hugging_face(server: Server) -> None:
    server.files["user/repo"]["bad.gguf"] = b"GGUF, and no more"
    with pytest.raises(pyllm.PyllmError, match=r"bad\.gguf") as caught:
        pyllm.load("hf.co/user/repo/bad.gguf")
    assert "there is no file" not in str(caught.value)


def test_removing_frees_the_disk_and_leaves_other_files(server: Server, cache: Path) -> None:
    server.files["user/repo"]["m-Q8_0.gguf"] = DATA[:1000]
    other = hub.resolve("hf.co/user/repo:Q8_0")
    hub.resolve(NAME)
    assert hub.remove(NAME) == [other.with_name("m-Q4_0.gguf")]
    assert other.read_bytes() == DATA[:1000]
    assert SHA not in blobs(cache)


def test_a_split_model_is_its_parts(server: Server, cache: Path) -> None:
    parts = {f"big/m-Q8_0-0000{i}-of-00002.gguf": DATA[:i] for i in (1, 2)}
    server.files["user/repo"] = dict(parts)
    first = hub.resolve("hf.co/user/repo:Q8_0")
    assert first.name == "m-Q8_0-00001-of-00002.gguf"
    (local,) = [m for m in hub.models() if m.path is not None]
    assert (local.name, local.path, local.size) == ("hf.co/user/repo/big/m-Q8_0.gguf", first, 3)
    assert hub.resolve(local.name) == first
    first.with_name("m-Q8_0-00002-of-00002.gguf").unlink()
    assert [m for m in hub.models() if m.path is not None] == []
    assert hub.resolve(local.name) == first
    assert first.with_name("m-Q8_0-00002-of-00002.gguf").read_bytes() == DATA[:2]


# The catalog


def source(repo: str, file: str) -> dict[str, Any]:
    return {"kind": "huggingface", "repo": repo, "file": file}


def test_a_name_of_the_catalog_stands_for_a_file(server: Server, use: Use) -> None:
    use(entry(source("user/repo", "m-Q4_0.gguf"), sha256=None, size=7))
    (before,) = hub.models()
    assert (before.name, before.path, before.size) == ("tiny:1", None, 7)
    path = hub.resolve("tiny")
    assert path.read_bytes() == DATA
    (after,) = hub.models()
    assert (after.name, after.path, after.size) == ("tiny:1", path, len(DATA))
    assert hub.pull("tiny:latest") == path
    assert hub.remove("tiny") == [path]


def test_a_file_that_has_another_name_is_found_by_its_format(server: Server, use: Use) -> None:
    server.files["user/repo"] |= {"m-Q8_0.gguf": b"x", "mmproj-Q4_0.gguf": b"y"}
    use(entry(source("user/repo", "renamed.gguf"), sha256=None))
    assert hub.resolve("tiny").name == "m-Q4_0.gguf"


def test_the_next_repository_is_tried(server: Server, use: Use) -> None:
    use(entry(source("gone/away", "m-Q4_0.gguf"), source("user/repo", "m-Q4_0.gguf"), sha256=None))
    assert hub.resolve("tiny").read_bytes() == DATA


def test_another_file_than_the_catalog_says_is_not_even_fetched(server: Server, use: Use) -> None:
    use(entry(source("user/repo", "m-Q4_0.gguf"), sha256="0" * 64))
    with pytest.raises(HubError, match="another file"):
        hub.resolve("tiny")
    assert server.asked == []


# Broken downloads


def test_a_download_continues_after_a_break(server: Server) -> None:
    server.drop = 120_000
    assert hub.resolve(NAME).read_bytes() == DATA
    assert server.asked == [None, "bytes=120000-", "bytes=240000-"]


def test_a_download_continues_in_a_later_run(server: Server, cache: Path) -> None:
    folder = cache / "models--user--repo" / "blobs"
    folder.mkdir(parents=True)
    (folder / f"{SHA}.incomplete").write_bytes(DATA[:1234])
    assert hub.resolve(NAME).read_bytes() == DATA
    assert server.asked == ["bytes=1234-"]
    assert blobs(cache) == [SHA]


@pytest.mark.parametrize(
    "beginning", [bytes(150_000), DATA + b"more", bytes(len(DATA))], ids=["zeros", "long", "wrong"]
)
def test_a_damaged_beginning_is_fetched_again(server: Server, cache: Path, beginning: bytes) -> None:
    folder = cache / "models--user--repo" / "blobs"
    folder.mkdir(parents=True)
    (folder / f"{SHA}.incomplete").write_bytes(beginning)
    assert hub.resolve(NAME).read_bytes() == DATA
    assert server.asked[-1] is None


def test_wrong_content_leaves_nothing(server: Server, cache: Path) -> None:
    server.hashes["m-Q4_0.gguf"] = "0" * 64
    with pytest.raises(HubError, match="does not match its SHA-256"):
        hub.resolve(NAME)
    assert blobs(cache) == []
    assert hub.models()[0].path is None


def test_files_too_large_for_one_request_are_left_to_the_library(
    server: Server, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface, "_largest_request", lambda: 1000)
    assert hub.resolve(NAME).read_bytes() == DATA
    hub.remove(NAME)
    server.hashes["m-Q4_0.gguf"] = "0" * 64
    with pytest.raises(HubError, match="does not match its SHA-256"):
        hub.resolve(NAME)
    assert blobs(cache) == []


def test_pull_repairs_what_was_damaged(server: Server) -> None:
    path = hub.resolve(NAME)
    path.resolve().write_bytes(bytes(len(DATA)))
    assert hub.pull(NAME).read_bytes() == DATA


def test_offline_pull_says_what_is_damaged(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    path = hub.resolve(NAME)
    path.resolve().write_bytes(bytes(len(DATA)))
    monkeypatch.setenv("PYLLM_OFFLINE", "1")
    with pytest.raises(HubError, match="is damaged"):
        hub.pull(NAME)
    assert path.exists()


def test_without_links_there_is_one_copy(server: Server, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import file_download

    def copy(src: str, dst: str, new_blob: bool = False) -> None:
        shutil.copyfile(src, dst)

    monkeypatch.setattr(file_download, "_create_symlink", copy)
    path = hub.resolve(NAME)
    assert path.read_bytes() == DATA
    assert blobs(cache) == []
    assert hub.pull(NAME) == path
    path.write_bytes(bytes(len(DATA)))
    assert hub.pull(NAME).read_bytes() == DATA


def test_remove_deletes_unfinished_downloads(server: Server, cache: Path) -> None:
    folder = cache / "models--user--repo" / "blobs"
    folder.mkdir(parents=True)
    part = folder / f"{SHA}.incomplete"
    part.write_bytes(b"x")
    lock = cache / ".locks" / "models--user--repo" / f"{SHA}.lock"
    with disk.locked(lock, lambda: None), pytest.raises(HubError, match="not here"):
        hub.remove(NAME)
    assert hub.remove(NAME) == [part]


# Errors


def test_the_users_token_is_sent_and_only_to_the_hub(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "secret")
    hub.resolve(NAME)
    assert server.tokens == {"Bearer secret"}


@pytest.mark.parametrize(
    ("status", "error", "words"),
    [
        (401, "RepoNotFound", r"shows no user/repo: the name is wrong, or the repository is private.*hf auth login"),
        (403, "GatedRepo", r"only to those who accepted its terms.*/user/repo.*hf auth login.*HF_TOKEN"),
        (401, "", "the token is not valid"),
        (403, "", "the token is not valid"),
        (404, "RepoNotFound", "shows no user/repo"),
        (503, "", "answered 503"),
    ],
)
def test_what_the_hub_refuses_is_one_sentence(server: Server, status: int, error: str, words: str) -> None:
    server.status, server.error = status, error
    with pytest.raises(HubError, match=words) as caught:
        hub.resolve(NAME)
    assert "\n" not in str(caught.value)


def test_nobody_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(HubError, match=r"127\.0\.0\.1:9 cannot be reached .*check the network") as caught:
        hub.resolve(NAME)
    assert "\n" not in str(caught.value)


def test_a_server_that_sends_nothing_is_given_up(server: Server, cache: Path, capfd: Any) -> None:
    server.drop = 0
    with pytest.raises(HubError, match="cannot be reached"):
        hub.resolve(NAME)
    assert blobs(cache) in ([], [f"{SHA}.incomplete"])
    assert capfd.readouterr().err == ""


def test_a_file_that_is_not_kept_by_hash_is_refused(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    server.hashes["m-Q4_0.gguf"] = "../../evil"
    with pytest.raises(HubError, match="keeps no hash"):
        hub.resolve(NAME)


@pytest.mark.parametrize("variable", ["PYLLM_OFFLINE", "HF_HUB_OFFLINE"])
def test_offline_asks_nobody(server: Server, use: Use, monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    monkeypatch.setenv(variable, "1")
    use(entry(source("user/repo", "m-Q4_0.gguf"), sha256=None))
    for name in (NAME, "tiny"):
        for find in (hub.resolve, hub.pull):
            with pytest.raises(HubError, match="--offline, PYLLM_OFFLINE or HF_HUB_OFFLINE"):
                find(name)
    assert server.tokens == set()


def test_too_little_room(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda path: usage._replace(free=len(DATA) - 1))
    with pytest.raises(HubError, match=r"not enough room.*HF_HOME"):
        hub.resolve(NAME)
    assert server.asked == []


@pytest.mark.parametrize(
    ("number", "words"), [(errno.ENOSPC, "is full; free some room"), (errno.EROFS, "nothing can be stored.*HF_HOME")]
)
def test_errors_of_the_disk(
    server: Server, cache: Path, monkeypatch: pytest.MonkeyPatch, number: int, words: str
) -> None:
    from huggingface_hub import file_download

    def http_get(url: str, part: Any, **_: Any) -> None:
        part.write(DATA[:1000])
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(file_download, "http_get", http_get)
    with pytest.raises(HubError, match=words):
        hub.resolve(NAME)
    assert blobs(cache) == [f"{SHA}.incomplete"]
    assert hub.models()[0].path is None


def test_a_folder_that_cannot_be_made(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "file" / "hub"))
    with pytest.raises(HubError, match="nothing can be stored in"):
        hub.resolve(NAME)


def test_interrupting_keeps_what_there_is(server: Server, cache: Path) -> None:
    def interrupt(text: str, share: float) -> None:
        raise KeyboardInterrupt

    server.drop = 250_000
    with pytest.raises(KeyboardInterrupt):
        hub.resolve(NAME, interrupt)
    assert blobs(cache) == [f"{SHA}.incomplete"]
    server.drop = None
    assert hub.resolve(NAME).read_bytes() == DATA
