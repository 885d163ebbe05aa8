"""The generated regions of the README and of pages in docs, with the code that fills them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path

from scripts.reference import benchmarks, checkpoints, commands, keys, metrics

ROOT = Path(__file__).resolve().parents[2]
# Each page's regions: their names, and the functions that return their text.
PAGES: Mapping[str, Mapping[str, Callable[..., str]]] = {
    "README.md": benchmarks.README_REGIONS,
    "docs/benchmarks.md": benchmarks.REGIONS,
    "docs/reference/checkpoints.md": checkpoints.REGIONS,
    "docs/reference/commands.md": commands.REGIONS,
    "docs/reference/keys.md": keys.REGIONS,
    "docs/reference/metrics.md": metrics.REGIONS,
}
_REGION = re.compile(
    r"(<!-- generated: (?P<name>\S+) \(make reference\) -->\n).*?(<!-- end: (?P=name) -->)",
    re.DOTALL,
)


def generated_pages() -> dict[Path, str]:
    """Returns the text of every page with its regions filled, by path."""
    return {
        ROOT / page: fill((ROOT / page).read_text(encoding="utf-8"), regions)
        for page, regions in PAGES.items()
    }


def fill(text: str, regions: Mapping[str, Callable[..., str]]) -> str:
    """Returns a page's text with each region filled by the function of that name in `regions`.

    Raises:
        ValueError: the page lacks a region, or has a region that no function fills.
    """
    found = [match["name"] for match in _REGION.finditer(text)]
    if sorted(found) != sorted(regions):
        raise ValueError(f"a page has regions {sorted(found)}, `PAGES` lists {sorted(regions)}")
    return _REGION.sub(lambda match: f"{match[1]}\n{regions[match['name']]()}\n\n{match[3]}", text)
