"""A server with a folder for the prefix cache: what one has read, the next one finds, and counts as cached."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx2
from test_server_metrics import samples

from server_rig import running


def usage(url: str, prompt: str) -> dict[str, Any]:
    body = {"prompt": prompt, "max_tokens": 4, "temperature": 0}
    answer = httpx2.post(url + "/v1/completions", json=body, timeout=120)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()["usage"]
    return found


def test_prompts_outlive_the_server(path: Path, tmp_path: Path) -> None:
    prompt = "y" * 100
    load = {"backend": "reference", "kv_dtype": "f32", "cache_dir": str(tmp_path / "cache")}
    with running(path, load=load) as rig:
        assert usage(rig.url, prompt)["prompt_tokens_details"]["cached_tokens"] == 0
    assert list(tmp_path.glob("cache/*/*.page"))
    with running(path, load=load) as rig:
        assert usage(rig.url, prompt)["prompt_tokens_details"]["cached_tokens"] == 96
        assert samples(rig.url)["pyllm:prefix_cache_hits_total"] == 96
