"""The flags about key/value caches that several commands share."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from optiq.kv.options import CacheOptions, Maker


def add_cache_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare --kv-bits, --kv-scheme and --kv-config."""
    from optiq.kv.options import DEFAULT_SCHEME
    from optiq.kv.recipe import SCHEMES

    parser.add_argument("--kv-bits", type=int, default=None, metavar="N", help="cache keys and values in codes of N bits")
    parser.add_argument(
        "--kv-scheme", choices=SCHEMES, default=None, help=f"how they are coded, with --kv-bits; {DEFAULT_SCHEME} without it"
    )
    parser.add_argument("--kv-config", metavar="FILE", help="a kv_config.json, or its directory: widths and schemes by layer")


def cache_options(args: argparse.Namespace) -> CacheOptions:
    """What the flags ask for; no file is read.

    Raises:
        InputError: they contradict each other.
    """
    from optiq.kv.options import CacheOptions

    return CacheOptions(args.kv_bits, args.kv_scheme, args.kv_config)


def cache_maker(args: argparse.Namespace) -> Maker:
    """What makes the caches that the flags ask for; a file is read now.

    Raises:
        InputError: they contradict each other, or no such file.
        FormatError: the file cannot be read.
    """
    return cache_options(args).read()
