"""Build the packaged text: three disjoint sets over six domains, with sources, licences and hashes.

    python scripts/build_text.py [--data ../shared/data] [--out src/optiq/measure/text]

Deterministic: the same data folder gives the same bytes. ``score`` and ``dev`` are filled first and take text that the
embedded tiny model has not seen in training where the sources have it; ``calibration`` takes the rest.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import re
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from text_build import agents, calls, instructions, plain, problems, puzzles, workbench
from text_build.draft import DOMAINS, ROWS, SETS, Draft, Gate, questions, windows
from text_build.licences import BSD, LICENCES, MIT

SEED = 20240917
Quota = list[tuple[Iterable[Draft], int]]
# Tasks of BIG-Bench-Hard and how many samples each gives; the last row is the share of word problems.
PUZZLES = {
    "score": {"navigate": 3, "multistep_arithmetic_two": 3, "object_counting": 3, "web_of_lies": 3, "word_sorting": 3},
    "dev": {"boolean_expressions": 2, "object_counting": 2, "web_of_lies": 2, "word_sorting": 2},
    "calibration": {
        "tracking_shuffled_objects_three_objects": 6,
        "object_counting": 6,
        "web_of_lies": 7,
        "word_sorting": 7,
        "navigate": 5,
    },
}
SYSTEM = {
    "score": "You solve requests with the tools at hand. Reason first, then act.",
    "dev": "Think about which tool fits, call it, and report plainly.",
    "calibration": "Use the available functions when they help. Say so when none of them does.",
}


def prose(data: Path, set_name: str, rng: random.Random) -> Quota:
    """Wikipedia openings, essays and, for calibration, drama."""
    articles, answers = plain.articles(data), list(plain.essays(data, set_name))
    rng.shuffle(articles)
    if set_name == "score":
        return [(articles, 11), (plain.encyclopedia(data, True), 5), (answers, 4), (articles, 20)]
    shuffled = list(plain.encyclopedia(data, False))
    rng.shuffle(shuffled)
    if set_name == "dev":
        return [(articles, 5), (answers, 3), (shuffled, 12)]
    return [(articles, 8), (answers, 8), (plain.drama(data, rng), 6), (shuffled, 40)]


def code(data: Path, set_name: str, rng: random.Random) -> Quota:
    """Source files, SQL, small tasks and chats about code."""
    chats, files = list(plain.code_chats(data, set_name)), plain.source_files(data, last_tenth=set_name == "score")
    if set_name == "score":
        return [(files, 9), (plain.queries(data, "test"), 4), (chats, 7), (plain.queries(data, "test"), 9)]
    if set_name == "dev":
        return [(plain.queries(data, "valid"), 2), (chats, 4), (files, 12)]
    return [(chats, 6), (plain.queries(data, "train"), 3), (plain.small_tasks(data, rng), 7), (files, 40)]


def reasoning(data: Path, set_name: str, rng: random.Random) -> Quota:
    """Sheets of solved puzzles and word problems; a set never uses a question of another."""
    quota: Quota = []
    turn = SETS.index(set_name)
    for task, count in PUZZLES[set_name].items():
        pool = puzzles.solved(data, task, turn)
        source = f"BIG-Bench-Hard {task}, solutions computed"
        quota.append((puzzles.sheets(set_name, source, "MIT", iter(pool), rng), count))
    rest = problems.word_problems(set_name, rng, 600)
    quota.append((puzzles.sheets(set_name, "word problems from templates, solutions computed", "Apache-2.0", rest, rng), 40))
    return quota


def agent(data: Path, set_name: str, rng: random.Random) -> Quota:
    """Agents that think before they call; help desks and databases where the tiny model's training text may be used."""
    thinkers = calls.thinking_agents(data, SYSTEM[set_name])
    if set_name == "score":
        return [(thinkers, 20)]
    database = agents.databases(data, set_name, rng)
    if set_name == "dev":
        return [(thinkers, 1), (database, 11)]
    desks = list(agents.desks(data, rng))
    rng.shuffle(desks)
    return [(thinkers, 2), (desks, 25), (database, 13), (desks, 40)]


def tool_call(data: Path, set_name: str, rng: random.Random) -> Quota:
    """Function-calling dialogues, from Glaive and from templates."""
    share = calls.packed(calls.by_tools(calls.glaive(data), {"calibration": 40, "score": 16, "dev": 12})[set_name])
    rng.shuffle(share)
    return [(share, ROWS[set_name]), (workbench.dialogues(set_name, rng), ROWS[set_name])]


def constraints(data: Path, set_name: str, rng: random.Random) -> Quota:
    """Conversations under constraints; each set has its own pairs and its own wording."""
    return [(instructions.conversations(data, set_name, rng), ROWS[set_name])]


MAKERS = {
    "prose": prose,
    "reasoning": reasoning,
    "code": code,
    "agent": agent,
    "tool_call": tool_call,
    "instructions": constraints,
}


def fill(gate: Gate, set_name: str, domain: str, quota: Quota) -> list[Draft]:
    """The first drafts of each source that the gate admits, up to the source's share and the set's size."""
    kept: list[Draft] = []
    for drafts, share in quota:
        taken = 0
        for draft in drafts:
            if taken == share or len(kept) == ROWS[set_name]:
                break
            if gate.admit(set_name, draft, repeats=0.6 if domain in ("reasoning", "tool_call") else 0.3):
                kept.append(draft)
                taken += 1
    if len(kept) < ROWS[set_name]:
        raise SystemExit(f"{set_name}/{domain}: {len(kept)} samples, {ROWS[set_name]} wanted")
    return kept


def build(data: Path) -> tuple[dict[str, list[Draft]], Gate]:
    """All three sets."""
    gate = Gate(set().union(*(windows(question) for question in questions(data / "eval"))))
    chosen: dict[str, dict[str, list[Draft]]] = {name: {} for name in SETS}
    # tool_call comes before agent: its tools decide which agents the sets can take.
    for domain in sorted(DOMAINS, key=lambda name: name == "agent"):
        for set_name in ("score", "dev", "calibration"):
            rng = random.Random(f"{SEED} {set_name} {domain}")
            drafts = fill(gate, set_name, domain, MAKERS[domain](data, set_name, rng))
            rng.shuffle(drafts)
            chosen[set_name][domain] = drafts
    return {name: [d for domain in DOMAINS for d in chosen[name][domain]] for name in SETS}, gate


def lines(set_name: str, drafts: list[Draft]) -> str:
    """The set as JSON lines, ids by domain and number."""
    counts: Counter[str] = Counter()
    rows = []
    for draft in drafts:
        counts[draft.domain] += 1
        rows.append(json.dumps(draft.record(f"{set_name}/{draft.domain}/{counts[draft.domain]:02d}"), ensure_ascii=False))
    return "\n".join(rows) + "\n"


def general(source: str) -> str:
    """A source without the row, article or task number."""
    if source.startswith("constraints from templates over"):
        return "constraints from templates over LLaMA-Factory demos and self-instruct user-oriented tasks"
    return re.sub(r'(, article that opens ".*?"|, ".*"|, rows? \d+(, \d+)*|(?<=task|ogue) \d+)', "", source)


def sources(sets: dict[str, list[Draft]]) -> str:
    """The page that names every licence and every source with its number of samples."""
    out = [
        "# Sources of the packaged text",
        "",
        "Written by `scripts/build_text.py`. Every sample names its own source and "
        "licence in the JSON lines; this page sums them up.",
        "",
        "## Licences",
        "",
    ]
    used = {d.licence for drafts in sets.values() for d in drafts}
    out += [f"- **{name}**: {text}" for name, text in LICENCES.items() if name in used]
    for set_name, drafts in sets.items():
        out += ["", f"## {set_name}", "", "| domain | source | licence | samples |", "|---|---|---|---:|"]
        counts = Counter((d.domain, general(d.source), d.licence) for d in drafts)
        out += [
            f"| {a} | {b} | {c} | {n} |" for (a, b, c), n in sorted(counts.items(), key=lambda p: (DOMAINS.index(p[0][0]), p[0]))
        ]
    out += ["", "## Texts of the short licences", "", MIT, "", BSD, ""]
    return "\n".join(out) + "\n"


def main() -> int:
    """Write the package data."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    root = Path(__file__).resolve().parent.parent
    parser.add_argument("--data", type=Path, default=root.parent / "shared" / "data", help="the data folder")
    parser.add_argument("--out", type=Path, default=root / "src" / "optiq" / "measure" / "text", help="the package folder")
    args = parser.parse_args()
    if not (args.data / "MANIFEST.md").is_file():
        print(f"no data folder at {args.data}: pass --data", file=sys.stderr)
        return 2
    sets, gate = build(args.data)
    manifest: dict[str, object] = {"schema": 1, "seed": SEED, "domains": list(DOMAINS), "samples": ROWS, "files": {}}
    files: dict[str, object] = {}
    for set_name, drafts in sets.items():
        payload = lines(set_name, drafts).encode()
        (args.out / f"{set_name}.jsonl").write_bytes(payload)
        files[f"{set_name}.jsonl"] = {"bytes": len(payload), "sha256": hashlib.sha256(payload).hexdigest()}
    manifest["files"] = files
    (args.out / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
    (args.out / "SOURCES.md").write_text(sources(sets), encoding="utf-8")
    print(json.dumps({"files": files, "refused": gate.refused}, indent=2))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
