"""Agents in an environment: shop and airline desks (tau-bench) and a database (AgentBench tables, really executed).

The published tau-bench transcripts show a tool's answer but not the call. A call is put back where the answer
tells it without doubt (which user, which order, which reservation); a transcript is cut before the first one that
does not.
"""

from __future__ import annotations

import ast
import json
import random
import re
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .calls import call
from .chats import size
from .draft import Draft, Message

LEAST = 2300


def text_tool(name: str, description: str, **fields: str) -> dict[str, Any]:
    """A tool whose parameters are all required strings."""
    properties = {key: {"type": "string", "description": text} for key, text in fields.items()}
    parameters = {"type": "object", "properties": properties, "required": list(fields)}
    return {"type": "function", "function": {"name": name, "description": description, "parameters": parameters}}


DESK_TOOLS = {
    "find_user_id_by_email": text_tool("find_user_id_by_email", "Find a user id by email.", email="The user's email."),
    "find_user_id_by_name_zip": text_tool(
        "find_user_id_by_name_zip",
        "Find a user id by first name, last name and zip code.",
        first_name="First name.",
        last_name="Last name.",
        zip="Zip code.",
    ),
    "get_user_details": text_tool(
        "get_user_details",
        "Get the profile of a user, with orders or reservations.",
        user_id="The user id, such as 'sara_doe_496'.",
    ),
    "get_order_details": text_tool(
        "get_order_details",
        "Get the status and details of an order.",
        order_id="The order id, with the '#' in front, such as '#W0000000'.",
    ),
    "get_reservation_details": text_tool(
        "get_reservation_details",
        "Get the details of a reservation.",
        reservation_id="The reservation id, such as '8JX2WO'.",
    ),
    "transfer_to_human_agents": text_tool(
        "transfer_to_human_agents", "Hand the user over to a human agent.", summary="A summary of the user's issue."
    ),
}
DESK_RULES = {
    "Retail": "You work at the help desk of an online shop. Find out who the user is before you show any data. "
    "Look up orders "
    "with the tools; never guess. Ask for an explicit yes before you change anything.",
    "Airline": "You work at the help desk of an airline. Look up the user's profile and reservations with the "
    "tools before you "
    "answer. Basic economy tickets cannot be changed. Ask for an explicit yes before you change a booking.",
}


def infer(answer: str, said: str, known: set[str]) -> dict[str, Any] | None:
    """The call that must have produced ``answer``, judged by the answer and by what the user has said so far."""
    emails, zips = re.findall(r"[\w.+-]+@[\w-]+\.\w+", said), re.findall(r"\b\d{5}\b", said)
    if answer == "Transfer successful":
        return call("transfer_to_human_agents", {"summary": "The user asks for help that the tools cannot give."})
    if answer == "Error: user not found" and len(emails) == 1 and "email" not in known:
        known.add("email")
        return call("find_user_id_by_email", {"email": emails[0].rstrip(".")})
    if re.fullmatch(r"[a-z]+_[a-z]+_\d+", answer):
        first, last, _ = answer.split("_")
        if emails and "email" not in known:
            known.add("email")
            return call("find_user_id_by_email", {"email": emails[-1].rstrip(".")})
        if zips:
            arguments = {"first_name": first.capitalize(), "last_name": last.capitalize(), "zip": zips[-1]}
            return call("find_user_id_by_name_zip", arguments)
        return None
    if not answer.startswith("{"):
        return None
    found = json.loads(answer)
    for key, tool in (("order_id", "get_order_details"), ("reservation_id", "get_reservation_details")):
        if key in found:
            fresh = found[key] not in known
            known.add(found[key])
            changed = re.search(r'"status": "(?:return|exchange|cancelled)|_items"', answer)
            return call(tool, {key: found[key]}) if fresh and not changed else None
    if "payment_methods" in found:
        match = re.search(r"\b[a-z]+_[a-z]+_\d{4}\b", said + " " + " ".join(sorted(known)))
        return call("get_user_details", {"user_id": match.group(0)}) if match else None
    return None


def desk_chat(transcript: str) -> list[Message]:
    """The transcript as messages, up to the first tool answer whose call cannot be told."""
    turns = re.split(r"\n(?=(?:user|assistant|tool): )", transcript)
    chat: list[Message] = []
    said, known = "", set[str]()
    for turn in turns:
        role, _, content = turn.partition(": ")
        content = content.replace("###STOP###", "").strip()
        if role == "tool":
            made = infer(content, said, known)
            if made is None:
                break
            if re.fullmatch(r"[a-z]+_[a-z]+_\d+", content):
                known.add(content)
            if chat[-1]["role"] == "assistant" and not chat[-1].get("tool_calls"):
                chat[-1]["tool_calls"] = [made]
            else:
                chat.append({"role": "assistant", "content": "", "tool_calls": [made]})
            chat.append({"role": "tool", "content": content})
        elif content and content != "None":
            said += f" {content}" if role == "user" else ""
            chat.append({"role": role, "content": content})
    while chat and (chat[-1]["role"] != "assistant" or chat[-1].get("tool_calls")):
        chat.pop()
    return chat


def desks(data: Path, rng: random.Random) -> Iterator[Draft]:
    """Help-desk dialogues with the tools that they use and one that they do not."""
    for place in ("Retail", "Airline"):
        path = data / f"calib/taubench/Mock{place}DomainEnv-few_shot.jsonl"
        for index, line in enumerate(path.read_text(encoding="utf-8").splitlines()):
            chat = desk_chat(json.loads(line)["messages_display"])
            for end in range(4, len(chat) + 1):
                done = chat[end - 1]["role"] == "assistant" and not chat[end - 1].get("tool_calls")
                if done and size(chat[:end]) >= LEAST:
                    chat = chat[:end]
                    break
            used = {c["function"]["name"] for m in chat for c in m.get("tool_calls", [])}
            if size(chat) < LEAST or len(used) < 2:
                continue
            spare = rng.choice([name for name in DESK_TOOLS if name not in used])
            tools = [tool for name, tool in DESK_TOOLS.items() if name in used | {spare}]
            messages = [{"role": "system", "content": DESK_RULES[place]}, *chat]
            yield Draft("agent", f"tau-bench {place.lower()} dialogue {index}", "MIT", messages=messages, tools=tools)


DATABASE = {
    "calibration": (
        text_tool("execute_sql", "Run one SQL statement on the database and return its rows as JSON.", query="The statement."),
        "You operate a SQLite database through a tool. Look at the table before you write, run one statement at "
        "a time, and "
        "check the result before you report.",
        ("Let me look at the table first.", "I will check the columns and a few rows.", "First, a look at the data."),
        (
            "Now the statement that does it.",
            "With these columns the statement is clear.",
            "That is enough to write the query.",
        ),
        ("Let me verify.", "I check that the table shows it.", "A last look at the result."),
    ),
    "dev": (
        text_tool("query_database", "Sends SQL to the connected SQLite file. Rows come back as a JSON list.", sql="SQL text."),
        "Act as a careful database assistant. Inspect, act, verify; then tell the user in one or two sentences what happened.",
        ("I begin by inspecting what is there.", "I need to see the structure."),
        ("I can run this now.", "Next comes the actual statement."),
        ("I confirm the outcome with a query.", "One query to be sure."),
    ),
}


def databases(data: Path, set_name: str, rng: random.Random) -> Iterator[Draft]:
    """Changes to a table, asked in plain words: look, act, verify, report; every answer comes from SQLite."""
    tool, rules, looks, acts, checks = DATABASE[set_name]
    field = next(iter(tool["function"]["parameters"]["properties"]))
    lines = (data / "calib/agentbench/dbbench_dev.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [(i, json.loads(line)) for i, line in enumerate(lines)]
    rng.shuffle(rows)
    for index, row in rows:
        table = row["table"] if isinstance(row["table"], dict) else ast.literal_eval(row["table"])
        statement = row["label"][0]
        if not re.match(r"(INSERT|UPDATE)", statement):
            continue
        steps = executed(table, statement)
        if not steps:
            continue
        (look, seen), (act, changed), (verify, shown) = steps
        chat: list[Message] = [
            {"role": "system", "content": rules},
            {"role": "user", "content": f"{row['description'].strip()}\n{row['add_description'].strip()}"},
        ]
        for words, query, answer in ((looks, look, seen), (acts, act, changed), (checks, verify, shown)):
            chat.append(
                {
                    "role": "assistant",
                    "content": rng.choice(words),
                    "tool_calls": [call(tool["function"]["name"], {field: query})],
                }
            )
            chat.append({"role": "tool", "content": answer})
        verb = "inserted a row into" if act.startswith("INSERT") else "updated"
        result = "; ".join(", ".join(f"{k}: {v}" for k, v in item.items()) for item in json.loads(shown)[:2])
        chat.append({"role": "assistant", "content": f'Done: I {verb} "{table["table_name"]}". It now shows {result}.'})
        if size(chat) > LEAST - 300:
            yield Draft(
                "agent",
                f"AgentBench database task {index}, executed with SQLite",
                "Apache-2.0",
                messages=chat,
                tools=[tool],
            )


def executed(table: dict[str, Any], statement: str) -> list[tuple[str, str]] | None:
    """[(query, answer)] for look, act and verify; None where SQLite refuses or nothing changes."""
    name, columns = table["table_name"], [c["name"] for c in table["table_info"]["columns"]]
    base = sqlite3.connect(":memory:")
    base.row_factory = sqlite3.Row
    try:
        base.execute(f"CREATE TABLE `{name}` ({', '.join(f'`{c}` TEXT' for c in columns)})")
        marks = ", ".join("?" * len(columns))
        base.executemany(f"INSERT INTO `{name}` VALUES ({marks})", table["table_info"]["rows"])
        look = f"SELECT * FROM `{name}` LIMIT 6"
        seen = rows_json(base.execute(look))
        before = base.total_changes
        base.execute(statement)
        count = base.total_changes - before
        if statement.startswith("INSERT"):
            verify = f"SELECT * FROM `{name}` ORDER BY rowid DESC LIMIT 1"
        else:
            verify = f"SELECT * FROM `{name}` WHERE{statement.split('WHERE', 1)[1]}"
        shown = rows_json(base.execute(verify))
    except (sqlite3.Error, IndexError):
        return None
    finally:
        base.close()
    if not count or shown == "[]" or count > 3:
        return None
    return [(look, seen), (statement, json.dumps({"rows_changed": count})), (verify, shown)]


def rows_json(cursor: sqlite3.Cursor) -> str:
    """The rows as a JSON list of objects."""
    return json.dumps([dict(row) for row in cursor], ensure_ascii=False)
