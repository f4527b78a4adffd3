// Images and maps on canvases, as deitctl/report/overlay.py draws them.

const SMALLEST = 224; // pixels of a drawn side: a small input is enlarged by an integer, so that its pixels stay visible
const OPACITY = 0.6;
// matplotlib's inferno at every sixteenth
const INFERNO = "000003 0a0723 200c4a 3c0965 570f6d 70196e 892269 a32b61 bb3754 d14643 e45a31 f1721d f98e08 fbac10 f8cb34 f1e968 fcfea4"
  .split(" ").map((hex) => [0, 2, 4].map((at) => parseInt(hex.slice(at, at + 2), 16)));

/** Draw the view, RGB bytes [S,S,3]. */
export function drawView(canvas, view, side) {
  paint(canvas, side, (x, y) => view.subarray((y * side + x) * 3, (y * side + x) * 3 + 3));
}

/** Draw a map [G,G] over the view in gray, from its own lowest value (dark) to its highest (bright). */
export function drawMap(canvas, view, side, map) {
  const grid = Math.round(Math.sqrt(map.length));
  const lowest = Math.min(...map);
  const span = Math.max(...map) - lowest || 1;
  paint(canvas, side, (x, y, u, v) => {
    const [r, g, b] = view.subarray((y * side + x) * 3, (y * side + x) * 3 + 3);
    const gray = 0.299 * r + 0.587 * g + 0.114 * b;
    const tint = color((interpolate(map, grid, u, v) - lowest) / span);
    return tint.map((c) => OPACITY * c + (1 - OPACITY) * gray);
  });
}

/** Fill a canvas with `pixel(x, y, u, v)`: the position in the view, and as a fraction of the side. */
function paint(canvas, side, pixel) {
  const factor = Math.ceil(SMALLEST / side);
  canvas.width = canvas.height = side * factor;
  const context = canvas.getContext("2d");
  const image = context.createImageData(canvas.width, canvas.height);
  for (let y = 0, p = 0; y < canvas.height; y++) {
    for (let x = 0; x < canvas.width; x++, p += 4) {
      const [r, g, b] = pixel(Math.floor(x / factor), Math.floor(y / factor), (x + 0.5) / canvas.width, (y + 0.5) / canvas.height);
      image.data[p] = r;
      image.data[p + 1] = g;
      image.data[p + 2] = b;
      image.data[p + 3] = 255;
    }
  }
  context.putImageData(image, 0, 0);
}

/** The value of a map at a fraction of its width and height, interpolated between the centers of its patches. */
function interpolate(map, grid, u, v) {
  const position = (fraction) => Math.min(Math.max(fraction * grid - 0.5, 0), grid - 1);
  const x = position(u), y = position(v);
  const left = Math.min(Math.floor(x), Math.max(grid - 2, 0)), top = Math.min(Math.floor(y), Math.max(grid - 2, 0));
  const right = Math.min(left + 1, grid - 1), bottom = Math.min(top + 1, grid - 1);
  const row = (at) => map[at * grid + left] * (1 - (x - left)) + map[at * grid + right] * (x - left);
  return row(top) * (1 - (y - top)) + row(bottom) * (y - top);
}

function color(value) {
  const at = value * (INFERNO.length - 1);
  const low = Math.min(Math.floor(at), INFERNO.length - 2);
  return INFERNO[low].map((c, k) => c + (INFERNO[low + 1][k] - c) * (at - low));
}
