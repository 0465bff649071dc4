"""Packing, fallbacks and order with a small fake; real templates and tokenizers where the shared folder holds them."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from optiq.errors import InputError, ModelError
from optiq.measure.text import DOMAINS, SETS, Message, Sample, samples
from optiq.measure.tokens import render_sample, tokenise

ROOT = Path(__file__).resolve().parents[2]
SHARED = Path(os.environ.get("OPTIQ_SHARED", ROOT.parent / "shared"))
ROWS = {"calibration": 40, "dev": 12, "score": 20}


class Letters:
    """One token a character; the template brackets each message and refuses what it is told to."""

    def __init__(self, refuses: tuple[str, ...] = (), template: bool = True) -> None:
        self.refuses, self.template = refuses, template

    def encode(self, text: str) -> list[int]:
        return [ord(char) % 251 for char in text]

    def render(self, messages: Sequence[Message], tools: Sequence[dict[str, Any]] | None) -> str | None:
        if not self.template:
            return None
        roles = [m["role"] for m in messages]
        refused = [
            "tools" in self.refuses and (tools or "tool" in roles or any(m.get("tool_calls") for m in messages)),
            "system" in self.refuses and "system" in roles,
            "order" in self.refuses and any(a == b for a, b in zip(roles, roles[1:], strict=False)),
        ]
        if any(refused):
            raise ModelError("refused")
        head = f"<tools {len(tools)}>" if tools else ""
        return head + "".join(f"[{m['role']}|{m['content']}|{len(m.get('tool_calls') or ())}]" for m in messages)


def text_sample(name: str, domain: str, size: int) -> Sample:
    return Sample(name, domain, None, name * (size // len(name)), None, "", "")


CHAT = Sample(
    "c",
    "agent",
    (
        {"role": "system", "content": "Rules."},
        {"role": "user", "content": "Go."},
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}],
        },
        {"role": "tool", "content": "7"},
        {"role": "assistant", "content": "Seven."},
    ),
    None,
    ({"type": "function", "function": {"name": "f"}},),
    "",
    "",
)


def test_rows_long_samples_are_cut_and_short_ones_joined() -> None:
    group = [text_sample("a", "x", 25), text_sample("b", "x", 4), text_sample("c", "x", 30), text_sample("d", "x", 9)]
    tokens = tokenise(group, Letters(), 10, 5)
    assert tokens.ids.dtype == np.int32
    assert ["".join(map(chr, row)) for row in tokens.ids] == ["a" * 10, "bbbb" + "c" * 6]
    assert tokens.documents == ("a", "b")
    assert tokens.notes == ("x: 2 of 5 rows of 10 tokens (4 samples)",)


def test_any_first_rows_cover_the_domains_evenly() -> None:
    group = [text_sample(f"{d}{i}", d, 40) for d in "pqr" for i in range(4)]
    tokens = tokenise(group, Letters(), 8, 3)
    assert tokens.domains == tuple("pqr" * 3)
    for count in range(1, 10):
        shares = Counter(tokens.domains[:count])
        assert max(shares.values()) - min(shares.get(d, 0) for d in "pqr") <= 1
    fewer = tokenise(group, Letters(), 8, 2)
    assert np.array_equal(fewer.ids, tokens.ids[:6])
    assert tokens.notes == ()


def test_hash_is_fixed_and_covers_shape_and_ids() -> None:
    group = [text_sample("ab", "x", 40)]
    tokens = tokenise(group, Letters(), 8, 1, "dev")
    assert tokens.set_name == "dev"
    assert tokens.sha256 == "1d20adb8bd61b7fd36f6dcb78d213785586d3d434147c1419393731797ae774d"
    assert tokenise(group, Letters(), 7, 1).sha256 != tokens.sha256
    assert tokenise([text_sample("ba", "x", 40)], Letters(), 8, 1).sha256 != tokens.sha256


@pytest.mark.parametrize(
    ("refuses", "expected", "simplified"),
    [
        ((), "<tools 1>[system|Rules.|0][user|Go.|0][assistant||1][tool|7|0][assistant|Seven.|0]", False),
        (("system",), "<tools 1>[user|Rules.\n\nGo.|0][assistant||1][tool|7|0][assistant|Seven.|0]", True),
        (
            ("tools",),
            '[system|Rules.|0][user|Go.|0][assistant|{"name": "f", "arguments": {"x": 1}}|0]'
            "[user|Tool result: 7|0][assistant|Seven.|0]",
            True,
        ),
        (
            ("tools", "system", "order"),
            '[user|Rules.\n\nGo.|0][assistant|{"name": "f", "arguments": {"x": 1}}|0][user|Tool result: 7|0][assistant|Seven.|0]',
            True,
        ),
    ],
)
def test_what_a_template_refuses_is_simplified(refuses: tuple[str, ...], expected: str, simplified: bool) -> None:
    assert render_sample(CHAT, Letters(refuses)) == (expected, simplified)


def test_turns_of_one_role_are_joined_where_roles_must_alternate() -> None:
    turns = CHAT.messages or ()
    results = (*turns[:4], {"role": "tool", "content": "8"}, *turns[4:])
    chat = Sample("c", "agent", results, None, CHAT.tools, "", "")
    text, simplified = render_sample(chat, Letters(("tools", "order")))
    assert simplified
    assert "[user|Tool result: 7\nTool result: 8|0]" in text


def test_no_template_gives_plain_roles() -> None:
    text, simplified = render_sample(CHAT, Letters(template=False))
    assert not simplified
    call = 'Assistant: {"name": "f", "arguments": {"x": 1}}'
    assert text == f"System: Rules.\nUser: Go.\n{call}\nUser: Tool result: 7\nAssistant: Seven.\n"
    nothing = Letters(("tools", "system", "order"))
    nothing.render = lambda messages, tools: (_ for _ in ()).throw(ModelError("no"))  # type: ignore[method-assign]
    assert render_sample(CHAT, nothing) == (text, True)
    assert "refused 1 chats" in tokenise([CHAT], nothing, 8, 1).notes[-1]


def test_errors_say_what_to_do() -> None:
    with pytest.raises(InputError, match="hold fewer than 99 tokens per domain; give more text or a smaller"):
        tokenise([text_sample("a", "x", 9)], Letters(), 99, 1)
    with pytest.raises(InputError, match="length 0 and rows per domain 1 must both be at least 1"):
        tokenise([], Letters(), 0, 1)


@pytest.mark.parametrize("length", [64, 480])
def test_packaged_sets_without_a_template(length: int) -> None:
    for set_name in SETS:
        tokens = tokenise(samples(set_name), Letters(template=False), length, ROWS[set_name], set_name)
        assert tokens.ids.shape == (6 * ROWS[set_name], length)
        assert tokens.domains[:6] == DOMAINS
        assert len(set(tokens.documents)) == len(tokens.documents)
        assert tokens.notes == ()


class Real:
    """A tokenizer and a chat template from files, rendered as transformers does it."""

    def __init__(self, tokenizer: Any, template: Path) -> None:
        jinja2 = pytest.importorskip("jinja2")
        sandbox = pytest.importorskip("jinja2.sandbox")
        self.tokenizer, self.error = tokenizer, jinja2.TemplateError
        env = sandbox.ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"])
        env.filters["tojson"] = lambda value, **options: json.dumps(value, ensure_ascii=False, **options)
        env.globals["raise_exception"] = self.refuse
        self.template = env.from_string(template.read_text(encoding="utf-8"))

    def refuse(self, message: str) -> None:
        raise ModelError(message)

    def encode(self, text: str) -> list[int]:
        return list(self.tokenizer.encode(text, add_special_tokens=False).ids)

    def render(self, messages: Sequence[Message], tools: Sequence[dict[str, Any]] | None) -> str | None:
        given = {"messages": list(messages), "tools": list(tools) if tools else None, "add_generation_prompt": False}
        try:
            return self.template.render(**given, bos_token="", eos_token="")
        except (self.error, TypeError) as error:  # one template loops over tools that are not there
            raise ModelError(str(error)) from error


def qwen() -> Any:
    """The byte-level BPE of Qwen2 and Qwen3, with its chat tokens."""
    tokenizers = pytest.importorskip("tokenizers")
    folder = SHARED / "data" / "qwen" / "tokenizer_qwen2_3"
    if not folder.is_dir():
        pytest.skip("no Qwen tokenizer (OPTIQ_SHARED/data/qwen)")
    made = tokenizers.Tokenizer(tokenizers.models.BPE.from_file(str(folder / "vocab.json"), str(folder / "merges.txt")))
    pattern = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
        r"|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    split = tokenizers.pre_tokenizers.Split(tokenizers.Regex(pattern), "isolated")
    to_bytes = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.pre_tokenizer = tokenizers.pre_tokenizers.Sequence([split, to_bytes])
    made.add_special_tokens(["<|im_start|>", "<|im_end|>", "<|endoftext|>"])
    return made


TEMPLATES = sorted((SHARED / "data" / "qwen").glob("**/*.jinja"))


@pytest.mark.skipif(not TEMPLATES, reason="no chat templates (OPTIQ_SHARED/data/qwen)")
@pytest.mark.parametrize("template", TEMPLATES, ids=lambda path: path.stem)
def test_every_sample_renders_with_real_templates(template: Path) -> None:
    real = Real(None, template)
    for sample in (s for name in SETS for s in samples(name)):
        text, simplified = render_sample(sample, real)
        if simplified:
            # Made for chats with tools, it refuses the others, which then become plain roles.
            assert "tool_use" in template.stem and not sample.tools, sample.id
            continue
        for message in sample.messages or ():
            thoughtless = message["content"].split("</think>")[-1].strip()
            # The Hermes template leaves out the words beside a call.
            assert thoughtless in text or message.get("tool_calls"), sample.id
            assert all(call["function"]["name"] in text for call in message.get("tool_calls", ())), sample.id
        for tool in sample.tools or ():
            assert tool["function"]["name"] in text, sample.id


@pytest.mark.skipif(not TEMPLATES, reason="no chat templates (OPTIQ_SHARED/data/qwen)")
@pytest.mark.parametrize("name", ["qwen3_5/chat_template.jinja", "templates/Qwen-Qwen3-0.6B.jinja"])
def test_packaged_sets_fill_their_rows_of_512_qwen_tokens(name: str) -> None:
    real = Real(qwen(), SHARED / "data" / "qwen" / name)
    for set_name in SETS:
        tokens = tokenise(samples(set_name), real, 512, ROWS[set_name], set_name)
        assert tokens.notes == ()
        assert tokens.ids.shape == (6 * ROWS[set_name], 512)


def test_tiny_qwen3_5() -> None:
    tokenizers = pytest.importorskip("tokenizers")
    folder = next((f for f in (ROOT / "examples" / "tiny-qwen3.5", SHARED / "models" / "tiny-qwen3.5") if f.is_dir()), None)
    if folder is None:
        pytest.skip("no tiny-qwen3.5 (examples/ or OPTIQ_SHARED/models)")
    real = Real(tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json")), folder / "chat_template.jinja")
    tokens = tokenise(samples("dev"), real, 256, 12, "dev")
    assert tokens.ids.shape == (72, 256)
    assert 0 <= tokens.ids.min() < tokens.ids.max() < 4096
    # Byte-level BPE with fixed files: another hash means that the text or the rendering changed.
    assert tokens.sha256 == "c9d9cfbbab2f05ba2abb24f3d660637b2718de6bf9acc81f17e830e2f342391d"
