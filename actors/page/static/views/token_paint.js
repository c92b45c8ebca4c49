/** How tokens are coloured. Every class has a sign besides its colour: a line under, over, or through the token. */

import { h } from "../modules/dom.js";
import { fixed, known, percent } from "../modules/format.js";
import { N_COLOURS, versionColour } from "../modules/palette.js";

/** [name, label, what it is]. */
export const MODES = [
  ["mask", "mask", "who wrote it and what is trained"],
  ["logprob", "log-prob", "log-probability at rollout"],
  ["difference", "train − rollout", "difference of log-probabilities"],
  ["version", "version", "policy version"],
];
const LEVELS = 7;
const NAT_EDGES = [-0.01, -0.1, -0.5, -1, -2, -4];

/**
 * @typedef {{mode: string, most: number, trained: boolean}} Scale  trained: an update has recorded tokens of the episode
 * @param {string} mode
 * @param {import("../modules/types.js").TokenSegment[]} segments
 * @returns {Scale}
 */
export function scaleOf(mode, segments) {
  let most = 0;
  if (mode === "difference") {
    for (const segment of segments) segment.train_logprobs?.forEach((value, i) => {
      if (known(value) && known(segment.logprobs[i])) most = Math.max(most, Math.abs(value - segment.logprobs[i]));
    });
  }
  return { mode, most, trained: segments.some((segment) => segment.train_logprobs) };
}

/** Whether the update that took the episode took it without this token. */
const isLeftOut = (segment, i, scale) => scale.trained && segment.mask[i] === 1 && !known(segment.train_logprobs?.[i]);

/**
 * The class of a token.
 * @param {import("../modules/types.js").TokenSegment} segment @param {number} i @param {Scale} scale @param {(string | undefined)[]} versions by place @param {string[]} origins by place
 */
export function classOf(segment, i, scale, versions, origins) {
  const own = segment.mask[i] ? "own" : "given";
  if (scale.mode === "mask") {
    // What an update took it says token by token: a token of the policy that is not among them was too old.
    if (segment.mask[i]) return isLeftOut(segment, i, scale) ? "own stale" : "own trained";
    return origins[i] === "generated" ? "own masked" : `given from-${origins[i] ?? "prompt"}`;
  }
  if (scale.mode === "version") return segment.mask[i] || versions[i] ? `${own} tv${versionColour(versions[i] ?? "") % N_COLOURS}` : own;
  const before = segment.logprobs[i];
  if (scale.mode === "logprob") {
    if (!known(before)) return own;
    const level = NAT_EDGES.findIndex((edge) => before > edge);
    return `${own} q${level < 0 ? LEVELS - 1 : level}`;
  }
  const after = segment.train_logprobs?.[i];
  if (isLeftOut(segment, i, scale)) return "own stale";
  if (!known(before) || !known(after)) return own;
  const share = scale.most ? Math.abs(after - before) / scale.most : 0;
  const level = Math.min(3, Math.ceil(share * 3));
  return `${own} ${level === 0 ? "d0" : after > before ? `up${level}` : `down${level}`}`;
}

const swatch = (kind, text) => h("span", { class: "swatch" }, h("span", { class: `token ${kind}`, "aria-hidden": "true" }, "abc"), ` ${text}`);

/** @param {string} mode @param {Scale} scale @param {import("../modules/types.js").TokenSegment[]} segments */
export function legend(mode, scale, segments) {
  const leftOut = segments.some((segment) => segment.ids.some((_, i) => isLeftOut(segment, i, scale))) ? swatch("own stale", "left out by the update: too old") : null;
  if (mode === "mask") {
    return [swatch("own trained", "generated, in the loss (mask 1)"), leftOut, swatch("own masked", "generated, not in the loss"), swatch("given from-prompt", "prompt"), swatch("given from-tool", "tool text"), swatch("given from-forced", "put in by the agent")];
  }
  if (mode === "logprob") {
    const texts = ["> −0.01", "> −0.1", "> −0.5", "> −1", "> −2", "> −4", "less"];
    return [h("span", { class: "faint" }, "log-prob, nats: "), texts.map((text, i) => swatch(`own q${i}`, i < NAT_EDGES.length ? `${text} (p > ${percent(Math.exp(NAT_EDGES[i]))})` : text))];
  }
  if (mode === "difference") {
    if (!segments.some((segment) => segment.train_logprobs)) return [h("span", { class: "faint" }, "no update has trained on this episode, so there is no log-prob at training")];
    return [swatch("own down3", `less likely at training, up to −${fixed(scale.most, 4)} nats`), swatch("own d0", "the same"), swatch("own up3", `more likely, up to +${fixed(scale.most, 4)} nats`), leftOut];
  }
  const versions = [...new Set(segments.flatMap((segment) => segment.versions.map((run) => run.version)))];
  return versions.length ? versions.map((version) => swatch(`own tv${versionColour(version) % N_COLOURS}`, version)) : [h("span", { class: "faint" }, "no version: nothing was generated")];
}
