// Beside the page, so that it stays awake: loads the model and answers images one after the other.

import * as ort from "./onnxruntime.js";
import { decode } from "./decode.js";
import { evalView } from "./view.js";

const MOST_THREADS = 4;
let about = null;
let session = null;

/** Fetch files of this folder, telling how many bytes have come; of a compressed answer the sum is not known before. */
async function fetchAll(names, tell) {
  const answers = await Promise.all(names.map(async (name) => {
    const answer = await fetch(new URL(name, import.meta.url));
    if (!answer.ok) throw new Error(`The server has no ${name} (${answer.status}).`);
    return answer;
  }));
  const sizes = answers.map((a) => (a.headers.get("Content-Encoding") ? NaN : Number(a.headers.get("Content-Length") ?? NaN)));
  const total = sizes.reduce((a, b) => a + b, 0) || null;
  let got = 0;
  return Promise.all(answers.map(async (answer) => {
    const parts = [];
    const reader = answer.body.getReader();
    for (let part = await reader.read(); !part.done; part = await reader.read()) {
      parts.push(part.value);
      got += part.value.length;
      tell(got, total);
    }
    return new Uint8Array(await new Blob(parts).arrayBuffer());
  }));
}

async function load() {
  const [said] = await fetchAll(["model.json"], () => {});
  about = JSON.parse(new TextDecoder().decode(said));
  postMessage({ kind: "about", about });
  const [model, wasm] = await fetchAll(["model.onnx", "onnxruntime.wasm"], (got, total) => postMessage({ kind: "progress", got, total }));
  const start = performance.now();
  ort.env.wasm.wasmBinary = wasm.buffer;
  // threads share memory, which browsers allow where the server sends COOP and COEP headers
  const threads = self.crossOriginIsolated ? Math.min(MOST_THREADS, navigator.hardwareConcurrency) : 1;
  ort.env.wasm.numThreads = threads;
  session = await ort.InferenceSession.create(model, { executionProviders: ["wasm"] });
  const side = about.preprocessing.imgSize;
  await ask(new Uint8Array(side * side * 3)); // the first answer allocates
  postMessage({ kind: "ready", bytes: model.length, threads, milliseconds: performance.now() - start });
}

/** Ask the network about a view, RGB bytes [S,S,3]. */
function ask(view) {
  const side = about.preprocessing.imgSize;
  return session.run({ pixels: new ort.Tensor("uint8", view, [1, side, side, 3]) });
}

async function classify(blob) {
  const start = performance.now();
  const image = await decode(blob);
  let view;
  try {
    view = evalView(image, about.preprocessing);
  } finally {
    image.close();
  }
  const seen = performance.now();
  const { probabilities, attention } = await ask(view.slice()); // its own copy: the page gets this one
  const maps = attention ? { data: attention.data, grid: attention.dims[2] } : null;
  const milliseconds = { view: seen - start, network: performance.now() - seen };
  return { view, probabilities: probabilities.data, attention: maps, milliseconds, width: image.width, height: image.height };
}

const loaded = load();
loaded.catch((error) => postMessage({ kind: "broken", why: error.message || String(error) }));

let turn = loaded;
onmessage = ({ data: { id, blob } }) => {
  turn = turn.then(() => classify(blob)).then(
    (answer) => postMessage({ kind: "answer", id, ...answer }, [answer.view.buffer]),
    (error) => session && postMessage({ kind: "failed", id, why: error.message || String(error) }),
  );
};
