"""Requests that differ in everything that a row of an engine can have of its own, and what events say of them."""

from __future__ import annotations

import random

from optiq.generate.sampling import Sampling
from optiq.kv.options import CacheOptions
from optiq.serve.grammar_spec import GrammarSpec
from optiq.serve.request import Finished, Request, Token


def ids(seed, length):
    return tuple(random.Random(seed).choices(range(100, 2000), k=length))


def replies(events):
    """Tokens, text and end of each request."""
    found = {}
    for event in events:
        tokens, texts, _ = found.setdefault(event.request, ([], [], None))
        if isinstance(event, Token):
            tokens.append(event.id)
            texts.append(event.text)
        elif isinstance(event, Finished):
            found[event.request] = (tokens, [*texts, event.text], event)
    return {name: (tokens, "".join(texts), end) for name, (tokens, texts, end) in found.items()}


GRAMMARS = [
    GrammarSpec.choice(["yes", "no", "perhaps"]),
    GrammarSpec("regex", "[a-z]{3,9}( [a-z]+)*"),
    GrammarSpec.json_schema({"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}),
]
KINDS = [CacheOptions(), CacheOptions(bits=4, scheme="turbo"), CacheOptions(bits=8, scheme="affine"), CacheOptions(bits=4)]


def mixed(count):
    """Requests that differ in everything that a row can have of its own."""
    makers = [kind.read() for kind in KINDS]
    for n in range(count):
        greedy = n % 3 == 0
        sampling = Sampling(
            temperature=0.0 if greedy else 0.9,
            top_p=1.0 if n % 2 else 0.9,
            top_k=0 if n % 5 else 20,
            min_p=0.02 if n % 7 == 0 else 0.0,
            repetition_penalty=1.1 if n % 4 == 1 else 1.0,
            presence_penalty=0.5 if n % 6 == 2 else 0.0,
            seed=n,
        )
        yield Request(
            ids(n, 1 + (n * 37) % 200),
            sampling,
            max_tokens=3 + n % 14,
            caches=makers[n % len(makers)],
            adapter=(None, None, "peft", "mlx", None)[n % 5],
            grammar=GRAMMARS[n % 3] if n % 4 == 3 else None,
            logprobs=n % 3 if n % 8 == 5 else None,
        )
