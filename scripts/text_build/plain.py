"""Prose and code: encyclopedia articles, drama, essays, source files, SQL pairs and chats about code."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator
from pathlib import Path

from .chats import demo_chats, trim_chat
from .draft import Draft, clip

LEAST, MOST = 2750, 3300
ESSAY_LEAST = 3050  # long words, hence fewer tokens
CODE_LEAST = 2500
SNIPPETS_LEAST = 1900  # many signs and digits, hence more tokens
WIKI = "CC-BY-SA-4.0"
# Files that carry a copyright line of their own are left out: their terms may differ from the collection's.
OWN_TERMS = re.compile(r"copyright|licen[cs]e|all rights reserved|proprietary|confidential|@author|\(c\)", re.I)
# Key material, addresses and long runs of base64 teach nothing about a language.
NOISE = re.compile(r"[A-Za-z0-9+/=]{90,}|[\w.]+@[\w.]+\.\w+|BEGIN [A-Z ]*KEY|\\u[0-9a-f]{4}\\u")


def articles(data: Path) -> list[Draft]:
    """Openings of the long Wikipedia articles in LLaMA-Factory's demo file."""
    found = []
    for line in (data / "train/llamafactory/wiki_demo.txt").read_text(encoding="utf-8").splitlines():
        repaired = re.sub(r"([a-z\)])\.([A-Z][a-z])", r"\1.\n\n\2", line)
        # What the extraction of the source left of pronunciations: "(; 1809", "( ) is", "; , 1905".
        repaired = re.sub(r"\(\s*[;,]\s*", "(", re.sub(r" ?\(\s*[;,]?\s*\)", "", re.sub(r";\s*,\s*", ", ", repaired)))
        text = clip(repaired, LEAST, MOST)
        if text and not re.match(r"Alien primarily|Austin is the capital|This is a list", text):
            title = " ".join(re.sub(r"\(.*?\)", "", text).split()[:4]).rstrip(",;")
            found.append(Draft("prose", f'Wikipedia, article that opens "{title}" (LLaMA-Factory wiki_demo)', WIKI, text))
    return found


def encyclopedia(data: Path, last_tenth: bool) -> Iterator[Draft]:
    """Wikipedia articles from exllamav3's sample: the first nine tenths, or the last one, where short articles are
    joined."""
    text = (data / "calib/exllama/wiki.utf8").read_text(encoding="utf-8")
    cut = int(len(text) * 0.9)
    part = text[cut:] if last_tenth else text[:cut]
    joined, titles = "", list[str]()
    for title, page in re.findall(r'<doc id="\d+" url=".*?" title="(.*?)">\n(.*?)</doc>', part, re.S):
        page = page.strip().replace("&gt;", ">").replace("&lt;", "<").replace("&amp;", "&")
        if page.count("\n") > 30 or len(page) < 450 or page.endswith(":"):
            continue
        joined, titles = f"{joined}\n\n{page}".strip(), [*titles, title]
        clipped = clip(joined, LEAST, MOST)
        if clipped and (len(titles) == 1 or last_tenth):
            yield Draft("prose", f'Wikipedia, "{"; ".join(titles)}" (exllamav3 wiki.utf8)', WIKI, clipped)
        if clipped or not last_tenth:
            joined, titles = "", []


def drama(data: Path, rng: random.Random) -> Iterator[Draft]:
    """Scenes from Shakespeare, cut where one speaker ends."""
    text = (data / "calib/tinyshakespeare.txt").read_text(encoding="utf-8")
    starts = [match.end() for match in re.finditer(r"\n\n(?=[A-Z])", text)]
    for start in rng.sample(starts[:-200], 12):
        speeches = text[start : start + MOST + 600].split("\n\n")
        scene = ""
        while len(scene) < LEAST:
            scene += speeches.pop(0) + "\n\n"
        yield Draft("prose", "Shakespeare, collected plays (tinyshakespeare)", "public domain", scene.strip())


def essays(data: Path, set_name: str) -> Iterator[Draft]:
    """Long answers without lists or code from the preference demos, as running text."""
    for source, licence, chat in demo_chats(data, set_name):
        parts = [m["content"] for m in chat if m["role"] == "assistant"]
        parts = [p for p in parts if len(p) > 900 and not re.search(r"^\s*([-*#•]|\d+[.)])|```", p, re.M)]
        joined = "\n\n".join(parts)
        clipped = clip(joined, ESSAY_LEAST, MOST + 300)
        if clipped and clipped.isascii():
            yield Draft("prose", f"{source} (answers as running text)", licence, clipped)


def source_files(data: Path, last_tenth: bool) -> list[Draft]:
    """Source files in fourteen languages from exllamav3's sample, openings of about 3 KB."""
    text = (data / "calib/exllama/code.utf8").read_text(encoding="utf-8")
    cut = int(len(text) * 0.9)
    found: dict[str, list[Draft]] = {}
    for match in re.finditer(r"// ===== BEGIN (.*?) =====\n(.*?)// ===== END", text, re.S):
        if (match.start() >= cut) != last_tenth:
            continue
        language, content = match.group(1), match.group(2).strip("\n")
        if OWN_TERMS.search(content):
            continue
        clipped = clip(content, CODE_LEAST, MOST + 200)
        if clipped and not NOISE.search(clipped) and max(map(len, clipped.splitlines())) < 300:
            source = f"exllamav3 code.utf8, {language} file"
            found.setdefault(language, []).append(Draft("code", source, "MIT", clipped))
    return list(alternate(list(found.values())))


def alternate(lists: list[list[Draft]]) -> Iterator[Draft]:
    """One of each list in turn, so that any prefix covers them evenly."""
    for row in range(max(map(len, lists), default=0)):
        yield from (items[row] for items in lists if row < len(items))


def small_tasks(data: Path, rng: random.Random) -> Iterator[Draft]:
    """MBPP problems with their solutions and checks, several to a sample."""
    rows = [json.loads(line) for line in (data / "train/mbpp.jsonl").read_text(encoding="utf-8").splitlines()]
    rng.shuffle(rows)
    text = ""
    for row in rows:
        checks = "\n".join(test.strip() for test in row["test_list"])
        code = row["code"].replace("\r\n", "\n").replace("\t", "    ").strip()
        text += f"# {row['text'].strip()}\n{code}\n\n{checks}\n\n\n"
        if len(text) > SNIPPETS_LEAST:
            yield Draft("code", "MBPP (Austin et al. 2021)", "CC-BY-4.0", text.strip())
            text = ""


def queries(data: Path, name: str) -> Iterator[Draft]:
    """WikiSQL questions with their queries, several to a sample."""
    rows = (data / f"train/mlx_lora_wikisql/{name}.jsonl").read_text(encoding="utf-8").splitlines()
    text = ""
    for row in rows:
        text += json.loads(row)["text"].strip() + "\n\n"
        if len(text) > SNIPPETS_LEAST:
            yield Draft("code", f"WikiSQL ({name}, as packaged in mlx-examples)", "BSD-3-Clause", text.strip())
            text = ""


def code_chats(data: Path, set_name: str) -> Iterator[Draft]:
    """Chats whose answers hold code."""
    for source, licence, chat in demo_chats(data, set_name):
        trimmed = trim_chat(chat, 2300, MOST)
        if trimmed and any("```" in m["content"] for m in trimmed if m["role"] == "assistant"):
            yield Draft("code", source, licence, messages=trimmed)
