/** A training sequence as tokens. Blocks out of view hold no elements, so that a sequence of any length scrolls. */

import { fill, h } from "../modules/dom.js";
import { count } from "../modules/format.js";
import { visible } from "../modules/text.js";
import { classOf } from "./token_paint.js";

const BLOCK = 400;
const NEAR = "900px";

/** A value for every place of spans. */
function spread(spans, n, name) {
  const values = new Array(n);
  for (const span of spans) values.fill(span[name], span.start, span.end);
  return values;
}

/** A token as it is shown: line ends are marked and kept. @param {string} text */
function shown(text) {
  if (text === "") return "∅";
  if (/^\n+$/.test(text)) return [h("span", { class: "newline" }, "⏎".repeat(text.length)), text];
  return visible(text);
}

export class SegmentView {
  /**
   * @param {import("../modules/types.js").TokenSegment} segment @param {number} number
   * @param {(token: {segment: any, index: number} | null) => void} onToken @param {AbortSignal} signal
   */
  constructor(segment, number, onToken, signal) {
    this.segment = segment;
    this.onToken = onToken;
    this.current = -1;
    const n = segment.ids.length;
    this.versions = spread(segment.versions, n, "version");
    this.origins = spread(segment.origins, n, "origin");
    this.blocks = [];
    for (let from = 0; from < n; from += BLOCK) this.blocks.push({ from, upTo: Math.min(n, from + BLOCK), full: false, element: h("div", { class: "token-block" }) });
    const turns = segment.first_turn === segment.last_turn ? `turn ${segment.first_turn + 1}` : `turns ${segment.first_turn + 1}–${segment.last_turn + 1}`;
    const own = segment.mask.reduce((sum, bit) => sum + bit, 0);
    this.body = h("div", { class: "tokens", dir: "ltr" }, this.blocks.map((block) => block.element));
    this.element = h("section", { class: "segment", tabindex: "-1", "aria-label": `Segment ${number + 1}` },
      h("h2", null, `Segment ${number + 1}`, h("span", { class: "aside" }, `${turns} · ${count(n)} tokens, ${count(own)} with mask 1, prompt ${count(segment.n_prompt)}`, segment.parent ? ` · goes on from ${segment.parent}` : "")),
      this.body);
    this.watch = new IntersectionObserver((entries) => {
      for (const entry of entries) this.#near(this.blocks.find((block) => block.element === entry.target), entry.isIntersecting);
    }, { rootMargin: NEAR });
    for (const block of this.blocks) {
      block.element.style.minHeight = `${Math.ceil((block.upTo - block.from) / 14) * 24}px`;
      this.watch.observe(block.element);
    }
    this.body.addEventListener("mouseover", (event) => this.#point(event.target));
    this.body.addEventListener("click", (event) => this.#point(event.target));
    signal.addEventListener("abort", () => this.watch.disconnect(), { once: true });
  }

  /** @param {import("./token_paint.js").Scale} scale */
  paint(scale) {
    this.scale = scale;
    for (const block of this.blocks) if (block.full) this.#fill(block);
  }

  /** @param {number} by */
  step(by) {
    this.#choose(Math.max(0, Math.min(this.segment.ids.length - 1, this.current < 0 ? this.segment.n_prompt : this.current + by)), true);
  }

  #near(block, near) {
    if (!block || near === block.full) return;
    if (near) this.#fill(block);
    else {
      block.element.style.minHeight = `${block.element.offsetHeight}px`;
      fill(block.element);
      block.full = false;
    }
  }

  #fill(block) {
    block.full = true;
    const tokens = [];
    for (let i = block.from; i < block.upTo; i++) {
      const kind = this.scale ? classOf(this.segment, i, this.scale, this.versions, this.origins) : "";
      const text = shown(this.segment.tokens[i]);
      tokens.push(h("span", { class: `token ${kind}${i === this.current ? " current" : ""}`, data: { i } }, text));
    }
    fill(block.element, tokens);
    block.element.style.minHeight = "";
  }

  #point(target) {
    const token = target instanceof Element ? target.closest(".token") : null;
    if (token) this.#choose(Number(token.dataset.i), false);
  }

  #choose(index, scroll) {
    this.#tokenElement(this.current)?.classList.remove("current");
    this.current = index;
    const block = this.blocks[Math.floor(index / BLOCK)];
    if (block && !block.full) this.#fill(block);
    const element = this.#tokenElement(index);
    element?.classList.add("current");
    if (scroll) element?.scrollIntoView({ block: "nearest" });
    this.onToken({ segment: this.segment, index });
  }

  #tokenElement(index) {
    const block = this.blocks[Math.floor(index / BLOCK)];
    return index >= 0 && block?.full ? block.element.children[index - block.from] : null;
  }
}
