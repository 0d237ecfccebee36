"""Metrics, and the dashboard that shows them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import httpx2
from prometheus_client.parser import text_string_to_metric_families

from server_rig import running, until
from tiny_gguf import write_tiny_gguf

DASHBOARD = Path(__file__).parents[2] / "examples" / "serve" / "grafana.json"


def samples(url: str) -> dict[str, float]:
    """Name and labels without the model's, in Prometheus's form, to values."""
    found = {}
    for family in text_string_to_metric_families(httpx2.get(url + "/metrics").text):
        for sample in family.samples:
            labels = {k: v for k, v in sample.labels.items() if k != "model_name"}
            found[sample.name + "".join(f",{k}={v}" for k, v in labels.items())] = sample.value
    return found


def test_metrics_count_what_was_answered_and_the_dashboard_shows_them(tmp_path: Path) -> None:
    with running(write_tiny_gguf(tmp_path / "tiny.gguf")) as rig:
        until(lambda: not rig.house.models.starting)
        body = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 5, "logit_bias": {"256": -100}}
        usages = [httpx2.post(rig.url + "/v1/chat/completions", json=body, timeout=60).json()["usage"] for _ in "ab"]
        refused = httpx2.post(rig.url + "/v1/chat/completions", json={"messages": 1}, timeout=60)
        assert refused.status_code == 400
        found = samples(rig.url)
    n_prompt = sum(usage["prompt_tokens"] for usage in usages)
    n_cached = sum(usage["prompt_tokens_details"]["cached_tokens"] for usage in usages)
    assert found["pyllm:prompt_tokens_total"] == found["pyllm:prefix_cache_queries_total"] == n_prompt
    assert found["pyllm:prefix_cache_hits_total"] == n_cached
    assert found["pyllm:generation_tokens_total"] == 10
    assert found["pyllm:request_success_total,finished_reason=length"] == 2
    assert found[f"pyllm:request_failure_total,code={refused.json()['error']['code']}"] == 1
    assert found["pyllm:num_requests_running"] == found["pyllm:num_requests_waiting"] == 0
    for name in ("time_to_first_token", "e2e_request_latency", "inter_token_latency"):
        assert found[f"pyllm:{name}_seconds_count"] == 2
        assert found[f"pyllm:{name}_seconds_sum"] > 0
    assert 0 <= found["pyllm:kv_cache_usage_perc"] <= 1
    assert found["pyllm:model_memory_bytes"] > 0
    shown = set(re.findall(r"pyllm:\w+", json.dumps(json.loads(DASHBOARD.read_text())["panels"])))
    there = {name.partition(",")[0] for name in found}
    assert shown <= there
    bases = {re.sub("_(bucket|count|sum)$", "", name) for name in there if not name.endswith("_created")}
    assert {name.removesuffix("_bucket") for name in shown} == bases


def test_readiness_follows_loading_and_draining(tmp_path: Path) -> None:
    with running(write_tiny_gguf(tmp_path / "tiny.gguf")) as rig:
        until(lambda: not rig.house.models.starting)
        assert httpx2.get(rig.url + "/ready").json() == {"status": "ready"}
        rig.house.models.starting = True
        loading = httpx2.get(rig.url + "/ready")
        assert (loading.status_code, loading.json()) == (503, {"status": "loading"})
        rig.house.models.starting = False
        rig.house.draining = True
        draining = httpx2.get(rig.url + "/ready")
        assert (draining.status_code, draining.json()) == (503, {"status": "draining"})
        refused = httpx2.get(rig.url + "/v1/models")
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "shutting_down")
        assert refused.headers["retry-after"] == "5"
        assert httpx2.get(rig.url + "/health").status_code == 200
        rig.house.draining = False
