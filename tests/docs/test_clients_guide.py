"""The guide for clients is true: its commands and its programs run, against the model that it serves."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from serve_locally import app_of, listening, tiny_engine, tiny_served, tokenizer_of

GUIDE = Path(__file__).parents[2] / "docs" / "guides" / "clients.md"
ADDRESS = "http://127.0.0.1:8080"


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", GUIDE.read_text(), re.DOTALL | re.MULTILINE)


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    served = tiny_served(tiny_engine, tokenizer_of(), id="tiny-qwen3.5", max_tokens=400)
    with listening(app_of(served)) as found:
        yield found
    served.gateway.close()


@pytest.mark.parametrize("block", blocks("bash"))
def test_commands_run(url: str, block: str) -> None:
    assert ADDRESS in block
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    done = subprocess.run(["bash", "-c", block.replace(ADDRESS, url)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and re.search(r'"choices":|message_stop|"owned_by":', done.stdout), done


@pytest.mark.parametrize("block", blocks("python"))
def test_programs_run(url: str, block: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert ADDRESS in block
    exec(compile(block.replace(ADDRESS, url), GUIDE.name, "exec"), {"__name__": "guide"})
    assert capsys.readouterr().out.strip() or "content.delta" in block
