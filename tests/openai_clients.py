"""OpenAI's SDK for tests."""

from __future__ import annotations

from typing import Any

import openai
from openai import OpenAI


def client(site: Any, **options: Any) -> OpenAI:
    """A client of a site that neither tries again nor loads certificates, which takes longer than most tests."""
    http = openai.DefaultHttpxClient(verify=False)
    return OpenAI(base_url=f"{site.url}/v1", api_key="none", http_client=http, **{"max_retries": 0, **options})


def plain() -> Any:
    """What an asynchronous client talks through, without certificates."""
    return openai.DefaultAsyncHttpxClient(verify=False)
