"""Sampling settings: which there are, what they may be, and who decides (as data); the arithmetic is in `sampler`.

A setting comes from the first of `SOURCES` that names it:

    flag                what the caller asked for
    preset              the family's recommendation for a use or the thinking mode (`optiq.models.families`)
    generation_config   the model's generation_config.json
    default             neutral, and temperature 0 (greedy): where nobody recommends anything, the likeliest token
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from optiq.errors import FormatError, InputError, OptiqError

SOURCES = ("flag", "preset", "generation_config", "default")
MAX_SEED = (1 << 63) - 1


@dataclass(frozen=True)
class Setting:
    """One number that shapes the draw: its name, its range (ends included unless `above`), its neutral value."""

    name: str
    low: float
    high: float
    neutral: float
    help: str
    whole: bool = False
    above: bool = False  # the lower end itself is not allowed

    @property
    def flag(self) -> str:
        """How the command line spells it."""
        return "--temp" if self.name == "temperature" else "--" + self.name.replace("_", "-")

    @property
    def expected(self) -> str:
        """The range in words."""
        kind = "a whole number" if self.whole else "a number"
        if math.isinf(self.high):
            return f"{kind} of at least {self.low:g}"
        return f"{kind} {'above' if self.above else 'from'} {self.low:g} {'and at most' if self.above else 'to'} {self.high:g}"

    def problem(self, value: Any) -> str | None:
        """Why a value will not do, or None."""
        number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
        inside = number and self.low <= value <= self.high and not (self.above and value == self.low)
        good = inside and (not self.whole or value == int(value))
        return None if good else f"{value!r}, expected {self.expected}"


SETTINGS = (
    Setting("temperature", 0, 10, 0.0, "divides the logits; 0 takes the likeliest token"),
    Setting("top_p", 0, 1, 1.0, "keep the likeliest tokens up to this share of the probability; 1 keeps all", above=True),
    Setting("top_k", 0, math.inf, 0, "keep this many of the likeliest tokens; 0 keeps all", whole=True),
    Setting("min_p", 0, 1, 0.0, "drop tokens below this share of the likeliest token's probability"),
    Setting("repetition_penalty", 0, 10, 1.0, "divide (negative: multiply) the logits of tokens in prompt and reply", above=True),
    Setting("presence_penalty", -10, 10, 0.0, "subtract from the logits of tokens that the reply has used"),
    Setting("frequency_penalty", -10, 10, 0.0, "subtract for every time that the reply has used a token"),
)


@dataclass(frozen=True)
class Sampling:
    """All settings, resolved.

    Args:
        temperature to frequency_penalty: see `SETTINGS`.
        logit_bias: added to the logits of token ids.
        seed: the same seed, prompt and settings give the same draw on the same machine.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    seed: int = 0


@dataclass(frozen=True)
class Resolved:
    """The settings and, by name, which of `SOURCES` decided each."""

    sampling: Sampling
    sources: Mapping[str, str]


def check(flags: Mapping[str, Any]) -> None:
    """Refuse values outside their ranges; None stands for "not given".

    Raises:
        InputError: names the flag, the value and the range.
    """
    for setting in SETTINGS:
        if flags.get(setting.name) is not None and (problem := setting.problem(flags[setting.name])):
            raise InputError(f"{setting.flag} is {problem}")
    seed = flags.get("seed")
    if seed is not None and not 0 <= seed <= MAX_SEED:
        raise InputError(f"--seed is {seed}, expected a whole number from 0 to {MAX_SEED}")


def resolve(
    flags: Mapping[str, Any],
    preset: Mapping[str, float],
    generation_config: Mapping[str, Any],
    seed: int,
    logit_bias: Mapping[int, float] | None = None,
) -> Resolved:
    """Each setting from the first source that names it.

    Args:
        flags: by setting name; None stands for "not given".
        preset: the family's settings for the mode.
        generation_config: the model's file; `do_sample: false` means temperature 0, a `top_k` of -1 means off.
        seed: for the draw.
        logit_bias: by token id.

    Raises:
        InputError: a flag outside its range.
        FormatError: generation_config.json holds such a value and nothing overrides it.
    """
    check(flags)
    tables = dict(zip(SOURCES, (flags, preset, _from_file(generation_config), {}), strict=True))
    values: dict[str, Any] = {}
    sources: dict[str, str] = {}
    for setting in SETTINGS:
        source = next((name for name, table in tables.items() if table.get(setting.name) is not None), "default")
        value = setting.neutral if source == "default" else tables[source][setting.name]
        if problem := setting.problem(value):
            raise _bad(source, setting, problem)
        values[setting.name] = int(value) if setting.whole else float(value)
        sources[setting.name] = source
    return Resolved(Sampling(**values, seed=seed, logit_bias=dict(logit_bias or {})), sources)


def _bad(source: str, setting: Setting, problem: str) -> OptiqError:
    if source == "generation_config":
        return FormatError(f"generation_config.json: {setting.name} is {problem}; mend the file or give {setting.flag}")
    return InputError(f"{setting.flag} is {problem}")


def _from_file(config: Mapping[str, Any]) -> dict[str, Any]:
    """A generation_config.json in our terms."""
    found = {setting.name: config.get(setting.name) for setting in SETTINGS}
    if config.get("do_sample") is False:
        found["temperature"] = 0.0
    elif config.get("do_sample") is True and found["temperature"] is None:
        found["temperature"] = 1.0  # the default of the file's own format
    if found["top_k"] == -1:
        found["top_k"] = 0
    return found


def describe(resolved: Resolved, family: str | None, thinking: bool | None, use: str | None = None) -> str:
    """One line: the settings that have an effect, and where they come from."""
    mode = "" if thinking is None else ", thinking" if thinking else ", not thinking"
    names = {
        "flag": "flag",
        "preset": f"preset {family}" + (mode if use is None else f", {use}"),
        "generation_config": "generation_config.json",
        "default": "default",
    }
    parts = []
    for source in SOURCES:
        told = [
            f"{setting.name.replace('_', ' ')} {getattr(resolved.sampling, setting.name):g}"
            for setting in SETTINGS
            if resolved.sources[setting.name] == source and _matters(setting, resolved.sampling)
        ]
        parts += [f"{', '.join(told)} ({names[source]})"] if told else []
    return "sampling: " + "; ".join(parts)


def _matters(setting: Setting, sampling: Sampling) -> bool:
    """Whether the setting changes what is drawn; at temperature 0 the filters do not."""
    if setting.name == "temperature":
        return True
    if sampling.temperature == 0 and setting.name in ("top_p", "top_k", "min_p"):
        return False
    return bool(getattr(sampling, setting.name) != setting.neutral)
