"""Writes the table of named benchmarks into the guide, or says that it is out of date.

python tools/benchmarks_page.py            # rewrites docs/guides/benchmarks.md
python tools/benchmarks_page.py --check    # exit status 1 if the page is another one
"""

import argparse
import sys
from pathlib import Path

from fedjax_fm.datasets.named import markdown_table

PAGE = Path(__file__).resolve().parents[1] / "docs" / "guides" / "benchmarks.md"
BEGIN, END = "<!-- table: tools/benchmarks_page.py -->", "<!-- end of the table -->"


def with_table(text: str, table: str) -> str:
    """The page with this table between its two marks.

    Args:
      text: the page.
      table: in Markdown.

    Raises:
      ValueError: a mark is missing.
    """
    head, begin, rest = text.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"expected {BEGIN!r} and {END!r} in the page")
    return f"{head}{BEGIN}\n\n{table}\n\n{END}{tail}"


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing")
    options = parser.parse_args()
    old = PAGE.read_text(encoding="utf-8")
    new = with_table(old, markdown_table())
    if options.check:
        sys.exit(
            old != new and f"{PAGE.name} is out of date: run {Path(__file__).name}"
        )
    PAGE.write_text(new, encoding="utf-8")


if __name__ == "__main__":
    main()
