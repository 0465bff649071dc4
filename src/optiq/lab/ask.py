"""Short questions to `optiq` commands: run one with ``--json``, wait, and hand back what it printed.

What takes longer than a page can wait for is a job (`jobs/`). Knows nothing of what the answers mean.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Sequence
from typing import Any

from optiq.errors import FormatError, InputError, ResourceError
from optiq.lab.text import command_text, line

LIMIT_S = 300.0


def program(words: Sequence[str]) -> list[str]:
    """The command line that runs ``optiq WORDS`` with the interpreter that runs this."""
    return [sys.executable, "-m", "optiq.cli", *words]


async def ask(words: Sequence[str], limit_s: float = LIMIT_S) -> dict[str, Any]:
    """What ``optiq WORDS --json`` prints.

    Raises:
        InputError: the command refused, with its own words.
        ResourceError: it took longer than ``limit_s`` seconds.
        FormatError: it printed something else.
    """
    process = await asyncio.create_subprocess_exec(
        *program([*words, "--json", "--events", "quiet"]),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        out, _ = await asyncio.wait_for(process.communicate(), limit_s)
    except TimeoutError:
        raise ResourceError(f"`{command_text(words)}` took longer than {limit_s:g} s; try it in a terminal") from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    try:
        answer = json.loads(out)
    except ValueError:
        raise FormatError(
            f"`{command_text(words)}` printed no JSON (exit code {process.returncode}); try it in a terminal"
        ) from None
    if isinstance(answer, dict) and isinstance(answer.get("error"), dict):
        raise InputError(line(answer["error"].get("message", "the command failed"), 2000))
    if not isinstance(answer, dict):
        raise FormatError(f"`{command_text(words)}` printed {type(answer).__name__}, expected an object; update optiq")
    return answer
