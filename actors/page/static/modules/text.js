/** Text of pages and models. It is always text: isolated from its surroundings, with unseen characters made visible. */

import { h } from "./dom.js";
import { count } from "./format.js";

const PREVIEW = 2000;
const MOST_MARKED = 400;
/** Controls, bidirectional marks, zero-width and other unseen characters, and halves of surrogate pairs. */
const UNSEEN =
  // eslint-disable-next-line no-control-regex
  /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u00ad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb]|[\ud800-\udbff](?![\udc00-\udfff])|(?<![\ud800-\udbff])[\udc00-\udfff]/g;
const NAMES = {
  0x00: "NUL", 0x0d: "CR", 0x1b: "ESC", 0xad: "SHY", 0x061c: "ALM", 0x200b: "ZWSP", 0x200c: "ZWNJ", 0x200d: "ZWJ", 0x200e: "LRM", 0x200f: "RLM",
  0x202a: "LRE", 0x202b: "RLE", 0x202c: "PDF", 0x202d: "LRO", 0x202e: "RLO", 0x2060: "WJ", 0x2066: "LRI", 0x2067: "RLI",
  0x2068: "FSI", 0x2069: "PDI", 0xfeff: "BOM",
};

/** How an unseen character is written. @param {string} character */
function label(character) {
  const code = character.charCodeAt(0);
  return NAMES[code] ?? `U+${code.toString(16).toUpperCase().padStart(4, "0")}`;
}

/**
 * Text nodes and marks of a text. Joiners between letters (emoji, Indic scripts) are left as they are.
 * @param {string} text
 * @returns {(Node | string)[]}
 */
export function visible(text) {
  const parts = [];
  let from = 0;
  for (const found of text.matchAll(UNSEEN)) {
    const at = found.index;
    if (isJoiner(text, at)) continue;
    if (parts.length > 2 * MOST_MARKED) {
      // A text made of such characters must not become a million elements.
      parts.push(text.slice(from).replace(UNSEEN, (character) => `‹${label(character)}›`));
      return parts;
    }
    if (at > from) parts.push(text.slice(from, at));
    const name = label(found[0]);
    const code = found[0].charCodeAt(0).toString(16).toUpperCase().padStart(4, "0");
    parts.push(h("span", { class: "unseen-mark", title: `unseen character U+${code}` }, name));
    from = at + found[0].length;
  }
  if (from < text.length) parts.push(text.slice(from));
  return parts;
}

/** @param {string} text @param {number} at */
function isJoiner(text, at) {
  const code = text.charCodeAt(at);
  return (code === 0x200d || code === 0x200c) && at > 0 && at + 1 < text.length && text.charCodeAt(at - 1) > 0x7f && text.charCodeAt(at + 1) > 0x7f;
}

/** A short foreign text within a line. @param {string | null | undefined} text @param {string} [kind] */
export function foreign(text, kind = "") {
  return h("bdi", { class: `foreign ${kind}` }, visible(clip(String(text ?? ""), PREVIEW)));
}

/** At most n characters, never half of one. @param {string} text @param {number} n */
export function clip(text, n) {
  if (text.length <= n) return text;
  const cut = /[\ud800-\udbff]/.test(text[n - 1]) ? n - 1 : n;
  return `${text.slice(0, cut)}…`;
}

/**
 * A foreign text of any length: the beginning, and a button for all of it.
 * @param {string} text
 * @param {{kind?: string, preview?: number, opened?: Set<string>, key?: string}} [options] opened: keys of texts that are shown in full
 */
export function longText(text, { kind = "", preview = PREVIEW, opened, key = "" } = {}) {
  const box = h("div", { class: `long ${kind}` });
  const all = () => {
    opened?.add(key);
    box.replaceChildren(
      h("div", { class: "long-full", tabindex: "0", role: "region", "aria-label": "whole text" }, blocks(text)),
      h("button", { type: "button", class: "quiet", on: { click: less } }, `show the first ${count(preview)} characters`),
    );
  };
  const less = () => {
    opened?.delete(key);
    box.replaceChildren(h("div", { class: "long-part", dir: "auto" }, visible(clip(text, preview))));
    if (text.length > preview) {
      box.append(h("button", { type: "button", class: "quiet", on: { click: all } }, `show all ${count(text.length)} characters`));
    }
  };
  if (text.length > preview && opened?.has(key)) all();
  else less();
  return box;
}

/** A long text in blocks that the browser lays out when they come into view. @param {string} text */
function blocks(text) {
  const size = 16_000;
  const found = [];
  for (let from = 0; from < text.length; ) {
    let to = Math.min(text.length, from + size);
    const newline = text.lastIndexOf("\n", to);
    if (to < text.length && newline > from) to = newline + 1;
    else if (to < text.length && /[\ud800-\udbff]/.test(text[to - 1])) to -= 1;
    found.push(h("div", { class: "long-block", dir: "auto" }, visible(text.slice(from, to))));
    from = to;
  }
  return found;
}
