"""`pyllm quantize`, `split`, `merge` and `show --set`: what they write, print and refuse."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import click
import gguf
import numpy as np
import pytest
from command import Run

from pyllm.cli._types import FormatType, OverrideType, SizeType
from pyllm.gguf import open_gguf
from pyllm.quant.imatrix import ImportanceMatrix, Sums
from pyllm.quant.recipes import RECIPES


@pytest.fixture(scope="session")
def q8(model: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small model, quantized."""
    path = tmp_path_factory.mktemp("quantized") / "q8.gguf"
    arguments = [sys.executable, "-m", "pyllm", "quantize", model, str(path), "Q8_0"]
    subprocess.run(arguments, check=True, capture_output=True)
    return path


def formats(path: Path) -> dict[str, str]:
    return {t.name: t.tensor_type.name for t in gguf.GGUFReader(path).tensors}


def fields(path: Path) -> dict[str, tuple[str, object]]:
    return {k: (f.types[-1].name, f.contents()) for k, f in gguf.GGUFReader(path).fields.items()}


# quantize


def test_summary(run: Run, model: str, tmp_path: Path) -> None:
    target = tmp_path / "q.gguf"
    done = run("quantize", model, str(target), "q8_0", "-t", "1")
    assert done.code == 0
    assert re.search(r"Q8_0 +16 +\S+ .* 8\.50 +0\.\d+ %", done.out)
    assert re.search(r"F32 +5 +160 +640 B +32\.00 +-", done.out)
    assert re.search(r"total +21 ", done.out)
    assert f"{target}: " in done.out
    assert "was 1" in done.out
    lines = done.err.splitlines()
    assert len(lines) == 21
    assert re.match(r"\[ 1/21\] token_embd\.weight +F32 → Q8_0 +8\.6 KiB +error 0\.\d+ %$", lines[0])
    assert formats(target)["output_norm.weight"] == "F32"
    assert formats(target)["blk.1.ffn_down.weight"] == "Q8_0"


def test_fallbacks_and_overrides(run: Run, model: str, tmp_path: Path) -> None:
    target = str(tmp_path / "q.gguf")
    options = ["--tensor-type", "attn_[qk]=f16", "--output-tensor-type", "bf16", "--token-embedding-type", "F16"]
    done = run("quantize", model, target, "Q6_K", "--json", *options)
    assert done.code == 0
    made = json.loads(done.out)
    by_name = {t["name"]: t for t in made["tensors"]}
    assert by_name["output.weight"]["format"] == "BF16"
    assert by_name["token_embd.weight"]["format"] == "F16"
    assert by_name["blk.0.attn_q.weight"]["format"] == "F16"
    assert by_name["blk.0.attn_v.weight"]["format"] == "Q8_0"
    assert by_name["blk.0.attn_v.weight"]["fallback"] == "rows of 32 are not whole blocks of 256: Q6_K → Q8_0"
    assert "fallback" not in by_name["output.weight"]
    assert 0 < by_name["blk.0.attn_v.weight"]["relative_error"] < 0.02
    assert by_name["output_norm.weight"]["relative_error"] is None
    assert made["paths"] == [target]
    assert made["bytes"] == os.path.getsize(target)
    again = run("quantize", model, target, "Q6_K", "--overwrite", *options)
    assert "note: rows of 32 are not whole blocks of 256: Q6_K → Q8_0 for blk.0.attn_v.weight, " in again.err


def test_dry_run(run: Run, model: str, q8: Path, tmp_path: Path) -> None:
    for arguments in ([model, "Q8_0"], [model, str(tmp_path / "q.gguf"), "Q8_0"]):
        done = run("quantize", "--dry-run", *arguments)
        assert done.code == 0
        assert re.search(r"blk\.0\.attn_q\.weight +32 x 32 +F32 +Q8_0 +1\.1 KiB", done.out)
        assert f"nothing was written; the file would have {q8.stat().st_size / 1024:.1f} KiB (now 1" in done.out
    made = json.loads(run("quantize", "--dry-run", "--json", model, "Q8_0").out)
    assert made["bytes"] == q8.stat().st_size
    assert {t["name"]: t["format"] for t in made["tensors"]} == formats(q8)
    assert not list(tmp_path.glob("*.gguf"))


def test_list(run: Run) -> None:
    done = run("quantize", "--list")
    assert [line.split()[0] for line in done.out.splitlines()[1:-2]] == sorted(RECIPES, key=lambda r: -RECIPES[r].bits)
    assert re.search(r"^Q4_K_M +4\.\d  \w+", done.out, re.MULTILINE)


def test_split_outputs(run: Run, model: str, tmp_path: Path) -> None:
    done = run("quantize", model, str(tmp_path / "q.gguf"), "Q8_0", "--split-max-size", "30kB")
    assert "and 1 more files" in done.out
    assert sorted(p.name for p in tmp_path.glob("*.gguf")) == ["q-00001-of-00002.gguf", "q-00002-of-00002.gguf"]


def test_imatrix_is_used(run: Run, model: str, tmp_path: Path) -> None:
    sums = {"blk.0.attn_q.weight": Sums(np.ones((1, 32)), np.array([9]))}
    ImportanceMatrix(sums, ["text"], chunks=1).save(tmp_path / "i.gguf")
    done = run("quantize", model, str(tmp_path / "q.gguf"), "Q8_0", "--imatrix", str(tmp_path / "i.gguf"))
    assert done.code == 0
    assert "note: the importance matrix has nothing of blk.0.attn_k.weight, " in done.err
    assert fields(tmp_path / "q.gguf")["quantize.imatrix.file"] == ("STRING", "i.gguf")


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["{model}", "{new}", "Q4_K_L"], 1, "'Q4_K_L' is not a recipe; did you mean"),
        (["{model}", "{new}"], 2, "a source, a target and a recipe are needed"),
        (["{model}"], 2, "a source, a target and a recipe are needed"),
        (["{model}", "{q8}", "Q8_0"], 1, "q8.gguf exists; name another file, or allow overwriting (--overwrite)"),
        (["{model}", "{model}", "Q8_0", "--overwrite"], 1, "is the file that is read"),
        (["{q8}", "{new}", "Q4_0"], 1, "token_embd.weight is Q8_0 already"),
        (["{model}", "{folder}", "Q8_0"], 1, "it is a folder"),
        (["{folder}/none.gguf", "{new}", "Q8_0"], 1, "there is no file"),
        (["{model}", "{folder}/none/q.gguf", "Q8_0"], 1, "there is no folder"),
        (["{model}", "{new}", "Q8_0", "--imatrix", "{model}"], 1, "holds no importance matrix"),
        (["{model}", "{new}", "Q8_0", "--imatrix", "{folder}/none"], 1, "none cannot be opened: No such file"),
        (
            ["{model}", "{new}", "Q8_0", "--tensor-type", "attn_q=Q9_K"],
            2,
            "'Q9_K' is not a tensor format; did you mean Q",
        ),
        (["{model}", "{new}", "Q8_0", "--tensor-type", "attn_q"], 2, "not of the form 'ffn_down=Q6_K'"),
        (["{model}", "{new}", "Q8_0", "--tensor-type", "(=Q6_K"], 2, "'(' is not a regular expression"),
        (["{model}", "{new}", "Q8_0", "--tensor-type", "ffn_dwon=F16"], 1, "'ffn_dwon' fits no matrix of this model"),
        (["{model}", "{new}", "Q8_0", "--tensor-type", "norm=F16"], 1, "'norm' fits no matrix of this model"),
        (["{model}", "{new}", "--bpw", "9", "--fast", "--tensor-type", "x9=F16"], 1, "'x9' fits no matrix"),
        (["{model}", "{new}", "Q8_0", "--split-max-size", "much"], 2, "'much' is not a size such as 2G"),
    ],
)
def test_refusals(
    run: Run, model: str, q8: Path, tmp_path: Path, arguments: list[str], code: int, message: str
) -> None:
    """One line, and nothing is written."""
    folder = tmp_path / "folder"
    folder.mkdir()
    before = q8.read_bytes()
    places = {"model": model, "q8": str(q8), "new": str(folder / "q.gguf"), "folder": str(folder)}
    done = run("quantize", *(a.format(**places) for a in arguments))
    assert done.code == code
    assert message in done.err
    assert done.out == ""
    assert code == 2 or len(done.err.splitlines()) == 1
    assert not list(folder.iterdir())
    assert q8.read_bytes() == before


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_leave_nothing(model: str, tmp_path: Path, number: signal.Signals, code: int) -> None:
    """Sent when the first tensor is done: the file has been begun by then."""
    script = (
        "import os, sys\n"
        "from pyllm.cli import main\n"
        "from pyllm.cli._quantizing import Board\n"
        "def stop(self, result):\n"
        "    print(os.listdir(os.path.dirname(sys.argv[2])), flush=True)\n"
        f"    os.kill(os.getpid(), {int(number)})\n"
        "Board.on_tensor = stop\n"
        "main(['quantize', *sys.argv[1:]])\n"
    )
    folder = tmp_path / "folder"
    folder.mkdir()
    arguments = [sys.executable, "-c", script, model, str(folder / "q.gguf"), "Q8_0"]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert done.returncode == code
    assert re.match(r"\['\.pyllm-[0-9a-f]+\.part'\]$", done.stdout.splitlines()[0])
    assert not list(folder.iterdir())


# Arguments


@pytest.mark.parametrize(
    ("text", "n_bytes"),
    [
        ("2G", 2 * 10**9),
        ("900m", 900 * 10**6),
        ("1.5GB", 15 * 10**8),
        ("700MiB", 700 << 20),
        ("1 GiB", 1 << 30),
        ("5", 5),
    ],
)
def test_sizes(text: str, n_bytes: int) -> None:
    assert SizeType().convert(text, None, None) == n_bytes


@pytest.mark.parametrize("text", ["", "G", "0", "-1G", "2T", "1.2.3", "2 G G", "MiB"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(click.BadParameter, match="is not a size"):
        SizeType().convert(text, None, None)


def test_formats_and_overrides() -> None:
    assert FormatType().convert("iq2_xxs", None, None) == "IQ2_XXS"
    assert OverrideType().convert(r"a=b=q4_k", None, None) == ("a=b", "Q4_K")
    with pytest.raises(click.BadParameter, match="there are F32"):
        FormatType().convert("%", None, None)


# split and merge


def test_split_and_merge(run: Run, model: str, tmp_path: Path) -> None:
    prefix, merged = tmp_path / "part", tmp_path / "merged.gguf"
    planned = run("split", model, str(prefix), "--max-size", "60kB", "--dry-run")
    assert "nothing was written; there would be 3 files" in planned.out
    assert not list(tmp_path.glob("*.gguf"))
    done = run("split", model, str(prefix), "--max-size", "60kB")
    parts = sorted(tmp_path.glob("part-*"))
    assert [p.name for p in parts] == [f"part-0000{i}-of-00003.gguf" for i in (1, 2, 3)]
    assert all(p.stat().st_size <= 60_000 for p in parts)
    assert f"wrote 3 files, {sum(p.stat().st_size for p in parts) / 1024:.1f} KiB: {parts[0]}" in done.out
    assert run("merge", str(parts[0]), str(merged)).code == 0
    assert merged.read_bytes() == Path(model).read_bytes()
    assert run("split", str(parts[0]), str(tmp_path / "other"), "--max-tensors", "15").code == 0
    with open_gguf(tmp_path / "other-00001-of-00002.gguf") as file:
        assert len(file.tensors) == 21


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["split", "{model}", "{new}"], "a limit is missing"),
        (["split", "{model}", "{new}", "--max-size", "1G"], "fits into one file; there is nothing to split"),
        (["merge", "{model}", "{new}"], "is one file already; there is nothing to merge"),
        (["merge", "{folder}/p-00002-of-00002.gguf", "{new}"], "is part 2 of 2 of a model; open the first"),
        (["merge", "{folder}/p-00001-of-00002.gguf", "{model}"], "exists; name another file"),
        (["split", "{folder}/p-00001-of-00002.gguf", "{folder}/p", "--max-tensors", "11"], "exists; name another"),
        (
            ["split", "{folder}/p-00001-of-00002.gguf", "{folder}/p", "--max-tensors", "11", "--overwrite"],
            "is the file that is read",
        ),
    ],
)
def test_what_is_not_split_or_merged(run: Run, model: str, tmp_path: Path, arguments: list[str], message: str) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    run("split", model, str(folder / "p"), "--max-tensors", "11")
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    done = run(*(a.format(model=model, new=folder / "new", folder=folder) for a in arguments))
    assert done.code != 0
    assert message in done.err
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before


# show --set


def test_set_and_unset(run: Run, model: str, tmp_path: Path) -> None:
    target = tmp_path / "m.gguf"
    sets = {
        "general.name": "new name",
        "llama.context_length": "0x100",
        "llama.attention.layer_norm_rms_epsilon": "1e-6",
        "tokenizer.ggml.add_bos_token": "False",
        "x.guessed": "7",
        "x.negative": "-7",
        "x.float": "1.5",
        "x.bool": "true",
        "x.text": "nan",
        "x.list": "[1, 2]",
        "x.typed:u64": "7",
        "x.strings:str[]": '["a", "b"]',
        "x.colon:c": "d",
    }
    arguments = [part for key, value in sets.items() for part in ("--set", f"{key}={value}")]
    done = run("show", model, *arguments, "--unset", "tokenizer.chat_template", "-o", str(target))
    assert done.code == 0
    assert 'general.name: "tiny" (str) → "new name" (str)' in done.err
    assert "x.guessed: (new) 7 (u32)" in done.err
    old, new = fields(Path(model)), fields(target)
    assert "tokenizer.chat_template" in old
    assert "tokenizer.chat_template" not in new
    assert new["general.name"] == ("STRING", "new name")
    assert new["llama.context_length"] == ("UINT32", 256)
    assert new["llama.attention.layer_norm_rms_epsilon"] == ("FLOAT32", np.float32(1e-6))
    assert new["tokenizer.ggml.add_bos_token"] == ("BOOL", False)
    assert {k: v for k, v in new.items() if k.startswith("x.")} == {
        "x.guessed": ("UINT32", 7),
        "x.negative": ("INT32", -7),
        "x.float": ("FLOAT32", 1.5),
        "x.bool": ("BOOL", True),
        "x.text": ("STRING", "nan"),
        "x.list": ("INT32", [1, 2]),
        "x.typed": ("UINT64", 7),
        "x.strings": ("STRING", ["a", "b"]),
        "x.colon:c": ("STRING", "d"),
    }
    with open_gguf(model) as a, open_gguf(target) as b:
        assert all(np.array_equal(t.data, b.tensors[name].data) for name, t in a.tensors.items())


def test_in_place(run: Run, model: str, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(Path(model).read_bytes())
    path.chmod(0o640)
    assert run("show", str(path), "--set", "general.name=other", "--in-place").code == 0
    assert fields(path)["general.name"] == ("STRING", "other")
    assert path.stat().st_mode & 0o777 == 0o640
    assert run("show", str(path), "--set", "general.name=tiny", "--in-place").code == 0
    assert path.read_bytes() == Path(model).read_bytes()
    assert [p.name for p in tmp_path.glob("*") if p.is_file()] == ["m.gguf"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--set", "llama.block_count=two", "-o", "{new}"],
            "llama.block_count is a number (uint32), which 'two' is not",
        ),
        (["--set", "llama.block_count=-1", "-o", "{new}"], "llama.block_count: -1 cannot be stored as UINT32"),
        (["--set", "x:u8=256", "-o", "{new}"], "x: 256 cannot be stored as UINT8"),
        (["--set", "x:i8[]=[1.5]", "-o", "{new}"], "cannot be stored as an array of INT8"),
        (["--set", "tokenizer.ggml.add_bos_token=2", "-o", "{new}"], "is true or false, which '2' is not"),
        (["--set", "tokenizer.ggml.tokens=[]", "-o", "{new}"], "tokenizer.ggml.tokens is a table of the tokenizer"),
        (["--unset", "tokenizer.ggml.merges", "-o", "{new}"], "is a table of the tokenizer"),
        (["--set", "split.count=2", "-o", "{new}"], "is for `pyllm split` and `pyllm merge` to set"),
        (["--set", "x=[1,", "-o", "{model}"], "exists; name another file"),
        (["--set", "x=[1,]", "-o", "{new}"], "x is an array: give it as JSON"),
        (["--set", "x=[null]", "-o", "{new}"], "GGUF metadata has no type for [None]"),
        (["--set", "x", "-o", "{new}"], "'x' is not of the form KEY=VALUE"),
        (["--unset", "x", "-o", "{new}"], "has no metadata key 'x'"),
        (["--set", "x=1"], "either -o OUT or --in-place"),
        (["--set", "x=1", "-o", "{new}", "--in-place"], "either -o OUT or --in-place"),
        (["--in-place"], "go with --set or --unset"),
        (["--set", "x=1", "-o", "{model}", "--overwrite"], "is the file that is read"),
    ],
)
def test_what_is_not_set(run: Run, model: str, tmp_path: Path, arguments: list[str], message: str) -> None:
    before = Path(model).read_bytes()
    done = run("show", model, *(a.format(model=model, new=tmp_path / "new.gguf") for a in arguments))
    assert done.code != 0
    assert message in done.err
    assert not list(tmp_path.glob("*.gguf"))
    assert Path(model).read_bytes() == before


def test_split_models_are_not_changed_in_place(run: Run, model: str, tmp_path: Path) -> None:
    run("split", model, str(tmp_path / "p"), "--max-tensors", "11")
    first = str(tmp_path / "p-00001-of-00002.gguf")
    assert "is one of 2 files; write one file with -o OUT" in run("show", first, "--set", "a=1", "--in-place").err
    assert run("show", first, "--set", "a=1", "-o", str(tmp_path / "one.gguf")).code == 0
    with open_gguf(tmp_path / "one.gguf") as file:
        assert len(file.tensors) == 21
