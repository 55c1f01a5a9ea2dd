"""Metrics under the names of vLLM: the same numbers, with the labels that its dashboards select by."""

import os
import subprocess
import sys
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

PROCESS = """
from deployments.common.messages import EngineLoad
from deployments.common.types import Usage
from deployments.observability.metrics import EngineMetrics, RouterMetrics, exposition
import sys
router = RouterMetrics()
for team in ("a", "b"):
    router.count_answer("m", team, Usage(100, 20, 5, 30), "miss", 2.0)
    router.count_answer("m", team, Usage(100, 20, 5, 30), "hit", 0.001)
    router.time_to_first_token["m", team].observe(0.3)
router.waiting.labels("m").set(4)
for replica in ("r1", "r2"):
    engine = EngineMetrics("m", replica)
    engine.report(EngineLoad(kv_used=0.5, guessed_tokens=9, accepted_tokens=6), 3)
sys.stdout.buffer.write(exposition(vllm_names=sys.argv[1] == "both"))
"""
EXPECTED = {
    ("vllm:num_requests_running", "r1"): 3,
    ("vllm:num_requests_running", "r2"): 3,
    ("vllm:num_requests_waiting", ""): 4,
    ("vllm:kv_cache_usage_perc", "r1"): 0.5,
    ("vllm:prompt_tokens_total", ""): 200,
    ("vllm:generation_tokens_total", ""): 40,
    ("vllm:prefix_cache_queries_total", ""): 200,
    ("vllm:prefix_cache_hits_total", ""): 60,
    ("vllm:time_to_first_token_seconds_count", ""): 2,
    ("vllm:time_to_first_token_seconds_sum", ""): 0.6,
    ("vllm:e2e_request_latency_seconds_count", ""): 2,
    ("vllm:e2e_request_latency_seconds_sum", ""): 4.0,
    ("vllm:spec_decode_num_draft_tokens_total", "r1"): 9,
    ("vllm:spec_decode_num_accepted_tokens_total", "r2"): 6,
}


def samples(folder: Path, names: str) -> list[Sample]:
    folder.mkdir()
    environment = os.environ | {"PROMETHEUS_MULTIPROC_DIR": str(folder)}
    done = subprocess.run([sys.executable, "-c", PROCESS, names], capture_output=True, env=environment, check=True)
    return [sample for family in text_string_to_metric_families(done.stdout.decode()) for sample in family.samples]


def test_dashboards_of_vllm_find_what_they_select(tmp_path: Path) -> None:
    both, own = samples(tmp_path / "both", "both"), samples(tmp_path / "own", "own")
    assert own and not [sample for sample in own if sample.name.startswith("vllm:")]
    assert sorted(s.name for s in both if s.name.startswith("dray_")) == sorted(sample.name for sample in own)
    theirs = [sample for sample in both if sample.name.startswith("vllm:")]
    assert all(sample.labels["model_name"] == "m" for sample in theirs)
    assert {label for sample in theirs for label in sample.labels} == {"model_name", "engine", "le"}
    found = {(s.name, s.labels.get("engine", "")): s.value for s in theirs if "le" not in s.labels}
    assert {key: found[key] for key in EXPECTED} == EXPECTED
    buckets = [s for s in theirs if s.name == "vllm:e2e_request_latency_seconds_bucket" and s.labels["le"] == "+Inf"]
    assert [bucket.value for bucket in buckets] == [2]
