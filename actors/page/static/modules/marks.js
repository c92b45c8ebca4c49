/** Small marks that mean the same in every view. */

import { h } from "./dom.js";
import { fixed, NOTHING, known } from "./format.js";
import { FATES, STAGES, versionColour, N_COLOURS } from "./palette.js";

/** @param {string} stage */
export function stageMark(stage) {
  const [glyph, name] = STAGES[stage] ?? ["?", stage];
  return h("span", { class: `stage stage-${STAGES[stage] ? stage : "other"}`, title: name }, h("span", { class: "glyph", "aria-hidden": "true" }, glyph), h("span", { class: "stage-name" }, name));
}

/** @param {string} fate */
export function fateMark(fate) {
  if (!fate) return null;
  const [glyph, name] = FATES[fate] ?? ["?", fate];
  return h("span", { class: `fate fate-${FATES[fate] ? fate : "other"}` }, h("span", { class: "glyph", "aria-hidden": "true" }, glyph), name);
}

/** @param {boolean | null | undefined} correct */
export function correctMark(correct) {
  if (correct === null || correct === undefined) return h("span", { class: "faint" }, NOTHING);
  return h("span", { class: correct ? "yes" : "no", title: correct ? "correct" : "not correct", role: "img", "aria-label": correct ? "correct" : "not correct" }, correct ? "✓" : "✗");
}

/** A reward with a bar of its share of one. @param {number | null | undefined} reward */
export function rewardBar(reward) {
  if (!known(reward)) return h("span", { class: "reward none" }, NOTHING);
  const width = Math.max(0, Math.min(1, Math.abs(reward)));
  return h("span", { class: `reward ${reward < 0 ? "negative" : ""}` },
    width === 0 ? null : h("span", { class: "reward-bar", css: { width: `${(width * 100).toFixed(0)}%` }, "aria-hidden": "true" }),
    h("span", { class: "num" }, fixed(reward, 2)));
}

/** An advantage: a bar to the right of the middle if above, to the left if below. @param {number | null | undefined} advantage @param {number} [most] */
export function advantageBar(advantage, most = 1) {
  if (!known(advantage)) return h("span", { class: "faint" }, NOTHING);
  const share = Math.min(1, Math.abs(advantage) / (most || 1)) * 50;
  return h("span", { class: "advantage", title: "advantage" },
    h("span", { class: "advantage-track", "aria-hidden": "true" },
      h("span", { class: advantage < 0 ? "below" : "above", css: { width: `${share.toFixed(1)}%` } })),
    h("span", { class: "num" }, `${advantage > 0 ? "+" : advantage < 0 ? "−" : ""}${Math.abs(advantage).toFixed(3)}`));
}

/** A policy version. @param {string} version */
export function versionMark(version) {
  if (!version) return h("span", { class: "faint" }, NOTHING);
  return h("span", { class: "version", title: `policy version ${version} (lineage.step)` },
    h("span", { class: `dot v${versionColour(version) % N_COLOURS}`, "aria-hidden": "true" }), version);
}

/** A bar of version spans over n tokens. @param {{version: string, start: number, end: number}[]} versions @param {number} n */
export function versionSpans(versions, n) {
  return h("span", { class: "spans", role: "img", "aria-label": versions.map((v) => `${v.version}: tokens ${v.start} to ${v.end - 1}`).join(", ") },
    versions.map((each) => h("span", {
      class: `span v${versionColour(each.version) % N_COLOURS}`,
      css: { "flex-grow": Math.max(1, each.end - each.start) },
      title: `policy ${each.version}: tokens ${each.start}–${each.end - 1} of ${n}`,
    }, each.version)));
}
