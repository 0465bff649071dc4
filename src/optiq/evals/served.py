"""A generator over HTTP: any server with OpenAI's chat completions, ours included.

Answers are the server's `content` and `tool_calls`, greedy. Choices by logits cannot be asked for in that protocol.
"""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any

from optiq.errors import InputError, ResourceError
from optiq.evals.task import Answer, Call, Sample

TIMEOUT_S = 600.0


class ServedGenerator:
    """Answers from a server.

    Args:
        url: up to and with `/v1`.
        model: its name there.
        thinking: passed to the chat template of servers that know `chat_template_kwargs`.
        thinking_tokens: added to `max_tokens` of samples then.
        rows: requests at once.
        key: sent as the bearer's token; empty for none.
    """

    def __init__(
        self, url: str, model: str, thinking: bool = False, thinking_tokens: int = 4096, rows: int = 16, key: str = ""
    ) -> None:
        self.url, self.model, self.thinking, self.rows, self.key = url.rstrip("/"), model, thinking, rows, key
        self.thinking_tokens = thinking_tokens

    def answers(self, samples: Sequence[Sample]) -> Iterator[tuple[Sample, Answer]]:
        """See `Generator`."""
        if any(sample.choices for sample in samples):
            raise InputError("a server tells no logits of chosen letters; leave mmlu out or add --option mmlu.generate=true")
        pool = ThreadPoolExecutor(self.rows)
        try:
            running = {pool.submit(self._ask, sample): sample for sample in samples}
            for done in as_completed(running):
                yield running[done], done.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def body(self, sample: Sample) -> dict[str, Any]:
        """What a sample is as a request."""
        found: dict[str, Any] = {
            "model": self.model,
            "messages": [dict(message) for message in sample.messages],
            "max_tokens": sample.max_tokens + (self.thinking_tokens if self.thinking else 0),
            "temperature": 0,
            "chat_template_kwargs": {"enable_thinking": self.thinking},
        }
        return found | ({"tools": [dict(tool) for tool in sample.tools]} if sample.tools else {})

    def _ask(self, sample: Sample) -> Answer:
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {self.key}"} if self.key else {})
        data = json.dumps(self.body(sample)).encode()
        request = urllib.request.Request(f"{self.url}/chat/completions", data, headers)
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT_S) as reply:
                said = json.loads(reply.read())
            choice = said["choices"][0]
            message = choice["message"]
            calls = [call["function"] for call in message.get("tool_calls") or ()]
            return Answer(
                message.get("content") or "",
                tuple(Call(call["name"], call["arguments"]) for call in calls),
                int((said.get("usage") or {}).get("completion_tokens", 0)),
                "length" if choice.get("finish_reason") == "length" else "stop",
            )
        except (urllib.error.URLError, OSError) as error:
            detail = error.read().decode(errors="replace")[:200] if isinstance(error, urllib.error.HTTPError) else str(error)
            raise ResourceError(
                f"{sample.id}: {self.url} gave no answer ({detail}); finished samples are kept, run again"
            ) from error
        except (ValueError, KeyError, IndexError, TypeError) as error:
            raise ResourceError(f"{sample.id}: {self.url} answered in another form than chat completions ({error!r})") from error
