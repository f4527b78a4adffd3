// One bar a class: recall, with precision as a mark on it.

function drawClasses(section, model, data, showClass) {
  const [images, right, said] = model.perClass;
  const ratio = (a, b) => (b ? a / b : null);
  const rows = data.classes.map((label, n) => ({
    n,
    name: label,
    images: images[n],
    recall: ratio(right[n], images[n]),
    precision: ratio(right[n], said[n]),
    f1: ratio(2 * right[n], images[n] + said[n]),
  }));
  const columns = { name: "class", recall: "recall", precision: "precision", f1: "F1", images: "images" };
  const body = el("tbody");
  const more = el("button", { type: "button", className: "more" });
  const count = el("span", { className: "quiet", role: "status" });
  const filter = el("input", {
    type: "search",
    placeholder: "part of a name",
    "aria-label": "Show classes whose name holds",
  });
  let [by, up, most] = ["recall", true, 50];

  const line = (row) => {
    const bar = el("span", { className: "recall" });
    bar.style.width = `${100 * (row.recall ?? 0)}%`;
    const mark = el("span", { className: "precision", hidden: row.precision === null });
    mark.style.left = `${100 * (row.precision ?? 0)}%`;
    const figure = (value) => el("td", { className: "number" }, value === null ? quiet("none") : percent(value));
    return el(
      "tr",
      {},
      el(
        "th",
        { scope: "row" },
        el("button", { type: "button", className: "link", onclick: () => showClass(row.n) }, name(row.name)),
      ),
      el("td", { className: "track", "aria-hidden": "true" }, el("span", { className: "rail" }, bar, mark)),
      figure(row.recall),
      figure(row.precision),
      figure(row.f1),
      el("td", { className: "number" }, whole(row.images)),
    );
  };
  const compare = (a, b) => {
    const missing = (a[by] === null) - (b[by] === null);
    const order = by === "name" ? a.name.localeCompare(b.name, "en", { numeric: true }) : a[by] - b[by];
    return missing || (up ? order : -order) || a.n - b.n;
  };
  const draw = () => {
    const wanted = filter.value.trim().toLowerCase();
    const kept = rows.filter((row) => row.name.toLowerCase().includes(wanted)).sort(compare);
    body.replaceChildren(...kept.slice(0, most).map(line));
    count.textContent = wanted
      ? `${whole(kept.length)} of ${whole(rows.length)} classes`
      : `${whole(rows.length)} class${rows.length === 1 ? "" : "es"}`;
    more.hidden = kept.length <= most;
    more.textContent = `Show all ${whole(kept.length)}`;
    for (const head of heads)
      head.setAttribute("aria-sort", head.value === by ? (up ? "ascending" : "descending") : "none");
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
            [up, by] = [by === key ? !up : key !== "images", key];
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
    most = Infinity;
    draw();
  });
  section.append(
    el(
      "p",
      { className: "quiet" },
      "Recall: the share of a class's images that are answered right. Precision: the share of the answers naming it that are right. F1: their harmonic mean.",
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
