"""Where the questions come from: a local directory, or their makers' repositories at pinned commits, checked by hash.

The files are the makers' own JSON lines and CSV; the hub's copies of some of them are parquet, which would need a reader of its
own. They are small and fetched whole (`models/download.py` is for shards of gigabytes). `FILES` pins each by commit and by the
SHA-256 of its bytes, so that a download is either these bytes or an error. A directory given with `--data` is taken as it is; the
report shows the hash of what was read beside the pinned one.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
import os
import urllib.error
import urllib.request
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from optiq import files
from optiq.errors import FormatError, InputError, ResourceError

HOST = "https://raw.githubusercontent.com"
TIMEOUT_S = 30.0


@dataclass(frozen=True)
class File:
    """One file of a data set: repository, commit, path in it, licence, SHA-256."""

    repository: str
    commit: str
    path: str
    licence: str
    sha256: str


def _mmlu() -> dict[str, File]:
    """A development and a test file for each of the 57 subjects, pinned in `mmlu_files.json`."""
    pins = json.loads(resources.files("optiq.evals").joinpath("mmlu_files.json").read_text(encoding="utf-8"))
    at = (pins["repository"], pins["commit"])
    return {f"mmlu/{name}": File(*at, f"{pins['path']}/{name}", pins["licence"], sha) for name, sha in pins["files"].items()}


FILES: Mapping[str, File] = {
    "gsm8k/test.jsonl": File(
        "openai/grade-school-math",
        "3101c7d5072418e28b9008a6636bde82a006892c",
        "grade_school_math/data/test.jsonl",
        "MIT",
        "3730d312f6e3440559ace48831e51066acaca737f6eabec99bccb9e4b3c39d14",
    ),
    "ifeval/input_data.jsonl": File(
        "josejg/instruction_following_eval",
        "0c495b2f95155e8b10acb919ae283bfb4d5be6e2",
        "instruction_following_eval/data/input_data.jsonl",
        "Apache-2.0",
        "67ffeee0fcb87c317c5b08a2de85557b4a7e96ada6178aa645b4954fe4b53d49",
    ),
    "humaneval/HumanEval.jsonl.gz": File(
        "openai/human-eval",
        "6d43fb980f9fee3c892a914eda09951f772ad10d",
        "data/HumanEval.jsonl.gz",
        "MIT",
        "b796127e635a67f93fb35c04f4cb03cf06f38c8072ee7cee8833d7bee06979ef",
    ),
    "bfcl_v3/BFCL_v3_simple.json": File(
        "ShishirPatil/gorilla",
        "cd9429ccf3d4d04156affe883c495b3b047e6b64",
        "berkeley-function-call-leaderboard/bfcl_eval/data/BFCL_v3_simple.json",
        "Apache-2.0",
        "fbc37b2ad252bf9af985582e0e07b456173fe627d957491472ea9cef5fb83158",
    ),
    "bfcl_v3/possible_answer/BFCL_v3_simple.json": File(
        "ShishirPatil/gorilla",
        "cd9429ccf3d4d04156affe883c495b3b047e6b64",
        "berkeley-function-call-leaderboard/bfcl_eval/data/possible_answer/BFCL_v3_simple.json",
        "Apache-2.0",
        "2911a2bc00df82c4f999ffa64fedb0164cb88e96212ffa5972087eb91fd496ee",
    ),
    **_mmlu(),
}


class Data:
    """Reads data files and remembers the hash of each.

    Args:
        directory: where they lie, laid out as the keys of `FILES`; None: downloaded once into the user's cache.
        host: where pinned files are downloaded from.
    """

    def __init__(self, directory: str | os.PathLike[str] | None = None, host: str = HOST) -> None:
        self.directory = None if directory is None else Path(directory)
        self.host = host
        self.read: dict[str, str] = {}
        if self.directory is not None and not self.directory.is_dir():
            raise InputError(f"no such directory: {self.directory}; expected evaluation data (gsm8k/test.jsonl, ...)")

    def content(self, name: str) -> bytes:
        """The content of one file.

        Args:
            name: relative path with `/`.

        Raises:
            InputError: it is not in the directory, or cannot be downloaded at all.
            ResourceError: the download failed.
            FormatError: the download has another hash than the pinned one.
        """
        found = self._download(name) if self.directory is None else self._local(self.directory, name)
        self.read[name] = hashlib.sha256(found).hexdigest()
        return found

    def names(self, folder: str) -> list[str]:
        """The files of a folder, sorted: those of the directory, or those that are pinned."""
        if self.directory is None:
            found = sorted(name for name in FILES if name.startswith(f"{folder}/"))
        else:
            found = sorted(f"{folder}/{path.name}" for path in (self.directory / folder).glob("*") if path.is_file())
        if not found:
            raise InputError(f"{self.directory or 'the data'}: {folder} is missing or empty; expected the data files of the task")
        return found

    def jsonl(self, name: str) -> list[dict[str, Any]]:
        """The objects of a JSON-lines file; one whose name ends in `.gz` is unpacked."""
        content, rows = self.content(name), []
        try:
            text = (gzip.decompress(content) if name.endswith(".gz") else content).decode("utf-8")
        except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
            raise FormatError(f"{name} is damaged ({error}); download it again") from error
        for number, line in enumerate(text.split("\n"), 1):
            if line.strip():
                try:
                    rows.append(json.loads(line))
                except json.JSONDecodeError as error:
                    raise FormatError(f"{name}, line {number}: not valid JSON ({error.msg}); download it again") from error
        return rows

    def csv(self, name: str) -> list[list[str]]:
        """The rows of a CSV file."""
        return list(csv.reader(io.StringIO(self.content(name).decode("utf-8"))))

    def sources(self) -> list[dict[str, Any]]:
        """What was read: name and hash; for known files also source, licence and whether the hash is the pinned one."""
        found: list[dict[str, Any]] = []
        for name, sha256 in sorted(self.read.items()):
            row: dict[str, Any] = {"name": name, "sha256": sha256}
            if (file := FILES.get(name)) is not None:
                row |= {"source": f"{file.repository}@{file.commit[:12]}", "licence": file.licence}
                row["pinned"] = sha256 == file.sha256
            found.append(row)
        return found

    def _local(self, directory: Path, name: str) -> bytes:
        try:
            return (directory / name).read_bytes()
        except OSError as error:
            raise InputError(f"cannot read {directory / name} ({error.strerror}); expected the data file there") from error

    def _download(self, name: str) -> bytes:
        if name not in FILES:
            raise InputError(f"{name} cannot be downloaded; give --data DIR with this file in it")
        file = FILES[name]
        place = cache() / file.sha256
        if place.is_file() and files.sha256_file(place) == file.sha256:
            return place.read_bytes()
        url = f"{self.host}/{file.repository}/{file.commit}/{file.path}"
        try:
            with urllib.request.urlopen(url, timeout=TIMEOUT_S) as reply:
                content: bytes = reply.read()
        except (urllib.error.URLError, OSError) as error:
            raise ResourceError(f"cannot download {url} ({error}); check the network or give --data DIR") from error
        found = hashlib.sha256(content).hexdigest()
        if found != file.sha256:
            raise FormatError(f"{url} has SHA-256 {found[:16]}..., expected {file.sha256[:16]}...; it is not used")
        files.write_bytes(place, content)
        return content


def cache() -> Path:
    """Where downloads are kept: `$XDG_CACHE_HOME/optiq/evals`, in the usual place without that variable."""
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "optiq" / "evals"
