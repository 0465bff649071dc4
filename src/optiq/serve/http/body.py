"""The body of a request: JSON of any client, checked against the fields that count. Unknown ones pass, wrong types do not.

data = await body.read(request)            anything but a JSON object is an `InputError`
asked = body.checked(ChatBody, data)       the first wrong field by its path, as `messages.0.content`
"""

from __future__ import annotations

import json
import re
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError
from starlette.requests import Request

from optiq.errors import InputError
from optiq.serve.http.problem import Kind, Problem, Refusal

B = TypeVar("B", bound=BaseModel)

DEEPEST = 128  # objects and lists within each other; what walks a schema or a conversation uses some calls for each
LONGEST_SHOWN = 60  # characters of a wrong value in a message
_SURROGATE = re.compile("[\ud800-\udfff]")


class Body(BaseModel):
    """Fields of a request: no number in quotes is a number, and what is not known is not asked about."""

    model_config = ConfigDict(extra="allow", strict=True, allow_inf_nan=False)


class Answer(BaseModel):
    """Fields of a reply; those that are not set are not sent."""

    model_config = ConfigDict(extra="forbid")


def invalid(field: str, message: str) -> Refusal:
    """A field that cannot be met as it is."""
    return Refusal(Problem(Kind.INVALID, f"{field}: {message}" if field else message, field=field))


async def read(request: Request) -> dict[str, Any]:
    """The JSON object that a request carries.

    Raises:
        Refusal: it is none.
    """
    return parsed(await request.body())


def parsed(raw: bytes) -> dict[str, Any]:
    """A JSON object; halves of characters in its texts become replacement signs, for no tokenizer takes them.

    Raises:
        Refusal: the bytes are none.
    """
    try:
        data = json.loads(raw.decode("utf-8"), parse_constant=_no_constant)
    except RecursionError:
        raise _too_deep() from None
    except (ValueError, InputError) as error:
        raise invalid("", f"the body is not valid JSON ({error}), expected a JSON object") from None
    if not isinstance(data, dict):
        raise invalid("", f"the body is a JSON {type(data).__name__}, expected an object")
    if _deeper(data, DEEPEST):
        raise _too_deep()
    return _whole(data) if b"\\u" in raw else data


def checked(model: type[B], data: dict[str, Any]) -> B:
    """The fields of a body.

    Raises:
        Refusal: names the first field of a wrong type.
    """
    try:
        return model.model_validate(data)
    except ValidationError as error:
        found = max(error.errors(include_url=False, include_context=False), key=lambda one: len(_path(data, one["loc"])))
        path = _path(data, found["loc"])
        told = "is missing" if found["type"] == "missing" else f"{found['msg']}, not {_shown(found['input'])}"
        raise invalid(".".join(map(str, path)), told) from None


def _path(data: Any, loc: tuple[int | str, ...]) -> list[int | str]:
    """The part of a location that is in the body, without the names of alternatives among types."""
    path: list[int | str] = []
    for step in loc:
        inside = step in data if isinstance(data, dict) else isinstance(data, list) and isinstance(step, int) and step < len(data)
        if inside:
            data = data[step]
        elif step is not loc[-1] or not isinstance(data, dict):
            continue
        path.append(step)
    return path


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=True, default=str)
    return text if len(text) <= LONGEST_SHOWN else text[:LONGEST_SHOWN] + "…"


def _too_deep() -> Refusal:
    return invalid("", f"the body is nested too deeply, expected at most {DEEPEST} objects and lists within each other")


def _deeper(value: Any, most: int) -> bool:
    """Whether more than so many objects and lists lie within each other."""
    level = [value]
    for _ in range(most):
        inner = (item.values() if isinstance(item, dict) else item for item in level)
        level = [child for children in inner for child in children if isinstance(child, dict | list)]
    return bool(level)


def _no_constant(name: str) -> Any:
    raise InputError(f"{name} is no JSON number")


def _whole(value: Any) -> Any:
    if isinstance(value, str):
        return _SURROGATE.sub("\ufffd", value)
    if isinstance(value, list):
        return [_whole(item) for item in value]
    if isinstance(value, dict):
        return {_whole(key): _whole(item) for key, item in value.items()}
    return value
