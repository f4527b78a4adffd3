// Pillow's resampling (libImaging/Resample.c) in its own fixed-point arithmetic, so that the pixels equal Python's.

const BITS = 22; // fractional bits of a weight: 32 without 8 of a level and 2 for sums above white
const ONE = 2 ** BITS;
const HALF = ONE / 2;
const STRIP = 2 ** 20; // pixels of the image that are read at a time

const sinc = (x) => (x === 0 ? 1 : Math.sin(x * Math.PI) / (x * Math.PI));

const A = -0.5; // Pillow's bicubic; browsers and OpenCV have another one
function bicubic(x) {
  x = Math.abs(x);
  if (x < 1) return ((A + 2) * x - (A + 3)) * x * x + 1;
  return x < 2 ? (((x - 5) * x + 8) * x - 4) * A : 0;
}

function hamming(x) {
  x = Math.abs(x);
  return x >= 1 ? 0 : sinc(x) * (Math.fround(0.54) + Math.fround(0.46) * Math.cos(x * Math.PI));
}

const FILTERS = {
  bicubic: { support: 2, weight: bicubic },
  bilinear: { support: 1, weight: (x) => Math.max(0, 1 - Math.abs(x)) },
  box: { support: 0.5, weight: (x) => (x > -0.5 && x <= 0.5 ? 1 : 0) },
  hamming: { support: 1, weight: hamming },
  lanczos: { support: 3, weight: (x) => (x >= -3 && x < 3 ? sinc(x) * sinc(x / 3) : 0) },
};

/**
 * Resize an image and crop a window out of the result; the rest is never computed.
 *
 * source: { width, height, rows(top, count) }, whose rows are RGBA bytes; alpha is ignored.
 * size: { width, height } to resize to; window: { left, top, width, height } in the resized image.
 * Returns RGB bytes, window.height * window.width * 3. Rows first, then columns, rounded to bytes between, as Pillow does.
 */
export function resample(source, size, window, interpolation) {
  const across = taps(source.width, size.width, interpolation, window.left, window.width);
  const down = taps(source.height, size.height, interpolation, window.top, window.height);
  const top = down[0].first;
  const end = down.at(-1).first + down.at(-1).weights.length;
  const stride = window.width * 3;
  const between = new Uint8Array((end - top) * stride);
  const count = Math.max(1, Math.floor(STRIP / source.width));
  for (let start = top; start < end; start += count) {
    const rows = Math.min(count, end - start);
    const strip = source.rows(start, rows);
    for (let y = 0; y < rows; y++) {
      resampleRow(strip, y * source.width * 4, across, between, (start - top + y) * stride);
    }
  }
  return resampleColumns(between, stride, top, down);
}

/** For each of `count` output pixels from `from` on: its first input pixel, and the weights of that and the next ones. */
function taps(length, target, interpolation, from, count) {
  if (length === target) return Array.from({ length: count }, (_, i) => ({ first: from + i, weights: [ONE] }));
  if (interpolation === "nearest") return nearest(length, target, from, count);
  const { support, weight } = FILTERS[interpolation] ?? FILTERS.bicubic;
  const scale = length / target;
  const stretch = Math.max(scale, 1); // a smaller image is filtered by a wider curve: antialiasing
  const reach = support * stretch;
  const all = [];
  for (let i = from; i < from + count; i++) {
    const center = (i + 0.5) * scale;
    const first = Math.max(0, Math.trunc(center - reach + 0.5));
    const end = Math.min(length, Math.trunc(center + reach + 0.5));
    const exact = [];
    for (let x = first; x < end; x++) exact.push(weight((x - center + 0.5) * (1 / stretch)));
    const sum = exact.reduce((a, b) => a + b, 0);
    all.push({ first, weights: Int32Array.from(exact, (w) => rounded(sum ? w / sum : w)) });
  }
  return all;
}

const rounded = (weight) => Math.trunc(weight * ONE + (weight < 0 ? -0.5 : 0.5));

function nearest(length, target, from, count) {
  const all = [];
  const step = length / target;
  let at = step * 0.5; // summed step by step, as Pillow does (Geometry.c)
  for (let i = 0; i < from + count; i++, at += step) {
    if (i >= from) all.push({ first: Math.min(length - 1, Math.trunc(at)), weights: [ONE] });
  }
  return all;
}

function resampleRow(rgba, row, across, out, at) {
  for (const { first, weights } of across) {
    let r = HALF, g = HALF, b = HALF;
    for (let k = 0, p = row + first * 4; k < weights.length; k++, p += 4) {
      const w = weights[k];
      r += rgba[p] * w;
      g += rgba[p + 1] * w;
      b += rgba[p + 2] * w;
    }
    out[at++] = level(r);
    out[at++] = level(g);
    out[at++] = level(b);
  }
}

function resampleColumns(between, stride, top, down) {
  const out = new Uint8Array(down.length * stride);
  down.forEach(({ first, weights }, y) => {
    for (let x = 0; x < stride; x++) {
      let sum = HALF;
      for (let k = 0, p = (first - top) * stride + x; k < weights.length; k++, p += stride) sum += between[p] * weights[k];
      out[y * stride + x] = level(sum);
    }
  });
  return out;
}

function level(sum) {
  const value = Math.floor(sum / ONE);
  return value < 0 ? 0 : value > 255 ? 255 : value;
}
