"""What a generation and a measurement can be asked for, checked; the command line takes its defaults from here. No MLX."""

from __future__ import annotations

from dataclasses import dataclass

from optiq.errors import InputError

PREFILL_CHUNK = 512  # tokens of the prompt per step: large enough for matrix products, small enough for memory
MAX_TOKENS = 512


@dataclass(frozen=True)
class Options:
    """How far and how a reply goes.

    Args:
        max_tokens: at most so many tokens, at least 1.
        stop_ids: token ids that end it; they are not part of the text.
        stops: strings that end it; they are not part of the text.
        prefill_chunk: tokens of the prompt per step, at least 1.
    """

    max_tokens: int = MAX_TOKENS
    stop_ids: frozenset[int] = frozenset()
    stops: tuple[str, ...] = ()
    prefill_chunk: int = PREFILL_CHUNK

    def __post_init__(self) -> None:
        for name in ("max_tokens", "prefill_chunk"):
            if getattr(self, name) < 1:
                flag = "--" + name.replace("_", "-")
                raise InputError(f"{flag} is {getattr(self, name)}, expected a whole number of at least 1")
        if "" in self.stops:
            raise InputError("--stop is empty, expected a text")


@dataclass(frozen=True)
class Plan:
    """What is measured: every prompt length with every generate length, so many times.

    Args:
        prompt_lengths: tokens of the prompt, each at least 1.
        generate_lengths: tokens generated, each at least 1; the first of them belongs to the prompt's time.
        repeats: measurements per row, at least 1.
        prefill_chunk: tokens of the prompt per step.
        seed: for the random tokens.
    """

    prompt_lengths: tuple[int, ...] = (128, 512)
    generate_lengths: tuple[int, ...] = (32,)
    repeats: int = 5
    prefill_chunk: int = PREFILL_CHUNK
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("prompt_lengths", "generate_lengths"):
            values = getattr(self, name)
            if not values or min(values) < 1:
                told = ",".join(map(str, values)) or "empty"
                raise InputError(f"--{name.replace('_', '-')} is {told}, expected whole numbers of at least 1")
        for name in ("repeats", "prefill_chunk"):
            if getattr(self, name) < 1:
                told = getattr(self, name)
                raise InputError(f"--{name.replace('_', '-')} is {told}, expected a whole number of at least 1")
