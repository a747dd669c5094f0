"""The command line as a user meets it: real processes, one line per error, no traceback, nothing half-done."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
from functools import partial

import pytest

from tests.tiny import CONFIGS
from tiefsee.files import bundled_models

BUNDLED = "tiefsee-demo"
needs_bundled = pytest.mark.skipif(BUNDLED not in bundled_models(), reason="the bundled model is not in this checkout")


def tiefsee(*arguments: str, **options) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "tiefsee", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, **options)


def one_line_error(done: subprocess.CompletedProcess) -> str:
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    lines = [line for line in done.stderr.splitlines() if "CPU kernels" not in line]  # a machine without a compiler
    assert len(lines) == 1
    assert done.stderr.startswith("tiefsee: ")
    return done.stderr


BLOCK_TORCH = """
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "transformers"):
            raise ImportError(name + " is blocked")
sys.meta_path.insert(0, Blocker())
from tiefsee.cli import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize("model", ["v3", "v4-pro", "deepseek-ai/DeepSeek-V3"])
def test_inspect_needs_no_torch(model):
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", BLOCK_TORCH, "inspect", model, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    if model != "v4-pro":
        assert facts["cache_bytes_per_token"] == 70272  # DeepSeek-V3: 61 * (512 + 64) * 2
        assert facts["active_parameters"] == pytest.approx(37e9, rel=0.02)
        assert facts["parameters"] - facts["mtp_parameters"] == pytest.approx(671e9, rel=0.001)
    else:
        assert facts["parameters"] == pytest.approx(1.6e12, rel=0.01)
        assert facts["active_parameters"] == pytest.approx(49e9, rel=0.01)


def test_inspect_says_what_each_rank_holds():
    facts = json.loads(tiefsee("inspect", "v2-lite", "--tp", "4", "--json").stdout)
    assert 0.25 < facts["rank_weight_bytes"]["bf16"] / facts["weight_bytes"]["bf16"] < 0.26
    assert "on each of 4" in tiefsee("inspect", "v2-lite", "--tp", "4").stdout
    assert "cannot share 16 attention heads; use 16 or fewer" in one_line_error(
        tiefsee("inspect", "v2-lite", "--tp", "32")
    )


def test_inspect_a_config(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(CONFIGS["v4"]))
    for path in (tmp_path, tmp_path / "config.json"):
        done = tiefsee("inspect", str(path))
        assert done.returncode == 0, done.stderr
        assert "window compressed sparse attention, moe" in done.stdout


def test_errors_are_one_line_each(tmp_path):
    assert "no model" in one_line_error(tiefsee("inspect", "nonsense"))
    assert "has no config.json" in one_line_error(tiefsee("run", str(tmp_path), "hello"))
    (tmp_path / "config.json").write_text("{not json")
    assert "must be a JSON object" in one_line_error(tiefsee("inspect", str(tmp_path)))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    assert "R1-Distill" in one_line_error(tiefsee("run", str(tmp_path), "hello"))
    (tmp_path / "config.json").write_text(json.dumps(CONFIGS["v3"]))
    assert "holds no safetensors" in one_line_error(tiefsee("run", str(tmp_path), "hello"))
    (tmp_path / "config.json").write_text(json.dumps({**CONFIGS["v3"], "kv_lora_rank": -3}))
    assert "kv_lora_rank = -3" in one_line_error(tiefsee("inspect", str(tmp_path)))
    assert "cannot get" in (text := one_line_error(tiefsee("run", "no-such-org/no-such-model", "x"))) or "cache" in text


def test_no_command_prints_the_help():
    done = tiefsee()
    assert done.returncode == 2
    assert "inspect" in done.stdout


@needs_bundled
def test_run_streams_and_reports():
    done = tiefsee("run", "Once upon a time", "--max-tokens", "12", "--temperature", "0", "--threads", "1")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Once upon a time")
    assert len(done.stdout) > 30
    assert "TTFT" in done.stderr
    assert "tokens/s" in done.stderr


@needs_bundled
def test_wrong_arguments_of_run():
    assert "temperature = -1.0" in one_line_error(tiefsee("run", "x", "--temperature", "-1"))
    assert "max_tokens = -4" in one_line_error(tiefsee("run", "x", "--max-tokens", "-4"))
    assert "max_tokens = 0" in one_line_error(done := tiefsee("run", "x", "--max-tokens", "0"))
    assert done.stdout == ""  # nothing half-done
    assert "max_context = 0" in one_line_error(tiefsee("run", "x", "--max-context", "0"))
    assert "--effort: only a chat" in one_line_error(tiefsee("run", "x", "--effort", "high"))
    assert "cannot get no/such--model" in one_line_error(tiefsee("run", "no/such--model", "x"))
    assert "the prompt has" in one_line_error(tiefsee("run", "word " * 6000))
    assert "device 'gpu9' is not supported; there are 'cpu'" in one_line_error(tiefsee("run", "x", "--device", "gpu9"))
    assert "sees no CUDA card" in one_line_error(tiefsee("run", "x", "--device", "cuda"))
    assert "dtype is 'int3'" in one_line_error(tiefsee("run", "x", "--dtype", "int3"))
    assert "format is 'q4'" in one_line_error(tiefsee("run", "x", "--format", "q4"))
    assert "base model" in one_line_error(tiefsee("chat", BUNDLED, input="hello\n"))


@needs_bundled
def test_ctrl_c_ends_an_answer_cleanly():
    command = [sys.executable, "-m", "tiefsee", "run", "Once upon a time", "--max-tokens", "4000", "--ignore-eos"]
    # A suite that runs in the background inherits an ignored SIGINT; the user's shell does not.
    listen = partial(signal.signal, signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=listen)
    assert process.stdout is not None
    process.stdout.read(40)  # it streams
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "interrupted" in errors
    assert "Traceback" not in errors


@needs_bundled
def test_chat_keeps_the_conversation():
    done = tiefsee("chat", BUNDLED, "--raw", "--max-tokens", "8", "--temperature", "0", input="Hello\nAgain\n/quit\n")
    assert done.returncode == 0, done.stderr
    reports = [line for line in done.stderr.splitlines() if "prompt tokens" in line]
    first, second = (int(line.split()[0].lstrip("[")) for line in reports)
    assert second > first + 8  # the second prompt holds the first exchange


@needs_bundled
def test_first_token_within_four_seconds():
    """From the start of the process, in CPU seconds, which other work on the machine does not change; on an idle
    machine the clock on the wall shows as much (docs/log.md)."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert tiefsee("run", "Once upon a time", "--max-tokens", "1").returncode == 0
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 4
