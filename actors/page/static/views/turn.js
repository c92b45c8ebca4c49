/** One turn of an episode: what the policy wrote, what it asked for, what came back, and how long each took. */

import { h } from "../modules/dom.js";
import { clock, count, duration, seconds } from "../modules/format.js";
import { versionSpans } from "../modules/marks.js";
import { foreign, longText, visible } from "../modules/text.js";
import { parts } from "./story.js";

const TOOLS = { search: ["⌕", "search"], access: ["⇲", "open page"] };

/**
 * @param {import("./story.js").Turn} turn
 * @param {{story: import("./story.js").Story, opened: Set<string>, longest_s: number, isLast: boolean}} context
 */
export function turnParts(turn, context) {
  const calls = turn.calls.map((call) => callPart(turn, call, context));
  return [
    ...turn.generations.map((generation) => generationPart(turn, generation, context)),
    ...calls,
    ...turn.shown.map((shown) => shownPart(shown, context)),
    timing(turn, context.longest_s),
  ];
}

/** @param {import("./story.js").Turn} turn @param {import("./story.js").Generation} generation */
function generationPart(turn, generation, { story, opened, isLast }) {
  const writing = generation.finish === null && isLast && !story.finished && !story.outcome;
  const long = generation.text.length > 6000;
  const text = long
    ? longText(generation.text, { kind: "wrote", preview: 3000, opened, key: `text-${generation.request}` })
    : h("p", { class: "wrote", dir: "auto" }, parts(generation.text.trimStart()).map((part) => h(part.sense === "tag" ? "code" : "span", { class: `is-${part.sense}` }, visible(part.text))), writing ? h("span", { class: "caret", role: "img", "aria-label": "writing" }) : null);
  const notes = [
    generation.reads ? "reads a page" : "", generation.forced ? "forced answer" : "", generation.n_asked > 1 ? `asked ${generation.n_asked} times` : "",
    generation.finish === "length" ? "cut off at its length" : generation.finish === "abort" ? "aborted" : "",
  ].filter(Boolean);
  return h("div", { class: "generation", data: { items: generation.items.join(" ") } }, text,
    h("div", { class: "about" },
      h("span", null, h("b", null, count(generation.n)), " tokens"),
      generation.n_prompt === null ? null : h("span", null, "after ", count(generation.n_prompt)),
      versionSpans(generation.versions, generation.n),
      generation.engine ? foreign(generation.engine) : null,
      notes.map((note) => h("span", { class: "note" }, note))));
}

/** @param {import("./story.js").Call} call */
function callPart(turn, call, context) {
  const [glyph, name] = TOOLS[call.tool] ?? ["⚒", call.tool || "call"];
  const back = call.returned;
  const took = back ? back.elapsed_ns / 1e9 : null;
  return h("div", { class: `call ${back?.error ? "failed" : ""}`, data: { items: call.items.join(" ") } },
    h("div", { class: "call-head" },
      h("span", { class: "tool" }, h("span", { "aria-hidden": "true" }, glyph), " ", visible(name)),
      h("div", { class: "argument" }, longText(call.argument, { preview: 600, opened: context.opened, key: `argument-${call.call}` })),
      h("span", { class: "call-took num" }, back ? duration(took) : context.story.outcome ? "no result" : h("span", { class: "waiting" }, "◑ waits"))),
    back?.error || back?.message ? h("p", { class: "call-error" }, back.error ? ["✗ ", visible(back.error)] : null, back.message ? [" ", foreign(back.message)] : null) : null,
    back?.documents?.length ? h("ol", { class: "documents" }, back.documents.map((each, i) => documentPart(each, `${call.call}-${i}`, call.tool, context))) : null,
    back && !back.error && !back.documents?.length ? h("p", { class: "faint" }, "nothing found") : null);
}

/** A result or a page. Its address is text, never a link: a model or a page wrote it. */
function documentPart(page, key, tool, { opened }) {
  return h("li", { class: "document" },
    h("div", { class: "document-head" }, page.title ? foreign(page.title, "title") : null, page.url ? foreign(page.url, "url") : null, h("span", { class: "faint num" }, `${count(page.text.length)} chars`)),
    page.text ? longText(page.text, { kind: "page", preview: tool === "access" ? 2000 : 700, opened, key: `document-${key}` }) : null);
}

/** What came into the policy's context after a result, as it saw it. */
function shownPart(shown, { story, opened }) {
  const pieces = shown.pieces.filter((piece) => piece.origin !== "generated");
  const lost = (shown.shortened ?? []).map((number) => story.pieces.get(number)?.turn).filter((turn) => turn !== undefined && turn >= 0);
  return [
    pieces.map((piece) => {
      const by = story.pieces.get(piece.piece)?.by;
      const key = `piece-${piece.piece}`;
      const details = h("details", { class: `saw ${by === null || by === undefined ? "" : "cut"}`, open: opened.has(key), data: { items: shown.id } },
        h("summary", null, piece.origin === "forced" ? "what it was told" : "what the policy saw", h("span", { class: "faint" }, ` ${count(piece.n_tokens)} tokens`),
          by === null || by === undefined ? null : h("span", { class: "shortened" }, `✂ shortened from turn ${by + 1} on`)),
        h("div", { class: "saw-text" }, longText(piece.text, { opened, key: `${key}-text` })));
      details.addEventListener("toggle", () => (details.open ? opened.add(key) : opened.delete(key)));
      return details;
    }),
    lost.length ? h("p", { class: "lost", data: { items: shown.id } }, h("span", { "aria-hidden": "true" }, "✂ "), `from here on the context no longer has in full what it saw in turn ${[...new Set(lost)].map((turn) => turn + 1).join(", ")}`) : null,
    pieces.length || lost.length ? null : h("span", { hidden: true, data: { items: shown.id } }),
  ];
}

/** Generating against waiting for tools, on the scale of the episode's longest turn. */
function timing(turn, longest_s) {
  const writes = turn.generations.reduce((sum, each) => sum + (each.elapsed_ns ?? 0) / 1e9, 0);
  const works = turn.calls.reduce((sum, call) => sum + (seconds(call.returned?.elapsed_ns) ?? 0), 0);
  const share = (value) => `${Math.max(value > 0 ? 0.4 : 0, (100 * value) / (longest_s || 1)).toFixed(2)}%`;
  return h("div", { class: "timing", title: `generating ${duration(writes)}, tools ${duration(works)}` },
    h("span", { class: "timing-track", role: "img", "aria-label": `generating ${duration(writes)}, tools ${duration(works)}` },
      h("span", { class: "writes", css: { width: share(writes) } }), h("span", { class: "works", css: { width: share(works) } })),
    h("span", { class: "num faint" }, `${duration(writes)} generating`, works > 0 ? `, ${duration(works)} tools` : ""));
}

/** The seconds of a turn, generating and tools together. @param {import("./story.js").Turn} turn */
export const turnSeconds = (turn) => turn.generations.reduce((sum, each) => sum + (each.elapsed_ns ?? 0) / 1e9, 0) + turn.calls.reduce((sum, call) => sum + (seconds(call.returned?.elapsed_ns) ?? 0), 0);

/** When a turn began, counted from the beginning of the episode. @param {import("./story.js").Turn} turn @param {number} began_ns */
export function turnHead(turn, began_ns) {
  const after = began_ns && turn.began_ns ? (turn.began_ns - began_ns) / 1e9 : null;
  return [h("span", { class: "turn-number" }, String(turn.turn + 1)), h("span", { class: "turn-at num", title: turn.began_ns ? clock(turn.began_ns, true) : null }, after === null ? "" : `+${duration(after)}`)];
}
