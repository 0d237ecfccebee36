"""Named models: made, listed, checked by hash, removed; names and damage."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest

from pyllm import hub
from pyllm.errors import HubError, PyllmWarning
from pyllm.hub import blobs, named
from pyllm.hub.modelfile import Modelfile


@pytest.fixture(autouse=True)
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PYLLM_DATA", str(tmp_path / "data"))
    return tmp_path / "data"


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "weights.gguf"
    path.write_bytes(b"weights")
    return path


def make(weights: Path, name: str = "mario", **more: object) -> hub.Named:
    return hub.create(name, Modelfile(weights.name, **more), weights.parent)  # type: ignore[arg-type]


def test_a_named_model_is_found_listed_and_removed(weights: Path, data: Path) -> None:
    made = make(weights, "Mario:latest", system="Be brief.", parameters={"temperature": 0.5, "stop": ["x"]})
    assert made.name == "Mario"
    for name in ("Mario", "mario", "MARIO:latest"):
        assert hub.find_named(name) == made
        assert hub.resolve(name) == weights
    (listed,) = [model for model in hub.models() if model.named]
    assert (listed.name, listed.path, listed.size, listed.named) == ("Mario", weights, 7, made)
    assert made.files == (named.Locked(str(weights), 7, hashlib.sha256(b"weights").hexdigest()),)
    assert [path.parent for path in hub.remove("mario")] == [data / "named"]
    assert hub.find_named("mario") is None
    assert weights.exists()
    with pytest.raises(HubError):
        hub.resolve("mario")


def test_settings_of_a_named_base_count_below_own_ones(weights: Path) -> None:
    make(weights, "one", system="first", template="{{ .Prompt }}", parameters={"top_k": 3, "seed": 1})
    two = hub.create("two", Modelfile("one", system="second", parameters={"seed": 2}), weights.parent)
    assert (two.system, two.template, two.parameters) == ("second", "{{ .Prompt }}", {"top_k": 3, "seed": 2})
    assert two.base == str(weights)
    three = hub.copy("two", "me/three:7b")
    assert (three.system, three.files) == ("second", two.files)
    assert hub.find_named("me/three:7b") == three


def test_a_file_that_changed_is_not_taken(weights: Path) -> None:
    make(weights)
    assert hub.pull("mario") == weights
    weights.write_bytes(b"weighty")  # of the same size
    assert hub.resolve("mario") == weights
    with pytest.raises(HubError, match="has changed"):
        hub.pull("mario")
    weights.write_bytes(b"other weights")
    with pytest.raises(HubError, match="has changed"):
        hub.resolve("mario")
    weights.unlink()
    with pytest.raises(HubError, match="is missing"):
        hub.resolve("mario")


def test_parts_of_a_split_model_are_all_kept(tmp_path: Path) -> None:
    parts = [tmp_path / f"m-0000{i}-of-00002.gguf" for i in (1, 2)]
    for part in parts:
        part.write_bytes(part.name.encode())
    made = hub.create("split", Modelfile(parts[0].name), tmp_path)
    assert [file.path for file in made.files] == [str(part) for part in parts]
    parts[1].unlink()
    with pytest.raises(HubError, match="is missing"):
        hub.resolve("split")


@pytest.mark.parametrize(
    "name",
    ["", " ", "../x", "a/../b", "/etc/passwd", "a/b/c", "a\\b", "x.gguf", "-f", ".hidden", "a:b:c", "a\0b", "a" * 99,
     "hf.co/a/b", "qwen2.5-coder:0.5b", "qwen2.5-coder", "ä", "a..b", "C:\\x", "a b", "a\n"],
)  # fmt: skip
def test_names_that_no_model_may_have(name: str, weights: Path, data: Path) -> None:
    if name == "a\n":
        assert named.name_of(name) == "a"  # blanks around a name are not part of it
        return
    with pytest.raises(HubError):
        make(weights, name)
    assert not data.exists()


def test_a_base_that_is_not_there(weights: Path) -> None:
    with pytest.raises(HubError):
        hub.create("x", Modelfile("nowhere.gguf"), weights.parent)
    with pytest.raises(HubError, match="there is no file"):
        hub.create("x", Modelfile(weights.name, adapters=("none.gguf",)), weights.parent)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": 9}', "\xff"])
def test_damaged_files_are_one_clear_error(text: str, weights: Path, data: Path) -> None:
    make(weights)
    (data / "named" / "mario.json").write_text(text, "latin-1")
    with pytest.raises(HubError, match="cannot be read"):
        hub.find_named("mario")
    with pytest.warns(PyllmWarning, match="cannot be read"):
        assert not [model for model in hub.models() if model.named]


def test_the_file_is_plain_json(weights: Path, data: Path) -> None:
    make(weights, "me/mario:7b", messages=(("user", "hi"),))
    raw = json.loads((data / "named" / "me%2Fmario%3A7b.json").read_text())
    assert raw["messages"] == [{"role": "user", "content": "hi"}]
    assert [path.name for path in (data / "named").iterdir()] == ["me%2Fmario%3A7b.json"]


def test_blobs_go_with_the_last_model_that_has_them(data: Path) -> None:
    digest = hashlib.sha256(b"blob").hexdigest()
    with blobs.Upload(digest, 100) as upload:
        upload.write(b"bl")
        upload.write(b"ob")
        path = upload.finish()
    assert path.read_bytes() == b"blob"
    one = named.make("one", Modelfile(str(path)), [path])
    named.save(one)
    hub.copy("one", "two")
    hub.remove("one")
    assert path.exists()
    assert path in hub.remove("two")
    assert not path.exists()


def test_blobs_that_no_model_has_go_after_a_day(data: Path) -> None:
    paths = {}
    for text in (b"used", b"unused", b"new", b"found"):
        digest = hashlib.sha256(text).hexdigest()
        with blobs.Upload(digest, 100) as upload:
            upload.write(text)
            paths[text] = upload.finish()
        if text != b"new":
            os.utime(paths[text], (0, 0))
    other = data / "blobs" / "notes.txt"
    other.write_text("somebody's")
    os.utime(other, (0, 0))
    named.save(named.make("one", Modelfile("x"), [paths[b"used"]]))
    damaged = data / "named" / "damaged.json"
    damaged.write_text("{}")
    assert named.remove_unused() == []  # it may have any of them
    damaged.unlink()
    assert blobs.find(hashlib.sha256(b"found").hexdigest()) == paths[b"found"]
    assert named.remove_unused() == [paths[b"unused"]]
    assert {path.name for path in (data / "blobs").iterdir()} == {
        other.name,
        *(path.name for text, path in paths.items() if text != b"unused"),
    }
    assert named.remove_unused() == []


def test_blobs_that_are_not_what_they_say_leave_nothing(data: Path) -> None:
    digest = hashlib.sha256(b"blob").hexdigest()
    with blobs.Upload(digest, 100) as upload:
        upload.write(b"blub")
        with pytest.raises(HubError, match="another SHA-256"):
            upload.finish()
    with pytest.raises(HubError, match="larger"), blobs.Upload(digest, 3) as upload:
        upload.write(b"blob")
    assert not list((data / "blobs").iterdir())
    new, old = (data / "blobs" / name for name in (".new.part", ".old.part"))
    for part in (new, old):
        part.write_bytes(b"")
    os.utime(old, (0, 0))
    with blobs.Upload(digest, 100):
        assert new.exists()
        assert not old.exists()
    for wrong in ("sha256:" + "A" * 64, "sha256:../../x", digest, "md5:" + digest, f"sha256:{digest}/"):
        with pytest.raises(HubError):
            blobs.digest_of(wrong)
    assert blobs.digest_of(f"sha256:{digest}") == blobs.digest_of(f"sha256-{digest}") == digest
