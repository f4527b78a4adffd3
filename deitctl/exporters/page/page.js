// What a person does with the page: images are dropped, chosen or pasted, and answered in their order.

import { answered, failed, waiting } from "./result.js";

const MOST_PIXELS = 100_000_000; // as deitctl's decoder has it
const MOST_IMAGES = 200; // shown at a time: each takes a megabyte
const LOADING = "Loading the model …";
const at = (id) => document.getElementById(id);

let about = null;
let ready = false;
let number = 0; // of the next image
let since = 0; // and of the first since nothing was waiting
let leftOut = 0; // images that were too many
const open = new Map(); // images that are not answered yet: number -> { card, name, url }

// A worker from the server has no policy but its own; one from a blob has this page's, which forbids other servers.
const script = `import ${JSON.stringify(new URL("worker.js", import.meta.url).href)};`;
const worker = new Worker(URL.createObjectURL(new Blob([script], { type: "text/javascript" })), { type: "module" });
worker.onerror = () => broken("This browser is too old for the page, or the server does not send its scripts.");
worker.onmessage = ({ data }) => hear[data.kind]?.(data);

const hear = {
  progress({ got, total }) {
    const bar = at("progress");
    if (total) [bar.max, bar.value] = [total, got];
    else bar.removeAttribute("value");
    // not said aloud at every byte: the status changes once, the bar has the rest
    bar.title = `${megabytes(got)}${total ? ` of ${megabytes(total)}` : ""}`;
    at("amount").textContent = bar.title;
  },
  about(said) {
    about = said.about;
    const classes = about.labels.length.toLocaleString("en");
    at("about").textContent = `${about.architecture}, ${classes} ${about.labels.length === 1 ? "class" : "classes"}`;
    at("maps").hidden = about.tokens.length === 0;
  },
  ready({ bytes }) {
    ready = true;
    document.body.dataset.state = "ready";
    at("about").textContent += `, ${megabytes(bytes)}`;
    at("progress").hidden = true;
    at("amount").hidden = true;
    tell(open.size ? busy() : "Ready.");
  },
  broken: ({ why }) => broken(why),
  answer(answer) {
    const { card, name, url } = take(answer.id);
    URL.revokeObjectURL(url);
    const best = answered(card, name, answer, about);
    done(`${name}: ${best}`);
  },
  failed: ({ id, why }) => fail(id, `It cannot be decoded: ${why}`),
};

const megabytes = (bytes) => `${(bytes / 1e6).toFixed(1)} MB`;
const busy = () => `Looking at ${open.size} ${open.size === 1 ? "image" : "images"} …`;

function tell(text) {
  at("state").textContent = text;
  at("results").setAttribute("aria-busy", String(open.size > 0));
}

/** Say what became of the last image, or of how many there were. */
function done(last) {
  if (open.size) tell(ready ? busy() : LOADING);
  else {
    const more = leftOut ? ` ${leftOut} were left out: ${MOST_IMAGES} are taken at a time.` : "";
    tell(number - since === 1 ? last : `${number - since} images are done.${more}`);
  }
}

function broken(why) {
  document.body.dataset.state = "broken";
  at("progress").hidden = true;
  at("amount").hidden = true;
  at("choose").disabled = true;
  for (const id of [...open.keys()]) fail(id, "The model is not there to answer.");
  tell(`The model cannot be loaded. ${why}`);
}

function take(id) {
  const found = open.get(id);
  open.delete(id);
  return found;
}

function fail(id, why) {
  const { card, name, url } = take(id);
  URL.revokeObjectURL(url);
  failed(card, why);
  done(`${name}: ${why}`);
}

/** Put a card for each file at the top, in their order, and ask about each. */
async function add(files) {
  if (document.body.dataset.state === "broken" || !files.length) return;
  const taken = [...files].slice(0, MOST_IMAGES);
  const cards = taken.map((file) => waiting(file.name || "pasted image"));
  at("results").prepend(...cards);
  for (const old of [...at("results").children].slice(MOST_IMAGES)) if (!isOpen(old)) old.remove();
  const first = number;
  if (!open.size) since = number;
  number += taken.length;
  taken.forEach((file, n) => {
    open.set(first + n, { card: cards[n], name: file.name || "pasted image", url: URL.createObjectURL(file) });
  });
  at("clear").hidden = false;
  tell(ready ? busy() : LOADING);
  leftOut = files.length - taken.length;
  for (const [n, file] of taken.entries()) {
    const why = open.has(first + n) ? await unfit(open.get(first + n).url) : "";
    if (!open.has(first + n)) return; // the model broke meanwhile, and all were told
    if (why) fail(first + n, why);
    else worker.postMessage({ id: first + n, blob: file });
  }
}

const isOpen = (card) => [...open.values()].some((o) => o.card === card);

/** Say why an image is not decoded, from its head alone; empty for one that may be. */
function unfit(url) {
  return new Promise((resolve) => {
    const image = new Image();
    image.onload = () => {
      const { naturalWidth: width, naturalHeight: height } = image;
      const large = width * height > MOST_PIXELS;
      resolve(large ? `It has ${width} × ${height} pixels, more than ${MOST_PIXELS.toLocaleString("en")}.` : "");
    };
    image.onerror = () => resolve("This is not an image that the browser can read.");
    image.src = url;
  });
}

at("choose").onclick = () => at("files").click();
at("files").onchange = () => {
  add(at("files").files);
  at("files").value = ""; // so that the same image can be chosen again
};
at("clear").onclick = () => {
  for (const card of [...at("results").children]) if (!isOpen(card)) card.remove();
  at("clear").hidden = !at("results").children.length;
  at("choose").focus();
};
document.addEventListener("paste", (event) => {
  if (event.clipboardData.files.length) add(event.clipboardData.files);
  else tell("What was pasted is no image.");
});
let inside = 0; // a drag enters every element below the pointer
document.addEventListener("dragenter", () => document.body.classList.toggle("dragging", ++inside > 0));
document.addEventListener("dragleave", () => document.body.classList.toggle("dragging", --inside > 0));
document.addEventListener("dragover", (event) => event.preventDefault());
document.addEventListener("drop", (event) => {
  event.preventDefault();
  inside = 0;
  document.body.classList.remove("dragging");
  if (event.dataTransfer.files.length) add(event.dataTransfer.files);
  else tell("What was dropped is no file: save the image first, or paste it.");
});
