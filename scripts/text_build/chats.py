"""The preference and instruction demos of LLaMA-Factory as lists of messages, cleaned and cut to length."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

from .draft import Message

APACHE = "Apache-2.0"
ROLE = {"human": "user", "gpt": "assistant", "system": "system"}
# Translation and cloze tasks of the instruction collections, and themes that do not belong in a package.
UNWANTED = re.compile(
    r"\btranslat|multilingual|Spanish|Hindi|Russian|Persian|Arabic|definition of a task|task definition|Teacher: ?|"
    r"Student ?[AB]?:|Detailed Instructions|sexual|\bsex\b|suicid|\bkill|murder|nazi|racis|porn|drug|\brape|terroris|"
    r"erotic|NSFW|jailbreak|hanging|prompt competition|weapon|genocid|slave|\bbomb|assault|abus(e|ive)\b",
    re.I,
)


def clean(text: str) -> str:
    """Text without trailing spaces, carriage returns and the "Confidence: 80%" that some answers end with."""
    text = re.sub(r"\s*Confidence: ?\d+%\.?\s*$", "", text)
    return re.sub(r"[ \t]+\n", "\n", text.replace("\r\n", "\n")).strip()


SHARE = {"calibration": (3, 4, 6, 8, 9), "dev": (2, 7), "score": (0, 1, 5)}  # rows by their number modulo ten


def demo_chats(data: Path, set_name: str) -> Iterator[tuple[str, str, list[Message]]]:
    """(source, licence, messages) for the set's own rows of the DPO demo (chosen) and the KTO demo (good answers)."""
    with_code = 0
    for source, licence, chat in all_demo_chats(data):
        number = int(source.rsplit(" ", 1)[1])
        if any("```" in m["content"] for m in chat):  # rare: dealt in turn, so that score gets enough
            number, with_code = (0, 3, 0, 2, 4)[with_code % 5], with_code + 1
        if number % 10 in SHARE[set_name]:
            yield source, licence, chat


def all_demo_chats(data: Path) -> Iterator[tuple[str, str, list[Message]]]:
    """(source, licence, messages) for each chat of the DPO demo (chosen answers) and the KTO demo (good answers)."""
    folder = data / "train/llamafactory"
    for index, row in enumerate(json.loads((folder / "dpo_en_demo.json").read_text(encoding="utf-8"))):
        chat = [{"role": ROLE[m["from"]], "content": clean(m["value"])} for m in row["conversations"]]
        chat.append({"role": "assistant", "content": clean(row["chosen"]["value"])})
        if acceptable(chat):
            yield f"LLaMA-Factory dpo_en_demo, row {index}", APACHE, chat
    for index, row in enumerate(json.loads((folder / "kto_en_demo.json").read_text(encoding="utf-8"))):
        chat = [{"role": m["role"], "content": clean(m["content"])} for m in row["messages"]]
        if row["label"] and acceptable(chat):
            yield f"LLaMA-Factory kto_en_demo, row {index}", APACHE, chat


def acceptable(chat: list[Message]) -> bool:
    """Whether every turn has text, mostly ASCII, and none touches an unwanted theme."""
    text = "\n".join(m["content"] for m in chat)
    odd = sum(not char.isascii() for char in text)
    return all(m["content"] for m in chat) and odd < 0.01 * len(text) and not UNWANTED.search(text)


def size(chat: list[Message]) -> int:
    """Characters that a template which drops earlier thoughts would still show."""
    last = max((i for i, m in enumerate(chat) if m["role"] == "user"), default=0)
    total = 0
    for index, message in enumerate(chat):
        content = message["content"]
        if index < last and "</think>" in content:
            content = content.split("</think>", 1)[1]
        total += len(content) + 12 + len(json.dumps(message.get("tool_calls", "")))
    return total


def trim_chat(chat: list[Message], least: int, most: int) -> list[Message] | None:
    """The shortest opening of at least ``least`` characters that ends with an answer; None if the chat is shorter.

    A single very long last answer is cut at a sentence or line near ``most``.
    """
    for end in range(1, len(chat) + 1):
        part = chat[:end]
        if part[-1]["role"] != "assistant" or size(part) < least or part[-1].get("tool_calls"):
            continue
        over = size(part) - most
        last = part[-1]["content"]
        if over > 0 and len(last) - over > 400 and "```" not in last[: len(last) - over]:
            cut = re.search(r"(?<=[.!?])\s|\n", last[len(last) - over :])
            if cut:
                last = last[: len(last) - over + cut.start()].rstrip()
        return [*part[:-1], part[-1] | {"content": last}]
    return None


def short_pairs(data: Path, set_name: str) -> Iterator[tuple[str, str, str, str]]:
    """(source, licence, request, answer) for the set's own single-turn requests."""
    path = data / "train/llamafactory/v1_sft_demo.jsonl"
    for index, line in enumerate(path.read_text(encoding="utf-8").splitlines()):
        user, assistant = (clean(m["content"][0]["value"]) for m in json.loads(line)["messages"])
        if index % 10 in SHARE[set_name]:
            yield f"LLaMA-Factory v1_sft_demo, row {index}", APACHE, user, assistant
    for source, licence, chat in demo_chats(data, set_name):
        first = 1 if chat[0]["role"] == "system" else 0
        yield source, licence, chat[first]["content"], chat[first + 1]["content"]
    if set_name != "calibration":  # the tasks below were training text of the embedded model
        return
    path = data / "train/self_instruct_user_oriented.jsonl"
    for index, line in enumerate(path.read_text(encoding="utf-8").splitlines()):
        row = json.loads(line)
        given = clean(row["instances"][0]["input"])
        request = clean(row["instruction"]) + ("\n\n" + given if given else "")
        yield f"self-instruct user-oriented task {index}", APACHE, request, clean(row["instances"][0]["output"])
