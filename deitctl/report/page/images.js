// Images: the galleries, and the lists of those behind a cell of the confusion matrix.

const OUTSIDE = -1;

/** What is known of the images that are listed by name, by their place in the data. */
function listedImages(model, data) {
  const { at, label, answer, outside, confidence } = model.listed;
  const examples = new Map(
    Object.values(model.galleries)
      .flat()
      .map((example) => [example.at, example]),
  );
  return at.map((place, n) => ({
    at: place,
    name: data.names[place],
    label: label[n],
    answer: answer[n],
    confidence: confidence[n],
    said: answer[n] === OUTSIDE ? (model.outside[outside[n]] ?? "another class") : data.classes[answer[n]],
    foreign: answer[n] === OUTSIDE ? outside[n] : OUTSIDE,
    example: examples.get(place),
  }));
}

function imageList(model, data, found, total) {
  const nodes = [];
  if (found.length < total) {
    const kept = model.listed.mistakesOnly ? "the most confident mistakes alone" : "those";
    nodes.push(
      el(
        "p",
        { className: "quiet" },
        `${whole(found.length)} of ${countImages(total)} are named here: the report keeps the names of ${kept}.`,
      ),
    );
  }
  const seen = found.some((image) => image.example);
  nodes.push(
    ...shortened(
      "ul",
      found,
      24,
      (image) =>
        el(
          "li",
          {},
          image.example
            ? el("img", { src: report.images[image.example.image], alt: "", width: 56, height: 56 })
            : seen
              ? el("span", { className: "nothumb" })
              : null,
          el(
            "span",
            {},
            el("code", {}, name(image.name)),
            el("br"),
            quiet(
              data.classes[image.label],
              image.label === image.answer ? ", answered right, " : " taken for ",
              image.label === image.answer ? "" : name(image.said),
              image.label === image.answer ? "" : ", ",
              percent(image.confidence),
            ),
          ),
        ),
      "images",
    ),
  );
  return nodes;
}

const GALLERIES = {
  mistakes: [
    "Wrong, and sure of it: a wrong label, two things in one image, or something to learn from.",
    "No mistake was made.",
  ],
  unsure: ["Right, but only just: where the model would fail first.", "No image was answered right."],
  disagreements: [
    "The class head and the distillation head name different classes.",
    "There is nothing to show: one head, or two that agree on every image.",
  ],
};

function drawGallery(section, model, data, kind) {
  const examples = model.galleries[kind];
  const [about, empty] = GALLERIES[kind];
  if (!examples.length) {
    section.append(el("p", { className: "empty" }, empty));
    return;
  }
  section.append(el("p", { className: "quiet" }, about));
  const maps = [...new Set(examples.flatMap((example) => Object.keys(example.maps)))];
  const cards = new Set();
  const make = (example) => {
    const card = imageCard(example, model, data, maps);
    card.show(chosen);
    cards.add(card);
    return card.node;
  };
  let chosen = "";
  if (maps.length) {
    const choices = { "": "image alone", ...Object.fromEntries(maps.map((map) => [map, `attention of the ${map}`])) };
    section.append(
      choice("Show", choices, "", (map) => {
        chosen = map;
        for (const card of cards) card.show(map);
      }),
    );
    section.append(el("p", { className: "quiet" }, "A click on one image changes that image."));
  }
  section.append(...shortened("div", examples, 12, make, "gallery"));
}

/** One image with its guesses; `show(map)` lays an attention map over it, "" none. */
function imageCard(example, model, data, maps) {
  const label = data.classes[example.label];
  const image = el("img", { src: report.images[example.image], alt: `${data.names[example.at]}, labeled ${label}` });
  const overlay = el("img", { alt: "", className: "map", hidden: true });
  const caption = el("span", { className: "mapname", hidden: true });
  const button = el(
    "button",
    { type: "button", className: "image", disabled: !maps.length },
    image,
    overlay,
    caption,
  );
  let shown = "";
  const show = (map) => {
    shown = Object.hasOwn(example.maps, map) ? map : "";
    if (shown) {
      overlay.src = report.images[example.maps[shown]];
      overlay.alt = `attention of the ${shown}`;
      caption.textContent = shown;
    }
    overlay.hidden = caption.hidden = !shown;
    button.setAttribute("aria-pressed", String(Boolean(shown)));
  };
  button.addEventListener("click", () => show(["", ...maps][(maps.indexOf(shown) + 2) % (maps.length + 1)]));
  const bars = (guesses, titled) =>
    guesses.map(([guess, score]) => {
      const right = guess === label;
      const bar = el("span", { className: "score" });
      bar.style.width = `${100 * score}%`;
      return el(
        "li",
        { className: right ? "right" : "wrong" },
        el("span", { className: "guess" }, titled ? quiet(titled) : "", right ? "✓ " : "", name(guess)),
        el("span", { className: "number" }, percent(score)),
        bar,
      );
    });
  const heads = Object.entries(example.heads).flatMap(([head, said]) => bars([said], head));
  const node = el(
    "figure",
    { className: "example" },
    button,
    el(
      "figcaption",
      {},
      el("p", { className: "truth" }, quiet("labeled "), name(label)),
      el("ol", { className: "guesses" }, heads.length ? heads : bars(example.guesses)),
      el("p", { className: "file", title: data.names[example.at] }, name(data.names[example.at])),
    ),
  );
  return { node, show };
}
