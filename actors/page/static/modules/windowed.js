/**
 * A list of any length of which only the rows in view exist. Rows are fetched by place; when the list changes under the reader, the
 * row at the top of the view stays where it is.
 *
 * @template Row
 */

import { h } from "./dom.js";

const PAGE = 100;
const MARGIN = 10;

export class Windowed {
  /**
   * @param {{fetch: (offset: number, limit: number, signal: AbortSignal) => Promise<{rows: any[], n_matching: number}>,
   *   nameOf: (row: any) => string, build: (row: any, selected: boolean) => Node[], onState: (reply: any) => void,
   *   onError: (error: Error) => void, label: string}} options
   * @param {AbortSignal} signal
   */
  constructor(options, signal) {
    this.options = options;
    this.signal = signal;
    /** @type {Map<number, any>} */
    this.rows = new Map();
    /** @type {Map<number, HTMLElement & {state?: string}>} */
    this.shown = new Map();
    this.n = 0;
    this.selected = -1;
    this.selectedName = "";
    this.space = h("div", { class: "windowed-space" });
    this.element = h("div", { class: "windowed", role: "grid", tabindex: "0", "aria-label": options.label, "aria-rowcount": "0" }, this.space);
    this.element.addEventListener("scroll", () => this.#later(), { passive: true });
    this.sizes = new ResizeObserver(() => this.#measure());
    this.sizes.observe(this.element);
    signal.addEventListener("abort", () => this.sizes.disconnect(), { once: true });
    this.height = 30;
  }

  /** Begin anew from the top, or at a row of before. @param {{place?: number, offset?: number, selected?: string}} [at] */
  async begin(at = {}) {
    this.fetching?.abort();
    this.selectedName = at.selected ?? "";
    this.selected = -1;
    await this.#load(at.place ?? 0, { scroll: at.offset ?? 0, fresh: true });
  }

  /** The list has changed: fetch what is in view again. */
  async refresh() {
    if (this.refreshing) {
      this.again = true;
      return;
    }
    this.refreshing = true;
    try {
      do {
        this.again = false;
        await this.#load(this.#top(), { keep: true });
      } while (this.again && !this.signal.aborted);
    } finally {
      this.refreshing = false;
    }
  }

  /** Where the reader is. */
  get place() {
    return { place: this.#top(), offset: this.element.scrollTop - this.#top() * this.height, selected: this.selectedName };
  }

  /** @param {number} by */
  move(by) {
    this.select(this.selected < 0 ? (by > 0 ? this.#top() : this.#top()) : this.selected + by);
  }

  /** @param {number} index */
  select(index) {
    if (!this.n) return;
    const next = Math.max(0, Math.min(this.n - 1, index));
    this.selected = next;
    this.selectedName = this.rows.has(next) ? this.options.nameOf(this.rows.get(next)) : "";
    const top = next * this.height;
    const view = this.element;
    if (top < view.scrollTop) view.scrollTop = top;
    else if (top + this.height > view.scrollTop + view.clientHeight) view.scrollTop = top + this.height - view.clientHeight;
    this.#render();
  }

  get selectedRow() {
    return this.rows.get(this.selected) ?? null;
  }

  #top() {
    return Math.max(0, Math.min(this.n - 1, Math.floor(this.element.scrollTop / this.height)));
  }

  #perView() {
    return Math.ceil((this.element.clientHeight || 600) / this.height);
  }

  #later() {
    if (this.frame) return;
    this.frame = requestAnimationFrame(() => {
      this.frame = 0;
      if (this.signal.aborted) return;
      this.#render();
      void this.#fillGaps();
    });
  }

  async #fillGaps() {
    const from = Math.max(0, this.#top() - MARGIN);
    const upTo = Math.min(this.n, this.#top() + this.#perView() + MARGIN);
    for (let index = from; index < upTo; index++) {
      if (!this.rows.has(index)) return this.#load(index, {});
    }
  }

  /**
   * Fetch the rows around a place. With `keep`, the row at the top of the view stays there wherever it has gone.
   * @param {number} place @param {{scroll?: number, fresh?: boolean, keep?: boolean}} how
   */
  async #load(place, { scroll = 0, fresh = false, keep = false }) {
    this.fetching?.abort();
    const mine = (this.fetching = new AbortController());
    const stop = () => mine.abort();
    this.signal.addEventListener("abort", stop, { once: true });
    const following = keep && this.element.scrollTop < this.height;
    const anchor = keep && !following ? this.rows.get(place) : null;
    const within = this.element.scrollTop - place * this.height;
    const before = this.n;
    try {
      let { offset, reply } = await this.#ask(place, mine.signal);
      if (anchor && this.#find(reply.rows, anchor) < 0 && reply.n_matching !== before) {
        // Rows came in above: the anchor went down by as many as are new.
        ({ offset, reply } = await this.#ask(Math.max(0, place + reply.n_matching - before), mine.signal));
      }
      if (mine.signal.aborted) return;
      if (fresh || keep) this.rows.clear();
      reply.rows.forEach((row, i) => this.rows.set(offset + i, row));
      this.n = reply.n_matching;
      this.space.style.height = `${this.n * this.height}px`;
      this.element.setAttribute("aria-rowcount", String(this.n));
      const found = anchor ? this.#find(reply.rows, anchor) : -1;
      if (fresh) this.element.scrollTop = place * this.height + scroll;
      else if (found >= 0 && offset + found !== place) this.element.scrollTop = (offset + found) * this.height + within;
      this.#reselect(offset, reply.rows);
      this.options.onState(reply);
      this.#render();
      await this.#fillGaps();
    } catch (error) {
      if (!mine.signal.aborted) this.options.onError(error);
    } finally {
      this.signal.removeEventListener("abort", stop);
    }
  }

  async #ask(place, signal) {
    const offset = Math.max(0, place - Math.floor((PAGE - this.#perView()) / 2));
    const from = place < PAGE / 2 ? 0 : offset;
    return { offset: from, reply: await this.options.fetch(from, Math.max(PAGE, this.#perView() + 2 * MARGIN), signal) };
  }

  #find(rows, wanted) {
    const name = this.options.nameOf(wanted);
    return rows.findIndex((row) => this.options.nameOf(row) === name);
  }

  /** The chosen row keeps its choice by its name, wherever it is now. */
  #reselect(offset, rows) {
    if (!this.selectedName) return;
    const found = rows.findIndex((row) => this.options.nameOf(row) === this.selectedName);
    if (found >= 0) this.selected = offset + found;
  }

  #measure() {
    const height = parseFloat(getComputedStyle(this.element).getPropertyValue("--row")) || 30;
    if (height !== this.height) {
      const top = this.#top();
      this.height = height;
      this.space.style.height = `${this.n * height}px`;
      this.element.scrollTop = top * height;
      this.#drop(() => true);
    }
    this.#later();
  }

  /** @param {(index: number) => boolean} which */
  #drop(which) {
    for (const [index, element] of this.shown) {
      if (!which(index)) continue;
      element.remove();
      this.shown.delete(index);
    }
  }

  #render() {
    const from = Math.max(0, this.#top() - MARGIN);
    const upTo = Math.min(this.n, this.#top() + this.#perView() + MARGIN);
    this.#drop((index) => index < from || index >= upTo);
    for (let index = from; index < upTo; index++) this.#renderRow(index);
    if (this.selected >= 0 && this.shown.has(this.selected)) this.element.setAttribute("aria-activedescendant", `row-${this.selected}`);
    else this.element.removeAttribute("aria-activedescendant");
  }

  #renderRow(index) {
    const row = this.rows.get(index);
    const selected = index === this.selected;
    const state = JSON.stringify(row ?? null);
    let element = this.shown.get(index);
    if (!element) {
      element = h("div", { class: "row", role: "row", id: `row-${index}`, "aria-rowindex": index + 1, css: { top: `${index * this.height}px` } });
      this.shown.set(index, element);
      this.space.appendChild(element);
    }
    if (element.state !== state) {
      element.state = state;
      element.replaceChildren(...(row ? this.options.build(row, selected) : [h("span", { class: "faint", role: "gridcell" }, "…")]));
      if (row) element.dataset.name = this.options.nameOf(row);
      else delete element.dataset.name;
    }
    element.classList.toggle("selected", selected);
    element.setAttribute("aria-selected", String(selected));
  }
}
