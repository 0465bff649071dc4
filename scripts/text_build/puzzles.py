"""Reasoning: BIG-Bench-Hard questions with worked solutions, and word problems made from templates.

Every solution is computed; a BIG-Bench-Hard question whose computed answer differs from its key is left out.
Each solver returns (question, thought, answer) or None; `style` (0, 1, 2) picks one of three wordings, one for each
set.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from .draft import Draft

Worked = tuple[str, str, str]
LEAST = 1950
NUMBERS = {w: i for i, w in enumerate("zero one two three four five six seven eight nine ten".split())} | {
    "a": 1,
    "an": 1,
}
FURNITURE = {"bed", "car", "chair", "couch", "fridge", "lamp", "microwave", "oven", "stove", "table", "toaster"}
KINDS = {
    "musical instruments": {"accordion", "clarinet", "drum", "flute", "piano", "trombone", "trumpet", "violin"},
    "fruits": {
        "apple",
        "banana",
        "blackberry",
        "grape",
        "nectarine",
        "orange",
        "peach",
        "plum",
        "raspberry",
        "strawberry",
    },
    "vegetables": {
        "cabbage",
        "carrot",
        "cauliflower",
        "garlic",
        "head of broccoli",
        "lettuce head",
        "onion",
        "potato",
        "stalk of celery",
        "yam",
    },
    "animals": {
        "bear",
        "cat",
        "chicken",
        "cow",
        "dog",
        "donkey",
        "duck",
        "fish",
        "frog",
        "goat",
        "mouse",
        "pig",
        "rabbit",
        "snail",
        "snake",
    },
}
PLURAL = {
    "mice": "mouse",
    "peaches": "peach",
    "couches": "couch",
    "heads of broccoli": "head of broccoli",
    "stalks of celery": "stalk of celery",
    "potatoes": "potato",
    "fish": "fish",
}


def singular(noun: str) -> str:
    """The singular of a noun that the counting task uses."""
    if noun in PLURAL:
        return PLURAL[noun]
    if noun.endswith("ies"):
        return noun[:-3] + "y"
    return noun[:-1] if noun.endswith("s") else noun


def counting(question: str, style: int) -> Worked | None:
    """Count the things of one kind in a list."""
    match = re.match(r"I have (.*?)\. How many (.*?) do I have\?", question)
    if not match:
        return None
    things, kind = match.groups()
    total, kept, left = 0, [], []
    for phrase in re.split(r", and |, | and ", things):
        word, _, noun = phrase.partition(" ")
        if word not in NUMBERS:
            return None
        if kind == "objects" or singular(noun) in KINDS[kind]:
            total += NUMBERS[word]
            kept.append(
                (
                    f"{noun} +{NUMBERS[word]} = {total}",
                    f"{NUMBERS[word]} for {noun} makes {total}",
                    f"{noun}: {NUMBERS[word]} (sum {total})",
                )[style]
            )
        else:
            left.append(noun)
    thought = ("Add up: ", "Running total: ", "Count along. ")[style] + ("; ", ", ", "; ")[style].join(kept) + "."
    thought += (" Not ", " These are no ", " Left out, as no ")[style] + f"{kind}: {', '.join(left)}." if left else ""
    asked = (
        question,
        f"{things[0].upper()}{things[1:]}: what is the number of {kind}?",
        f"Count the {kind}: {things}.",
    )[style]
    return asked, thought, str(total)


def truthful(question: str, style: int) -> Worked | None:
    """Follow a chain of people who speak of one another's honesty."""
    body = question.removeprefix("Question: ")
    first, *claims = body.split(". ")
    name, verb = first.split(" ", 1)
    known = {name: verb.startswith("tells")}
    steps = [f"{name} {'is honest' if known[name] else 'is a liar'}, as given."]
    for claim in claims[:-1]:
        who, whom, says = re.match(r"(\w+) says (\w+) (.*)", claim).groups()  # type: ignore[union-attr]
        right = says.startswith("tells") == known[whom]
        known[who] = right
        steps.append(
            f"{who} claims that {whom} {says}; that is {'true' if right else 'false'}, so {who} "
            f"{'is honest' if right else 'lies'}."
        )
    asked = re.match(r"Does (\w+)", claims[-1])
    assert asked
    return body, " ".join(steps), "Yes" if known[asked.group(1)] else "No"


def sorting(question: str, style: int) -> Worked | None:
    """Sort words alphabetically, by first letter and then within each letter."""
    words = question.split("List: ", 1)[1].split()
    if not 5 <= len(words) <= 14:
        return None
    groups: dict[str, list[str]] = {}
    for word in words:
        groups.setdefault(word[0], []).append(word)
    steps = [f"{letter}: {', '.join(sorted(groups[letter]))}" for letter in sorted(groups)]
    start = ("By first letter: ", "Grouped by initial, each group sorted: ", "First letters, then the rest. ")[style]
    ask = ("Put these words into alphabetical order: ", "Sort: ", "Which order would a dictionary give ")[style]
    return f"{ask}{', '.join(words)}{'..?'[style]}", start + "; ".join(steps) + ".", " ".join(sorted(words))


def walking(question: str, style: int) -> Worked | None:
    """Track a position on a grid."""
    moves = question.split("\n")[0].split("? ", 1)[1].rstrip(".").split(". ")
    fixed = moves[0] == "Always face forward"
    x = y = heading = 0
    steps = []
    for move in moves[1:] if fixed else moves:
        if move.startswith("Turn"):
            heading = (heading + {"left": 3, "right": 1, "around": 2}[move.split()[1]]) % 4
            arrow = ("->", "=>", "gives")[style]
            steps.append(f"{move.lower()} {arrow} facing {'north east south west'.split()[heading]}")
            continue
        parts = move.split()
        count, side = int(parts[1]), parts[3] if len(parts) > 3 else "forward"
        turn = (heading + {"forward": 0, "right": 1, "backward": 2, "left": 3}[side]) % 4
        x, y = x + count * (0, 1, 0, -1)[turn], y + count * (1, 0, -1, 0)[turn]
        steps.append(f"{count} {side} {('->', '=>', 'gives')[style]} ({x}, {y})")
    plan = ", ".join(m.replace("Take ", "").lower() for m in (moves[1:] if fixed else moves))
    facing = (
        ("always facing the same way", "turning only where it says so"),
        ("never turning", "with turns"),
        ("without a change of direction", "with the turns as listed"),
    )[style][not fixed]
    home = (x, y) == (0, 0)
    text = (
        f"A walker moves, {facing}: {plan}. Does the walk end where it began?",
        f"Walk, {facing}: {plan}. Back at the start?",
        f"Someone walks {facing} - {plan} - and stops. Is that the starting point?",
    )[style]
    thought = ("From (0, 0), facing north: ", "Origin, north ahead: ", "Begin at (0, 0) and look north. ")[style]
    thought += f"{'; '.join(steps)}. That is {'' if home else 'not '}the origin."
    return text, thought, "Yes" if home else "No"


def arithmetic(question: str, style: int) -> Worked | None:
    """Evaluate two bracketed groups: products first, then sums, then the outer operation."""
    inner = question.removesuffix(" =")[1:-1]
    match = re.fullmatch(r"\((.*?)\) ([-+*]) \((.*?)\)", inner)
    if not match:
        return None
    left, sign, right = match.groups()
    values, steps = [], []
    for side, group in (("first", left), ("second", right)):
        tokens = group.split()
        while "*" in tokens:
            at = tokens.index("*")
            tokens[at - 1 : at + 2] = [str(int(tokens[at - 1]) * int(tokens[at + 1]))]
        value = int(tokens[0])
        for operation, number in zip(tokens[1::2], tokens[2::2], strict=True):
            value += int(number) if operation == "+" else -int(number)
        products = f" = {' '.join(tokens)}" if len(tokens) > 1 and " ".join(tokens) != group else ""
        steps.append(f"{side.capitalize()} group: {group}{products} = {value}.")
        values.append(value)
    result = {"+": values[0] + values[1], "-": values[0] - values[1], "*": values[0] * values[1]}[sign]
    steps.append(f"Together: {values[0]} {sign} {f'({values[1]})' if values[1] < 0 else values[1]} = {result}.")
    return f"Work out ({left}) {sign} ({right}).", " ".join(steps), str(result)


def logic(question: str, style: int) -> Worked | None:
    """Evaluate a Boolean expression, innermost part first."""
    expression = question.removesuffix(" is")
    current, steps = expression, []
    rules = [
        (r"\( (True|False) \)", lambda m: m[1]),
        (r"not (True|False)", lambda m: str(m[1] == "False")),
        (r"(True|False) and (True|False)", lambda m: str(m[1] == m[2] == "True")),
        (r"(True|False) or (True|False)", lambda m: str("True" in (m[1], m[2]))),
    ]
    while current not in ("True", "False"):
        inside = re.search(r"\( ([^()]*) \)", current)
        scope = inside.group(1) if inside and inside.group(1) not in ("True", "False") else None
        target = scope if scope is not None else current
        for pattern, value in rules:
            changed = re.sub(pattern, value, target, count=1)
            if changed != target:
                break
        current = current.replace(f"( {scope} )", f"( {changed} )", 1) if scope is not None else changed
        steps.append(current)
    return (
        f"Evaluate the expression: {expression}",
        "Simplify step by step: " + " => ".join([expression, *steps]) + ".",
        current,
    )


def swapping(question: str, style: int) -> Worked | None:
    """Follow three things through three swaps."""
    holds = dict(
        re.findall(
            r"(Alice|Bob|Claire) (?:gets|is dancing with|is playing|has a|has the) ([\w\- ']+?)(?=,|\.)",
            question.split("\n")[0],
        )
    )
    if len(holds) != 3:
        return None
    steps = ["At the start: " + ", ".join(f"{k} - {v}" for k, v in holds.items()) + "."]
    for one, two in re.findall(r"(?:First|Then|Finally), (\w+) and (\w+) (?:swap|switch|trade)", question):
        holds[one], holds[two] = holds[two], holds[one]
        steps.append(f"{one} <-> {two}: " + ", ".join(f"{k} - {v}" for k, v in holds.items()) + ".")
    asked = re.search(r"(?:dance|match|semester|event|game), (\w+) (?:is|has)[^.]*\nOptions", question)
    if not asked:
        return None
    options = {thing.strip(): letter for letter, thing in re.findall(r"(\([A-C]\)) (.*)", question)}
    return question, " ".join(steps), options[holds[asked.group(1)]]


SOLVERS: dict[str, Callable[[str, int], Worked | None]] = {
    "object_counting": counting,
    "web_of_lies": truthful,
    "word_sorting": sorting,
    "navigate": walking,
    "multistep_arithmetic_two": arithmetic,
    "boolean_expressions": logic,
    "tracking_shuffled_objects_three_objects": swapping,
}


def solved(data: Path, task: str, style: int) -> list[Worked]:
    """The questions of one BIG-Bench-Hard task whose computed answer equals the key; each style has its own third."""
    rows = json.loads((data / f"calib/bbh/{task}.json").read_text(encoding="utf-8"))["examples"]
    random.Random(task).shuffle(rows)
    pairs = [(SOLVERS[task](row["input"], style), row["target"]) for row in rows[style::3]]
    return [worked for worked, target in pairs if worked and worked[2] == target]


OPENING = {
    "calibration": (
        "Answer the following questions. Think first.",
        "Here are a few exercises; give one answer per line.",
        "Solve these, then list the results.",
        "Please work through each item below.",
    ),
    "dev": ("Some short problems for you:", "Could you solve all of these?", "Try these and number your answers."),
    "score": (
        "I need the answers to these problems.",
        "Let us practise. One result per item, please.",
        "Check my homework by solving each part.",
        "What are the answers?",
    ),
}
CLOSING = {
    "calibration": ("Answers:", "Results:", "Here they are:"),
    "dev": ("So:", "My answers:"),
    "score": ("The answers are:", "In order:", "I get:"),
}


def sheets(set_name: str, source: str, licence: str, items: Iterator[Worked], rng: random.Random) -> Iterator[Draft]:
    """Chats of one request with several problems, one thought that solves them all and a list of answers."""
    batch: list[Worked] = []
    for item in items:
        batch.append(item)
        if sum(len(q) + len(t) + 20 for q, t, _ in batch) < LEAST:
            continue
        ask = "\n\n".join(f"{i}. {q}" for i, (q, _, _) in enumerate(batch, 1))
        think = "\n".join(f"{i}) {t} Answer: {a}." for i, (_, t, a) in enumerate(batch, 1))
        reply = "\n".join(f"{i}. {a}" for i, (_, _, a) in enumerate(batch, 1))
        content = f"<think>\n{think}\n</think>\n\n{rng.choice(CLOSING[set_name])}\n{reply}"
        messages = [
            {"role": "user", "content": f"{rng.choice(OPENING[set_name])}\n\n{ask}"},
            {"role": "assistant", "content": content},
        ]
        yield Draft("reasoning", source, licence, messages=messages)
        batch = []
