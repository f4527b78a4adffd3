// The view of an image that the network classifies: resized and cropped as deitctl/data/eval_transform.py does.

import { resample } from "./resample.js";

/**
 * Return RGB bytes [S,S,3].
 *
 * source: see `resample`; preprocessing: { img_size, resize_to, crop_mode, interpolation } of model.json.
 */
export function evalView(source, preprocessing) {
  const { img_size: side, resize_to: target, interpolation } = preprocessing;
  const squash = preprocessing.crop_mode === "squash";
  const size = squash ? { width: target, height: target } : resizedSize(source.width, source.height, target);
  const across = cropSpan(size.width, side);
  const down = cropSpan(size.height, side);
  const window = { left: across.from, top: down.from, width: across.count, height: down.count };
  const cropped = resample(source, size, window, interpolation);
  const view = new Uint8Array(side * side * 3); // outside the image: black
  for (let y = 0; y < down.count; y++) {
    const row = cropped.subarray(y * across.count * 3, (y + 1) * across.count * 3);
    view.set(row, ((y + down.to) * side + across.to) * 3);
  }
  return view;
}

/** Width and height of an image whose short side becomes `target` pixels. */
function resizedSize(width, height, target) {
  return width <= height
    ? { width: target, height: Math.trunc((target * height) / width) }
    : { width: Math.trunc((target * width) / height), height: target };
}

/** The center `side` pixels of `length`: from where, to where in the view, and how many there are. */
function cropSpan(length, side) {
  if (length >= side) return { from: halfEven(length - side), to: 0, count: side };
  return { from: 0, to: (side - length) >> 1, count: length };
}

/** Half of an integer, rounded to the even of two that are as near, as Python's round does. */
function halfEven(n) {
  const down = Math.floor(n / 2);
  return n % 2 && down % 2 ? down + 1 : down;
}
