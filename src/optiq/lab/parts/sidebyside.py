"""Texts of several sides beside each other as they are written, marked from where they first differ."""

from __future__ import annotations

from collections.abc import Sequence

from nicegui import ui

from optiq.lab.comparing import shared
from optiq.lab.jobs.job import OPEN, Job, State
from optiq.lab.jobs.queue import Queue
from optiq.lab.parts.elements import box, facts, heading, note, size, words
from optiq.lab.parts.jobview import SIGNS
from optiq.lab.text import line, plain

RENEW_S = 0.4


class SideBySide:
    """One run: a job per side.

    Args:
        queue: where the jobs are.
        numbers: their ids, the reference's first.
    """

    def __init__(self, queue: Queue, numbers: Sequence[int]) -> None:
        self._queue, self._numbers = queue, list(numbers)
        self._seen: list[tuple[str, State]] = []
        self._place = box("thirds")
        self._renew()
        self._timer = ui.timer(RENEW_S, self._renew)

    def _renew(self) -> None:
        jobs = [self._queue.store.get(number) for number in self._numbers]
        texts = [written(job) for job in jobs]
        now = list(zip(texts, (job.state for job in jobs), strict=True))
        if now == self._seen:
            return
        self._seen = now
        whole = all(job.state is State.DONE for job in jobs)
        alike = shared(texts) if whole and len(jobs) > 1 else None
        self._place.clear()
        with self._place:
            for job, text in zip(jobs, texts, strict=True):
                self._side(job, text, alike)

    def _side(self, job: Job, text: str, alike: int | None) -> None:
        with box("side stack"):
            with box("spread"):
                heading(str(job.facts["side"]), 3)
                words(SIGNS[job.state], "span", f"state state-{job.state}")
            if job.problem:
                note(job.problem, "error")
            with ui.element("div").classes("log").props('tabindex="0" role="region"') as place:
                words(text if alike is None else text[:alike])
                if alike is not None and alike < len(text):
                    words(text[alike:], "mark", "parts")
            place.props["aria-label"] = line(f"text of {job.facts['side']}")
            if alike is not None:
                words("the same text" if alike == len(text) else f"the same for {alike} characters", "span", "soft small")
            self._figures(job)

    def _figures(self, job: Job) -> None:
        result = self._queue.log(job.id).result
        if result is None or job.state in OPEN:
            return
        rows: list[tuple[str, object]] = [
            ("tokens", f"{result['tokens']:,}"),
            ("writing", f"{result['decode_tokens_per_s']:.1f} tokens/s"),
            ("reading", f"{result['prompt_tokens_per_s']:.1f} tokens/s"),
            ("memory at most", size(result["peak_memory_bytes"])),
        ]
        if job.facts.get("bytes"):
            rows.append(("on disk", size(float(str(job.facts["bytes"])))))
        facts(rows)


def written(job: Job) -> str:
    """What a job has written so far; the last run of it where it was resumed."""
    try:
        return plain(job.output.read_bytes()).removesuffix("\n")
    except OSError:
        return ""
