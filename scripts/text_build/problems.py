"""Word problems from templates, each with a computed worked solution; every set has templates of its own."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from fractions import Fraction

from .puzzles import Worked

NAMES = {
    "calibration": ("Ines", "Tomas", "Priya", "Walter", "Noor", "Jonas", "Mei", "Carla"),
    "dev": ("Oskar", "Lena", "Ravi", "Judith"),
    "score": ("Hanna", "Emil", "Farah", "Bruno", "Salma", "Viktor"),
}


def money(cents: int) -> str:
    """An amount in dollars."""
    return f"${cents // 100}.{cents % 100:02d}" if cents % 100 else f"${cents // 100}"


def trains(rng: random.Random, name: str) -> Worked:
    """Two vehicles approach one another."""
    slow, fast, hours = rng.randrange(40, 70, 5), rng.randrange(75, 120, 5), rng.randrange(2, 7)
    gap = (slow + fast) * hours
    return (
        f"Two trains leave stations that are {gap} km apart and travel towards each other, one at {slow} km/h and the "
        f"other at {fast} km/h. After how many hours do they meet?",
        f"The gap closes at {slow} + {fast} = {slow + fast} km/h. {gap} / {slow + fast} = {hours}.",
        f"{hours} hours",
    )


def basket(rng: random.Random, name: str) -> Worked:
    """A shopping sum with change."""
    apples, pears = rng.randrange(3, 9), rng.randrange(2, 7)
    one, two = rng.randrange(30, 95, 5), rng.randrange(40, 120, 5)
    cost = apples * one + pears * two
    paid = (cost // 500 + 1) * 500
    return (
        f"{name} buys {apples} apples at {one} cents each and {pears} pears at {two} cents each, and pays with "
        f"{money(paid)}. How much change is due?",
        f"Apples: {apples} * {one} = {apples * one} cents. Pears: {pears} * {two} = {pears * two} cents. Total: {cost} "
        f"cents, which is {money(cost)}. Change: {paid} - {cost} = {paid - cost} cents.",
        money(paid - cost),
    )


def tank(rng: random.Random, name: str) -> Worked:
    """A tank that fills and leaks."""
    fill, leak, minutes = rng.randrange(12, 30), rng.randrange(2, 10), rng.randrange(15, 50)
    size = (fill - leak) * minutes
    return (
        f"A pipe brings {fill} litres a minute into an empty tank of {size} litres while a leak loses {leak} litres a "
        f"minute. How long until the tank is full?",
        f"Net inflow: {fill} - {leak} = {fill - leak} litres a minute. Time: {size} / {fill - leak} = {minutes} minutes.",
        f"{minutes} minutes",
    )


def ages(rng: random.Random, name: str) -> Worked:
    """A linear equation about ages."""
    child, times, years = rng.randrange(4, 15), rng.randrange(3, 5), rng.randrange(2, 9)
    parent = child * times
    return (
        f"{name}'s mother is {times} times as old as {name}. In {years} years their ages will add up to "
        f"{parent + child + 2 * years}. How old is {name} now?",
        f"Let the age be x. Then ({times}x + {years}) + (x + {years}) = {parent + child + 2 * years}, so "
        f"{times + 1}x = "
        f"{parent + child} and x = {child}.",
        str(child),
    )


def rectangle(rng: random.Random, name: str) -> Worked:
    """Sides of a rectangle from perimeter and difference."""
    width, more = rng.randrange(5, 30), rng.randrange(2, 15)
    around = 2 * (2 * width + more)
    return (
        f"A rectangular garden has a perimeter of {around} m and is {more} m longer than it is wide. What is its area?",
        f"2(w + w + {more}) = {around}, so 2w + {more} = {around // 2} and w = {width}. The length is "
        f"{width + more}. Area: "
        f"{width} * {width + more} = {width * (width + more)}.",
        f"{width * (width + more)} square metres",
    )


def savings(rng: random.Random, name: str) -> Worked:
    """Two years of compound interest."""
    start, rate = rng.randrange(10, 90) * 100, rng.choice((2, 4, 5, 10))
    first = Fraction(start * (100 + rate), 100)
    second = first * (100 + rate) / 100
    return (
        f"{name} deposits ${start} at {rate}% interest a year, added once a year. What is the balance after two years?",
        f"After one year: {start} * {1 + rate / 100:.2f} = {float(first):.2f}. After two: {float(first):.2f} * "
        f"{1 + rate / 100:.2f} = {float(second):.2f}.",
        f"${float(second):.2f}",
    )


def marbles(rng: random.Random, name: str) -> Worked:
    """Probability of two draws of one colour."""
    red, blue = rng.randrange(3, 9), rng.randrange(3, 9)
    chance = Fraction(red, red + blue) * Fraction(red - 1, red + blue - 1)
    return (
        f"A bag holds {red} red and {blue} blue marbles. {name} draws two without putting the first back. What is the "
        f"probability that both are red?",
        f"First draw: {red}/{red + blue}. Second draw: {red - 1}/{red + blue - 1}. Product: "
        f"{red * (red - 1)}/{(red + blue) * (red + blue - 1)}, which reduces to {chance}.",
        str(chance),
    )


def workers(rng: random.Random, name: str) -> Worked:
    """Inverse proportion."""
    crew, days = rng.randrange(4, 13), rng.randrange(6, 21)
    other = rng.choice([d for d in range(2, 30) if crew * days % d == 0 and d != crew])
    return (
        f"A wall takes {crew} bricklayers {days} days. How long would {other} bricklayers need at the same pace?",
        f"The job is {crew} * {days} = {crew * days} bricklayer-days. {crew * days} / {other} = {crew * days // other}.",
        f"{crew * days // other} days",
    )


def series(rng: random.Random, name: str) -> Worked:
    """Sum of an arithmetic series."""
    first, step, count = rng.randrange(2, 12), rng.randrange(2, 9), rng.randrange(8, 25)
    last = first + (count - 1) * step
    return (
        f"The rows of a theatre have {first} seats in front and {step} more in each row behind. How many seats do "
        f"{count} rows have?",
        f"The last row has {first} + {count - 1} * {step} = {last} seats. Sum: {count} * ({first} + {last}) / 2 = "
        f"{count * (first + last) // 2}.",
        str(count * (first + last) // 2),
    )


def mixture(rng: random.Random, name: str) -> Worked:
    """Mixing two solutions."""
    one, two = rng.randrange(2, 9), rng.randrange(2, 9)
    weak, strong = rng.randrange(5, 25, 5), rng.randrange(40, 90, 10)
    share = Fraction(one * weak + two * strong, one + two)
    return (
        f"{name} mixes {one} litres of a {weak}% salt solution with {two} litres of a {strong}% one. What is "
        f"the strength "
        f"of the mixture, to one decimal?",
        f"Salt: {one} * {weak}% + {two} * {strong}% = {one * weak / 100:.2f} + {two * strong / 100:.2f} = "
        f"{(one * weak + two * strong) / 100:.2f} litres in {one + two} litres. Ratio: {float(share):.1f}%.",
        f"{float(share):.1f}%",
    )


TEMPLATES: dict[str, tuple[Callable[[random.Random, str], Worked], ...]] = {
    "calibration": (trains, basket, ages, rectangle),
    "dev": (tank, series, savings),
    "score": (marbles, workers, mixture),
}


def word_problems(set_name: str, rng: random.Random, count: int) -> Iterator[Worked]:
    """``count`` problems, the set's templates in turn."""
    for index in range(count):
        make = TEMPLATES[set_name][index % len(TEMPLATES[set_name])]
        yield make(rng, rng.choice(NAMES[set_name]))
