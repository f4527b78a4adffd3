// The sections of a report of several labels an image.

const [TITLE, IMAGES, AP, F1, PRECISION, RECALL, THRESHOLD, ECE] = [0, 1, 2, 3, 4, 5, 6, 7];
const points = (value) => (value === null ? "none" : `${value.toFixed(1)} %`);

function drawLabelClasses(section, model) {
  const rows = model.classes.map((row, n) => ({ row, n }));
  rows.sort((a, b) => (a.row[AP] ?? 101) - (b.row[AP] ?? 101) || a.n - b.n);
  const line = ({ row }) => {
    const bar = el("span", { className: "recall" });
    bar.style.width = `${row[AP] ?? 0}%`;
    const cell = (text) => el("td", { className: "number" }, text);
    return el(
      "tr",
      {},
      el("th", { scope: "row" }, name(row[TITLE])),
      el("td", { className: "track", "aria-hidden": "true" }, el("span", { className: "rail" }, bar)),
      cell(points(row[AP])),
      cell(points(row[F1])),
      cell(points(row[PRECISION])),
      cell(points(row[RECALL])),
      cell(row[THRESHOLD].toFixed(3)),
      cell(row[ECE].toFixed(3)),
      cell(formatCount(row[IMAGES])),
    );
  };
  const heads = ["AP", "F1", "precision", "recall", "threshold", "ECE", "images"];
  const body = el("tbody", {}, rows.slice(0, 100).map(line));
  const more = el("button", { type: "button", className: "more", hidden: rows.length <= 100 }, `Show all ${rows.length}`);
  more.addEventListener("click", () => {
    body.replaceChildren(...rows.map(line));
    more.hidden = true;
  });
  section.append(
    el(
      "p",
      { className: "quiet" },
      "The bar is the average precision: the mean over a class's images of the precision at their score. The lowest come first. F1, precision and recall are those at the threshold; ECE is the gap between the probability and how many images have the class.",
    ),
    el(
      "div",
      { className: "scroll", tabIndex: 0 },
      el(
        "table",
        { className: "plain classes" },
        el(
          "thead",
          {},
          el(
            "tr",
            {},
            el("th", { scope: "col" }, "class"),
            el("th", { "aria-hidden": "true" }),
            heads.map((text) => el("th", { scope: "col", className: "number" }, text)),
          ),
        ),
        body,
      ),
    ),
    more,
  );
}

function drawThresholds(section, model) {
  const keys = Object.keys(model.thresholds).sort((a, b) => model.classes[a][AP] - model.classes[b][AP] || a - b);
  if (!keys.length) {
    section.append(el("p", { className: "empty" }, "No class has images."));
    return;
  }
  const render = (key) => {
    const row = model.classes[key];
    const [f1, precision, recall] = model.thresholds[key].map((values) => values.map((value) => (value === null ? null : 100 * value)));
    const x = f1.map((_, n) => n / (f1.length - 1));
    return chart({
      title: `${row[TITLE]}: threshold ${row[THRESHOLD].toFixed(3)}`,
      xName: "threshold",
      unit: " %",
      zero: true,
      lines: [
        { name: "F1", x, y: f1 },
        { name: "precision", x, y: precision },
        { name: "recall", x, y: recall },
      ],
    });
  };
  const origin = model.from_model ? "The model has the thresholds in the titles." : "The thresholds in the titles are fitted to these images.";
  section.append(
    el("p", { className: "quiet" }, `F1, precision and recall of a class by the probability from which it is predicted. ${origin}`),
    ...shortenedList("div", keys, 6, render, "charts"),
  );
}

function drawCoConfusions(section, model) {
  if (!model.confusions.length) {
    section.append(el("p", { className: "empty" }, "No image has both a missed and a wrong label."));
    return;
  }
  section.append(
    el("p", { className: "quiet" }, "Images that have the first class, which is not predicted, and of which the second is predicted, which they have not."),
    el(
      "ol",
      { className: "confusions" },
      model.confusions.map(([label, pred, count]) =>
        el("li", {}, name(label), quiet(" missed, "), name(pred), quiet(` predicted: ${countImages(count)}`)),
      ),
    ),
  );
}

function drawHardImages(section, model) {
  section.append(
    el("p", { className: "quiet" }, "Images of the highest loss: check them for labels that are missing or wrong. ✓ found, − missed, + predicted and not labeled."),
  );
  const item = (mark, kind) => ([label, probability]) => {
    const bar = el("span", { className: "score" });
    bar.style.width = `${100 * probability}%`;
    return el(
      "li",
      { className: kind },
      el("span", { className: "guess" }, `${mark} `, name(label)),
      el("span", { className: "number" }, percent(probability)),
      bar,
    );
  };
  const render = (image) =>
    el(
      "figure",
      { className: "example" },
      el("span", { className: "image" }, el("img", { src: image.image, alt: image.name })),
      el(
        "figcaption",
        {},
        el(
          "ol",
          { className: "guesses" },
          image.hits.map(item("✓", "correct")),
          image.missed.map(item("−", "wrong")),
          image.wrong.map(item("+", "wrong")),
        ),
        el("p", { className: "file", title: image.name }, name(image.name)),
      ),
    );
  section.append(...shortenedList("div", model.images, 12, render, "gallery"));
}
