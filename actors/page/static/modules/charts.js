/** Line charts over uPlot, in the colours of the theme. A readout in the head says the newest values, or those under the cursor. */

import uPlot from "../vendor/uplot/uPlot.esm.js";
import { fill, h } from "./dom.js";
import { NOTHING, known, short } from "./format.js";
import { colour, onTheme } from "./theme.js";

/**
 * @typedef {{label: string, colour: string, dash?: number[], x: number[], y: (number | null)[], faint?: boolean}} Series
 *   colour: a name of the style sheet, such as `--c0`
 * @typedef {{title: string, unit: string, xLabel: string, sync?: string, line?: {label: string, at: number} | null, min?: number, max?: number,
 *   about?: string, format?: (value: number) => string, xFormat?: (value: number) => string}} Spec
 */

const HEIGHT = 148;

/** Series with x of their own on one common x. @param {Series[]} series */
function aligned(series) {
  if (series.length && series.every((each) => each.x === series[0].x)) return [series[0].x, ...series.map((each) => each.y)];
  const xs = [...new Set(series.flatMap((each) => each.x))].sort((a, b) => a - b);
  const place = new Map(xs.map((x, i) => [x, i]));
  return [xs, ...series.map((each) => {
    const ys = new Array(xs.length).fill(undefined);
    each.x.forEach((x, i) => (ys[place.get(x)] = each.y[i]));
    return ys;
  })];
}

export class Chart {
  /** @param {Spec} spec @param {AbortSignal} signal */
  constructor(spec, signal) {
    this.spec = spec;
    this.format = spec.format ?? short;
    /** @type {Series[]} */
    this.series = [];
    this.readout = h("div", { class: "readout" });
    this.at = h("span", { class: "at" });
    this.plotted = h("div", { class: "plot" });
    this.element = h("figure", { class: "chart", "aria-label": spec.title },
      h("figcaption", { title: spec.about ?? null }, h("span", { class: "chart-title" }, spec.title), spec.unit ? h("span", { class: "unit" }, spec.unit) : null, this.at),
      this.readout, this.plotted);
    this.shape = "";
    this.sizes = new ResizeObserver(() => this.#size());
    this.sizes.observe(this.plotted);
    onTheme(() => this.#draw(true), signal);
    signal.addEventListener("abort", () => {
      this.sizes.disconnect();
      this.plot?.destroy();
    }, { once: true });
  }

  /** @param {Series[]} series */
  show(series) {
    this.series = series;
    this.#draw(false);
  }

  #draw(anew) {
    const series = this.series.filter((each) => each.y.some(known));
    const shape = JSON.stringify(series.map((each) => [each.label, each.colour, each.dash]));
    const data = aligned(series);
    if (!series.length) {
      this.plot?.destroy();
      this.plot = null;
      fill(this.plotted, h("p", { class: "no-data" }, "nothing yet"));
      fill(this.readout);
      this.at.textContent = "";
      this.shape = "";
      return;
    }
    const few = data[0].length < 40;
    if (anew || !this.plot || shape !== this.shape || few !== this.few) {
      this.plot?.destroy();
      fill(this.plotted);
      this.few = few;
      this.plot = new uPlot(this.#options(series, few), data, this.plotted);
      this.shape = shape;
    } else {
      this.plot.setData(data);
    }
    this.#read(series, data, null);
    this.drawn = { series, data };
  }

  #size() {
    const width = this.plotted.clientWidth;
    if (this.plot && width && Math.abs(width - this.plot.width) >= 1) this.plot.setSize({ width, height: HEIGHT });
  }

  /** @param {Series[]} series @param {boolean} few */
  #options(series, few) {
    const ink = colour("--ink-2");
    const grid = { stroke: colour("--grid"), width: 1 };
    const font = `11px ${colour("--font-ui")}`;
    const spec = this.spec;
    const axis = { stroke: ink, grid, ticks: { show: false }, font };
    const values = (_, splits) => splits.map((split) => (split === null ? "" : short(split)));
    return {
      width: Math.max(120, this.plotted.clientWidth),
      height: HEIGHT,
      legend: { show: false },
      padding: [8, 8, 0, 0],
      cursor: {
        y: false,
        drag: { x: true, y: false },
        points: { size: 6 },
        ...(spec.sync ? { sync: { key: spec.sync, setSeries: false } } : {}),
      },
      scales: { x: { time: false, range: (_, low, high) => (low === high ? [low - 0.5, high + 0.5] : [low - 0.015 * (high - low), high + 0.015 * (high - low)]) }, y: { range: (_, low, high) => this.#range(low, high) } },
      axes: [
        { ...axis, size: 24, gap: 4, space: 56, incrs: spec.xLabel === "step" ? [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000] : undefined, values },
        { ...axis, size: 46, gap: 4, space: 32, values },
      ],
      series: [{}, ...series.map((each) => ({
        label: each.label,
        stroke: colour(each.colour),
        width: each.faint ? 1 : 1.6,
        dash: each.dash,
        spanGaps: true,
        points: { show: few, size: 5, width: 1.5, stroke: colour(each.colour), fill: colour("--paper") },
      }))],
      hooks: {
        setCursor: [(plot) => this.drawn && this.#read(this.drawn.series, this.drawn.data, plot.cursor.idx)],
        draw: [(plot) => this.#mark(plot)],
      },
    };
  }

  #range(low, high) {
    const spec = this.spec;
    let from = Math.min(spec.min ?? 0, known(low) ? low : 0);
    let upTo = Math.max(spec.max ?? -Infinity, known(high) ? high : 1, spec.line?.at ?? -Infinity, known(low) && low < 0 ? 0 : -Infinity);
    if (spec.min === undefined && known(low) && low > 0 && low > 0.6 * upTo) from = low - 0.3 * (upTo - low || low);
    if (upTo <= from) upTo = from + 1;
    return [from - (from < 0 ? 0.06 * (upTo - from) : 0), upTo + 0.06 * (upTo - from)];
  }

  /** The line of a bound, such as η. */
  #mark(plot) {
    const line = this.spec.line;
    if (!line) return;
    const { ctx, bbox } = plot;
    const y = Math.round(plot.valToPos(line.at, "y", true)) + 0.5;
    const ratio = devicePixelRatio || 1;
    ctx.save();
    ctx.strokeStyle = colour("--warn");
    ctx.fillStyle = colour("--warn-ink");
    ctx.lineWidth = ratio;
    ctx.setLineDash([2 * ratio, 3 * ratio]);
    ctx.beginPath();
    ctx.moveTo(bbox.left, y);
    ctx.lineTo(bbox.left + bbox.width, y);
    ctx.stroke();
    ctx.font = `${10 * ratio}px ${colour("--font-ui")}`;
    ctx.textAlign = "right";
    ctx.fillText(line.label, bbox.left + bbox.width - 2 * ratio, y + 11 * ratio);
    ctx.restore();
  }

  /** @param {Series[]} series @param {number | null | undefined} index of a point; null: the newest */
  #read(series, data, index) {
    const under = known(index);
    const x = under ? data[0][index] : data[0].at(-1);
    const cells = series.map((each, i) => {
      const ys = data[i + 1];
      let value = under ? ys[index] : null;
      if (!under) for (let k = ys.length - 1; k >= 0 && !known(value); k--) value = ys[k];
      return h("span", { class: "value" },
        h("span", { class: `key ${each.dash ? "dashed" : ""}`, css: { "border-color": `var(${each.colour})` }, "aria-hidden": "true" }),
        h("span", { class: "value-name" }, each.label), h("b", null, known(value) ? this.format(value) : NOTHING));
    });
    fill(this.readout, cells);
    this.at.textContent = `${this.spec.xLabel} ${this.spec.xFormat ? this.spec.xFormat(x) : short(x)}`;
    const summary = cells.map((cell) => cell.textContent).join(", ");
    this.element.setAttribute("aria-label", `${this.spec.title}${this.spec.unit ? ` in ${this.spec.unit}` : ""}: ${summary}`);
  }
}
