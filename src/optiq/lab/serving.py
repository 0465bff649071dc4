"""The command that the screen Server makes out of its form, and the snippets for those who ask the server. Pure."""

from __future__ import annotations

import json
from dataclasses import dataclass, field

from optiq.lab.words import given

PORT = 8080


@dataclass
class Form:
    """The flags of `optiq serve` that the form has; an empty text leaves the command's own default."""

    model: str = ""
    port: int = PORT
    mtp: bool = False
    tools: str = ""
    thinking: str = ""
    preset: str = ""
    kv: str = ""
    kv_config: str = ""
    context: str = ""
    max_tokens: str = ""
    max_concurrent: str = ""
    memory_gb: str = ""
    adapters: list[str] = field(default_factory=list)
    adapter_dir: str = ""

    def words(self) -> list[str]:
        """After ``optiq``."""
        found = ["serve", self.model, "--port", str(self.port)]
        found += ["--mtp"] if self.mtp else []
        found += {"on": ["--thinking"], "off": ["--no-thinking"]}.get(self.thinking, [])
        found += given(
            ("--tools", self.tools),
            ("--preset", self.preset),
            ("--kv-bits", self.kv),
            ("--kv-config", self.kv_config),
            ("--context", self.context),
            ("--max-tokens", self.max_tokens),
            ("--max-concurrent", self.max_concurrent),
            ("--memory-gb", self.memory_gb),
        )
        for adapter in self.adapters:
            found += ["--adapter", adapter]
        return found + (["--adapter-dir", self.adapter_dir] if self.adapter_dir else [])


def snippets(url: str, model: str) -> dict[str, str]:
    """How to ask a server, by client."""
    name = json.dumps(model)
    body = json.dumps({"model": model, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 60})
    quoted = body.replace("'", "'\\''")
    return {
        "curl": f"curl -s {url}/v1/chat/completions -H 'content-type: application/json' -d '{quoted}'",
        "OpenAI's SDK": (
            "from openai import OpenAI\n\n"
            f'client = OpenAI(base_url="{url}/v1", api_key="none")\n'
            f"done = client.chat.completions.create(model={name}, messages=[{{'role': 'user', 'content': 'Hello'}}])\n"
            "print(done.choices[0].message.content)"
        ),
        "Anthropic's SDK": (
            "from anthropic import Anthropic\n\n"
            f'client = Anthropic(base_url="{url}", api_key="none")\n'
            f"done = client.messages.create(model={name}, max_tokens=200, messages=[{{'role': 'user', 'content': 'Hello'}}])\n"
            "print(done.content[0].text)"
        ),
        "Claude Code": f"ANTHROPIC_BASE_URL={url} ANTHROPIC_AUTH_TOKEN=none claude",
        "Codex (~/.codex/config.toml)": (
            f'model = {name}\nmodel_provider = "optiq"\n\n[model_providers.optiq]\nname = "optiq"\nbase_url = "{url}/v1"\n'
            'wire_api = "responses"'
        ),
    }
