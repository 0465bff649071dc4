"""Print every row of every committed result: `make bars`. Exit code 0 whether or not a bar is met (`--strict`: 1)."""

from __future__ import annotations

import argparse
import sys

from harness import read_results, table


def main() -> int:
    """Print the rows, the scripts' dates and the count of met bars."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--strict", action="store_true", help="exit with 1 if a bar is not met")
    args = parser.parse_args()
    results = read_results()
    rows = [row for result in results.values() for row in result["bars"]]
    print(table(rows))
    print()
    for name, result in results.items():
        host = result["machine"]
        print(f"{name}.json: {result['date']}, commit {result['commit']}, {host['cpu']}, {host['cores']} cores")
    met = sum(row["met"] for row in rows)
    print(f"{met} of {len(rows)} bars met")
    return int(args.strict and met < len(rows))


if __name__ == "__main__":
    sys.exit(main())
