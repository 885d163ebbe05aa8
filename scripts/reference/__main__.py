"""Generator of the parts of the README and of docs that come from the code (`make reference`).

The pages are written by hand, except for the regions between two marks:

    <!-- generated: NAME (make reference) -->
    <!-- end: NAME -->

The text of a region comes from docstrings, rules, YAML files, the registry of metrics, the
program's own help, or the published results in docs/results. With `--check`, nothing is written,
and the exit code is 1 if a page is stale.
"""

from __future__ import annotations

import argparse
import sys

from scripts.reference.pages import ROOT, generated_pages


def main() -> int:
    """Writes the stale pages, or only names them with `--check`; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m scripts.reference", description=__doc__)
    parser.add_argument(
        "--check", action="store_true", help="write nothing; exit code 1 if a page is stale"
    )
    check = parser.parse_args().check
    stale = 0
    for path, text in generated_pages().items():
        if path.read_text(encoding="utf-8") == text:
            continue
        stale += 1
        name = path.relative_to(ROOT)
        print(f"{name} is stale: run make reference" if check else f"{name} written")
        if not check:
            path.write_text(text, encoding="utf-8")
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
