// One bar per class: recall, with precision as a mark on it.

function drawClasses(section, model, data, showClass) {
  const [images, correct, predicted] = model.per_class;
  const ratio = (a, b) => (b ? a / b : null);
  const rows = data.classes.map((label, n) => ({
    n,
    name: label,
    images: images[n],
    recall: ratio(correct[n], images[n]),
    precision: ratio(correct[n], predicted[n]),
    f1: ratio(2 * correct[n], images[n] + predicted[n]),
  }));
  const columns = { name: "class", recall: "recall", precision: "precision", f1: "F1", images: "images" };
  const body = el("tbody");
  const more = el("button", { type: "button", className: "more" });
  const count = el("span", { className: "quiet", role: "status" });
  const filter = el("input", {
    type: "search",
    placeholder: "part of a name",
    "aria-label": "Show classes whose name contains",
  });
  let [by, ascending, limit] = ["recall", true, 50];

  const line = (row) => {
    const bar = el("span", { className: "recall" });
    bar.style.width = `${100 * (row.recall ?? 0)}%`;
    const mark = el("span", { className: "precision", hidden: row.precision === null });
    mark.style.left = `${100 * (row.precision ?? 0)}%`;
    const cell = (value) => el("td", { className: "number" }, value === null ? quiet("none") : percent(value));
    return el(
      "tr",
      {},
      el(
        "th",
        { scope: "row" },
        el("button", { type: "button", className: "link", onclick: () => showClass(row.n) }, name(row.name)),
      ),
      el("td", { className: "track", "aria-hidden": "true" }, el("span", { className: "rail" }, bar, mark)),
      cell(row.recall),
      cell(row.precision),
      cell(row.f1),
      el("td", { className: "number" }, formatCount(row.images)),
    );
  };
  const compare = (a, b) => {
    const missing = (a[by] === null) - (b[by] === null);
    const order = by === "name" ? a.name.localeCompare(b.name, "en", { numeric: true }) : a[by] - b[by];
    return missing || (ascending ? order : -order) || a.n - b.n;
  };
  const draw = () => {
    const part = filter.value.trim().toLowerCase();
    const shown = rows.filter((row) => row.name.toLowerCase().includes(part)).sort(compare);
    body.replaceChildren(...shown.slice(0, limit).map(line));
    count.textContent = part
      ? `${formatCount(shown.length)} of ${formatCount(rows.length)} classes`
      : `${formatCount(rows.length)} class${rows.length === 1 ? "" : "es"}`;
    more.hidden = shown.length <= limit;
    more.textContent = `Show all ${formatCount(shown.length)}`;
    for (const head of heads)
      head.setAttribute("aria-sort", head.value === by ? (ascending ? "ascending" : "descending") : "none");
  };
  const heads = Object.entries(columns).map(([key, text]) => {
    const head = el(
      "th",
      { scope: "col", className: key === "name" ? "" : "number" },
      el(
        "button",
        {
          type: "button",
          onclick: () => {
            [ascending, by] = [by === key ? !ascending : key !== "images", key];
            draw();
          },
        },
        text,
      ),
    );
    head.value = key;
    return head;
  });
  heads.splice(
    1,
    0,
    el(
      "th",
      { "aria-hidden": "true", className: "legend" },
      el("span", { className: "recall" }),
      "recall ",
      el("span", { className: "precision" }),
      "precision",
    ),
  );
  filter.addEventListener("input", draw);
  more.addEventListener("click", () => {
    limit = Infinity;
    draw();
  });
  section.append(
    el(
      "p",
      { className: "quiet" },
      "Recall: the fraction of a class's images that are predicted as the class. Precision: the fraction of the images predicted as the class that are labeled with it. F1: their harmonic mean.",
    ),
    el("div", { className: "controls" }, el("label", {}, quiet("Filter "), filter), count),
    el(
      "div",
      { className: "scroll" },
      el("table", { className: "plain classes" }, el("thead", {}, el("tr", {}, heads)), body),
    ),
    more,
  );
  draw();
}
