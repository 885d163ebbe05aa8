"""The generated regions of the pages in docs/reference, and how they are filled."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path

from scripts.reference import checkpoints, commands, keys, metrics

FOLDER = Path(__file__).resolve().parents[2] / "docs" / "reference"
# Each page's regions: their names, and the functions that return their text.
PAGES: Mapping[str, Mapping[str, Callable[[], str]]] = {
    "checkpoints.md": checkpoints.REGIONS,
    "commands.md": commands.REGIONS,
    "keys.md": keys.REGIONS,
    "metrics.md": metrics.REGIONS,
}
_REGION = re.compile(
    r"(<!-- generated: (?P<name>\S+) \(make reference\) -->\n).*?(<!-- end: (?P=name) -->)",
    re.DOTALL,
)


def generated_pages() -> dict[Path, str]:
    """Returns the text of every page with its regions filled, by path."""
    return {
        FOLDER / page: fill((FOLDER / page).read_text(encoding="utf-8"), regions)
        for page, regions in PAGES.items()
    }


def fill(text: str, regions: Mapping[str, Callable[[], str]]) -> str:
    """Returns a page's text with each region's content replaced.

    Raises:
        ValueError: the page lacks a region, or has one that nothing fills.
    """
    found = [match["name"] for match in _REGION.finditer(text)]
    if sorted(found) != sorted(regions):
        raise ValueError(f"the page has the regions {found}, and {sorted(regions)} are generated")
    return _REGION.sub(lambda match: f"{match[1]}\n{regions[match['name']]()}\n\n{match[3]}", text)
