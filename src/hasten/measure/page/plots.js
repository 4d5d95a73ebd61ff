// Draws the plots that the report describes: {title, x, y, series: [{label, x, y, points}]}.
"use strict";
(() => {
  // Okabe and Ito's colours, which colour-blind readers tell apart.
  const COLOURS = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#999999"];
  const style = getComputedStyle(document.documentElement);
  const ink = style.getPropertyValue("--ink"), rule = style.getPropertyValue("--rule");

  const number = (value) =>
    value == null ? "–" : Math.abs(value) >= 1000 || (value !== 0 && Math.abs(value) < 0.001)
      ? value.toExponential(2) : String(+value.toPrecision(4));

  const axis = ({ label, log }) => ({
    label,
    stroke: ink,
    grid: { stroke: rule },
    ticks: { stroke: rule },
    // On a logarithmic axis uPlot leaves out labels between powers of ten by giving null.
    values: (_, splits) => splits.map((value) => (value == null ? "" : number(value))),
    ...(log ? { space: 30 } : {}),
  });

  const series = ({ label, points }, index) => {
    const stroke = COLOURS[index % COLOURS.length];
    return {
      label,
      stroke,
      width: 2,
      spanGaps: true,
      value: (_, value) => number(value),
      ...(points
        ? { paths: () => null, points: { show: true, size: 5, fill: stroke } }
        : { points: { show: false } }),
    };
  };

  const draw = (place, plot) => {
    const tables = plot.series.map((one) => [one.x, one.y]);
    const options = {
      title: plot.title,
      width: place.clientWidth,
      height: 320,
      scales: {
        x: { time: false, distr: plot.x.log ? 3 : 1 },
        y: { distr: plot.y.log ? 3 : 1 },
      },
      axes: [axis(plot.x), axis(plot.y)],
      series: [{ label: plot.x.label, value: (_, value) => number(value) },
        ...plot.series.map(series)],
    };
    const drawn = new uPlot(options, uPlot.join(tables), place);
    new ResizeObserver(() => drawn.setSize({ width: place.clientWidth, height: 320 }))
      .observe(place);
  };

  const plots = JSON.parse(document.getElementById("plots").textContent);
  plots.forEach((plot, index) => draw(document.getElementById(`plot-${index}`), plot));
})();
