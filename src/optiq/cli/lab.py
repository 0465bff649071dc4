"""`optiq lab`: the workbench in the browser."""

from __future__ import annotations

import argparse
from pathlib import Path

from optiq.events import Events

EXAMPLE = """\
examples:
  optiq lab                          opens the browser; Ctrl-C ends, running jobs go on
  optiq lab models/ --port 7861      with the models of a folder
  optiq lab --no-browser             print the address alone
"""
PORT = 7860
LOOPBACK = ("127.0.0.1", "localhost", "::1")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's own arguments."""
    parser.add_argument("dirs", metavar="DIR", nargs="*", help="further folders of models")
    parser.add_argument("--host", default="127.0.0.1", metavar="ADDRESS", help="listen here: an address of this machine alone")
    parser.add_argument("--port", type=int, default=PORT, metavar="N", help="listen on this port; 0 for a free one")
    parser.add_argument("--no-browser", action="store_true", help="do not open a browser")
    parser.add_argument("--data", default="~/.optiq/lab", metavar="DIR", help="jobs, chats and what jobs make are kept here")


def run(args: argparse.Namespace, events: Events) -> int:
    """Serve the pages until a signal."""
    import sys
    import webbrowser
    from contextlib import suppress

    from optiq.cli.output import show
    from optiq.errors import InputError

    if args.host not in LOOPBACK:
        raise InputError(
            f"--host {args.host} is not this machine alone, and the workbench runs commands for whoever reaches it; "
            f"use {LOOPBACK[0]}, and an SSH tunnel from elsewhere"
        )
    _need_library()
    from optiq.lab.app import serve
    from optiq.lab.workbench import Workbench

    bench = Workbench.open(Path(args.data), [Path(name) for name in args.dirs])

    def up(url: str) -> None:
        show(args, events, {"url": url}, f"the workbench is at {url} (Ctrl-C ends)")
        sys.stdout.flush()
        if not args.no_browser:
            webbrowser.open(url)

    with suppress(KeyboardInterrupt):  # the way to end it
        serve(bench, args.host, args.port, up)
    for job in bench.queue.end_servers():
        events.info(f"job {job.id} goes on: {job.command}")
    return 0


def _need_library() -> None:
    """The pages' library is an extra: 40 MB that a machine which only serves or converts does not need.

    Raises:
        ResourceError: it is not installed.
    """
    from importlib.util import find_spec

    from optiq.errors import ResourceError

    if find_spec("nicegui") is None:
        raise ResourceError("the workbench needs NiceGUI, which is not installed; pip install 'optiq[lab]'")
