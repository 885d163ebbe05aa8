"""Tests of the page that `htsrl report` writes: its plots, tables and videos, and that it is whole.

`tests/integration/test_report_page.py` opens the page in a browser.
"""

from __future__ import annotations

import base64
import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from plotly.offline import get_plotlyjs

from htsrl_cli.report import report
from htsrl_cli.report.curves import draw, style
from htsrl_cli.report.videos import LARGEST_EMBEDDED_MB, find_video
from htsrl_cli.tracking.film import film_path
from tests.unit.test_report import A2C, CARTPOLE, PPO, evaluate, groups_of, write_run

SOURCES = ("src", "href", "srcset", "poster", "data")
FIGURE = "figure.None"
VOID = ("meta", "input", "line", "wbr", "br")
LIMIT = LARGEST_EMBEDDED_MB * 1_000_000


class Page(HTMLParser):
    """A parsed report.

    Attributes:
        elements: tag, attributes and tags of the enclosing elements with their classes.
        rows: texts of the cells of each row, in document order.
        scripts: texts of the scripts by type.
        texts: all other texts.
    """

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None], tuple[str, ...]]] = []
        self.rows: list[list[str]] = []
        self.scripts: list[tuple[str | None, str]] = []
        self.texts: list[str] = []
        self._open: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)
        self.close()
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        above = tuple(f"{name}.{given.get('class')}" for name, given in self._open)
        self.elements.append((tag, dict(attrs), above))
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if tag not in VOID:
            self._open.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self._open.pop()[0] == tag

    def handle_data(self, data: str) -> None:
        names = [name for name, _ in self._open]
        if names[-1:] == ["script"]:
            self.scripts.append((self._open[-1][1].get("type"), data))
            return
        self.texts.append(data)
        if "td" in names or "th" in names:
            self.rows[-1][-1] += data.strip()

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes, _ in self.elements if name == tag]

    def traces(self, part: str, plot: int = 0) -> list[dict[str, Any]]:
        """Returns the traces of a part in plot number `plot`."""
        plots = [json.loads(text) for kind, text in self.scripts if kind == "application/json"]
        return [trace for trace in plots[plot]["data"] if trace["meta"]["part"] == part]


def written(folder: Path, *, output: str = "out") -> str:
    report.write_report([folder / "runs"], folder / output)
    return (folder / output / "report.html").read_text()


def test_page_needs_no_other_file(tmp_path: Path) -> None:
    name = "<My&Env>-v0</script>"
    run = write_run(tmp_path / "runs" / "<b>", [1.0, 2.0], env=CARTPOLE | {"id": name})
    evaluate(run, 1000)
    film_path(run, 1000).parent.mkdir(parents=True)
    film_path(run, 1000).write_bytes(b"film")
    text = written(tmp_path)
    page = Page(text)
    sources = [given[key] or "" for _, given, _ in page.elements for key in given if key in SOURCES]
    assert sources
    assert all(source.startswith(("data:", "#")) for source in sources)
    assert not page.all("link")
    assert text.count(get_plotlyjs()) == 1
    assert len(text) < len(get_plotlyjs()) + 40_000
    # Names are text, in the page and in the plots.
    assert name in "".join(page.texts)
    assert page.traces("mean")[0]["name"] == "&lt;My&amp;Env&gt;-v0&lt;/script&gt;"
    (viewport,) = [given for given in page.all("meta") if given.get("name") == "viewport"]
    assert viewport["content"] == "width=device-width, initial-scale=1"


def test_tables_scroll_and_numbers_are_aligned_right(tmp_path: Path) -> None:
    for seed, algo in ((1, PPO), (2, PPO), (1, A2C)):
        write_run(tmp_path / "runs" / f"{algo['name']}{seed}", [1.0, 2.0], seed, algo=algo)
    page = Page(written(tmp_path))
    tables = [above for tag, _, above in page.elements if tag == "table"]
    assert len(tables) == 3
    assert all(above[-1] == "div.scroll" for above in tables)
    numbers = {"score", "95 % interval", "runs", "env steps", "env steps/s", "minutes", "seed"}
    cells = iter(given for tag, given, _ in page.elements if tag in ("td", "th"))
    heads: list[str] = []
    for row in page.rows:
        aligned = [next(cells).get("class") == "number" for _ in row]
        heads = row if row[0] in ("group", "seed", "key") else heads
        if len(row) > 1:
            assert aligned == [name in numbers for name in heads], row
    assert ["algo.name=ppo", "2.00", "2.00 to 2.00", "2", "2,000", "100", "0.3"] in page.rows
    assert ["algo.name", "a2c", "ppo"] in page.rows


def test_the_pointer_shows_group_step_and_score(tmp_path: Path) -> None:
    for seed in (1, 2):
        write_run(tmp_path / "runs" / str(seed), [1.0 * seed, 3.0 * seed], seed)
    write_run(tmp_path / "runs" / "a2c", [0.0, 1.0], algo=A2C)
    page = Page(written(tmp_path))
    for plot, x in ((0, [1000, 2000]), (1, [1 / 6, 1 / 3])):
        two, one = page.traces("mean", plot)
        assert two["x"] == one["x"] == pytest.approx(x)
        assert "<b>algo.name=ppo</b>" in two["hovertemplate"]
        assert "<b>algo.name=a2c</b>" in one["hovertemplate"]
        # Env steps, minutes, score, and the interval where there is one.
        assert two["customdata"] == [
            pytest.approx([1000, 1 / 6, 1.5, 1.0, 2.0]),
            pytest.approx([2000, 1 / 3, 4.5, 3.0, 6.0]),
        ]
        assert one["customdata"] == [
            pytest.approx([1000, 1 / 6, 0]),
            pytest.approx([2000, 1 / 3, 1]),
        ]
        assert ("interval" in two["hovertemplate"], "interval" in one["hovertemplate"]) == (
            True,
            False,
        )
        assert [trace["y"] for trace in page.traces("low", plot)] == [[1.0, 3.0]]
        assert [trace["y"] for trace in page.traces("high", plot)] == [[2.0, 6.0]]
        # The curve before smoothing.
        assert [trace["y"] for trace in page.traces("raw", plot)] == [[1.5, 4.5], [0.0, 1.0]]


@pytest.mark.parametrize("seeds", [(1,), (1, 2, 3)])
def test_a_curve_of_one_point_is_visible(tmp_path: Path, seeds: tuple[int, ...]) -> None:
    for seed in seeds:
        write_run(tmp_path / "runs" / str(seed), [float(seed)], seed)
    page = Page(written(tmp_path))
    for plot in (0, 1):
        (mean,) = page.traces("mean", plot)
        assert (mean["mode"], len(mean["x"])) == ("lines+markers", 1)
        assert ("error_y" in mean) == (len(seeds) > 1)
        assert page.traces("low", plot) == []
    # The figure: the plots differ from plots without the curve.
    figure = draw(groups_of(tmp_path / "runs"))
    for axes in figure.axes:
        (line,) = axes.lines
        assert line.get_marker() == "o"
        assert len(axes.collections) == (2 if len(seeds) > 1 else 0)


def luminance(color: str) -> float:
    """Returns the relative luminance of WCAG 2, 0 (black) to 1 (white)."""
    parts = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return sum(weight * p for weight, p in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def test_groups_have_styles_of_their_own(tmp_path: Path) -> None:
    assert len({style(index) for index in range(28)}) == 28
    for index in range(28):
        # Against the page's background, light (white) and dark (#14171b).
        assert 1.05 / (luminance(style(index).color) + 0.05) > 2
        assert (luminance(style(index).color) + 0.05) / (luminance("#14171b") + 0.05) > 3
    for index in range(10):
        algo = PPO | {"clip_coef": index / 10}
        write_run(tmp_path / "runs" / str(index), [1.0, 2.0 + index], algo=algo)
    page = Page(written(tmp_path))
    lines = [trace["line"] for trace in page.traces("mean")]
    assert [line["color"] for line in lines] == [style(index).color for index in range(10)]
    assert len({(line["color"], line["dash"]) for line in lines}) == 10
    # The table of groups is the legend: each row has the line of its curve, and hides this curve.
    swatches = [(given["stroke"], given["stroke-dasharray"]) for given in page.all("line")][:10]
    assert swatches == [
        (line["color"], line["dash"].replace("px", "").replace(",", " ").replace("solid", ""))
        for line in lines
    ]
    boxes = [given["data-group"] for given in page.all("input") if "data-group" in given]
    assert boxes == [str(trace["meta"]["group"]) for trace in page.traces("mean")]


def test_the_legends_of_the_figure_are_outside_its_plots(tmp_path: Path) -> None:
    for index in range(10):
        algo = PPO | {"clip_coef": index / 10}
        write_run(tmp_path / str(index), [1.0, 2.0 + index], algo=algo)
    write_run(tmp_path / "pong", [1.0], env={"kind": "atari", "game": "pong"})
    figure = draw(groups_of(tmp_path))
    figure.draw_without_rendering()
    legends = [legend for part in figure.subfigs for legend in part.legends]
    assert [len(legend.get_texts()) for legend in legends] == [10, 1]
    boxes = [legend.get_window_extent() for legend in legends]
    assert not any(box.overlaps(axes.bbox) for box in boxes for axes in figure.axes)
    assert all(axes.get_legend() is None for axes in figure.axes)


def summarize(run: Path, **entries: Any) -> None:
    (run / "summary.json").write_text(json.dumps({"params_sha256": "0a" * 32} | entries))


def test_versions_and_machine_of_each_run(tmp_path: Path) -> None:
    new = write_run(tmp_path / "runs" / "new", [3.0], seed=1)
    old = write_run(tmp_path / "runs" / "old", [2.0], seed=2)
    unfinished = write_run(tmp_path / "runs" / "unfinished", [1.0], seed=3)
    machine = {"processor": "CPU (R)", "cores": 4, "gpu": "GPU", "platform": "Linux-6"}
    summarize(new, versions={"htsrl": "0.2", "torch": "2.7+cpu"}, machine=machine)
    summarize(old)
    figures = ["2.00", "1,000", "0.2"]
    page = Page(written(tmp_path))
    hash_ = "0a" * 32
    setting = ["htsrl 0.2, torch 2.7+cpu", "CPU (R), 4 cores, GPU, Linux-6"]
    assert page.rows[-3:] == [
        ["1", "3.00", "1,000", "0.2", str(new), *setting, hash_],
        ["2", *figures, str(old), "-", "-", hash_],
        ["3", "1.00", "1,000", "0.2", str(unfinished), "-", "-", "-"],
    ]
    summarize(new, machine=machine | {"cores": 1, "gpu": None})
    assert "CPU (R), 1 core, Linux-6" in Page(written(tmp_path)).rows[-3]


def film(path: Path, size: int) -> bytes:
    path.parent.mkdir(parents=True, exist_ok=True)
    content = bytes(i % 251 for i in range(97)) * (size // 97) + b"." * (size % 97)
    path.write_bytes(content)
    return content


def shown(folder: Path) -> list[tuple[str, Path]]:
    """Returns the label and the video of each group that has one."""
    found = [(g.label, find_video(g)) for g in groups_of(folder)]
    return [(label, video.path) for label, video in found if video]


def test_the_last_film_of_the_best_run_of_each_group(tmp_path: Path) -> None:
    good = write_run(tmp_path / "good", [9.0], seed=1)
    bad = write_run(tmp_path / "bad", [1.0], seed=2)
    other = write_run(tmp_path / "other", [0.0], algo=A2C)
    runs = (good, bad, other)
    assert shown(tmp_path) == []
    game = "videos/game_{:04}.mp4".format
    film(bad / game(0), 50)
    assert shown(tmp_path) == [("algo.name=ppo", bad / game(0))]
    film(good / game(0), 60)
    film(good / game(1), 70)
    assert shown(tmp_path) == [("algo.name=ppo", good / game(0))]
    # Policies that were filmed during training come first.
    for run, score in zip(runs, (9.0, 1.0, 0.0), strict=True):
        evaluate(run, 500, 1000, 1500, score=score)
    for run, steps in ((good, 500), (good, 1000), (bad, 1500), (other, 1000)):
        film(film_path(run, steps), 80)
    assert shown(tmp_path) == [
        ("algo.name=ppo", film_path(good, 1000)),
        ("algo.name=a2c", film_path(other, 1000)),
    ]


def test_a_large_video_is_a_link(tmp_path: Path) -> None:
    game = Path("videos") / "greedy_0000.mp4"
    small, large = [
        write_run(tmp_path / "runs" / f"a b#%c{i}", [2.0 - i], algo=PPO | {"clip_coef": i / 10})
        for i in range(2)
    ]
    content = film(small / game, LIMIT)
    film(large / game, LIMIT + 1)
    page = Page(written(tmp_path, output="out/put"))
    (video,) = page.all("video")
    data = (video["src"] or "").removeprefix("data:video/mp4;base64,")
    assert base64.b64decode(data) == content
    (link,) = [given for tag, given, above in page.elements if tag == "a" and FIGURE in above]
    assert (tmp_path / "out" / "put" / unquote(link["href"] or "")).samefile(large / game)
    captions = "".join(page.texts)
    assert captions.count("seed 1, greedy_0000 of htsrl eval") == 2
