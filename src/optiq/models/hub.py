"""Where a model lies: a local directory as it is, or a hub id as the directory of its downloaded snapshot.

Downloads go to the usual Hugging Face cache, a broken one resumes, and only the files that a conversion needs are
fetched. Knows files and names; reads no weights, imports neither MLX nor mlx_lm, and the hub library on demand.

Environment: what huggingface_hub reads (`HF_HOME`, `HF_ENDPOINT`, `HF_TOKEN`, `HF_HUB_OFFLINE`).
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optiq.errors import InputError, OptiqError, ResourceError
from optiq.events import QUIET, Events, Stage
from optiq.files import need_free, remove_tree, user_path
from optiq.models.download import fetch

HUB_TIMEOUT_S = 5.0  # to the first answer; a machine without a network should hear so at once
WANTED = ("*.safetensors", "*.json", "*.jsonl", "*.jinja", "*.model", "*.tiktoken", "*.txt", "*.py", "*.md", "LICENSE*")
UNWANTED = ("original/*", "onnx/*", "metal/*", "*/*/*", "consolidated*.safetensors", "*.onnx.json")
# Bytes per number by the hub's names of types (safetensors' own names).
WIDTHS = {
    "F64": 8,
    "I64": 8,
    "F32": 4,
    "I32": 4,
    "U32": 4,
    "F16": 2,
    "BF16": 2,
    "I16": 2,
    "U16": 2,
    "I8": 1,
    "U8": 1,
    "F8_E4M3": 1,
    "F8_E5M2": 1,
    "BOOL": 1,
}
_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


@dataclass(frozen=True)
class Cached:
    """A model in the hub cache.

    Args:
        name: hub id.
        path: the snapshot's directory (the newest one).
        bytes: what the whole entry takes on the disk.
        revisions: commits that are present.
    """

    name: str
    path: Path
    bytes: int
    revisions: tuple[str, ...]


@dataclass(frozen=True)
class Found:
    """A model on the hub.

    Args:
        name: hub id.
        bytes: of its safetensors files, from the numbers of weights that the hub tells; None where it tells none.
        downloads: in the last month, as the hub counts them.
        tags: the hub's words for it.
    """

    name: str
    bytes: int | None
    downloads: int
    tags: tuple[str, ...]


def search(text: str, limit: int = 20) -> list[Found]:
    """Models of the hub with safetensors files for a text, the most downloaded first.

    Args:
        text: part of a name.
        limit: at most so many.

    Raises:
        InputError: the text is empty.
        ResourceError: the hub cannot be reached.
    """
    import huggingface_hub
    from huggingface_hub import errors

    if not text.strip():
        raise InputError("the text to search for is empty; write a part of a model's name")
    fields = ["safetensors", "downloads", "tags"]
    try:
        found = huggingface_hub.HfApi().list_models(
            search=text.strip(), filter="safetensors", sort="downloads", limit=limit, expand=fields
        )
        return [_found(model) for model in found]
    except (errors.HTTPError, OSError, ValueError) as error:
        raise _explained(repr(text), None, error) from error


def _found(model: Any) -> Found:
    counts = getattr(model.safetensors, "parameters", None) or {}
    size = sum(int(count * WIDTHS.get(kind, 2)) for kind, count in counts.items())
    return Found(str(model.id), size or None, int(model.downloads or 0), tuple(model.tags or ()))


def resolve(model: str | os.PathLike[str], revision: str | None = None, events: Events = QUIET) -> Path:
    """The local directory of a model, downloaded if need be.

    Args:
        model: a directory (which wins), or a hub id ``owner/name``.
        revision: branch, tag or commit on the hub; ignored for a directory.
        events: where progress goes.

    Raises:
        InputError: no such directory, model or revision, or access is not granted.
        ResourceError: the hub cannot be reached and the cache has no complete copy, or the disk is full.
    """
    text = os.fspath(model)
    if not text:
        raise InputError("the model's name is empty; expected a model directory or a hub id (owner/name)")
    place = user_path(text)
    if place.is_dir():
        if not (place / "config.json").is_file():
            raise InputError(f"{text} is a directory without config.json; expected a model directory")
        return place
    if place.exists():
        raise InputError(f"{text} is a file; expected a model directory or a hub id (owner/name)")
    if not _ID.fullmatch(text) or text.count("/") != 1:
        raise InputError(f"no such directory: {text}; expected a model directory or a hub id (owner/name)")
    return _download(text, revision, events)


def _download(name: str, revision: str | None, events: Events) -> Path:
    import huggingface_hub
    from huggingface_hub import errors

    patterns: dict[str, Any] = {"allow_patterns": list(WANTED), "ignore_patterns": list(UNWANTED)}
    try:
        info = huggingface_hub.HfApi().model_info(name, revision=revision, timeout=HUB_TIMEOUT_S, files_metadata=True)
    except (errors.HTTPError, OSError, ValueError) as error:
        problem = _explained(name, revision, error)
        if isinstance(problem, InputError):
            raise problem from error
        return _from_cache(name, revision, patterns, problem, events)
    wanted = huggingface_hub.utils.filter_repo_objects(info.siblings or [], key=lambda file: file.rfilename, **patterns)
    files = {file.rfilename: int(file.size or 0) for file in wanted}
    if "config.json" not in files or not any(file.endswith(".safetensors") for file in files):
        raise InputError(f"{name} on the hub holds no config.json with *.safetensors; choose a safetensors checkpoint")
    missing = {file: size for file, size in files.items() if not _is_cached(name, info.sha, file)}
    if missing:
        need_free(huggingface_hub.constants.HF_HUB_CACHE, sum(missing.values()), f"downloading {name}")
    total = sum(missing.values())
    with events.stage(f"download {name}", _megabytes(total), "MB") as stage, _hub_warnings(events):
        told = _megabyte_counter(stage)
        try:
            for file in sorted(missing):
                if file.endswith(".safetensors"):
                    fetch(name, str(info.sha), file, told, HUB_TIMEOUT_S)
            # By the revision's name, so that the cache knows the name without a network.
            folder = huggingface_hub.snapshot_download(name, revision=revision, etag_timeout=HUB_TIMEOUT_S, **patterns)
            told(total)
        except (errors.HTTPError, OSError, ValueError) as error:
            raise _explained(name, revision, error, during="the download") from error
    return Path(folder)


def _from_cache(name: str, revision: str | None, patterns: dict[str, Any], problem: OptiqError, events: Events) -> Path:
    """The cached snapshot, where the hub does not answer."""
    import huggingface_hub

    try:
        folder = huggingface_hub.snapshot_download(name, revision=revision, local_files_only=True, **patterns)
    except OSError:
        raise problem from None
    events.warn(f"the hub did not answer; using the cached copy of {name}")
    return Path(folder)


def _explained(name: str, revision: str | None, error: Exception, during: str = "") -> OptiqError:
    """One line for whatever the hub library raised."""
    from huggingface_hub import constants, errors

    if isinstance(error, errors.HFValidationError):
        return InputError(f"{name!r} is neither a directory nor a valid hub id (owner/name)")
    if isinstance(error, errors.GatedRepoError):
        return InputError(f"{name} is gated: accept its terms on its page and log in (`hf auth login` or HF_TOKEN)")
    if isinstance(error, errors.RepositoryNotFoundError):
        return InputError(f"no model {name} on the hub, or it is private; check the name or log in (`hf auth login`)")
    if isinstance(error, errors.RevisionNotFoundError):
        return InputError(f"{name} has no revision {revision!r}; name a branch, tag or commit of it")
    if isinstance(error, errors.OfflineModeIsEnabled):
        return ResourceError(f"{name} is not complete in the cache and HF_HUB_OFFLINE forbids a download; unset it")
    if isinstance(error, errors.HfHubHTTPError) and error.response is not None:
        return ResourceError(f"the hub answered {error.response.status_code} for {name}; try again later")
    what = f"{during} of {name} broke off" if during else f"the hub ({constants.ENDPOINT}) cannot be reached for {name}"
    then = "run again to resume" if during else "check the network, or name a local directory"
    return ResourceError(f"{what} ({type(error).__name__}); {then}")


def _is_cached(name: str, commit: str | None, file: str) -> bool:
    import huggingface_hub

    return isinstance(huggingface_hub.try_to_load_from_cache(name, file, revision=commit), str)


def _megabytes(n: int) -> int:
    return max(1, n // 1_000_000)


def _megabyte_counter(stage: Stage) -> Callable[[int], None]:
    """A function that takes bytes and advances ``stage`` by whole megabytes, never beyond its total."""
    arrived = 0

    def told(n: int) -> None:
        nonlocal arrived
        arrived += n
        here = min(arrived // 1_000_000, stage.total or 0)
        if here > stage.done:
            stage.advance(here - stage.done)

    return told


@contextmanager
def _hub_warnings(events: Events) -> Iterator[None]:
    """What the hub library logs (a dropped connection, a retry) goes through our channel; its own bars stay away."""
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    class Forward(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            events.warn(" ".join(record.getMessage().split()))

    logger = logging.getLogger("huggingface_hub")
    before, propagate = list(logger.handlers), logger.propagate
    logger.handlers, logger.propagate = [Forward(logging.WARNING)], False
    bars = not are_progress_bars_disabled()
    disable_progress_bars()
    try:
        yield
    finally:
        logger.handlers, logger.propagate = before, propagate
        if bars:
            enable_progress_bars()


def cached() -> list[Cached]:
    """The models of the hub cache, by name."""
    import huggingface_hub
    from huggingface_hub import errors

    try:
        info = huggingface_hub.scan_cache_dir()
    except errors.CacheNotFound:
        return []
    found = []
    for repo in info.repos:
        revisions = sorted(repo.revisions, key=lambda revision: revision.last_modified, reverse=True)
        if repo.repo_type == "model" and revisions:
            commits = tuple(revision.commit_hash for revision in revisions)
            found.append(Cached(repo.repo_id, Path(revisions[0].snapshot_path), repo.size_on_disk, commits))
    return sorted(found, key=lambda entry: entry.name)


def remove_cached(entry: Cached) -> None:
    """Delete a model from the hub cache, all its revisions."""
    import huggingface_hub

    huggingface_hub.scan_cache_dir().delete_revisions(*entry.revisions).execute()


def check_removable(directory: Path) -> None:
    """Refuse to delete what is not a model directory and nothing else.

    Raises:
        InputError: no config.json with safetensors, a version-controlled folder, or a folder that holds this process.
    """
    if not directory.is_dir() or directory.is_symlink():
        raise InputError(f"{directory} is not a directory; expected a model directory or a hub id in the cache")
    weights = list(directory.glob("*.safetensors"))
    if not (directory / "config.json").is_file() or not weights:
        raise InputError(f"{directory} does not hold config.json and *.safetensors, so it is not removed")
    if (directory / ".git").exists():
        raise InputError(f"{directory} is under version control, so it is not removed")
    here = directory.resolve()
    if here in (Path.home(), *Path.home().parents) or here in (Path.cwd(), *Path.cwd().parents):
        raise InputError(f"{directory} contains the present or the home directory, so it is not removed")


def remove_directory(directory: Path) -> None:
    """Delete a model directory: it vanishes in one step, then its space is freed.

    Raises:
        InputError: it is not a model directory, or may not be written.
    """
    check_removable(directory)
    remove_tree(directory)
