"""What `engine.py` measures of speculation: forwards per token with a trained head, wall time with replayed acceptances.

The embedded model's head was trained with it; the chat prompts are packaged *dev* and *score* text, which the model has not
seen. The checkpoint with the shapes of Qwen3.5-0.8B has random weights, whose guesses mean nothing: there a stub proposes the
right token as often as it is told to, once for nothing and once with the work of a head of the model's shapes, 4-bit, with random
weights and a trimmed vocabulary. Plain and speculative runs take turns in one process.
"""

from __future__ import annotations

import dataclasses
import random
import statistics
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import harness
import mlx.core as mx
import mlx.nn as nn
from harness import Bar

from optiq.generate.decode import Context, Speculated
from optiq.generate.depth import Depth
from optiq.generate.drafter import Draw, HeadDrafter
from optiq.generate.sampler import Sampler
from optiq.generate.sampling import Sampling
from optiq.generate.speculative import Speculation
from optiq.measure.text import samples
from optiq.models import layers
from optiq.models.forward import Halves
from optiq.models.load import load, load_modules
from optiq.models.mtp_head import VOCABULARY, Drafting, Head, load_head

CHAT_TOKENS, CHAT_LONGEST, CHAT_BAR = 48, 1500, 1.25
REPLAYED = {0.7: 1.3, 0.1: 0.98}  # acceptance -> least gain in wall time
PROMPT, NEW = 64, 192
SAMPLED = Sampling(temperature=1.0, top_p=0.95, top_k=20, presence_penalty=1.5)


class Replay:
    """Guesses that are right with a given probability, each for itself, and cost nothing.

    Args:
        text: prompt and the reply to come.
        acceptance: probability that a guess is right.
    """

    bytes = 0

    def __init__(self, text: list[int], acceptance: float, seed: int) -> None:
        self._text, self._acceptance, self._random = text, acceptance, random.Random(seed)
        self._read = 0

    def seen(self, tokens: mx.array, hidden: mx.array) -> None:
        """See `Drafter`."""
        self._read += tokens.size

    @staticmethod
    def draft(rows: Sequence[Replay], last: mx.array, count: int, draw: Draw) -> mx.array:
        """See `Drafter`."""
        return mx.stack([row._guesses(count) for row in rows])

    def _guesses(self, count: int) -> mx.array:
        at = self._read + 1
        true = [self._text[place] if place < len(self._text) else 0 for place in range(at, at + count)]
        return mx.array([token if self._random.random() < self._acceptance else token + 1 for token in true])

    def rewind(self, length: int) -> None:
        """See `Drafter`."""
        self._read = length


class Working(Replay):
    """The same guesses, with the work of a head that nobody listens to.

    Args:
        head: does the work.
    """

    def __init__(self, head: HeadDrafter, text: list[int], acceptance: float, seed: int) -> None:
        super().__init__(text, acceptance, seed)
        self._head = head

    def seen(self, tokens: mx.array, hidden: mx.array) -> None:
        """See `Drafter`."""
        super().seen(tokens, hidden)
        self._head.seen(tokens, hidden)

    @staticmethod
    def draft(rows: Sequence[Working], last: mx.array, count: int, draw: Draw) -> mx.array:
        """See `Drafter`."""
        worked = HeadDrafter.draft([row._head for row in rows], last, count, draw)
        return mx.depends(Replay.draft(rows, last, count, draw), worked)


def chat_prompts() -> Iterator[list[dict[str, Any]]]:
    """The held-out conversations up to their first answer."""
    for sample in [*samples("dev"), *samples("score")]:
        if sample.messages is not None:
            end = next((i for i, message in enumerate(sample.messages) if message["role"] == "assistant"), len(sample.messages))
            yield list(sample.messages[:end])


def tiny(most: int) -> dict[str, Any]:
    """Forwards and tokens on chat prompts, greedy and sampled as Qwen3.5's preset for thinking says."""
    model, tokenizer = load(harness.MODEL)
    drafter = HeadDrafter(Drafting(load_head(harness.MODEL, model), Halves(model)))
    found: dict[str, Any] = {}
    for name, sampling in {"greedy": Sampling(), "sampled": SAMPLED}.items():
        by_depth: dict[int, dict[str, int]] = {}
        for depth in (1, 2, 3):
            total, tokens, same = Speculated(), 0, True
            for number, messages in enumerate(chat_prompts()):
                if number == most:
                    break
                prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True)[-CHAT_LONGEST:]
                plain = _tokens(Context(model), prompt, sampling, None)[0]
                context = Context(model, drafter=drafter)
                ids, told = _tokens(context, prompt, sampling, Depth(depth, fixed=True))
                same &= ids == plain
                tokens += len(ids)
                for name_ in ("forwards", "drafted", "accepted"):
                    setattr(total, name_, getattr(total, name_) + getattr(told, name_))
            by_depth[depth] = {"tokens": tokens, "same_text": same, **dataclasses.asdict(total)}
        found[name] = by_depth
    return {"prompts": most, "tokens_each": CHAT_TOKENS, **found}


def _tokens(context: Context, prompt: list[int], sampling: Sampling, depth: Depth | None) -> tuple[list[int], Speculated]:
    """A reply's tokens without regard to its end, and what guessing did."""
    if context.drafter is not None:
        context.drafter.rewind(0)
    context.read(prompt[:-1])
    sampler = Sampler(sampling, prompt)
    if depth is None:
        return list(context.steps(prompt[-1], sampler, CHAT_TOKENS)), Speculated()
    speculation = Speculation(context, depth)
    return list(speculation.steps(prompt[-1], sampler, CHAT_TOKENS)), speculation.told


def random_head(model: Any, bits: int = 4) -> Head:
    """A head of the model's shapes with random weights, 4-bit but for `fc`, as conversions write it."""
    head = Head(model.language_model.args, 1)
    head.set_dtype(mx.bfloat16)
    nn.quantize(head, 64, bits, class_predicate=lambda name, module: name != "fc" and hasattr(module, "to_quantized"))
    layers.use_kernels(head)
    mx.eval(head.parameters())
    return head


def replayed(path: Path, repeats: int) -> dict[str, Any]:
    """Seconds for the same reply, plain and with each acceptance, in turn."""
    model, _ = load_modules(path)
    drafting = Drafting(random_head(model), Halves(model), VOCABULARY)
    prompt = [7 + i for i in range(PROMPT)]
    text = prompt + _reply(Context(model), prompt, None)[0]
    rows: dict[str, list[Any]] = {"plain": []}
    for repeat in range(repeats):
        rows["plain"].append(_reply(Context(model), prompt, None)[1])
        for share in REPLAYED:
            for name in ("stub", "head"):
                stub = Replay(text, share, repeat) if name == "stub" else Working(HeadDrafter(drafting), text, share, repeat)
                ids, seconds, told = _reply(Context(model, drafter=stub), prompt, Depth())
                if ids != text[len(prompt) :]:
                    raise SystemExit(f"the text with guesses is another one at acceptance {share}")
                rows.setdefault(f"{share} {name}", []).append({"seconds": seconds, **dataclasses.asdict(told)})
    return {"prompt": PROMPT, "tokens": NEW, "vocabulary": VOCABULARY, "rows": rows}


def _reply(context: Context, prompt: list[int], depth: Depth | None) -> tuple[list[int], float, Speculated]:
    """A greedy reply, the seconds from its first token to its last, and what guessing did."""
    context.read(prompt[:-1])
    told = Speculated()
    sampler = Sampler(Sampling())
    if depth is None:
        steps = context.steps(prompt[-1], sampler, NEW)
    else:
        speculation = Speculation(context, depth)
        steps, told = speculation.steps(prompt[-1], sampler, NEW), speculation.told
    ids = [next(steps)]
    start = time.perf_counter()
    ids += steps
    return ids, time.perf_counter() - start, told


def bars(part: dict[str, Any]) -> list[Bar]:
    """One row for the forwards, one per acceptance."""
    found = []
    for name in ("greedy", "sampled"):
        rows = part["tiny"][name]
        best = max(rows, key=lambda depth: rows[depth]["tokens"] / rows[depth]["forwards"])
        gain = rows[best]["tokens"] / rows[best]["forwards"]
        what = f"tokens per forward, {name}, {best} guesses, {part['tiny']['prompts']} held-out chat prompts"
        found.append(Bar(f"4.mtp_tokens_per_forward_{name}", what, gain, "", CHAT_BAR, ">=", "one token per forward"))
    rows = part["replayed"]["rows"]
    plain = statistics.median(rows["plain"])
    for share, bar in REPLAYED.items():
        for name, cost in {"stub": "guesses for nothing", "head": "with a head's work"}.items():
            gain = plain / statistics.median(row["seconds"] for row in rows[f"{share} {name}"])
            what = f"gain in wall time, 0.8B shapes, replayed acceptance {share}, {cost}"
            found.append(Bar(f"4.mtp_gain_at_{share}_{name}", what, gain, "x", bar, ">=", "decoding without guesses"))
    return found
