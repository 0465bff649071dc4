"""Tool dialogues made from templates: every tool is computed here, so each result and each answer is right.

A maker returns (what the user says, arguments, result, what the assistant says). Every set has tools of its own.
"""

from __future__ import annotations

import datetime
import json
import math
import random
from collections.abc import Callable, Iterator
from typing import Any

from .calls import call
from .chats import size
from .draft import Draft, Message

Turn = tuple[str, dict[str, Any], dict[str, Any], str]
LEAST = 1800


def tool(name: str, description: str, **fields: tuple[str, str]) -> dict[str, Any]:
    """A tool; each field is (JSON type, description)."""
    properties = {key: {"type": kind, "description": text} for key, (kind, text) in fields.items()}
    parameters = {"type": "object", "properties": properties, "required": list(fields)}
    return {"type": "function", "function": {"name": name, "description": description, "parameters": parameters}}


CITIES = {
    "Oslo": (59.91, 10.75),
    "Lima": (-12.05, -77.04),
    "Nairobi": (-1.29, 36.82),
    "Hanoi": (21.03, 105.85),
    "Lisbon": (38.72, -9.14),
    "Quito": (-0.18, -78.47),
    "Perth": (-31.95, 115.86),
    "Riga": (56.95, 24.11),
}


def route(rng: random.Random) -> Turn:
    one, two = rng.sample(sorted(CITIES), 2)
    (a, b), (c, d) = (tuple(map(math.radians, CITIES[n])) for n in (one, two))
    arc = math.sin((c - a) / 2) ** 2 + math.cos(a) * math.cos(c) * math.sin((d - b) / 2) ** 2
    km = round(2 * 6371 * math.asin(math.sqrt(arc)))
    ask = rng.choice((f"How far is it from {one} to {two} as the crow flies?", f"What is the air distance {one} - {two}?"))
    return ask, {"origin": one, "destination": two}, {"kilometres": km}, f"From {one} to {two} it is about {km} km."


def weekday(rng: random.Random) -> Turn:
    day = datetime.date(rng.randrange(1950, 2030), rng.randrange(1, 13), rng.randrange(1, 29))
    name, shown = day.strftime("%A"), f"{day.day} {day.strftime('%B %Y')}"
    ask = rng.choice((f"Which day of the week is {shown}?", f"I need the weekday for {shown}."))
    return (
        ask,
        {"date": day.isoformat()},
        {"weekday": name, "iso_week": day.isocalendar().week},
        f"{shown} falls on a {name}.",
    )


def paint(rng: random.Random) -> Turn:
    wide, high, coats = rng.randrange(8, 40), rng.choice((2.4, 2.5, 3.0)), rng.randrange(1, 4)
    litres = round(wide * high * coats / 10, 1)
    often = ("one coat", "two coats", "three coats")[coats - 1]
    ask = f"My walls are {wide} m long in total and {high} m high. How much paint for {often}?"
    return (
        ask,
        {"wall_length_m": wide, "wall_height_m": high, "coats": coats},
        {"area_m2": round(wide * high, 1), "litres": litres},
        f"You need {litres} litres for {wide * high:.1f} square metres.",
    )


def anagram(rng: random.Random) -> Turn:
    one, two, same = rng.choice(
        (
            ("listen", "silent", True),
            ("garden", "danger", True),
            ("stone", "notes", True),
            ("planet", "platen", True),
            ("bread", "board", False),
            ("night", "thing", True),
        )
    )
    return (
        f"Are '{one}' and '{two}' anagrams of each other?",
        {"first": one, "second": two},
        {"anagram": same, "letters": "".join(sorted(one))},
        f"{'Yes, both words have the same letters' if same else 'No, their letters differ'}.",
    )


def roman(rng: random.Random) -> Turn:
    number, rest, text = rng.randrange(1200, 2030), 0, ""
    rest = number
    for value, sign in zip(
        (1000, 900, 500, 400, 100, 90, 50, 40, 10, 9, 5, 4, 1), "M CM D CD C XC L XL X IX V IV I".split(), strict=True
    ):
        text, rest = text + sign * (rest // value), rest % value
    return f"Write {number} in Roman numerals.", {"number": number}, {"roman": text}, f"{number} is {text}."


def pace(rng: random.Random) -> Turn:
    km = rng.choice((5, 8, 10, 15, 21))
    minutes = round(km * rng.uniform(4.2, 7.5))
    seconds = round(minutes * 60 / km)
    shown = f"{seconds // 60}:{seconds % 60:02d}"
    return (
        f"I ran {km} km in {minutes} minutes. What was my pace?",
        {"distance_km": km, "duration_min": minutes},
        {"pace_per_km": shown},
        f"Your pace was {shown} minutes per kilometre.",
    )


def colour(rng: random.Random) -> Turn:
    red, green, blue = (rng.randrange(0, 256, 5) for _ in range(3))
    code = f"#{red:02x}{green:02x}{blue:02x}"
    return (
        f"What is the hex code for red {red}, green {green}, blue {blue}?",
        {"r": red, "g": green, "b": blue},
        {"hex": code},
        f"The hex code is {code}.",
    )


def energy(rng: random.Random) -> Turn:
    watts, hours, cents = rng.randrange(40, 2000, 20), rng.randrange(1, 12), rng.randrange(18, 42)
    kwh = round(watts * hours * 30 / 1000, 1)
    cost = round(kwh * cents / 100, 2)
    return (
        f"A device draws {watts} W for {hours} hours a day. What does a month cost at {cents} cents per kWh?",
        {"watts": watts, "hours_per_day": hours, "price_cents": cents},
        {"kwh": kwh, "cost": cost},
        f"In 30 days it uses {kwh} kWh, which costs {cost:.2f}.",
    )


def recipe(rng: random.Random) -> Turn:
    have, want = rng.choice((2, 4)), rng.choice((3, 6, 8, 10))
    flour, milk = rng.randrange(100, 400, 50), rng.randrange(100, 500, 50)
    new = {"flour_g": round(flour * want / have), "milk_ml": round(milk * want / have)}
    return (
        f"The recipe is for {have} people: {flour} g flour and {milk} ml milk. We are {want}.",
        {"ingredients": {"flour_g": flour, "milk_ml": milk}, "from_servings": have, "to_servings": want},
        new,
        f"For {want} people take {new['flour_g']} g of flour and {new['milk_ml']} ml of milk.",
    )


def primes(rng: random.Random) -> Turn:
    number = rng.randrange(60, 2000)
    rest, found, divisor = number, [], 2
    while rest > 1:
        while rest % divisor == 0:
            found.append(divisor)
            rest //= divisor
        divisor += 1
    return (
        f"Factor {number} into primes.",
        {"n": number},
        {"factors": found},
        f"{number} is prime." if len(found) == 1 else f"{number} = {' x '.join(map(str, found))}.",
    )


def textcount(rng: random.Random) -> Turn:
    text = rng.choice(
        (
            "The quick brown fox jumps over the lazy dog",
            "All happy families are alike",
            "Call me when you reach the harbour",
            "Rain is expected on the northern coast",
        )
    )
    words, signs = len(text.split()), len(text.replace(" ", ""))
    return (
        f'Count the words and letters of "{text}".',
        {"text": text},
        {"words": words, "letters": signs},
        f"It has {words} words and {signs} letters.",
    )


def seating(rng: random.Random) -> Turn:
    guests, table = rng.randrange(20, 190), rng.choice((6, 8, 10))
    tables, last = -(-guests // table), guests % table or table
    return (
        f"We expect {guests} guests and have tables for {table}. How many tables?",
        {"guests": guests, "seats": table},
        {"tables": tables, "at_last_table": last},
        f"You need {tables} tables; the last one seats {last}.",
    )


def inbox(rng: random.Random) -> Turn:
    who, what = (
        rng.choice(("Dana", "Mr Ito", "the landlord", "Aunt Rosa")),
        rng.choice(("invoice", "holiday", "keys", "repair")),
    )
    count = random.Random(who + what).randrange(0, 5)  # the same question always has the same answer
    return (
        f"Did {who} write to me about the {what}?",
        {"sender": who, "subject_contains": what},
        {"matches": count},
        f"{'No message' if not count else f'{count} message' + ('s' if count > 1 else '')} from {who} about the {what}.",
    )


def stock(rng: random.Random) -> Turn:
    item, place = (
        rng.choice(("garden hose", "desk lamp", "travel mug", "wall clock")),
        rng.choice(("Bremen", "Leeds", "Porto")),
    )
    fixed = random.Random(item + place)  # the same question always has the same answer
    left, price = max(0, fixed.randrange(-8, 30)), random.Random(item).randrange(5, 60)
    answer = f"Yes, {left} left in {place}, at {price} euros each." if left else f"The {item} is sold out in {place}."
    return (
        f"Is the {item} available in the {place} branch?",
        {"item": item, "branch": place},
        {"in_stock": left, "price_eur": price},
        answer,
    )


Bench = tuple[tuple[dict[str, Any], Callable[[random.Random], Turn]], ...]
BENCH: dict[str, Bench] = {
    "calibration": (
        (
            tool(
                "great_circle",
                "Air distance between two cities.",
                origin=("string", "City."),
                destination=("string", "City."),
            ),
            route,
        ),
        (tool("weekday_of", "Weekday and ISO week of a date.", date=("string", "Date as YYYY-MM-DD.")), weekday),
        (
            tool(
                "paint_needed",
                "Litres of paint for walls.",
                wall_length_m=("number", "Total length in metres."),
                wall_height_m=("number", "Height in metres."),
                coats=("integer", "Number of coats."),
            ),
            paint,
        ),
        (tool("prime_factors", "Prime factors of an integer.", n=("integer", "The integer, at least 2.")), primes),
        (
            tool(
                "search_inbox",
                "Count messages by sender and subject.",
                sender=("string", "Who wrote."),
                subject_contains=("string", "A word of the subject."),
            ),
            inbox,
        ),
    ),
    "dev": (
        (
            tool(
                "check_anagram",
                "Tell whether two words are anagrams.",
                first=("string", "One word."),
                second=("string", "Another word."),
            ),
            anagram,
        ),
        (tool("to_roman", "Roman numeral of a positive number.", number=("integer", "From 1 to 3999.")), roman),
        (
            tool(
                "rgb_hex",
                "Hex colour code.",
                r=("integer", "Red, 0-255."),
                g=("integer", "Green, 0-255."),
                b=("integer", "Blue, 0-255."),
            ),
            colour,
        ),
        (tool("count_text", "Words and letters of a text.", text=("string", "The text.")), textcount),
    ),
    "score": (
        (
            tool(
                "running_pace",
                "Average pace of a run.",
                distance_km=("number", "Kilometres."),
                duration_min=("number", "Minutes."),
            ),
            pace,
        ),
        (
            tool(
                "power_cost",
                "Monthly energy and cost of a device.",
                watts=("number", "Power drawn."),
                hours_per_day=("number", "Daily use."),
                price_cents=("number", "Price of one kWh in cents."),
            ),
            energy,
        ),
        (
            tool(
                "scale_recipe",
                "Scale ingredients to another number of servings.",
                ingredients=("object", "Amount by name."),
                from_servings=("integer", "Servings as written."),
                to_servings=("integer", "Servings wanted."),
            ),
            recipe,
        ),
        (
            tool(
                "plan_tables",
                "Tables needed for a party.",
                guests=("integer", "Number of guests."),
                seats=("integer", "Seats at one table."),
            ),
            seating,
        ),
        (
            tool(
                "shop_stock",
                "Stock and price of an article in a branch.",
                item=("string", "Article."),
                branch=("string", "City of the branch."),
            ),
            stock,
        ),
    ),
}


def dialogues(set_name: str, rng: random.Random) -> Iterator[Draft]:
    """Chats in which one user asks for several things; some turns hold two calls at once."""
    while True:
        bench = rng.sample(BENCH[set_name], 3)
        chat: list[Message] = []
        while size(chat) < LEAST:
            count = 2 if rng.random() < 0.3 else 1
            made = [(item["function"]["name"], maker(rng)) for item, maker in rng.sample(bench, count)]
            if any(turn[0] in m["content"] for _, turn in made for m in chat):
                continue
            chat.append({"role": "user", "content": " ".join(turn[0] for _, turn in made)})
            chat.append({"role": "assistant", "content": "", "tool_calls": [call(name, turn[1]) for name, turn in made]})
            chat += [{"role": "tool", "content": json.dumps(turn[2])} for _, turn in made]
            chat.append({"role": "assistant", "content": " ".join(turn[3] for _, turn in made)})
        yield Draft(
            "tool_call",
            "tool dialogues from templates, results computed",
            "Apache-2.0",
            messages=chat,
            tools=[item for item, _ in bench],
        )
