"use strict";

const plots = [...document.querySelectorAll(".plot")];
const slider = document.querySelector("#smoothing");
const dark = matchMedia("(prefers-color-scheme: dark)");

// The exponential moving average of TensorBoard, without bias towards zero at its beginning.
function smoothed(values, weight) {
  let sum = 0, weights = 0;
  return values.map((value) => {
    sum = weight * sum + (1 - weight) * value;
    weights = weight * weights + (1 - weight);
    return sum / weights;
  });
}

// Returns the numbers of the plot's traces whose meta satisfies `test`.
function traces(plot, test) {
  return plot.data.flatMap((trace, i) => (test(trace.meta) ? [i] : []));
}

function smooth() {
  const weight = Number(slider.value);
  document.querySelector("output").value = weight.toFixed(2);
  for (const plot of plots) {
    const chosen = traces(plot, (meta) => meta.part !== "raw");
    Plotly.restyle(plot, { y: chosen.map((i) => smoothed(plot.values[i], weight)) }, chosen);
  }
}

// Plotly does not read CSS variables.
function colors() {
  const style = getComputedStyle(document.documentElement);
  const [ink, muted, line, panel] = ["ink", "muted", "line", "panel"].map((name) =>
    style.getPropertyValue(`--${name}`));
  return {
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", "font.color": ink,
    "xaxis.gridcolor": line, "yaxis.gridcolor": line, "xaxis.linecolor": line,
    "hoverlabel.bgcolor": panel, "hoverlabel.font.color": ink,
    "modebar.bgcolor": "rgba(0,0,0,0)", "modebar.color": muted, "modebar.activecolor": ink,
  };
}

for (const plot of plots) {
  const { data, layout } = JSON.parse(plot.firstElementChild.textContent);
  plot.values = data.map((trace) => trace.y);
  layout.font = { family: getComputedStyle(document.body).fontFamily, size: 12 };
  layout.hoverlabel.font = layout.font;
  // On a touch screen, a finger scrolls the page instead of zooming.
  const touch = matchMedia("(pointer: coarse)").matches;
  layout.dragmode = touch ? false : "zoom";
  plot.replaceChildren();
  Plotly.newPlot(plot, data, layout, {
    responsive: true, displaylogo: false, displayModeBar: touch ? false : "hover",
    modeBarButtons: [["toImage", "zoom2d", "pan2d", "resetScale2d"]],
  });
  Plotly.relayout(plot, colors());
}
slider.addEventListener("input", smooth);
dark.addEventListener("change", () => plots.forEach((plot) => Plotly.relayout(plot, colors())));
for (const box of document.querySelectorAll("input[data-group]")) {
  box.addEventListener("change", () => {
    const group = Number(box.dataset.group);
    for (const plot of box.closest("section").querySelectorAll(".plot")) {
      const own = traces(plot, (meta) => meta.group === group);
      Plotly.restyle(plot, { visible: box.checked }, own);
    }
  });
}
