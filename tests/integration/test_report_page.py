"""The page of `htsrl report` in a browser: its plots, the smoothing, and its width on a phone."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from htsrl_cli.report import report
from tests.unit.test_report import A2C, PPO, write_run

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")

# Writes what the page shows before and after its controls are used into an attribute.
PROBE = """
<script>
addEventListener("load", () => setTimeout(() => {
  const state = () => plots.map((plot) => plot.data.map((trace) =>
    ({ ...trace.meta, y: trace.y, visible: trace.visible ?? true })));
  const lines = () => document.querySelectorAll(".plot .scatterlayer path.js-line").length;
  const found = { before: state(), linesBefore: lines() };
  slider.value = "0.5";
  slider.dispatchEvent(new Event("input"));
  found.smooth = state();
  document.querySelectorAll("input[data-group]")[1].click();
  found.hidden = state();
  found.lines = lines();
  const { scrollWidth, clientWidth } = document.documentElement;
  found.widths = [scrollWidth, clientWidth];
  document.body.dataset.found = JSON.stringify(found);
}, 500));
</script>
"""


def browse(page: Path, width: int) -> dict[str, Any]:
    """Opens the page and its probe in a frame of `width` pixels; returns what the probe found."""
    probed = page.with_name("probed.html")
    probed.write_text(page.read_text().replace("</body>", PROBE + "</body>"))
    frame = page.with_name("frame.html")
    # The window of Chromium is at least 500 pixels wide. The frame hands its findings over.
    frame.write_text(
        f'<iframe src="probed.html" width="{width}" height="900" style="border: 0"></iframe>'
        "<script>const timer = setInterval(() => {"
        'const found = document.querySelector("iframe").contentDocument.body?.dataset.found;'
        "if (found) { document.body.dataset.found = found; clearInterval(timer); }"
        "}, 100)</script>"
    )
    assert CHROMIUM is not None
    words = [CHROMIUM, "--headless", "--no-sandbox", "--allow-file-access-from-files"]
    words += [f"--user-data-dir={page.parent / 'profile'}", "--virtual-time-budget=20000"]
    done = subprocess.run(
        [*words, "--window-size=1280,900", "--dump-dom", frame.as_uri()],
        capture_output=True,
        text=True,
        check=True,
    )
    match = re.search(r'data-found="([^"]*)"', done.stdout)
    assert match, done.stderr
    found: dict[str, Any] = json.loads(html.unescape(match[1]))
    return found


def smoothed(values: list[float], weight: float) -> list[float]:
    """Returns the weighted mean of each value and those before it: the oracle."""
    means = []
    for n in range(1, len(values) + 1):
        weights = [weight**age for age in reversed(range(n))]
        means.append(sum(w * v for w, v in zip(weights, values[:n], strict=True)) / sum(weights))
    return means


@pytest.mark.parametrize("width", [390, 1280])
def test_controls_and_width(tmp_path: Path, width: int) -> None:
    for seed, scores in ((1, [1.0, 5.0, 2.0, 8.0]), (2, [3.0, 1.0, 9.0, 4.0])):
        write_run(tmp_path / "runs" / str(seed), scores, seed, algo=PPO)
    write_run(tmp_path / "runs" / ("long" * 20), [0.0, 1.0, 0.0, 1.0], algo=A2C)
    write_run(tmp_path / "runs" / "one", [2.0], env={"kind": "gym", "id": "Acrobot-v1"})
    report.write_report([tmp_path / "runs"], tmp_path / "out")
    found = browse(tmp_path / "out" / "report.html", width)
    # The page does not scroll sideways; its scroll bar takes a few pixels.
    assert found["widths"][0] == found["widths"][1]
    assert 0 <= width - found["widths"][0] < 30
    # Two plots for each environment.
    assert len(found["before"]) == 4
    for before, after, hidden in zip(
        found["before"], found["smooth"], found["hidden"], strict=True
    ):
        for old, new in zip(before, after, strict=True):
            weight = 0.0 if old["part"] == "raw" else 0.5
            assert new["y"] == pytest.approx(smoothed(old["y"], weight))
        names = {(trace["group"], trace["visible"]) for trace in hidden}
        assert names == ({(0, True), (1, False)} if len(hidden) > 2 else {(0, True)})
    # Both curves of a group that is hidden, faint and smoothed, are gone from both plots.
    assert found["linesBefore"] - found["lines"] == 4
