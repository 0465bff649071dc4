"""Tool calls: dialogues with functions (Glaive) and agents that think before they call (LLaMA-Factory demos)."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .chats import APACHE, UNWANTED, clean, size, trim_chat
from .draft import Draft, Message

LEAST, MOST = 1700, 4200  # with the tools
CHAT_LEAST = 800
STOCK = re.compile(
    r"You're (?:very )?welcome|as an AI|I'm sorry|I apologize|I don't have the (?:cap|ab)|I'm (?:unable|currently)",
    re.I,
)


def call(name: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """One tool call in the shape that chat templates read: the arguments are an object, not a string."""
    return {"type": "function", "function": {"name": name, "arguments": arguments}}


def function(tool: dict[str, Any]) -> dict[str, Any]:
    """A tool in the wrapped form, with a JSON schema for its parameters."""
    inner = dict(tool.get("function", tool))
    given = inner.get("parameters") or {}
    # Some tools of the source list their properties without the "properties" level.
    properties = given.get("properties") or {k: v for k, v in given.items() if isinstance(v, dict)}
    parameters = {"type": "object", "properties": {k: schema(v) for k, v in properties.items()}}
    required = [name for name in given.get("required") or inner.get("required") or () if name in properties]
    if required:
        parameters["required"] = required
    return {
        "type": "function",
        "function": {"name": inner["name"], "description": inner.get("description", ""), "parameters": parameters},
    }


def schema(value: dict[str, Any]) -> dict[str, Any]:
    """A property with the JSON schema name of its type (some sources write Python's)."""
    names = {"str": "string", "int": "integer", "float": "number", "bool": "boolean", "dict": "object", "list": "array"}
    kind = str(value.get("type", "string")).split(",")[0]
    inner = re.fullmatch(r"List\[(\w+)\]", kind)
    if inner:
        return value | {"type": "array", "items": {"type": names[inner.group(1)]}}
    return value | {"type": names.get(kind, kind)}


def glaive_chat(row: dict[str, Any]) -> list[Message] | None:
    """One dialogue in the shared message form; None where a call is not a proper object."""
    chat: list[Message] = []
    for turn in row["conversations"]:
        value = clean(turn["value"])
        if turn["from"] == "function_call":
            made = json.loads(value)
            if not isinstance(made, dict) or not isinstance(made.get("arguments"), dict):
                return None
            chat.append({"role": "assistant", "content": "", "tool_calls": [call(made["name"], made["arguments"])]})
        else:
            role = {"human": "user", "gpt": "assistant", "observation": "tool"}[turn["from"]]
            chat.append({"role": role, "content": value})
    # The source ends many dialogues with a stock refusal or courtesy; it is cut, with the turn before it.
    end = next((i - 1 for i, m in enumerate(chat) if m["role"] == "assistant" and STOCK.search(m["content"])), len(chat))
    chat = chat[: max(end, 0)]
    return chat if chat and all(m["content"] or m.get("tool_calls") for m in chat) else None


@dataclass(frozen=True)
class Dialogue:
    """One dialogue of the source with the tools that it offers."""

    row: int
    chat: list[Message]
    tools: list[dict[str, Any]]

    @property
    def names(self) -> tuple[str, ...]:
        """The tools' names, sorted."""
        return tuple(sorted({tool["function"]["name"] for tool in self.tools}))


def glaive(data: Path) -> list[Dialogue]:
    """The dialogues of the Glaive demo that offer tools."""
    rows = json.loads((data / "train/llamafactory/glaive_toolcall_en_demo.json").read_text(encoding="utf-8"))
    found = []
    for index, row in enumerate(rows):
        tools, chat = [function(t) for t in json.loads(row["tools"] or "[]")], glaive_chat(row)
        if chat and tools and chat[-1]["role"] == "assistant" and not UNWANTED.search(json.dumps(row)):
            found.append(Dialogue(index, chat, tools))
    return found


def packed(dialogues: list[Dialogue]) -> list[Draft]:
    """Dialogues with the same tools joined until a sample is long enough; what is left over is joined across tools."""
    # Dialogues with a call come first, so that most joined samples open with one.
    order = sorted(dialogues, key=lambda d: (d.names, not any(m.get("tool_calls") for m in d.chat)))
    drafts, left = joined(order, same_tools=True)
    more, _ = joined(left, same_tools=False)
    return drafts + more


def joined(dialogues: list[Dialogue], same_tools: bool) -> tuple[list[Draft], list[Dialogue]]:
    """(samples of neighbouring dialogues, the dialogues that were not enough for one)."""
    drafts, left, group = [], list[Dialogue](), list[Dialogue]()
    for dialogue in dialogues:
        if same_tools and group and group[0].names != dialogue.names:
            left, group = left + group, []
        group.append(dialogue)
        tools = list({t["function"]["name"]: t for d in group for t in d.tools}.values())
        chat = [m for d in group for m in d.chat]
        schema_size = len(json.dumps(tools))
        if size(chat) < max(CHAT_LEAST, LEAST - schema_size) or not any(m.get("tool_calls") for m in chat):
            continue
        source = f"Glaive function calling (LLaMA-Factory demo), row {', '.join(str(d.row) for d in group)}"
        trimmed = trim_chat(chat, max(CHAT_LEAST, LEAST - schema_size), MOST) or chat
        drafts.append(Draft("tool_call", source, APACHE, messages=trimmed, tools=tools))
        group = []
    return drafts, left + group


def thinking_agents(data: Path, system: str | None) -> list[Draft]:
    """Agents that reason before each call; ``system`` replaces the one prompt that all rows of the source share."""
    path = data / "train/llamafactory/reason_tool_use_demo_50.jsonl"
    drafts = []
    for index, line in enumerate(filter(None, path.read_text(encoding="utf-8").splitlines())):
        row = json.loads(line)
        tools = [function(t) for t in json.loads(row["tools"])]
        chat = [{"role": "system", "content": system}] if system else []
        chat += [agent_turn(m) for m in row["messages"][1:]]
        drafts.append(
            Draft(
                "agent",
                f"LLaMA-Factory reason_tool_use_demo, row {index}",
                APACHE,
                messages=upto_answer(chat, 3600),
                tools=tools,
            )
        )
    return sorted(drafts, key=worth, reverse=True)


def worth(draft: Draft) -> int:
    """How much an agent's chat shows: its length up to about one row, and whether it calls a tool."""
    chat = draft.messages or []
    calls_any = any(m.get("tool_calls") for m in chat)
    return min(size(chat) + len(json.dumps(draft.tools)), 3200) + 800 * calls_any


def agent_turn(message: dict[str, Any]) -> Message:
    """One message: thoughts go between think tags, calls into ``tool_calls``."""
    parts = {kind: [p["value"] for p in message["content"] if p["type"] == kind] for kind in ("reasoning", "text", "tool_call")}
    content = "\n".join(clean(p) for p in parts["text"])
    if parts["reasoning"]:
        content = f"<think>\n{clean(parts['reasoning'][0])}\n</think>\n\n{content}".rstrip()
    turn: Message = {"role": message["role"], "content": content}
    made = [json.loads(p) for p in parts["tool_call"]]
    made = [item for group in made for item in (group if isinstance(group, list) else [group])]
    if made:
        turn["tool_calls"] = [call(item["name"], item["arguments"]) for item in made]
    return turn


def upto_answer(chat: list[Message], most: int) -> list[Message]:
    """The opening of a chat, at least ``most`` characters where it has them, that ends with an assistant's message."""
    for end in range(3, len(chat) + 1):
        if size(chat[:end]) >= most and chat[end - 1]["role"] == "assistant":
            return chat[:end]
    return chat


def by_tools(dialogues: list[Dialogue], wanted: dict[str, int]) -> dict[str, list[Dialogue]]:
    """The dialogues split over the sets such that no tool is in two; the largest groups of linked tools come first."""
    groups: list[tuple[set[str], list[Dialogue]]] = []
    for dialogue in dialogues:
        names, kept = set(dialogue.names), [dialogue]
        for group in [g for g in groups if g[0] & names]:
            groups.remove(group)
            names, kept = names | group[0], group[1] + kept
        groups.append((names, kept))
    split: dict[str, list[Dialogue]] = {name: [] for name in wanted}
    for _, members in sorted(groups, key=lambda g: (-len(g[1]), sorted(g[0]))):
        # The set that is furthest from its share takes the group.
        name = max(wanted, key=lambda key: 1 - len(split[key]) / wanted[key])
        split[name] += members
    return split
