"""A workbench's directory in which everything that has a name, a log or a content is called and says what `lab_hostile` has."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lab_hostile import HOSTILE
from lab_pace import plant_curve
from lab_process import ROOT
from lab_speaker import ran
from optiq.lab import caching, comparing, evaluating, tuning
from optiq.lab.chat.store import Chats
from optiq.lab.database import Database
from optiq.lab.jobs.job import Job, State
from optiq.lab.jobs.store import Store
from optiq.lab.place import Place
from optiq.lab.text import plain

MODEL = "owner/model"
SCORE = {"value": 0.5, "low": 0.25, "high": 0.75, "samples": 4}
PAIR = {"difference": 0.1, "low": -0.1, "high": 0.3, "p": 0.5}
NAMES = [os.fsencode(text.replace("/", "|").replace("\0", "").encode("utf-8", "replace")[:100]) for text in HOSTILE]
SHORT = [text for text in HOSTILE if len(text) < 1000]
SAID = [text for text in SHORT if "\0" not in text and text.encode("utf-8", "ignore").decode() == text]  # as words of a command


def plant(data: Path, models: Path) -> None:
    """Fill both directories; no workbench has them open."""
    place = Place.open(data)
    for name, text in zip([*NAMES, b"broken \xff\x80"], [*HOSTILE, HOSTILE[0]], strict=True):
        _json(_below(models, name), "config.json", {"model_type": text, "architectures": [text], "name": text})
        told = {"steps": text, "valid_loss": text, "method": text}
        config = {"base_model_name_or_path": text, "r": text, "optiq": told}
        _json(_below(place.folder("adapters"), name), "adapter_config.json", config)
        _json(_below(place.folder("kv"), name), "kv_config.json", {})
        _json(_below(place.folder("data"), name), "train.jsonl", {"text": text})
    _tensors(models / "tensors")
    _data(place.folder("data"))
    plant_curve(data, HOSTILE)
    _caches(caching.Study(place, MODEL))
    _comparison(place.folder("compared") / "x.json")
    for number, text in enumerate(HOSTILE):
        _json(_below(place.folder("evals"), NAMES[number]), "report.json", _report([text], f"{text} (base)"))
    _json(_below(place.folder("evals"), b"all"), "report.json", _report(HOSTILE, HOSTILE[1]))
    database = Database(place.database)
    _chats(Chats(database))
    _jobs(Store(database, place.folder("jobs")))
    database.close()


def _below(folder: Path, name: bytes) -> bytes:
    return os.fsencode(folder) + b"/" + name


def _json(folder: bytes, file: str, content: Mapping[str, Any]) -> None:
    os.makedirs(folder, exist_ok=True)
    with open(folder + b"/" + file.encode(), "w") as out:
        json.dump(content, out)


def _tensors(folder: Path) -> None:
    """A checkpoint that can be inspected, its tensors and its config's fields called so."""
    folder.mkdir()
    config = json.loads((ROOT / "examples" / "tiny-qwen3.5" / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "architectures": HOSTILE, "_name_or_path": HOSTILE[1]}))
    names = [f"model.layers.{n}.{text}.weight" for n, text in enumerate(HOSTILE)]
    head = {name: {"dtype": "F32", "shape": [4, 4], "data_offsets": [64 * n, 64 * n + 64]} for n, name in enumerate(names)}
    told = json.dumps(head).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(told)) + told + bytes(64 * len(names)))


def _data(folder: Path) -> None:
    """Training data with all texts in three samples, and data whose error line quotes one."""
    valid = [text.encode("utf-8", "replace").decode() for text in HOSTILE]
    joined = "\n".join(text for text in valid if len(text) < 1000)
    rows = [{"prompt": text, "completion": text} for text in (joined, *(text for text in valid if len(text) >= 1000))]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "wrong.jsonl").write_text(json.dumps(dict.fromkeys(SHORT, 1)) + "\n")


def _caches(study: caching.Study) -> None:
    """A curve and damages of one model; those of another one are garbled."""
    study.folder.mkdir()
    points = [{"bits": bits, "bytes_per_token": 100 * bits, "predicted_kl": 1 / bits} for bits in (4, 6, 8)]
    curve = {"schema": 1, "full_bytes_per_token": 1600, "points": points}
    (study.folder / "kv_curve.json").write_text(json.dumps(curve))
    damages = [{"layer_idx": 0, "keys": {"4": 0.1, "8": 0.01}, "values": {"4": 0.1, "8": 0.01}}]
    (study.folder / "kv_sensitivity.json").write_text(json.dumps(damages))
    for number, text in enumerate(HOSTILE):
        other = caching.Study(study.place, f"odd/{number}")
        other.folder.mkdir()
        odd: Sequence[Any] = [{"bits": text, "bytes_per_token": text, "predicted_kl": text}] if number else []
        (other.folder / "kv_curve.json").write_text(json.dumps({**curve, "points": odd}))
        rows = [{"layer_idx": 0, "keys": {text: 0.1}, "values": {text: text}}]
        (other.folder / "kv_sensitivity.json").write_text(json.dumps(rows))


def _comparison(file: Path) -> None:
    """As `optiq compare --tokens` writes it: a token, a document, a prompt, a text and a task of each."""
    whole = {"bytes": 2000, "bpw": 4.5, "perplexity": 9.0}
    texts = [{"prompt": text, "first_difference": 1, "reference": text, "text": text[::-1]} for text in HOSTILE]
    flips = {text: {"gained": [text], "lost": [text], "finding": text} for text in HOSTILE}
    models = [
        {**whole, "label": text, "kl": {"mean": 0.2, "p99": 0.5}, "texts": texts, "flips": flips}
        for text in (HOSTILE[1], HOSTILE[17])
    ]
    count = len(HOSTILE)
    likeliest = [list(HOSTILE)] * count
    tokens = {
        "documents": HOSTILE,
        "domains": HOSTILE,
        "texts": [list(HOSTILE)] * count,
        "reference": {"likeliest": likeliest},
        "models": [{"label": "m", "kl": [[0.4] * (count - 1)] * count, "likeliest": likeliest}] * 2,
    }
    told = {"schema": 1, "reference": {**whole, "label": HOSTILE[0]}, "models": models, "tokens": tokens}
    file.write_text(json.dumps(told))


def _report(texts: Sequence[str], baseline: str) -> dict[str, Any]:
    """As `optiq eval` writes it: the first text is the model, all are tasks, findings, notes and answers that flip."""
    label = texts[0]
    tasks = {text: {**SCORE, "options": {text: text}, "parts": {text: 0.5}, "notes": {text: 3}} for text in texts}
    models = [{"label": name, "capability": SCORE, "tasks": tasks, "bytes": 1000} for name in (label, baseline)]
    paired = {text: {**PAIR, "finding": text, "gained": [text], "lost": [text]} for text in (*texts, evaluating.CAPABILITY)}
    return {"schema": 1, "models": models, "baseline": baseline, "paired": {label: paired}, "missing_tasks": list(texts)}


def _chats(chats: Chats) -> None:
    for text in HOSTILE:
        chat = chats.add({"system": plain(text), "adapter": plain(text), "tools": plain(text)})
        files = {"files": [{"name": text, "text": text}]}
        run = {**ran(text), "tier": text, "stopped": text}
        calls = {"calls": [{"name": text, "arguments": text}], "runs": [run, ran(text)], "model": text, "problem": text}
        counts = {"tokens": 1, "tokens_per_s": 1.0, "first_s": 1.0, "cached_tokens": 0, "prompt_tokens": 1}
        chats.say(chat.id, "user", text, facts=files)
        chats.say(chat.id, "assistant", text, text, {**files, **calls, **counts})


def _jobs(store: Store) -> None:
    """Jobs that failed, one per text and one per screen; texts of sides; recipes that were made."""
    for text in HOSTILE:
        _failed(store, text, {"model": text}, [text])
        side = {"what": comparing.TEXT, "run": "1", "side": text, "bytes": 1}
        figures = {"tokens": 1, "decode_tokens_per_s": 1.0, "prompt_tokens_per_s": 1.0, "peak_memory_bytes": 1}
        job = _done(store, text, side, figures)
        job.output.write_bytes(b"The same, then: " + text.encode("utf-8", "surrogatepass") + b" \xff\n")
        recipe = {
            "config": f"/{text.replace('/', '|')}/kv_config.json",
            "bytes_per_token": 1,
            "mean_bits": 4.0,
            "predicted_kl": 0.1,
        }
        _done(store, text, {"what": caching.MAKE, "model": MODEL}, {**recipe, "measured_kl": {"packed": 0.1}})
    for what in (comparing.MEASURE, caching.MEASURE, caching.MAKE, tuning.TRAIN, tuning.MERGE, tuning.FUSE, evaluating.EVALUATE):
        _failed(store, HOSTILE[1], {"what": what, "model": MODEL, "output": "/none"}, HOSTILE)


def _done(store: Store, title: str, facts: Mapping[str, Any], result: Mapping[str, Any]) -> Job:
    job = store.add(title, ["list"], "/", facts)
    job.events.write_text(json.dumps({"type": "result", "data": result}) + "\n")
    store.ended(job.id, State.DONE)
    return job


def _failed(store: Store, title: str, facts: Mapping[str, Any], texts: Sequence[str]) -> None:
    job = store.add(title, ["list", plain(texts[0])], "/", facts)
    store.ended(job.id, State.FAILED, "; ".join(texts))
    lines = []
    for text in texts:
        told = [{"type": "stage_start", "stage": text, "unit": text}, {"type": "advance", "stage": text, "done": 1, "note": text}]
        told += [{"type": "warning", "text": text}, {"type": "error", "kind": "input", "text": text}]
        lines += [*(json.dumps(event).encode() for event in told), text.encode("utf-8", "surrogatepass")]
    job.events.write_bytes(b"\n".join(lines) + b"\n")
