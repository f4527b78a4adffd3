// The reliability diagram: accuracy by confidence.

function drawReliability(section, model) {
  const fitted = model.calibration;
  const holder = el("div");
  const draw = (which) => {
    const [bins, ece] = which === "fitted" ? [fitted.reliability, fitted.ece] : [model.reliability, model.ece];
    holder.replaceChildren(
      el("div", { className: "split even" }, reliabilityDiagram(bins), reliabilityTable(bins)),
      el("p", { className: "verdict" }, `Expected calibration error ${ece.toFixed(3)}. `, describeBins(bins)),
    );
  };
  if (fitted) {
    const choices = { model: "as evaluated", fitted: `fitted temperature ${+fitted.temperature.toPrecision(3)}` };
    const note = `fitted to ${countImages(fitted.num_images)}; the errors are cross-fitted on fifths of them`;
    section.append(
      el("div", { className: "controls" }, choice("Confidence", choices, "model", draw), quiet(note)),
    );
  }
  section.append(
    holder,
    help(
      "Images are binned by the confidence of the prediction. A blue bar, dark and light together, is the accuracy of a bin; the line is where confidence equals accuracy. Orange up to the line: overconfident. Light blue above it: underconfident. The small bars count the images: the accuracy of a bin with few images is uncertain. The expected calibration error is the mean gap between confidence and accuracy, weighted by the images.",
    ),
  );
  draw("model");
}

function describeBins(bins) {
  const images = sum(bins.map((bin) => bin[2]));
  if (!images) return "No images.";
  const mean = (at) => sum(bins.map((bin) => bin[2] * bin[at])) / images;
  const [confidence, accuracy] = [mean(3), mean(4)];
  const verdict =
    Math.abs(confidence - accuracy) < 0.01
      ? "well calibrated"
      : confidence > accuracy
        ? "overconfident"
        : "underconfident";
  return `Mean confidence ${percent(confidence)}, accuracy ${percent(accuracy)}: on average ${verdict}.`;
}

function reliabilityDiagram(bins) {
  const [size, left, gap, histogram] = [340, 44, 14, 64];
  const [width, height] = [left + size + 10, 10 + size + gap + histogram + 36];
  const px = (value) => left + value * size;
  const py = (value) => 10 + (1 - value) * size;
  const image = svg("svg", {
    viewBox: `0 0 ${width} ${height}`,
    role: "img",
    "aria-label": "Accuracy by bins of confidence; the table has the same numbers",
  });
  for (const value of [0, 0.2, 0.4, 0.6, 0.8, 1]) {
    image.append(
      svg("path", { class: "gridline", d: `M${left} ${py(value)}H${px(1)}` }),
      svg("text", { x: left - 6, y: py(value) + 4, "text-anchor": "end" }, `${Math.round(100 * value)}`),
      svg("text", { x: px(value), y: height - 20, "text-anchor": "middle" }, `${Math.round(100 * value)}`),
    );
  }
  const most = Math.max(1, ...bins.map((bin) => bin[2]));
  const floor = 10 + size + gap + histogram;
  for (const [lower, upper, images, confidence, accuracy] of bins) {
    const [x, w] = [px(lower) + 1, (upper - lower) * size - 2];
    const bar = svg(
      "g",
      {},
      svg(
        "title",
        {},
        `confidence ${percent(lower)} to ${percent(upper)}: ${countImages(images)}, accuracy ${percent(accuracy)}, mean confidence ${percent(confidence)}`,
      ),
    );
    const both = Math.min(accuracy, confidence);
    bar.append(svg("rect", { class: "accuracy", x, y: py(both), width: w, height: both * size }));
    bar.append(
      svg("rect", {
        class: confidence > accuracy ? "over" : "under",
        x,
        y: py(Math.max(accuracy, confidence)),
        width: w,
        height: Math.abs(confidence - accuracy) * size,
      }),
    );
    bar.append(
      svg("rect", {
        class: "count",
        x,
        y: floor - (images / most) * (histogram - 12),
        width: w,
        height: (images / most) * (histogram - 12),
      }),
    );
    if (bins.length <= 20)
      bar.append(
        svg(
          "text",
          { class: "tiny", x: x + w / 2, y: floor - (images / most) * (histogram - 12) - 3, "text-anchor": "middle" },
          images >= 1000 ? `${(images / 1000).toFixed(images < 10000 ? 1 : 0)}k` : images,
        ),
      );
    image.append(bar);
  }
  image.append(
    svg("path", { class: "ideal", d: `M${px(0)} ${py(0)}L${px(1)} ${py(1)}` }),
    svg("text", { x: left + size / 2, y: height - 4, "text-anchor": "middle" }, "confidence, %"),
    svg("text", { x: left, y: 10 + size + gap + 2, class: "tiny" }, "images"),
    svg(
      "text",
      { x: 12, y: 10 + size / 2, "text-anchor": "middle", transform: `rotate(-90 12 ${10 + size / 2})` },
      "accuracy, %",
    ),
  );
  const key = (mark, text) =>
    el(
      "li",
      {},
      svg("svg", { width: 14, height: 12, "aria-hidden": "true" }, svg("rect", { class: mark, width: 14, height: 12 })),
      text,
    );
  return el(
    "figure",
    { className: "reliability" },
    image,
    el(
      "ul",
      { className: "legend" },
      key("accuracy", "accuracy"),
      key("under", "underconfident"),
      key("over", "overconfident"),
    ),
  );
}

function reliabilityTable(bins) {
  const rows = bins.map(([lower, upper, images, confidence, accuracy]) =>
    el(
      "tr",
      {},
      el("th", { scope: "row" }, `${Math.round(100 * lower)} to ${Math.round(100 * upper)} %`),
      [formatCount(images), percent(confidence), percent(accuracy)].map((text) =>
        el("td", { className: "number" }, text),
      ),
    ),
  );
  return el(
    "div",
    { className: "scroll" },
    el(
      "table",
      { className: "plain" },
      el(
        "thead",
        {},
        el(
          "tr",
          {},
          el("th", { scope: "col" }, "bin"),
          ["images", "confidence", "accuracy"].map((text) => el("th", { scope: "col", className: "number" }, text)),
        ),
      ),
      el("tbody", {}, rows),
    ),
  );
}
