/** Charts as inline SVG: lines with their intervals, and bars. Colours are classes of the style sheet, `s0` to `s5`. */

import { draw, make } from "./dom.js";
import { decimal, tick } from "./format.js";

const HEIGHT = 210;
const MARGIN = { left: 52, right: 12, top: 10, bottom: 24 };
const NUM_COLORS = 6;

/**
 * Lines over time or steps, each with the interval around it if its points have one.
 *
 * @param {string} label - What is shown, for those who do not see it.
 * @param {Array<{name: string, points: Array<{x: number, y: number, lower?: number, upper?: number}>}>} series
 * @param {Object} [how]
 * @param {function(number, number): string} [how.showX] - Names a place on the horizontal axis, which spans so much; a
 *   moment, if not given.
 * @param {number} [how.line] - Where a dashed horizontal line is drawn, 0 for a difference.
 */
export function lines(label, series, { showX = tick, line = null } = {}) {
  const shown = series.map(({ name, points }) => ({ name, points: points.filter(({ y }) => Number.isFinite(y)) }));
  const points = shown.flatMap((each) => each.points);
  if (!points.length) return make("p.soft.nothing", {}, "Nothing to draw yet.");
  const values = points.flatMap(({ y, lower, upper }) => [y, lower, upper]).filter(Number.isFinite);
  const axes = new Axes(
    points.map(({ x }) => x),
    line === null ? values : [...values, line],
  );
  const parts = shown.flatMap(({ points }, place) => {
    const color = `s${place % NUM_COLORS}`;
    const within = points.filter(({ lower, upper }) => Number.isFinite(lower) && Number.isFinite(upper));
    const band = [
      ...within.map(({ x, upper }) => axes.at(x, upper)),
      ...within.toReversed().map(({ x, lower }) => axes.at(x, lower)),
    ];
    return [
      within.length > 1 ? draw(`polygon.band.${color}`, { points: band.join(" ") }) : null,
      draw(`polyline.line.${color}`, { points: points.map(({ x, y }) => axes.at(x, y)).join(" ") }),
      points.length < 60 ? points.map(({ x, y }) => dot(axes, x, y, color)) : null,
    ];
  });
  const dashed = line === null ? null : draw("line.dashed", axes.across(line));
  return figure(
    label,
    shown.map(({ name }) => name),
    [axes.draw(showX), dashed, parts],
  );
}

/**
 * Bars of several parts, one on the other.
 *
 * @param {string} label
 * @param {Array<string>} names - Of the parts.
 * @param {Array<{x: number, parts: Array<number>}>} bars - From left to right, in equal distances.
 */
export function bars(label, names, bars, { showX = tick } = {}) {
  if (!bars.length) return make("p.soft.nothing", {}, "Nothing to draw yet.");
  const sums = bars.map(({ parts }) => parts.reduce((sum, part) => sum + part, 0));
  const step = bars.length > 1 ? bars[1].x - bars[0].x : 1;
  const axes = new Axes([bars[0].x, bars.at(-1).x + step], [0, ...sums]);
  const width = Math.max(1, (0.8 * (axes.width - MARGIN.left - MARGIN.right)) / bars.length);
  const rectangles = bars.flatMap(({ x, parts }) => {
    let sum = 0;
    return parts.map((part, place) => {
      const [left, bottom] = axes.at(x, sum);
      const [, top] = axes.at(x, (sum += part));
      return part
        ? draw(
            `rect.bar.s${place % NUM_COLORS}`,
            { x: left, y: top, width, height: bottom - top },
            draw("title", {}, `${names[place]}: ${part}`),
          )
        : null;
    });
  });
  return figure(label, names, [axes.draw(showX), rectangles]);
}

/** A small line without axes. */
export function sparkline(label, values) {
  const most = Math.max(...values, 1e-9);
  const points = values.map((value, place) => [
    (120 * place) / Math.max(1, values.length - 1),
    30 - (28 * value) / most,
  ]);
  return draw(
    "svg.sparkline",
    { viewBox: "0 0 120 32", role: "img", "aria-label": label, preserveAspectRatio: "none" },
    draw("polyline.line.s0", { points: points.join(" ") }),
  );
}

/** In pixels: as wide as the window lets it, so that its words are as large as others. */
const chartWidth = () => Math.max(280, Math.min(680, window.innerWidth - 64));

class Axes {
  constructor(xs, ys) {
    this.width = chartWidth();
    this.x = [Math.min(...xs), Math.max(...xs)];
    if (this.x[0] === this.x[1]) this.x[1] += 1;
    const [low, high] = [Math.min(...ys), Math.max(...ys)];
    const room = 0.06 * (high - low || Math.abs(high) || 1);
    this.y = [low === 0 ? 0 : low - room, high + room];
  }

  at(x, y) {
    const part = (value, [low, high]) => (value - low) / (high - low);
    return [
      MARGIN.left + part(x, this.x) * (this.width - MARGIN.left - MARGIN.right),
      HEIGHT - MARGIN.bottom - part(y, this.y) * (HEIGHT - MARGIN.top - MARGIN.bottom),
    ].map((pixels) => Math.round(10 * pixels) / 10);
  }

  across(y) {
    const [x1, y1] = this.at(this.x[0], y);
    return { x1, y1, x2: this.at(this.x[1], y)[0], y2: y1 };
  }

  draw(showX) {
    const [low, high] = this.y;
    const unit = 10 ** Math.floor(Math.log10((high - low) / 3));
    const step = [1, 2, 5, 10].map((times) => times * unit).find((step) => (high - low) / step <= 5);
    const ticks = [];
    const span = this.x[1] - this.x[0];
    for (let y = Math.ceil(low / step) * step; y <= high; y += step) ticks.push(Math.abs(y) < step / 1e6 ? 0 : y);
    return [
      ticks.map((y) => [
        draw("line.grid", this.across(y)),
        draw("text.tick", { x: MARGIN.left - 6, y: this.at(0, y)[1] + 4, "text-anchor": "end" }, decimal(y)),
      ]),
      draw("text.tick", { x: MARGIN.left, y: HEIGHT - 6 }, showX(this.x[0], span)),
      draw("text.tick", { x: this.width - MARGIN.right, y: HEIGHT - 6, "text-anchor": "end" }, showX(this.x[1], span)),
    ];
  }
}

function dot(axes, x, y, color) {
  const [cx, cy] = axes.at(x, y);
  return draw(`circle.dot.${color}`, { cx, cy, r: 2.5 }, draw("title", {}, decimal(y)));
}

function figure(label, names, parts) {
  const width = Math.max(280, Math.min(680, window.innerWidth - 64));
  return make(
    "figure",
    {},
    draw("svg.chart", { viewBox: `0 0 ${chartWidth()} ${HEIGHT}`, role: "img", "aria-label": label }, parts),
    make(
      "figcaption",
      {},
      names.map((name, place) => make(`span.key.s${place % NUM_COLORS}`, {}, name)),
    ),
  );
}
