"""Grammars for replies: which tokens may come next, one state per row.

A request names a grammar (`GrammarSpec`), `Compiler.compile` makes it a `Grammar` once, and every row gets a `State` of its own
from `Grammar.start`. The parser is llguidance. Knows tokens and their bytes; knows no logits, no MLX and no model.

    reasoning … end of reasoning | one token of line breaks, or none | the grammar's text | a stop token
    every token but stop tokens  | beside the grammar's first token  | what it allows     | where it is complete

The first two parts exist where the state is told how reasoning ends. Templates write line breaks behind `</think>`, so models
expect them there; they are no part of the grammar's text. Some models open the reasoning themselves, with their first token or
not at all. Reasoning may have a budget: when it is spent, nothing but its end may
come. A reply of any text may have one, too (`Compiler.anything`).
"""

from __future__ import annotations

import copy
import re
from collections import OrderedDict
from collections.abc import Collection, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from llguidance import LLMatcher, LLTokenizer
from numpy.typing import NDArray

from optiq.errors import InputError, ModelError
from optiq.serve.grammar_spec import KINDS, GrammarSpec

Mask = NDArray[np.bool_]

KEPT = 64  # grammars that a compiler remembers; each is some hundred kilobytes


class Compiler:
    """Makes grammars for one model; costs about a second for a vocabulary of 250,000.

    Args:
        tokenizer: as `optiq.models.load.load` gives it.
        width: V, how many logits the model has; ids that no token of the tokenizer has are never allowed.
        stop_ids: tokens that end a reply, allowed exactly where the grammar is complete.

    Raises:
        ModelError: the tokenizer has no description of its tokens (`tokenizer.json`).
    """

    def __init__(self, tokenizer: Any, width: int, stop_ids: Collection[int]) -> None:
        if not hasattr(tokenizer, "backend_tokenizer"):
            raise ModelError("grammars need a tokenizer.json, and this model's tokenizer has none; convert its tokenizer first")
        backend = copy.copy(tokenizer.backend_tokenizer)
        backend.no_padding()
        backend.no_truncation()
        self.width = width
        self.stops = frozenset(stop_ids)
        known = min(width, int(backend.get_vocab_size(with_added_tokens=True)))
        self.tokenizer = LLTokenizer(backend.to_str(), n_vocab=None, eos_token=sorted(self.stops))
        self.reasoning: Mask = np.arange(width) < known
        self.reasoning[sorted(self.stops)] = False
        self.reasoning.flags.writeable = False
        breaks = [self.tokenizer.tokenize_str(text) for text in ("\n", "\n\n")]
        self.breaks = frozenset(ids[0] for ids in breaks if len(ids) == 1)
        self.known: Mask = np.arange(width) < known
        self.known.flags.writeable = False
        self.anything = Grammar(self, None)
        self._kept: OrderedDict[GrammarSpec, Grammar] = OrderedDict()

    def compile(self, spec: GrammarSpec) -> Grammar:
        """The grammar that a request names; one that was compiled before is remembered.

        Raises:
            InputError: not a kind, or llguidance cannot express it, with its reason.
        """
        if spec not in self._kept:
            source = KINDS[spec.kind](spec.text)
            bad, messages = LLMatcher.validate_grammar_with_warnings(source, self.tokenizer)
            if bad or messages:
                raise InputError(f"{spec.kind}: {_one_line(messages[0])}; change what it asks for")
            matcher = LLMatcher(self.tokenizer, source, log_level=0)
            if matcher.is_error():
                raise InputError(f"{spec.kind}: {_one_line(matcher.get_error())}; change what it asks for")
            self._kept[spec] = Grammar(self, matcher, source)
        self._kept.move_to_end(spec)
        if len(self._kept) > KEPT:
            self._kept.popitem(last=False)
        return self._kept[spec]


class Grammar:
    """A compiled grammar, which any number of rows may use at a time.

    Args:
        compiler: whose tokens it is about.
        matcher: before its first token; None where any text will do.
        source: what it was made from, in llguidance's Lark dialect.
    """

    def __init__(self, compiler: Compiler, matcher: LLMatcher | None, source: str = "") -> None:
        self.compiler = compiler
        self.matcher = matcher
        self._source = source

    @cached_property
    def unforced(self) -> LLMatcher:
        """A matcher that allows every tokenization of a text, before its first token.

        Left to itself, llguidance allows a text that has no alternatives in the tokenizer's own tokens alone, which are those
        that models expect. Where that text is also that of a special token, or is one that the tokenizer would normalize, it
        then refuses them, and the reply could not go on.
        """
        return LLMatcher(self.compiler.tokenizer, self._source + '\n%llguidance {"no_forcing": true}', log_level=0)

    def start(self, after: Sequence[int] = (), budget: int | None = None, opening: int | None = None) -> State:
        """The state of a new row.

        Args:
            after: token ids that end the model's reasoning; the grammar begins behind their first appearance in the reply. None
                of them: it begins at once.
            budget: at most so many tokens of reasoning come before `after`, which is all that may come then.
            opening: the reply reasons only where this is its first token; None: it begins within its reasoning.
        """
        return State(self, tuple(after), budget, opening)


class State:
    """Where one row stands; made by `Grammar.start`."""

    def __init__(
        self,
        grammar: Grammar,
        after: tuple[int, ...],
        budget: int | None = None,
        opening: int | None = None,
    ) -> None:
        self._grammar, self._compiler, self._matcher = grammar, grammar.compiler, _copied(grammar.matcher)
        self._after, self._budget, self._opening = after, budget, opening
        self._reasoning: list[int] = []  # the reply up to the end of its reasoning, with what opened it
        self._begun = not after or opening is not None
        self._broken = 0  # tokens of line breaks behind it: 0 or 1
        self._text: list[int] = []  # the grammar's
        self._ended = False  # a stop token came

    def __len__(self) -> int:
        """How many tokens the state has seen."""
        return len(self._reasoning) + self._broken + len(self._text) + self._ended

    @property
    def begun(self) -> bool:
        """Whether the reasoning is over."""
        return self._begun

    @property
    def accepts_end(self) -> bool:
        """Whether the grammar is complete, so that a stop token may come."""
        return self._begun and (self._ended or self._matcher is None or self._matcher.is_accepting())

    @property
    def finished(self) -> bool:
        """Whether nothing but a stop token may come, or one has come."""
        stopped = self._matcher is not None and self._matcher.is_stopped()
        return self._begun and (self._ended or (stopped and self.accepts_end))

    def mask(self) -> Mask:
        """Which tokens may come next, [V]; not to be written to.

        Raises:
            InputError: the grammar has become too complex here, or no token of this model can go on.
        """
        width = self._compiler.width
        if (due := self._due) is not None:
            return np.asarray(np.arange(width) == due)
        if not self._begun:
            return self._compiler.reasoning
        if self._matcher is None:
            return self._compiler.known
        found = self._next_of_text(self._matcher)
        if np.count_nonzero(found.view(np.bool_)) == 1 and not self._fits(int(found.argmax())):
            self._matcher = self._grammar.unforced.deep_copy()
            self._matcher.consume_tokens(self._text)
            found = self._next_of_text(self._matcher)
        if self._may_break:
            found[list(self._compiler.breaks)] = 1
        if self._may_open:
            found[self._opening] = 1
        mask = found.view(np.bool_)
        if not mask.any():
            raise InputError(f"the grammar cannot go on after {len(self)} tokens: the model has no token for what it asks for")
        return mask

    def masks(self, draft: Sequence[int]) -> list[Mask]:
        """The mask before each token of a draft that may come, and the one behind the last of them; changes nothing.

        There is none behind a stop token, so the list is as long as `accepted(draft)`, plus one where the reply goes on.
        """
        start, found = len(self), [self.mask()]
        for token in draft:
            if self._ended or not self._allows(token):
                break
            self._take(token)
            if not self._ended:
                found.append(self.mask())
        self.rollback(len(self) - start)
        return found

    def accepted(self, draft: Sequence[int]) -> int:
        """How many tokens of a draft may come, one after the other; changes nothing."""
        start = len(self)
        for token in draft:
            if self._ended or not self._allows(token):
                break
            self._take(token)
        count = len(self) - start
        self.rollback(count)
        return count

    def advance(self, token: int) -> None:
        """Go on by one token.

        Raises:
            InputError: the grammar has become too complex here.
            ValueError: the token may not come; whoever draws with `mask` never sees this.
        """
        if self._ended or not self._allows(token):
            raise ValueError(f"token {token} may not come after {len(self)} tokens")
        self._take(token)
        self._check()

    def rollback(self, count: int) -> None:
        """Take back the last tokens.

        Args:
            count: from 0 to `len(self)`.

        Raises:
            ValueError: more than there were.
        """
        if not 0 <= count <= len(self):
            raise ValueError(f"{count} tokens to take back of {len(self)}")
        if count and self._ended:
            self._ended, count = False, count - 1
        text = min(count, len(self._text))
        if text:
            if self._matcher is not None:
                self._matcher.rollback(text)
            del self._text[-text:]
            count -= text
        if count and self._broken:
            self._broken, count = 0, count - 1
        if count:
            del self._reasoning[-count:]
            self._begun = self._opening is not None and not self._reasoning

    def copy(self) -> State:
        """A second state that goes its own way from here."""
        other = State(self._grammar, self._after, self._budget, self._opening)
        other._matcher, other._text = _copied(self._matcher), list(self._text)
        other._reasoning, other._begun = list(self._reasoning), self._begun
        other._broken, other._ended = self._broken, self._ended
        return other

    def _next_of_text(self, matcher: LLMatcher) -> NDArray[np.uint8]:
        """Which tokens the grammar's text may go on with, [V], ones and zeros."""
        bits = np.frombuffer(matcher.compute_bitmask(), np.uint8)
        self._check()
        found = np.zeros(self._compiler.width, np.uint8)
        known = np.unpackbits(bits, bitorder="little", count=min(len(found), 8 * len(bits)))
        found[: len(known)] = known
        return found

    @property
    def _due(self) -> int | None:
        """The only token that may come, where the budget of the reasoning is spent."""
        if self._begun or self._budget is None:
            return None
        beyond = len(self._reasoning) - (self._opening is not None) - self._budget
        return self._after[beyond] if beyond >= 0 else None

    @property
    def _may_open(self) -> bool:
        """Whether the reply may begin with its reasoning."""
        return self._opening is not None and not len(self)

    @property
    def _may_break(self) -> bool:
        """Whether a token of line breaks may come that is no part of the grammar's text."""
        beginning = self._begun and not self._broken and not self._text and not self._ended
        return beginning and bool(self._after) and self._matcher is not None and not self._may_open

    def _allows(self, token: int) -> bool:
        if not 0 <= token < self._compiler.width:
            return False
        if (due := self._due) is not None:
            return token == due
        if not self._begun:
            return bool(self._compiler.reasoning[token])
        if self._may_open and token == self._opening:
            return True
        if token in self._compiler.stops:
            return self.accepts_end
        return self._fits(token) or (self._may_break and token in self._compiler.breaks)

    def _fits(self, token: int) -> bool:
        """Whether the token is one that the grammar's text may go on with."""
        if self._matcher is None:
            return bool(self._compiler.known[token])
        return self._matcher.validate_tokens([token]) == 1

    def _take(self, token: int) -> None:
        """Go on by a token that may come."""
        if not self._begun or (self._may_open and token == self._opening):
            self._reasoning.append(token)
            self._begun = tuple(self._reasoning[-len(self._after) :]) == self._after
        elif token in self._compiler.stops:
            self._ended = True
        elif self._may_break and token in self._compiler.breaks and not self._fits(token):
            self._broken = 1
        else:
            if self._matcher is not None:
                self._matcher.consume_token(token)
            self._text.append(token)

    def _check(self) -> None:
        if self._matcher is not None and self._matcher.is_error():
            raise InputError(f"the grammar failed after {len(self)} tokens: {_one_line(self._matcher.get_error())}; simplify it")


def _copied(matcher: LLMatcher | None) -> LLMatcher | None:
    return None if matcher is None else matcher.deep_copy()


def _one_line(message: str) -> str:
    """The compiler's reason without its drawings."""
    lines = [line.strip() for line in message.splitlines()]
    told = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return re.sub(r"^at \d+\(\d+\): failed to compile JSON schema: ", "", told[-1] if told else lines[0])
