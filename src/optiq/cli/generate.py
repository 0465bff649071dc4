"""`optiq generate`: text from a model, streamed; one prompt, or a conversation."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optiq.events import Events
from optiq.files import user_path

if TYPE_CHECKING:
    from optiq.generate.conversation import Conversation, Prompt
    from optiq.generate.decode import Context, Reply, Speculated, Statistics
    from optiq.generate.options import Options
    from optiq.generate.sampling import Resolved
    from optiq.kv.options import Maker

EXAMPLE = """\
examples:
  optiq generate examples/tiny-qwen3.5 --prompt "Write two sentences about the sea." --max-tokens 60
  optiq generate examples/tiny-qwen3.5 --chat --no-thinking       talk to it; Ctrl-C stops a reply, Ctrl-D ends
  optiq generate examples/tiny-qwen3.5 --raw --temp 0 --prompt "Once upon a time"
  optiq generate examples/tiny-qwen3.5 --prompt "Write about the sea." --kv-bits 4       a cache of a quarter of the size
  optiq generate examples/tiny-qwen3.5 --prompt "Write about the sea." --mtp             fewer passes of the model
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's own arguments."""
    from optiq.cli.caches import add_cache_arguments
    from optiq.generate.options import MAX_TOKENS, PREFILL_CHUNK
    from optiq.generate.sampling import SETTINGS
    from optiq.models.families import USES

    parser.add_argument("model", metavar="MODEL", help="a model directory or a hub id")
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--prompt", metavar="TEXT", help="what to answer; without it the text comes from stdin")
    source.add_argument("--chat", action="store_true", help="a conversation: one message per line, until Ctrl-D")
    parser.add_argument("--system", metavar="TEXT", help="the system message")
    parser.add_argument("--max-tokens", type=int, default=MAX_TOKENS, metavar="N", help="at most so many tokens per reply")
    for setting in SETTINGS:
        kind = int if setting.whole else float
        parser.add_argument(setting.flag, dest=setting.name, type=kind, default=None, metavar="X", help=setting.help)
    parser.add_argument("--preset", choices=USES, default=None, help="the family guide's settings for a use")
    parser.add_argument("--seed", type=int, default=None, metavar="N", help="for the draw; without it a new one, which is shown")
    parser.add_argument(
        "--thinking",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="ask the template for a reply with or without reasoning; without it the template's own default",
    )
    parser.add_argument("--raw", action="store_true", help="continue the text as it stands, without the chat template")
    parser.add_argument("--stop", action="append", default=[], metavar="TEXT", help="end before this text; may be repeated")
    parser.add_argument("--prefill-chunk", type=int, default=PREFILL_CHUNK, metavar="N", help="tokens of the prompt per step")
    parser.add_argument(
        "--mtp", action="store_true", help="guess tokens ahead with the model's own MTP head; the text is the same"
    )
    parser.add_argument("--adapter", metavar="DIR", help="reply with this adapter, as `optiq lora train` and PEFT write them")
    add_cache_arguments(parser)


def run(args: argparse.Namespace, events: Events) -> int:
    """Check, load, then one reply or a conversation."""
    from optiq.cli.caches import cache_maker
    from optiq.errors import InputError
    from optiq.generate.options import Options
    from optiq.generate.sampling import check

    check(vars(args))
    caches = cache_maker(args)
    options = Options(args.max_tokens, stops=tuple(map(_text, args.stop)), prefill_chunk=args.prefill_chunk)
    if args.raw and (args.chat or args.system or args.thinking is not None):
        word = "--chat" if args.chat else "--system" if args.system else "--thinking"
        raise InputError(f"--raw writes no chat template, and {word} needs one; leave one of the two out")
    text = None if args.chat else _text_of(args)
    session = _Session(args, options, caches, events)
    return session.talk() if text is None else session.answer(text)


def _text_of(args: argparse.Namespace) -> str:
    """The prompt: the flag, or all of stdin.

    Raises:
        InputError: there is none, or stdin is not UTF-8.
    """
    from optiq.errors import InputError

    if args.prompt is None and sys.stdin.isatty():
        raise InputError("no prompt; give --prompt TEXT, --chat, or a text on stdin")
    text = "".join(_lines()) if args.prompt is None else _text(args.prompt)
    if not text.strip():
        where = "on stdin" if args.prompt is None else "in --prompt"
        raise InputError(f"the prompt is empty ({len(text)} characters {where}), expected a text")
    return text


def _lines() -> Iterator[str]:
    """Lines of stdin, ends included, as UTF-8 whatever the locale says."""
    for line in sys.stdin.buffer:
        yield _utf8(line, "stdin")


def _text(argument: str) -> str:
    """An argument as UTF-8, whatever the locale says; that its bytes are UTF-8 was checked when the command began."""
    return argument.encode(errors="surrogateescape").decode()


def _utf8(data: bytes, where: str) -> str:
    from optiq.errors import InputError

    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise InputError(f"{where} is not UTF-8 text (byte {data[error.start]:#04x}), expected UTF-8") from None


class _Session:
    """A loaded model and what the arguments say about its replies."""

    def __init__(self, args: argparse.Namespace, options: Options, caches: Maker, events: Events) -> None:
        import dataclasses
        import secrets

        from optiq.generate.decode import Context
        from optiq.generate.drafter import load_drafters
        from optiq.models.families import family_of, preset
        from optiq.models.generation import context_length, generation_config, stop_ids, text_config
        from optiq.models.hub import resolve
        from optiq.models.load import load

        self._args, self._events = args, events
        path: Path = resolve(args.model, events=events)
        self._config = generation_config(path)
        self._family = family_of(text_config(path))
        preset(self._family, thinking=True, use=args.preset)  # refuses a use that nobody has settings for
        with events.stage("load the model"):
            model, self._tokenizer = load(path)
            self._adapted = _adapted(model, args.adapter)
        self._options = dataclasses.replace(options, stop_ids=stop_ids(path, self._tokenizer))
        self._length = context_length(path)
        caches.check(model)
        self._context: Context = Context(model, caches, load_drafters(path, model)() if args.mtp else None)
        self._seed = secrets.randbits(32) if args.seed is None else args.seed
        self._told = ""
        if hasattr(sys.stdout, "reconfigure"):
            sys.stdout.reconfigure(errors="replace")  # a terminal without UTF-8 shows what it can

    def answer(self, text: str) -> int:
        """One prompt, one reply."""
        from optiq.generate.conversation import plain

        prompt = plain(self._tokenizer, text) if self._args.raw else self._conversation().ask(text)
        with self._adapted():
            self._reply(prompt)
        return 0

    def talk(self) -> int:
        """A conversation over lines of stdin; Ctrl-C stops the reply that is under way."""
        from optiq.errors import OptiqError

        conversation = self._conversation()
        live = sys.stdin.isatty()
        if live:
            self._events.info("Ctrl-C stops a reply, Ctrl-D ends the conversation")
        lines = _lines()
        while (line := _typed() if live else next(lines, None)) is not None:
            if not line.strip():
                continue
            try:
                prompt = conversation.ask(line.strip())
            except OptiqError as error:
                if not live:
                    raise
                self._events.error(error.kind, str(error))
                continue
            with self._adapted():
                reply = self._reply(prompt, chat=True)
            conversation.answered(line.strip(), reply, prompt)
        return 0

    def _conversation(self) -> Conversation:
        from optiq.generate.conversation import Conversation

        conversation = Conversation(self._tokenizer, _text(self._args.system or ""), self._args.thinking)
        if self._args.thinking is not None and not conversation.has_switch:
            word = "--thinking" if self._args.thinking else "--no-thinking"
            self._events.warn(f"{word} has no effect: this model's template has no thinking switch")
        return conversation

    def _reply(self, prompt: Prompt, chat: bool = False) -> str:
        """Generate and show one reply; returns its text without the prompt's opening. Ctrl-C ends a chat's reply alone."""
        from optiq.generate.decode import Reply
        from optiq.generate.depth import Depth
        from optiq.generate.sampling import resolve
        from optiq.models.families import preset

        # A text that is continued as it stands has no mode; a use may still be asked for.
        modeless = self._args.raw and self._args.preset is None
        family = {} if modeless else preset(self._family, prompt.thinking, self._args.preset)
        settings = resolve(vars(self._args), family, self._config, self._seed)
        self._say_settings(settings, prompt)
        if self._length is not None and len(prompt.ids) > self._length:
            self._events.warn(f"the prompt has {len(prompt.ids)} tokens, this model was made for {self._length}: expect nonsense")
        depth = Depth() if self._args.mtp else None
        stable = prompt.stable if chat else 0
        reply = Reply(self._context, self._tokenizer, prompt.ids, settings.sampling, self._options, stable, depth)
        parts: list[str] = []
        try:
            self._read(reply)
            self._show(prompt.opening)
            with closing(iter(reply)) as pieces:  # an interrupt while it is shown has to end the generator too
                for piece in pieces:
                    parts.append(piece)
                    self._show(piece)
        except KeyboardInterrupt as stop:
            # Our own subclass stands for a signal that ends the process; Ctrl-C itself stops the reply alone.
            self._finish(prompt, parts, reply.statistics, settings)
            if not chat or type(stop) is not KeyboardInterrupt:
                raise
        else:
            self._finish(prompt, parts, reply.statistics, settings)
        return "".join(parts)

    def _read(self, reply: Reply) -> None:
        """Read the prompt, with a bar where it takes more than one step."""
        tokens = reply.find_start() - 1  # the last one belongs to the first step of the reply
        if tokens <= self._options.prefill_chunk:
            reply.read()
            return
        with self._events.stage("read the prompt", total=tokens, unit="tokens") as stage:
            reply.read(lambda done, _: stage.advance(done - stage.done))

    def _say_settings(self, settings: Resolved, prompt: Prompt) -> None:
        """How tokens are drawn, once per conversation and mode."""
        from optiq.generate.sampling import describe

        told = describe(settings, self._family, None if self._args.raw else prompt.thinking, self._args.preset)
        if settings.sampling.temperature != 0:
            told += f"; seed {self._seed}"
        if told != self._told:
            self._events.info(told)
            self._told = told

    def _show(self, piece: str) -> None:
        if not self._args.json:
            sys.stdout.write(piece)
            sys.stdout.flush()

    def _finish(self, prompt: Prompt, parts: list[str], told: Statistics, settings: Resolved) -> None:
        """End the line, say how fast it was, and print the JSON where that is wanted."""
        import dataclasses
        import json

        text = prompt.opening + "".join(parts)
        data = {"text": text, "thinking": prompt.thinking, **told.as_json(), "sampling": dataclasses.asdict(settings.sampling)}
        data["sources"] = dict(settings.sources)
        self._events.result(data)
        if self._args.json:
            print(json.dumps(data, indent=None if self._args.chat else 2, ensure_ascii=False), flush=True)
        elif not text.endswith("\n"):
            print(flush=True)
        self._events.info(_speed(told))
        if told.speculation is not None:
            self._events.info(_guessed(told.speculation, told.tokens))


def _adapted(model: Any, folder: str | None) -> Callable[[], AbstractContextManager[None]]:
    """What a reply runs in: the adapter of a directory, or nothing.

    Raises:
        InputError: no adapter there, or one of another model.
    """
    from optiq.lora.adapters import load_adapter
    from optiq.lora.mounted import Mounted

    if folder is None:
        return nullcontext
    mounted = Mounted(model)
    mounted.mount("adapter", load_adapter(user_path(folder), model))
    return lambda: mounted.rows(["adapter"])


def _guessed(told: Speculated, tokens: int) -> str:
    """What guessing did, in a line."""
    rate = f"{told.forwards / tokens:.2f}" if tokens else "no"
    return (
        f"MTP: {told.accepted} of {told.drafted} guesses accepted ({told.acceptance:.0%}), {rate} passes of the model per token"
    )


def _speed(told: Statistics) -> str:
    """The line after a reply."""
    from optiq.files import size_text

    cached = f" ({told.cached_tokens} kept)" if told.cached_tokens else ""
    ends = {"length": "full length", "cut": "interrupted", "stop": "stopped by itself"}
    end = f"at {told.stopped_by!r}" if isinstance(told.stopped_by, str) else ends[told.finish]
    return (
        f"prompt {told.prompt_tokens} tokens{cached}, {told.prompt_tokens_per_s:.1f} tokens/s; "
        f"reply {told.tokens} tokens, {told.decode_tokens_per_s:.1f} tokens/s, {end}; "
        f"peak memory {size_text(told.peak_memory_bytes)} (process {size_text(told.peak_resident_bytes)})"
    )


def _typed() -> str | None:
    """A line from the terminal, with a prompt and line editing; None at the end."""
    import readline  # noqa: F401  (input() edits lines where it is there)

    while True:
        try:
            return input("> ")
        except EOFError:
            print(file=sys.stderr)
            return None
        except KeyboardInterrupt as stop:
            if type(stop) is not KeyboardInterrupt:
                raise
            print("\n(Ctrl-D ends)", file=sys.stderr)
