/** What is wrong now, at the top of the page, since when, and what to do. It goes when all is well again. */

import { fill, h } from "./dom.js";
import { visible } from "./text.js";
import { clock } from "./format.js";

/**
 * @typedef {{title: string, detail?: string, todo: string, command?: string, level?: "bad" | "warn", sinceMs?: number}} Trouble
 */

export class Banner {
  /** @param {HTMLElement} element */
  constructor(element) {
    this.element = element;
    /** @type {Map<string, Trouble & {sinceMs: number}>} */
    this.troubles = new Map();
  }

  /** @param {string} key @param {Trouble | null} trouble null: this is well again */
  set(key, trouble) {
    const before = this.troubles.get(key);
    if (!trouble) {
      if (!this.troubles.delete(key)) return;
    } else {
      const next = { ...trouble, sinceMs: trouble.sinceMs ?? before?.sinceMs ?? Date.now() };
      if (JSON.stringify(next) === JSON.stringify(before)) return;
      this.troubles.set(key, next);
    }
    this.#show();
  }

  /** Forget the troubles whose key begins so. @param {string} prefix */
  clear(prefix) {
    for (const key of [...this.troubles.keys()]) if (key.startsWith(prefix)) this.set(key, null);
  }

  #show() {
    fill(this.element, [...this.troubles].map(([key, trouble]) =>
      h("div", { class: `trouble ${trouble.level ?? "bad"}`, data: { trouble: key } },
        h("span", { class: "mark", "aria-hidden": "true" }, trouble.level === "warn" ? "▲" : "■"),
        h("p", null,
          h("strong", null, visible(trouble.title)), ` since ${clock(trouble.sinceMs * 1e6)}. `,
          trouble.detail ? [visible(trouble.detail), " "] : null,
          visible(trouble.todo), trouble.command ? [" ", h("code", null, visible(trouble.command))] : null,
        ),
      ),
    ));
  }
}
