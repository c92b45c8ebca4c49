/** The keyboard: bindings of the whole page and of the view that is shown, and their help. */

import { h } from "./dom.js";

const SEQUENCE_MS = 1200;

/**
 * @typedef {{keys: string[], does: string, run: (event: KeyboardEvent) => void}} Binding  keys such as "j", "g r", "Enter"
 */

export class Keys {
  constructor() {
    /** @type {Binding[]} */
    this.ofPage = [];
    /** @type {Binding[]} */
    this.ofView = [];
    this.viewName = "";
    this.first = "";
    document.addEventListener("keydown", (event) => this.#pressed(event));
  }

  /** @param {string} name @param {Binding[]} bindings */
  setView(name, bindings) {
    this.viewName = name;
    this.ofView = bindings;
  }

  /** @param {KeyboardEvent} event */
  #pressed(event) {
    if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing || document.querySelector("dialog[open]")) return;
    const target = event.target;
    if (target instanceof HTMLElement && target.matches("input:not([type=checkbox]), textarea, select")) {
      if (event.key === "Escape") target.blur();
      return;
    }
    const onControl = target instanceof HTMLElement && target.matches("a[href], button, summary, input, [role=button]");
    if (onControl && (event.key === "Enter" || event.key === " ")) return;
    const key = this.first ? `${this.first} ${event.key}` : event.key;
    const all = [...this.ofView, ...this.ofPage];
    const bound = all.find((binding) => binding.keys.includes(key)) ?? all.find((binding) => binding.keys.includes(event.key));
    this.first = "";
    clearTimeout(this.timer);
    if (bound) {
      event.preventDefault();
      bound.run(event);
    } else if (all.some((binding) => binding.keys.some((each) => each.startsWith(`${event.key} `)))) {
      this.first = event.key;
      this.timer = setTimeout(() => (this.first = ""), SEQUENCE_MS);
    }
  }

  /** Show every binding in a dialog. */
  help() {
    const list = (title, bindings) => [
      h("h3", null, title),
      h("dl", { class: "keys" }, bindings.map((binding) => [h("dt", null, caps(binding.keys)), h("dd", null, binding.does)])),
    ];
    const dialog = h("dialog", { class: "help", "aria-label": "Keyboard" },
      h("button", { type: "button", class: "quiet close", "aria-label": "Close", on: { click: () => dialog.close() } }, "Esc"),
      h("h2", null, "Keyboard"),
      this.ofView.length ? list(this.viewName, this.ofView) : null,
      list("Everywhere", this.ofPage),
    );
    dialog.addEventListener("close", () => dialog.remove());
    dialog.addEventListener("keydown", (event) => {
      if (event.key === "?") dialog.close();
    });
    dialog.addEventListener("click", (event) => {
      if (event.target === dialog) dialog.close();
    });
    document.body.append(dialog);
    dialog.showModal();
  }
}

const SHOWN = { ArrowDown: "↓", ArrowUp: "↑", ArrowLeft: "←", ArrowRight: "→", Escape: "Esc" };

/** @param {string[]} keys */
function caps(keys) {
  return keys.map((key, i) => [i ? " or " : null, (key === " " ? ["Space"] : key.split(" ")).map((each, n) => [n ? " " : null, h("kbd", null, SHOWN[each] ?? each)])]);
}
