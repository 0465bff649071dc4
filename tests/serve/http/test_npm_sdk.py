"""The official npm SDKs, `openai` and `@anthropic-ai/sdk`, against the server: their streams. They are installed under build/."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

PACKAGES = ("openai@^7", "@anthropic-ai/sdk@^1")
FOLDER = Path(__file__).parents[3] / "build" / "npm"

pytestmark = pytest.mark.slow  # the first run fetches the packages


@pytest.fixture(scope="module")
def modules() -> Path:
    if shutil.which("npm") is None or shutil.which("node") is None:
        pytest.skip("node and npm are not installed")
    found = FOLDER / "node_modules"
    if not all((found / package.rpartition("@")[0]).is_dir() for package in PACKAGES):
        FOLDER.mkdir(parents=True, exist_ok=True)
        command = ["npm", "install", "--no-audit", "--no-fund", "--prefix", str(FOLDER), *PACKAGES]
        done = subprocess.run(command, capture_output=True, text=True, timeout=600)
        if done.returncode:
            pytest.skip(f"npm could not install the packages: {done.stderr.strip().splitlines()[-1:]}")
    return found


def test_streams_of_the_npm_sdks(scripted: Any, modules: Path) -> None:
    command = ["node", str(Path(__file__).with_name("sdk.mjs")), str(modules), scripted.url]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    oslo = {"city": 'Oslo "north"', "days": 3}
    assert told["chat"].pop("chunks") > 10
    assert told["chat"] == {"reason": "tool_calls", "call": oslo, "text": "I will look."}
    assert told["runner"] == {"text": "It rains in Oslo.", "asked": [oslo]}
    assert told["responses"].pop("kinds") >= 12
    assert told["responses"] == {"items": ["reasoning", "message", "function_call"], "status": "completed"}
    assert told["completions"] == "It rains in Oslo."
    assert told["messages"].pop("deltas") >= 1
    assert told["messages"] == {"kinds": ["thinking", "text", "tool_use"], "input": oslo, "reason": "tool_use"}
    assert "the step broke" in told["failure"] and told["missing"] == 404
