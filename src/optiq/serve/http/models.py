"""/v1/models: what can be asked, with the settings that replies have where requests do not say otherwise.

One object serves the clients of OpenAI and of Anthropic; each reads its own fields.

Source: https://platform.openai.com/docs/api-reference/models and https://docs.anthropic.com/en/api/models-list
"""

from __future__ import annotations

import datetime
from typing import Any, Literal

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from optiq.generate.sampling import SETTINGS
from optiq.serve.http.body import Answer
from optiq.serve.http.context import Chosen, Context


class Setting(Answer):
    """A setting, and who decided it: flag, preset, generation_config, default."""

    value: float
    source: str


class Model(Answer):
    """A model, or an adapter on one."""

    id: str
    object: Literal["model"]
    type: Literal["model"]
    created: int
    created_at: str
    display_name: str
    owned_by: str
    root: str
    adapter: str | None
    context_length: int | None
    max_output_tokens: int
    family: str | None
    reasoning: bool
    settings: dict[str, Setting]


class ModelList(Answer):
    """All models, the default first."""

    object: Literal["list"]
    data: list[Model]
    has_more: bool
    first_id: str | None
    last_id: str | None


async def listed(context: Context, request: Request) -> Response:
    """All models; one that is not loaded is not loaded for this."""
    names = context.models.names
    first = await context.models.open(None)
    data = [told(await context.models.open(name)) for name in names if name.partition(":")[0] == first.served.id]
    data += [_unopened(name) for name in names if name.partition(":")[0] != first.served.id]
    ends = {"first_id": names[0] if names else None, "last_id": names[-1] if names else None}
    return JSONResponse({"object": "list", "data": data, "has_more": False, **ends})


async def retrieve(context: Context, request: Request) -> Response:
    """One model."""
    return JSONResponse(told(await context.models.open(request.path_params["model"])))


def told(chosen: Chosen) -> dict[str, Any]:
    """A model as clients see it."""
    served = chosen.served
    thinks = served.tags is not None and served.thinking is not False
    resolved = served.sampling({}, thinks)
    settings = {
        one.name: {"value": getattr(resolved.sampling, one.name), "source": resolved.sources[one.name]} for one in SETTINGS
    }
    return {
        **_named(chosen.name, served.created),
        "root": served.id, "adapter": chosen.adapter, "context_length": served.context or None,
        "max_output_tokens": served.max_tokens, "family": served.family, "reasoning": thinks, "settings": settings,
    }  # fmt: skip


def _unopened(name: str) -> dict[str, Any]:
    return {
        **_named(name, 0), "root": name.partition(":")[0], "adapter": name.partition(":")[2] or None, "context_length": None,
        "max_output_tokens": 0, "family": None, "reasoning": False, "settings": {},
    }  # fmt: skip


def _named(name: str, created: int) -> dict[str, Any]:
    made = datetime.datetime.fromtimestamp(created, datetime.UTC)
    return {
        "id": name, "object": "model", "type": "model", "created": created, "created_at": made.isoformat(),
        "display_name": name, "owned_by": "optiq",
    }  # fmt: skip
