"""Encoding beside llama.cpp in the same run: MB/s by kind of vocabulary and text, and how long other threads wait.

    pip install llama-cpp-python            # into any environment
    python benchmarks/tokenizer_speed.py --peer-python PATH [--wiki wiki.test.txt] VOCABULARY.gguf ...

A megabyte of each text: English (--wiki, WikiText-2's test part), Python code (the standard library), and lines of
made-up words in fifteen languages' letters. Vocabularies are GGUF files, models or vocabularies alone; a unigram
vocabulary is made of the first SentencePiece one, as no small file has one. "first" is the first text that a tokenizer
is given, tables of the compiled code included and its compilation not; "wait" is the longest that a thread was kept
from running that ticks every millisecond while the text is encoded, beyond what it is kept without. Ids of both sides
are compared. Rates are by the processor's time, which both sides take on one thread, so that other programs disturb
them little; waits are real time, and a busy machine adds to them.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
from pathlib import Path

import numpy as np

from pyllm import gguf
from pyllm.tokenizers import Tokenizer, from_gguf

_SIZE = 1_000_000
_HERE = Path(__file__).resolve().parent

LINES = """
The little train to the lake leaves at seven in the morning, and nobody on it speaks before the first bridge.
Der kleine Zug zum See fährt morgens um sieben Uhr ab, und niemand spricht darin vor der ersten Brücke über den Fluß.
Le petit train qui va au lac part à sept heures du matin, et personne n'y parle avant le premier pont; c'est l'été.
El pequeño tren que va al lago sale a las siete de la mañana, y nadie habla antes del primer puente, ¿verdad?
Маленький поезд к озеру отправляется в семь часов утра, и никто в нём не разговаривает до первого моста.
Το μικρό τρένο για τη λίμνη φεύγει στις επτά το πρωί και κανείς δεν μιλάει πριν από την πρώτη γέφυρα.
開往湖邊的小火車早上七點出發，在過第一座橋之前車上沒有人說話。我們看著窗外的山和田野，想著家裡的早飯。
湖へ行く小さな電車は朝七時に出発し、最初の橋を渡るまで誰も話さない。窓の外には山と田んぼが見える。
호수로 가는 작은 기차는 아침 일곱 시에 출발하고 첫 번째 다리를 지나기 전에는 아무도 말하지 않는다.
झील जाने वाली छोटी रेलगाड़ी सुबह सात बजे निकलती है और पहले पुल से पहले कोई नहीं बोलता।
القطار الصغير إلى البحيرة يغادر في السابعة صباحا ولا أحد يتكلم فيه قبل الجسر الأول.
הרכבת הקטנה אל האגם יוצאת בשבע בבוקר ואיש אינו מדבר בה לפני הגשר הראשון.
รถไฟขบวนเล็กไปทะเลสาบออกตอนเจ็ดโมงเช้า และไม่มีใครพูดก่อนถึงสะพานแรก
Göle giden küçük tren sabah yedide kalkıyor ve ilk köprüden önce kimse konuşmuyor; şimdi değil.
Chuyến tàu nhỏ đến hồ khởi hành lúc bảy giờ sáng và không ai nói chuyện trước cây cầu đầu tiên.
🚂 🏞️ 7:00 ✅ — 👩‍👩‍👧 😀😃 🎉 → x² ≈ 3.14 · ½ … “ok” №5 €12,50
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("vocabularies", nargs="+", type=Path)
    parser.add_argument("--peer-python", required=True)
    parser.add_argument("--wiki", type=Path)
    a = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        texts = write_texts(Path(folder), a.wiki)
        vocabularies = [*a.vocabularies, *unigram_of(a.vocabularies, Path(folder))]
        print("| vocabulary | text | first | MB/s | llama.cpp | ratio | wait, ms | ids |")
        print("|---|---|---|---|---|---|---|---|")
        for path in vocabularies:
            measure(path, texts, a.peer_python)


def measure(path: Path, texts: dict[str, Path], peer_python: str) -> None:
    for name, file in texts.items():
        text = file.read_text(encoding="utf-8")
        with gguf.open_gguf(path) as model:
            tokenizer, n_tokens = from_gguf(model.metadata), 0
        with gguf.open_gguf(path) as model:
            warm = from_gguf(model.metadata)
        warm.encode(text)  # compiles, if no run before has
        megabytes = len(text.encode()) / 1e6
        first = megabytes / seconds(tokenizer, text)
        own = megabytes / min(seconds(tokenizer, text) for _ in range(3))
        wait = longest_wait(tokenizer, text)
        ids = tokenizer.encode(text, add_special=False)
        n_tokens = len(tokenizer.vocab.ids) + len(tokenizer.vocab.special_ids)
        command = [peer_python, str(_HERE / "peer.py"), "tokenize", str(path), str(file)]
        peer = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1])
        rate = megabytes / peer["seconds"]
        same = "same" if peer["ids"] == ids else f"differ from {first_difference(ids, peer['ids'])}"
        label = f"{path.stem.removeprefix('ggml-vocab-')} ({type(tokenizer).__name__[:3]}, {n_tokens // 1000}k)"
        rates = f"{first:.1f} | {own:.1f} | {rate:.2f} | {own / rate:.0f}"
        print(f"| {label} | {name} | {rates} | {wait * 1e3:.0f} | {same} |", flush=True)


def seconds(tokenizer: Tokenizer, text: str) -> float:
    start = time.process_time()
    tokenizer.encode(text, add_special=False)
    return time.process_time() - start


def longest_wait(tokenizer: Tokenizer, text: str) -> float:
    """Seconds that another thread waits at most, in the best of three runs, beyond what it waits for an idle one."""
    busy = min(_longest_tick(lambda: tokenizer.encode(text)) for _ in range(3))
    return max(0.0, busy - min(_longest_tick(lambda: time.sleep(0.1)) for _ in range(3)))


def _longest_tick(work) -> float:  # type: ignore[no-untyped-def]
    ended, longest = threading.Event(), 0.0

    def tick() -> None:
        nonlocal longest
        last = time.perf_counter()
        while not ended.is_set():
            time.sleep(0.001)
            now = time.perf_counter()
            longest, last = max(longest, now - last), now

    thread = threading.Thread(target=tick)
    thread.start()
    work()
    ended.set()
    thread.join()
    return longest


def first_difference(own: list[int], peer: list[int]) -> int:
    return next((i for i, (a, b) in enumerate(zip(own, peer, strict=False)) if a != b), min(len(own), len(peer)))


def write_texts(folder: Path, wiki: Path | None) -> dict[str, Path]:
    code = b""
    for source in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py")):
        code += source.read_bytes()
        if len(code) > _SIZE:
            break
    texts = {"code": code, "languages": made_up().encode()}
    if wiki is not None:
        texts = {"English": wiki.read_bytes(), **texts}
    for name, data in texts.items():
        (folder / name).write_text(data[:_SIZE].decode("utf-8", "ignore"), encoding="utf-8", newline="")
    return {name: folder / name for name in texts}


def made_up() -> str:
    """Lines of shuffled words, and of words in which each letter follows one that it follows in the language."""
    draw = random.Random(1)
    languages = []
    for line in LINES.strip().split("\n"):
        following: dict[str, list[str]] = {}
        for a, b in zip(f" {line}", f"{line} ", strict=True):
            following.setdefault(a, []).append(b)
        languages.append((line.split(), following))
    out, size = [], 0
    while size < _SIZE:
        words, following = draw.choice(languages)
        line = " ".join(draw.sample(words, len(words)))
        if draw.random() < 0.5:
            letters = [" "]
            for _ in range(100):
                letters.append(draw.choice(following[letters[-1]]))
            line = "".join(letters)
        out.append(line + "\n")
        size += len(out[-1].encode())
    return "".join(out)


def unigram_of(vocabularies: list[Path], folder: Path) -> list[Path]:
    """A file with the tokens of the first SentencePiece vocabulary, scored by their order, as a unigram one."""
    for path in vocabularies:
        with gguf.open_gguf(path) as file:
            if file.metadata["tokenizer.ggml.model"] != "llama":
                continue
            tokens = file.metadata["tokenizer.ggml.tokens"]
            types = np.asarray(file.metadata["tokenizer.ggml.token_type"], np.int32)
        metadata = {
            "general.architecture": "t5",
            "tokenizer.ggml.model": "t5",
            "tokenizer.ggml.pre": "default",
            "tokenizer.ggml.tokens": tokens,
            "tokenizer.ggml.token_type": np.where(types == 6, 5, types),
            "tokenizer.ggml.scores": (-np.log(2.0 + np.arange(len(tokens)))).astype(np.float32),
            "tokenizer.ggml.unknown_token_id": 0,
            "tokenizer.ggml.eos_token_id": 2,
            "tokenizer.ggml.padding_token_id": 1,
            "tokenizer.ggml.add_space_prefix": True,
        }
        target = folder / "unigram.gguf"
        with gguf.GGUFWriter(target, {k: gguf.Value.of(v) for k, v in metadata.items()}, []):
            pass
        return [target]
    return []


if __name__ == "__main__":
    sys.exit(main())
