/** The filter of the list. Its fields are those of the address, so that a filtered list has a link. */

import { fill, h } from "../modules/dom.js";
import { foreign } from "../modules/text.js";

const TYPED_MS = 60;
const ANY = ["", "any"];

/** [name, label, choices] of selects; a choice is [value, text]. */
const CHOICES = [
  ["purpose", "purpose", [ANY, ["train", "train"], ["eval", "eval"], ["synthesis", "synthesis"]]],
  ["stage", "stage", [ANY, ["open", "open"], ["ended", "ended"], ["waiting", "○ waiting"], ["generating", "◔ generating"], ["tool", "◑ tool"], ["grading", "◕ grading"],
    ["graded", "● graded"], ["dropped", "✕ dropped"], ["dead", "✖ dead"]]],
  ["ending", "ending", [ANY, ["answered", "answered"], ["forced", "forced"], ["ended", "ended"], ["malformed", "malformed"], ["exhausted", "exhausted"]]],
  ["fate", "fate", [ANY, ["queued", "◷ queued"], ["counted", "✓ counted"], ["discarded", "⊘ discarded"]]],
  ["correct", "correct", [ANY, ["true", "✓ yes"], ["false", "✗ no"]]],
];
const TYPED = [["task", "task", 9], ["version", "policy", 3]];
const RANGES = [["reward", "reward", "any"], ["turns", "turns", "1"]];
/** Fields that links set and that have no control of their own. */
const LINKED = ["group", "label", "reason", "min_tokens", "max_tokens"];
export const FIELDS = ["text", ...CHOICES.map(([name]) => name), ...TYPED.map(([name]) => name), ...RANGES.flatMap(([name]) => [`min_${name}`, `max_${name}`]), ...LINKED, "sort", "ascending"];

export class FilterBar {
  /** @param {URLSearchParams} query @param {(filter: URLSearchParams) => void} onChange */
  constructor(query, onChange) {
    this.onChange = onChange;
    /** @type {Map<string, HTMLInputElement | HTMLSelectElement>} */
    this.controls = new Map();
    this.linked = new Map(LINKED.concat("sort", "ascending").map((name) => [name, query.get(name) ?? ""]));
    const text = this.#input("text", { type: "search", placeholder: "question, answer, task or episode", class: "filter-text", "aria-label": "Text", spellcheck: "false", "aria-keyshortcuts": "/" });
    this.said = h("span", { class: "filter-count", role: "status" });
    this.error = h("p", { class: "filter-error", role: "alert", hidden: true });
    this.chips = h("span", { class: "chips" });
    this.clear = h("button", { type: "button", class: "quiet", on: { click: () => this.reset() } }, "clear");
    const fields = h("div", { class: "filter-fields", id: "filter-fields" },
      CHOICES.map(([name, label, choices]) => this.#field(label, this.#select(name, choices))),
      TYPED.map(([name, label, size]) => this.#field(label, this.#input(name, { type: "text", size, spellcheck: "false" }))),
      RANGES.map(([name, label, step]) => h("fieldset", { class: "field" }, h("legend", null, label),
        this.#input(`min_${name}`, { type: "number", step, "aria-label": `least ${label}`, placeholder: "from" }), h("span", { "aria-hidden": "true" }, "–"),
        this.#input(`max_${name}`, { type: "number", step, "aria-label": `most ${label}`, placeholder: "to" }))));
    this.more = h("button", { type: "button", class: "filter-more", "aria-expanded": "false", "aria-controls": "filter-fields", on: { click: () => this.#toggle() } }, "filters");
    this.element = h("form", { class: "filter", role: "search", on: { submit: (event) => event.preventDefault() } },
      h("div", { class: "filter-first" }, h("kbd", { "aria-hidden": "true" }, "/"), text, this.more, this.chips, this.clear, this.said), fields, this.error);
    this.set(query);
  }

  /** @param {URLSearchParams} query */
  set(query) {
    for (const [name, control] of this.controls) control.value = query.get(name) ?? "";
    for (const name of this.linked.keys()) this.linked.set(name, query.get(name) ?? "");
    this.#show();
  }

  /** What is asked for now, without what is unset. */
  get filter() {
    const found = new URLSearchParams();
    for (const name of FIELDS) {
      const value = (this.controls.get(name)?.value ?? this.linked.get(name) ?? "").trim();
      if (value && !(name === "sort" && value === "requested") && !(name === "ascending" && value === "false")) found.set(name, value);
    }
    return found;
  }

  focus() {
    const text = this.controls.get("text");
    text?.focus();
    text?.select();
  }

  reset() {
    this.set(new URLSearchParams());
    this.#changed();
  }

  /** Sort by a field; by the same once more: the other way round. @param {string} sort */
  sortBy(sort) {
    const same = (this.linked.get("sort") || "requested") === sort;
    this.linked.set("ascending", same && this.linked.get("ascending") !== "true" ? "true" : "");
    this.linked.set("sort", sort);
    this.#changed();
  }

  get sort() {
    return { by: this.linked.get("sort") || "requested", ascending: this.linked.get("ascending") === "true" };
  }

  /** @param {string} said @param {string} [error] */
  say(said, error = "") {
    if (said) this.said.textContent = said;
    this.error.hidden = !error;
    fill(this.error, error ? foreign(error) : null);
  }

  #toggle() {
    const open = this.element.classList.toggle("open");
    this.more.setAttribute("aria-expanded", String(open));
  }

  #input(name, attributes) {
    const input = h("input", { name, autocomplete: "off", ...attributes });
    input.addEventListener("input", () => {
      clearTimeout(this.timer);
      this.timer = setTimeout(() => this.#changed(), TYPED_MS);
    });
    this.controls.set(name, input);
    return input;
  }

  #select(name, choices) {
    const select = h("select", { name, on: { change: () => this.#changed() } }, choices.map(([value, text]) => h("option", { value }, text)));
    this.controls.set(name, select);
    return select;
  }

  #field(label, control) {
    return h("label", { class: "field" }, h("span", null, label), control);
  }

  #changed() {
    clearTimeout(this.timer);
    this.#show();
    this.onChange(this.filter);
  }

  #show() {
    for (const control of this.controls.values()) control.classList.toggle("set", control.value !== "");
    const filter = this.filter;
    const n = [...filter.keys()].filter((name) => !["text", "sort", "ascending"].includes(name)).length;
    this.more.textContent = n ? `filters (${n})` : "filters";
    this.clear.hidden = ![...filter.keys()].length;
    fill(this.chips, LINKED.filter((name) => this.linked.get(name)).map((name) => h("button", {
      type: "button", class: "chip", "aria-label": `no longer by ${name}`, on: { click: () => { this.linked.set(name, ""); this.#changed(); } },
    }, h("span", { class: "faint" }, `${name.replace("_", " ")} `), foreign(this.linked.get(name)), " ×")));
  }
}
