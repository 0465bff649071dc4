"""Grammars over the embedded model's tokenizer: what is enforced, what is refused, states that go back and do not leak."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from mlx_lm.utils import load_tokenizer

from optiq.errors import InputError, ModelError
from optiq.serve.grammar import Compiler, State
from optiq.serve.grammar_spec import GrammarSpec
from optiq.serve.schema import ANNOTATIONS, ENFORCED

WIDTH = 4200  # above the tokenizer's 4096, as padded heads are
END, IM_END, THINK_END = 4076, 4078, 4095
POINT = {
    "type": "object",
    "properties": {"x": {"type": "integer"}, "name": {"type": "string", "maxLength": 4}},
    "required": ["x", "name"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return load_tokenizer(Path(__file__).parents[2] / "examples" / "tiny-qwen3.5")


@pytest.fixture(scope="module")
def compiler(tokenizer: Any) -> Compiler:
    return Compiler(tokenizer, WIDTH, {END, IM_END})


def ids(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer.encode(text, add_special_tokens=False))


def fits(compiler: Compiler, tokenizer: Any, spec: GrammarSpec, text: str) -> bool:
    """Whether a text is a whole reply, by masks alone."""
    state = compiler.compile(spec).start()
    for token in ids(tokenizer, text):
        if not state.mask()[token]:
            return False
        state.advance(token)
    assert state.mask()[END] == state.mask()[IM_END] == state.accepts_end
    return state.accepts_end


def _any_reply(state: State, compiler: Compiler) -> str:
    """The text of the first tokens that the masks allow, up to where it is complete."""
    found: list[int] = []
    while not state.accepts_end:
        found.append(int(state.mask().argmax()))
        state.advance(found[-1])
    return bytes(compiler.tokenizer.decode_bytes(found)).decode()


def walk(state: State, rng: np.random.Generator, most: int) -> list[int]:
    """Random tokens that the masks allow, up to a stop token."""
    found: list[int] = []
    for _ in range(most):
        token = int(rng.choice(np.flatnonzero(state.mask())))
        state.advance(token)
        found.append(token)
        if token in (END, IM_END):
            break
    return found


def test_random_replies_fit_the_schema(compiler: Compiler, tokenizer: Any) -> None:
    grammar, rng = compiler.compile(GrammarSpec.json_schema(POINT)), np.random.default_rng(0)
    ended = 0
    for _ in range(20):
        state = grammar.start()
        reply = walk(state, rng, 300)
        if reply[-1] in (END, IM_END):
            ended += 1
            point = json.loads(tokenizer.decode(reply[:-1]))
            assert set(point) == {"x", "name"} and type(point["x"]) is int and len(point["name"]) <= 4
            assert state.finished and state.accepts_end
    assert ended >= 5


# keyword -> schema, a reply that it allows, a reply that it forbids
CASES: dict[str, tuple[dict[str, Any], str, str]] = {
    "$ref": ({"$ref": "#/$defs/n", "$defs": {"n": {"type": "null"}}}, "null", "1"),
    "type": ({"type": "boolean"}, "true", '"true"'),
    "enum": ({"enum": ["a", 2]}, "2", "3"),
    "const": ({"const": "a"}, '"a"', '"b"'),
    "anyOf": ({"anyOf": [{"type": "null"}, {"type": "integer"}]}, "7", "7.5"),
    "allOf": ({"allOf": [{"type": "integer"}, {"minimum": 3}]}, "3", "2"),
    "oneOf": ({"oneOf": [{"const": "a"}, {"type": "integer"}]}, "7", '"b"'),
    "properties": ({"type": "object", "properties": {"a": {"type": "integer"}}}, '{"a": 1}', '{"a": "1"}'),
    "required": ({"type": "object", "required": ["a"]}, '{"a": 1}', "{}"),
    "additionalProperties": ({"type": "object", "additionalProperties": {"type": "null"}}, '{"a": null}', '{"a": 1}'),
    "patternProperties": ({"type": "object", "patternProperties": {"^a": {"type": "null"}}}, '{"ab": null}', '{"ab": 1}'),
    "minProperties": ({"type": "object", "minProperties": 1}, '{"a": 1}', "{}"),
    "maxProperties": ({"type": "object", "maxProperties": 1}, '{"a": 1}', '{"a": 1, "b": 2}'),
    "items": ({"type": "array", "items": {"type": "null"}}, "[null]", "[1]"),
    "prefixItems": ({"type": "array", "prefixItems": [{"type": "null"}]}, "[null, 1]", "[1]"),
    "additionalItems": ({"type": "array", "items": [{"type": "null"}], "additionalItems": False}, "[null]", "[null, 1]"),
    "minItems": ({"type": "array", "minItems": 1}, "[1]", "[]"),
    "maxItems": ({"type": "array", "maxItems": 1}, "[1]", "[1, 2]"),
    "minLength": ({"type": "string", "minLength": 2}, '"ab"', '"a"'),
    "maxLength": ({"type": "string", "maxLength": 2}, '"ab"', '"abc"'),
    "pattern": ({"type": "string", "pattern": "^a+$"}, '"aa"', '"b"'),
    "format": ({"type": "string", "format": "date"}, '"2026-01-31"', '"soon"'),
    "minimum": ({"type": "integer", "minimum": 3}, "3", "2"),
    "maximum": ({"type": "integer", "maximum": 3}, "3", "4"),
    "exclusiveMinimum": ({"type": "integer", "exclusiveMinimum": 3}, "4", "3"),
    "exclusiveMaximum": ({"type": "integer", "exclusiveMaximum": 3}, "2", "3"),
    "multipleOf": ({"type": "integer", "multipleOf": 3}, "9", "8"),
}


@pytest.mark.parametrize("keyword", sorted(ENFORCED))
def test_every_keyword_that_is_taken_is_enforced(compiler: Compiler, tokenizer: Any, keyword: str) -> None:
    schema, good, bad = CASES[keyword]
    spec = GrammarSpec.json_schema(schema)
    assert keyword in schema
    assert fits(compiler, tokenizer, spec, good) and not fits(compiler, tokenizer, spec, bad)


@pytest.mark.parametrize("keyword", sorted(ANNOTATIONS | {"x-order"}))
def test_annotations_change_nothing(compiler: Compiler, tokenizer: Any, keyword: str) -> None:
    value: Any = (
        {"a": {"type": "string"}} if keyword in ("$defs", "definitions") else "https://json-schema.org/draft/2020-12/schema"
    )
    spec = GrammarSpec.json_schema({"type": "null", keyword: value})
    assert fits(compiler, tokenizer, spec, "null") and not fits(compiler, tokenizer, spec, "1")


@pytest.mark.parametrize(
    ("schema", "told"),
    [
        ({"type": "array", "uniqueItems": True}, r"JSON schema: 'uniqueItems' at \$ is not supported"),
        ({"properties": {"not": {"not": {}}}}, r"JSON schema: 'not' at \$\.properties\.not is not supported"),
        ({"anyOf": [{}, {"items": {"requird": []}}]}, r"JSON schema: 'requird' at \$\.anyOf\[1\]\.items is not supported"),
        ({"type": "string", "x-guidance": {"lenient": True}}, "'x-guidance' at"),
        ({"type": "string", "format": "weird"}, "json_schema: Unknown format: weird"),
        ({"type": "string", "pattern": "(?=a)b"}, "json_schema: look-around, .* is not supported"),
        ({"type": "objekt"}, "json_schema: Invalid type: objekt"),
        ({"$ref": "http://example.org/s"}, "json_schema: Resource 'http://example.org/s' is not present"),
        ({"oneOf": [{"type": "integer"}, {"type": "number"}]}, "json_schema: oneOf constraints are not supported"),
        ({"type": "string", "minLength": 3, "maxLength": 2}, "json_schema: Unsatisfiable schema"),
    ],
)
def test_what_a_schema_cannot_ask_for_is_said(compiler: Compiler, schema: dict[str, Any], told: str) -> None:
    with pytest.raises(InputError, match=told) as raised:
        compiler.compile(GrammarSpec.json_schema(schema))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        (GrammarSpec("regex", "(a"), "regex: unclosed group; change"),
        (GrammarSpec("regex", "a(?=b)"), "regex: look-around"),
        (GrammarSpec("lark", "start: foo"), 'lark: at 1.* unknown name: "foo"'),
        (GrammarSpec("choice", "[]"), r"choice: \[\], expected a list of texts"),
        (GrammarSpec.choice(["a", ""]), 'choice: \\["a", ""\\], expected a list of texts'),
        (GrammarSpec("json_schema", "{"), "json_schema: not valid JSON"),
        (GrammarSpec("json_schema", "[]"), "json_schema: a JSON list, expected an object"),
        (GrammarSpec("xml"), "unknown kind of grammar 'xml'; known: json_schema, json_object, regex, choice, lark"),
    ],
)
def test_other_grammars_that_cannot_be(compiler: Compiler, spec: GrammarSpec, told: str) -> None:
    with pytest.raises(InputError, match=told):
        compiler.compile(spec)


def test_a_tokenizer_without_a_description() -> None:
    with pytest.raises(ModelError, match=r"grammars need a tokenizer\.json"):
        Compiler(object(), WIDTH, {END})


def test_regex_object_and_lark(compiler: Compiler, tokenizer: Any) -> None:
    assert fits(compiler, tokenizer, GrammarSpec("regex", r"a/b\n?[0-9]{2}"), "a/b\n17")
    assert not fits(compiler, tokenizer, GrammarSpec("regex", r"a/b\n?[0-9]{2}"), "a/b\n1")
    assert fits(compiler, tokenizer, GrammarSpec("json_object"), '{"any": [1, {"thing": null}]}')
    assert not fits(compiler, tokenizer, GrammarSpec("json_object"), "[1]")
    assert fits(compiler, tokenizer, GrammarSpec("lark", 'start: "a" b+\nb: "x" | "y"'), "axyx")


@settings(max_examples=30, deadline=None)
@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8), min_size=1, max_size=4))
def test_choices_are_taken_as_they_are(compiler: Compiler, tokenizer: Any, choices: list[str]) -> None:
    spec, tokens = GrammarSpec.choice(choices), compiler.tokenizer.tokenize_str(choices[-1])
    assert _any_reply(compiler.compile(spec).start(), compiler) in choices
    assert not fits(compiler, tokenizer, spec, "neither of these")
    # The tokenizer composes characters (NFC) and takes texts of special tokens for these: such tokens are not of that text.
    assume(compiler.tokenizer.decode_bytes(tokens) == choices[-1].encode())
    assume(not any(map(compiler.tokenizer.is_special_token, tokens)))
    state = compiler.compile(spec).start()
    for token in tokens:
        assert state.mask()[token]
        state.advance(token)
    assert state.accepts_end


@pytest.mark.parametrize("text", ["<think>", "<|im_end|>", "e\u0301", "\u212b"])
@pytest.mark.parametrize("kind", ["choice", "regex", "lark", "json_schema"])
def test_texts_that_the_tokenizer_writes_otherwise_can_be_written(compiler: Compiler, kind: str, text: str) -> None:
    """Texts of special tokens, and texts that are not composed (NFC): a row goes on to its end, and says just this."""
    spec = {
        "choice": GrammarSpec.choice([text]),
        "regex": GrammarSpec("regex", text.replace("|", r"\|")),
        "lark": GrammarSpec("lark", f'start: "{text}"'),
        "json_schema": GrammarSpec.json_schema({"const": text}),
    }[kind]
    said = _any_reply(compiler.compile(spec).start(), compiler)
    assert said == (json.dumps(text, ensure_ascii=False) if kind == "json_schema" else text)


def test_a_choice_that_begins_another(compiler: Compiler, tokenizer: Any) -> None:
    state = compiler.compile(GrammarSpec.choice(["yes", "yes please"])).start()
    for token in ids(tokenizer, "yes"):
        assert not state.accepts_end
        state.advance(token)
    assert state.accepts_end and not state.finished
    for token in ids(tokenizer, " please"):
        state.advance(token)
    assert state.finished and np.flatnonzero(state.mask()).tolist() == [END, IM_END]


def test_white_space_ends(compiler: Compiler, tokenizer: Any) -> None:
    assert fits(compiler, tokenizer, GrammarSpec("json_object"), '{"a":' + "\n" * 40 + "1}")
    assert not fits(compiler, tokenizer, GrammarSpec("json_object"), '{"a":' + "\n" * 80 + "1}")


def test_ids_beyond_the_tokenizer_and_special_tokens_are_never_allowed(compiler: Compiler) -> None:
    state = compiler.compile(GrammarSpec("regex", r"(?s:.*)")).start()
    assert len(state.mask()) == WIDTH and state.mask()[:4000].mean() > 0.9  # all but broken UTF-8
    assert np.flatnonzero(state.mask()[END:]).tolist() == [0, IM_END - END]
    thinking = compiler.compile(GrammarSpec("json_object")).start([THINK_END])
    assert not thinking.mask()[4096:].any() and thinking.mask()[:END].all()
    for token in (-1, 4096, WIDTH - 1, WIDTH):
        assert state.accepted([token]) == thinking.accepted([token]) == 0


def test_reasoning_is_free_and_the_grammar_begins_behind_it(compiler: Compiler, tokenizer: Any) -> None:
    state = compiler.compile(GrammarSpec("json_object")).start([THINK_END])
    free = ids(tokenizer, 'Hm {"not": yet')
    for token in free:
        assert state.mask()[token] and not state.mask()[END] and not state.accepts_end
        state.advance(token)
    assert not state.begun
    state.advance(THINK_END)
    assert state.begun
    line, brace = ids(tokenizer, "\n\n"), ids(tokenizer, "{}")
    assert len(line) == 1 and state.mask()[line[0]] and state.mask()[ids(tokenizer, "{")[0]]
    assert not state.mask()[ids(tokenizer, "Hm")[0]] and not state.mask()[END]
    state.advance(line[0])
    assert not state.mask()[line[0]]
    for token in brace:
        state.advance(token)
    assert state.finished
    state.rollback(len(brace) + 1)
    assert state.begun and state.mask()[line[0]]
    state.rollback(1)
    assert not state.begun and state.mask()[free[0]] and len(state) == len(free)


def test_line_breaks_of_the_grammar_come_first(compiler: Compiler, tokenizer: Any) -> None:
    state = compiler.compile(GrammarSpec("regex", "\n\na")).start([THINK_END])
    for token in (THINK_END, *ids(tokenizer, "\n\n"), *ids(tokenizer, "a")):
        state.advance(token)
    assert state.finished


def test_reasoning_that_ends_with_several_tokens(compiler: Compiler, tokenizer: Any) -> None:
    end = ids(tokenizer, "So the answer is")
    assert len(end) > 2
    state = compiler.compile(GrammarSpec.choice(["a"])).start(end)
    for token in [end[0], *end]:  # a false start first
        assert not state.begun
        state.advance(token)
    assert state.begun and not state.mask()[end[0]]


def test_drafts(compiler: Compiler, tokenizer: Any) -> None:
    state = compiler.compile(GrammarSpec.json_schema(POINT)).start([THINK_END])
    good = [THINK_END, *ids(tokenizer, '{"x": 12'), *ids(tokenizer, ', "name": "ab"}'), IM_END]
    before = state.mask().copy()
    bad = [*good[:4], ids(tokenizer, "Hm")[0], *good[4:]]
    assert state.accepted(good) == len(good) and state.accepted([*good, END]) == len(good)
    assert state.accepted(bad) == 4 and len(state.masks(bad)) == 5
    masks = state.masks(good)
    assert len(masks) == len(good) and len(state) == 0
    np.testing.assert_array_equal(state.mask(), before)
    for token, mask in zip(good, masks, strict=True):
        np.testing.assert_array_equal(state.mask(), mask)
        state.advance(token)
    assert state.finished and state.accepted([END]) == 0
    with pytest.raises(ValueError, match="may not come"):
        state.advance(END)


def replay(compiler: Compiler, spec: GrammarSpec, tokens: Sequence[int], after: Sequence[int]) -> State:
    state = compiler.compile(spec).start(after)
    for token in tokens:
        state.advance(token)
    return state


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 1 << 30), st.integers(1, 60), st.data())
def test_going_back_is_as_never_having_gone(
    compiler: Compiler, tokenizer: Any, seed: int, most: int, data: st.DataObject
) -> None:
    spec, rng = GrammarSpec.json_schema(POINT), np.random.default_rng(seed)
    state = compiler.compile(spec).start([THINK_END])
    tokens = [*ids(tokenizer, "Well"), THINK_END]
    for token in tokens:
        state.advance(token)
    tokens += walk(state, rng, most)
    back = data.draw(st.integers(0, len(tokens)))
    twin = state.copy()
    state.rollback(back)
    wanted = replay(compiler, spec, tokens[: len(tokens) - back], [THINK_END])
    assert len(state) == len(wanted) and state.begun == wanted.begun and state.accepts_end == wanted.accepts_end
    if not wanted.accepts_end:
        np.testing.assert_array_equal(state.mask(), wanted.mask())
    for token in tokens[len(tokens) - back :]:  # and forward once more
        state.advance(token)
    assert (len(state), state.accepts_end, state.finished) == (len(twin), twin.accepts_end, twin.finished)
    with pytest.raises(ValueError, match="to take back of"):
        state.rollback(len(state) + 1)


def test_rows_do_not_leak_into_each_other(compiler: Compiler) -> None:
    """Interleaved rows of one grammar see what each sees alone."""
    spec = GrammarSpec.json_schema(POINT)
    alone = [walk(compiler.compile(spec).start(), np.random.default_rng(seed), 60) for seed in range(4)]
    states, rngs = [compiler.compile(spec).start() for _ in range(4)], [np.random.default_rng(seed) for seed in range(4)]
    together: list[list[int]] = [[] for _ in range(4)]
    for _ in range(60):
        for state, rng, tokens in zip(states, rngs, together, strict=True):
            if not state.finished:
                tokens += walk(state, rng, 1)
    assert [tokens[: len(row)] for tokens, row in zip(together, alone, strict=True)] == [
        row[: len(tokens)] for tokens, row in zip(together, alone, strict=True)
    ]
    assert all(len(tokens) > 5 for tokens in together)


def test_a_grammar_is_compiled_once_and_the_oldest_is_forgotten(compiler: Compiler) -> None:
    first = GrammarSpec.choice(["first"])
    kept = compiler.compile(first)
    assert compiler.compile(GrammarSpec.choice(["first"])) is kept
    for number in range(64):
        compiler.compile(GrammarSpec.choice([f"other {number}"]))
    assert compiler.compile(first) is not kept


def test_reasoning_ends_where_its_budget_is_spent(compiler: Compiler, tokenizer: Any) -> None:
    after, word = (11, THINK_END), ids(tokenizer, "x")[0]
    for grammar in (compiler.anything, compiler.compile(GrammarSpec.choice(["yes"]))):
        state = grammar.start(after, budget=2)
        for token in (word, word, *after):
            assert not state.begun and state.mask()[token] and not state.mask()[END]
            state.advance(token)
        assert state.begun
        state.rollback(2)
        assert list(np.flatnonzero(state.mask())) == [11]
        assert state.accepted([word]) == 0 and state.accepted(after) == 2
        assert len(state.masks([*after, word])) >= 3
        early = grammar.start(after, budget=2)
        for token in after:
            early.advance(token)
        assert early.begun


def test_any_text_may_follow_a_budget(compiler: Compiler, tokenizer: Any) -> None:
    state = compiler.anything.start((THINK_END,), budget=0)
    assert list(np.flatnonzero(state.mask())) == [THINK_END]
    state.advance(THINK_END)
    assert state.mask()[:4096].all() and not state.mask()[4096:].any() and state.accepts_end and not state.finished
    copy = state.copy()
    for token in (5, 6, IM_END):
        state.advance(token)
    assert state.finished and not copy.finished
    state.rollback(4)
    assert not state.begun and len(state) == 0


@pytest.mark.parametrize(
    ("form", "good", "bad"),
    [
        ("date", "2024-02-28 2023-12-31 1999-04-30", "2023-02-29 2023-04-31 0000-01-01 2023-13-01"),
        ("time", "00:00:00Z 23:59:59.123456+23:59", "24:00:00Z 08:27:60.41+18:35 12:00:00"),
        ("date-time", "2024-02-28T12:30:00Z", "2023-02-30T12:30:00Z 2024-02-28 2024-02-28T12:30:61Z"),
    ],
)
def test_dates_and_times_are_real(compiler: Compiler, tokenizer: Any, form: str, good: str, bad: str) -> None:
    spec = GrammarSpec.json_schema({"type": "array", "items": {"type": "string", "format": form}})
    for text, expected in [(text, True) for text in good.split()] + [(text, False) for text in bad.split()]:
        assert fits(compiler, tokenizer, spec, f'["{text}"]') == expected, text
    assert "format" in spec.text


def test_a_reply_may_open_its_reasoning_itself(compiler: Compiler, tokenizer: Any) -> None:
    think, word = 4094, ids(tokenizer, "x")[0]
    for grammar in (compiler.anything, compiler.compile(GrammarSpec.choice(["yes"]))):
        state = grammar.start((THINK_END,), budget=2, opening=think)
        assert state.begun and state.mask()[think]
        for token in (think, word, word):
            state.advance(token)
            assert not state.begun
        assert list(np.flatnonzero(state.mask())) == [THINK_END]
        state.advance(THINK_END)
        assert state.begun and state.accepted(ids(tokenizer, "yes")) == len(ids(tokenizer, "yes"))
        state.rollback(4)
        assert state.begun and len(state) == 0 and state.mask()[think]
        plain = grammar.start((THINK_END,), opening=think)
        for token in ids(tokenizer, "yes"):
            plain.advance(token)
        assert plain.accepts_end
    strict = compiler.compile(GrammarSpec.choice(["yes"])).start((THINK_END,), opening=think)
    assert not strict.mask()[word] and not strict.mask()[list(compiler.breaks)].any()
    assert len(strict.masks([think, word, THINK_END])) == 4
