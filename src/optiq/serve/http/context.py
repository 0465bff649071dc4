"""What every route is given: the models that are served, how requests find one, the limits of a request.

    chosen = await context.models.open(body.model, body.adapter)     an unknown name raises `UnknownModel`
    chosen.served.gateway.run(Request(..., adapter=chosen.adapter))

Plain data and one interface; knows no protocol and no HTTP.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from optiq.errors import InputError
from optiq.generate.sampling import Resolved, resolve
from optiq.kv.options import Maker
from optiq.models.families import preset
from optiq.models.thinking import Tags
from optiq.serve.gateway import Gateway
from optiq.serve.request import FULL_PRECISION

if TYPE_CHECKING:
    from optiq.serve.http.agent import Python
    from optiq.serve.http.metrics import Metrics

MAX_REPLY_TOKENS = 16384  # where neither request nor command line says: room for reasoning, a bounded promise of memory
ADAPTER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
ADAPTER_CONFIG = "adapter_config.json"


class UnknownModel(InputError):
    """A request names a model or an adapter that is not served."""


@dataclass(frozen=True)
class Served:
    """One model, ready to be asked.

    Args:
        id: how clients name it.
        created: when its files were written, in seconds of the Unix clock.
        gateway: its engine.
        tokenizer: as `optiq.models.load.load` gives it.
        template: text of its chat template; empty where it has none.
        template_sha256: for `Request.template`.
        family: a name in `optiq.models.families.FAMILIES`, or None.
        tags: what opens and closes its reasoning; None where it does not reason.
        context: tokens of prompt and reply together; 0 where nobody says.
        stop_ids: tokens that end a reply.
        generation_config: of its generation_config.json; empty where there is none.
        settings: sampling settings that the command line gave, by name.
        use: of the family's presets; None where the mode decides.
        max_tokens: of a reply where the request does not say.
        thinking: whether to think where the request does not say; None leaves it to the template.
        caches: how keys and values are kept.
        draft: whether speculation may draft.
        vocabulary: number of token ids that the tokenizer knows.
    """

    id: str
    created: int
    gateway: Gateway
    tokenizer: Any
    template: str = ""
    template_sha256: str = ""
    family: str | None = None
    tags: Tags | None = None
    context: int = 0
    stop_ids: frozenset[int] = frozenset()
    generation_config: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    use: str | None = None
    max_tokens: int = MAX_REPLY_TOKENS
    thinking: bool | None = None
    caches: Maker = FULL_PRECISION
    draft: bool = False
    vocabulary: int = 0

    def sampling(
        self, asked: Mapping[str, Any], thinking: bool, seed: int = 0, logit_bias: Mapping[int, float] | None = None
    ) -> Resolved:
        """The settings of a reply: the request's, the command line's, the family's, the model's, in this order.

        Args:
            asked: by the names of `optiq.generate.sampling.SETTINGS`; None stands for "not given".
            thinking: whether this reply reasons.
            seed: of the draw.
            logit_bias: by token id.

        Raises:
            InputError: a setting outside its range.
        """
        given = {name: value for name, value in asked.items() if value is not None}
        family = preset(self.family, thinking, self.use)
        return resolve({**self.settings, **given}, family, self.generation_config, seed, logit_bias)


@dataclass(frozen=True)
class Chosen:
    """What a request named: a model, and perhaps an adapter on it."""

    served: Served
    adapter: str | None = None

    @property
    def name(self) -> str:
        """As a reply tells it."""
        return self.served.id if self.adapter is None else f"{self.served.id}:{self.adapter}"


class Models(Protocol):
    """The models of a server."""

    @property
    def names(self) -> tuple[str, ...]:
        """What can be named, the default first; adapters stand behind their model as `model:adapter`."""

    @property
    def ready(self) -> bool:
        """Whether a request would be answered now, or after loading what is unloaded on purpose."""

    async def open(self, name: str | None = None, adapter: str | None = None) -> Chosen:
        """The model that a request names, loaded.

        Args:
            name: a model's, `model:adapter`, or None for the default.
            adapter: of a mounted adapter; None where there is none or the name says it.

        Raises:
            UnknownModel: not one that is served.
            Unavailable: it could not be loaded, or not in time.
        """


@dataclass(frozen=True)
class Limits:
    """What a request may be and take.

    Args:
        body_bytes: of a request; more is a 413.
        header_s: seconds for the head of a request.
        body_s: seconds for its body.
        write_s: seconds for which a client may leave a reply unread.
        ping_s: seconds after which a stream without text says that it is alive.
        choices: replies to one request (`n`).
        store_bytes: of replies kept for `previous_response_id`.
    """

    body_bytes: int = 32 << 20
    header_s: float = 10.0
    body_s: float = 60.0
    write_s: float = 60.0
    ping_s: float = 10.0
    choices: int = 16
    store_bytes: int = 32 << 20


@dataclass(frozen=True)
class Places:
    """Where adapters lie that clients may mount.

    Args:
        given: directories by name.
        folder: a directory of adapters; None for none.
    """

    given: Mapping[str, str] = field(default_factory=dict)
    folder: Path | None = None

    def find(self, name: str) -> str:
        """The directory that a name stands for.

        Raises:
            UnknownModel: none.
        """
        if name in self.given:
            return self.given[name]
        if self.folder is not None and ADAPTER_NAME.fullmatch(name) and (self.folder / name / ADAPTER_CONFIG).is_file():
            return str(self.folder / name)
        raise UnknownModel(f"there is no adapter {name[:100]!r}; known: {', '.join(self.names) or 'none'}")

    @property
    def names(self) -> tuple[str, ...]:
        """All that can be mounted."""
        inside = [] if self.folder is None else [file.parent.name for file in self.folder.glob(f"*/{ADAPTER_CONFIG}")]
        return tuple(sorted({*self.given, *filter(ADAPTER_NAME.fullmatch, inside)}))


@dataclass(frozen=True)
class Context:
    """What routes are made with.

    Args:
        models: that are served.
        limits: of a request.
        places: of adapters.
        metrics: what the server measures of itself; None where nobody asks.
        python: what requests may do with Python; None for nothing.
    """

    models: Models
    limits: Limits = Limits()
    places: Places = Places()
    metrics: Metrics | None = None
    python: Python | None = None
