// Line charts as SVG; the pointer or the arrow keys read the values.

const STROKES = ["", "7 3", "2 3", "9 3 2 3", "12 4"]; // lines differ by more than their color

function ticks(low, high, most = 6) {
  const rough = (high - low || 1) / most;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 5, 10].find((m) => m * power >= rough);
  const values = [];
  for (let at = Math.ceil(low / step) * step; at <= high + step * 1e-6; at += step)
    values.push(Math.abs(at) < step / 1e6 ? 0 : at);
  return values;
}

const short = (value) =>
  value !== 0 && Math.abs(value) < 0.01 ? value.toExponential(1) : String(+value.toPrecision(4));

/** A chart of `lines` [{name, x, y, dots}] over `xName`; gaps where y is null. */
function chart({ title, xName, lines, unit = "", zero = false }) {
  const [width, height, left, bottom, top, rightEdge] = [360, 260, 46, 36, 10, 12];
  const points = lines
    .flatMap((line) => line.y.map((y, n) => [line.x[n], y]))
    .filter(([, y]) => y !== null && y !== undefined);
  const node = el("figure", { className: "card chart" }, el("figcaption", {}, el("h3", {}, title)));
  if (!points.length) {
    node.append(el("p", { className: "empty" }, "No values were logged."));
    return node;
  }
  const extent = (values) => values.reduce(([a, b], v) => [Math.min(a, v), Math.max(b, v)], [Infinity, -Infinity]);
  const [x0, x1] = extent(points.map(([x]) => x));
  let [y0, y1] = extent(points.map(([, y]) => y));
  const room = (y1 - y0 || Math.abs(y1) || 1) * 0.06;
  [y0, y1] = [zero ? 0 : y0 - room, y1 + room];
  const px = (x) => left + ((x - x0) / (x1 - x0 || 1)) * (width - left - rightEdge);
  const py = (y) => height - bottom - ((y - y0) / (y1 - y0)) * (height - bottom - top);
  const image = svg("svg", {
    viewBox: `0 0 ${width} ${height}`,
    tabindex: 0,
    role: "img",
    "aria-label": `${title} over ${xName}; the arrow keys read the values`,
  });
  for (const y of ticks(y0, y1)) {
    image.append(
      svg("path", { class: "gridline", d: `M${left} ${py(y)}H${width - rightEdge}` }),
      svg("text", { x: left - 6, y: py(y) + 4, "text-anchor": "end" }, short(y)),
    );
  }
  for (const x of ticks(x0, x1))
    image.append(svg("text", { x: px(x), y: height - bottom + 16, "text-anchor": "middle" }, short(x)));
  image.append(svg("text", { x: (left + width) / 2, y: height - 4, "text-anchor": "middle" }, xName));
  lines.forEach((line, n) => {
    let path = "";
    let pen = "M";
    line.y.forEach((y, at) => {
      if (y === null || y === undefined) {
        pen = "M";
        return;
      }
      path += `${pen}${px(line.x[at]).toFixed(1)} ${py(y).toFixed(1)}`;
      pen = "L";
      if (line.dots && line.y.length <= 60)
        image.append(svg("circle", { class: `line${n}`, cx: px(line.x[at]), cy: py(y), r: 3 }));
    });
    image.append(svg("path", { class: `line line${n}`, d: path, "stroke-dasharray": STROKES[n % STROKES.length] }));
  });
  const legend = el(
    "ul",
    { className: "legend" },
    lines.map((line, n) =>
      el(
        "li",
        {},
        svg(
          "svg",
          { width: 28, height: 10, "aria-hidden": "true" },
          svg("path", { class: `line line${n}`, d: "M0 5H28", "stroke-dasharray": STROKES[n % STROKES.length] }),
        ),
        line.name,
      ),
    ),
  );
  node.append(
    image,
    legend,
    readout(image, { lines, points, px, xName, unit, width, span: [top, height - bottom] }),
  );
  return node;
}

/** A line that follows the pointer or the arrow keys, and the values at it as text. */
function readout(image, { lines, points, px, xName, unit, width, span }) {
  const xs = [...new Set(points.map(([x]) => x))].sort((a, b) => a - b);
  const cursor = svg("path", { class: "cursor" });
  const values = el("output", { className: "quiet" }, "Point at the chart to read the values.");
  image.append(cursor);
  let at = -1;
  const show = (n) => {
    at = Math.max(0, Math.min(n, xs.length - 1));
    const x = xs[at];
    cursor.setAttribute("d", `M${px(x)} ${span[0]}V${span[1]}`);
    const parts = lines.map((line) => {
      const near = line.x.reduce(
        (best, v, i) => (line.y[i] !== null && Math.abs(v - x) < Math.abs(line.x[best] - x) ? i : best),
        0,
      );
      return line.y[near] === null || line.y[near] === undefined ? null : `${line.name} ${short(line.y[near])}${unit}`;
    });
    values.textContent = `${xName} ${short(x)}: ${parts.filter(Boolean).join(", ")}`;
  };
  image.addEventListener("pointermove", (event) => {
    const box = image.getBoundingClientRect();
    const x = ((event.clientX - box.left) / box.width) * width;
    show(xs.reduce((best, v, n) => (Math.abs(px(v) - x) < Math.abs(px(xs[best]) - x) ? n : best), 0));
  });
  image.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (step) {
      event.preventDefault();
      show(at + step);
    }
  });
  return values;
}
