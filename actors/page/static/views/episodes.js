/** Every episode of the run: filtered, sorted, live. */

import { api, get } from "../modules/api.js";
import { fill, h } from "../modules/dom.js";
import { count, duration, short, when } from "../modules/format.js";
import { correctMark, fateMark, rewardBar, stageMark, versionMark } from "../modules/marks.js";
import { to } from "../modules/router.js";
import { foreign } from "../modules/text.js";
import { Windowed } from "../modules/windowed.js";
import { FilterBar } from "./episodes_filter.js";

/** [class, head, sort, title] of the columns. */
const COLUMNS = [
  ["c-stage", "stage", null, "Where it is"],
  ["c-name", "episode", null, ""],
  ["c-purpose", "purpose", null, ""],
  ["c-question", "question", null, ""],
  ["c-answer", "answer", null, ""],
  ["c-correct", "✓", null, "Correct"],
  ["c-reward", "reward", "reward", ""],
  ["c-turns num", "turns", "turns", "Generations"],
  ["c-searches num", "search", "searches", "Searches"],
  ["c-reads num", "reads", null, "Pages opened"],
  ["c-tokens num", "tokens", "tokens", "Generated tokens"],
  ["c-version", "policy", null, "The oldest version among its tokens"],
  ["c-fate", "fate", null, "What learning did with it, and at which step"],
  ["c-elapsed num", "took", "elapsed", "How long its last driver held it"],
  ["c-when num", "asked", "requested", "When it was requested"],
];

/** @param {any} page */
export async function show({ root, route, store, router, keys, announce, signal }) {
  const path = to(route.run, "episodes");
  const href = (row) => to(route.run, "episodes", row.episode);
  let filter = new URLSearchParams();

  const list = new Windowed({
    label: "Episodes",
    nameOf: (row) => row.episode,
    build: (row) => cells(row, href(row)),
    fetch: (offset, limit, stop) => {
      const query = new URLSearchParams(filter);
      query.set("offset", String(offset));
      query.set("limit", String(limit));
      return get(`${api(route.run, "episodes")}?${query}`, stop);
    },
    onState: (reply) => {
      const all = count(reply.n_total);
      bar.say(filter.size && reply.n_matching !== reply.n_total ? `${count(reply.n_matching)} of ${all} episodes` : `${all} episodes`);
      empty.hidden = reply.n_matching > 0;
      fill(empty, reply.n_total ? "No episode is like this. Esc clears the filter." : "No episode yet. They appear here as they are requested.");
      if (reply.n_left_out) empty.dataset.leftOut = String(reply.n_left_out);
    },
    onError: (error) => bar.say("", error.status ? error.message : ""),
  }, signal);

  const bar = new FilterBar(route.query, async (next) => {
    filter = next;
    router.amend(filter.size ? `${path}?${filter}` : path);
    showSort();
    await list.begin();
    announce(bar.said.textContent);
  });
  const heads = COLUMNS.map(([kind, text, sort, title]) => {
    const content = sort ? h("button", { type: "button", title: title || `Sort by ${text}`, data: { sort }, on: { click: () => bar.sortBy(sort) } }, text) : h("span", { title: title || null }, text);
    return h("span", { class: kind, role: "columnheader" }, content);
  });
  const showSort = () => {
    const { by, ascending } = bar.sort;
    for (const head of heads) {
      const button = head.querySelector("button");
      if (!button) continue;
      const on = button.dataset.sort === by;
      head.setAttribute("aria-sort", on ? (ascending ? "ascending" : "descending") : "none");
    }
  };
  const empty = h("p", { class: "empty-list", hidden: true });
  fill(root, h("h1", { class: "unseen" }, `Episodes of ${route.run}`), bar.element,
    h("div", { class: "list" }, h("div", { class: "row heads", role: "row" }, heads), list.element, empty));
  filter = bar.filter;
  showSort();

  const keep = () => router.remember(list.place);
  const open = (part = "") => {
    if (!list.selectedRow) return;
    keep();
    router.go(href(list.selectedRow) + part);
  };
  keys.setView("Episodes", [
    { keys: ["j", "ArrowDown"], does: "next episode", run: () => list.move(1) },
    { keys: ["k", "ArrowUp"], does: "previous episode", run: () => list.move(-1) },
    { keys: ["Enter", "o"], does: "open it", run: () => open() },
    { keys: ["t"], does: "its tokens", run: () => open("/tokens") },
    { keys: ["/"], does: "search", run: () => bar.focus() },
    { keys: ["PageDown", " "], does: "a screen on", run: () => list.element.scrollBy({ top: list.element.clientHeight - 60 }) },
    { keys: ["PageUp"], does: "a screen back", run: () => list.element.scrollBy({ top: 60 - list.element.clientHeight }) },
    { keys: ["Home"], does: "first", run: () => list.select(0) },
    { keys: ["End"], does: "last", run: () => list.select(list.n - 1) },
    { keys: ["Escape"], does: "clear the filter", run: () => filter.size && bar.reset() },
    { keys: ["u"], does: "back to the run", run: () => router.back(to(route.run)) },
  ]);
  bar.controls.get("text").addEventListener("keydown", (event) => {
    if (event.key !== "Enter" && event.key !== "ArrowDown") return;
    event.preventDefault();
    list.element.focus();
    list.select(0);
  });
  list.element.addEventListener("click", keep, { capture: true });
  list.element.addEventListener("scrollend", keep);
  store.watchRows(() => void list.refresh(), signal);
  store.addEventListener("again", () => void list.refresh(), { signal });
  await list.begin(router.kept ?? {});
  if (signal.aborted) return;
  if (!document.activeElement || document.activeElement === document.body) list.element.focus({ preventScroll: true });
}

/** @param {import("../modules/types.js").EpisodeRow} row @param {string} href */
function cells(row, href) {
  const contents = [
    stageMark(row.stage),
    h("a", { class: "row-link", href, tabindex: "-1" }, foreign(row.episode)),
    h("span", { class: `purpose purpose-${row.purpose === "train" ? "train" : "other"}` }, row.label ? [row.purpose, h("span", { class: "faint" }, ` ${row.label}`)] : row.purpose),
    foreign(row.question),
    row.answer === null ? h("span", { class: "faint" }, row.ending === "answered" || !row.ending ? "" : row.ending) : foreign(row.answer),
    correctMark(row.correct),
    rewardBar(row.reward),
    ...[count(row.n_turns), count(row.n_searches), count(row.n_reads), short(row.n_tokens)].map((text) => (text === "0" ? h("span", { class: "faint" }, text) : text)),
    versionMark(row.version),
    row.fate ? h("span", { title: row.reason ? row.reason.replaceAll("_", " ") : null }, fateMark(row.fate), row.step === null ? null : h("span", { class: "faint" }, ` @${row.step}`)) : row.reason ? h("span", { class: "no" }, foreign(row.reason.replaceAll("_", " "))) : null,
    duration(row.elapsed_s),
    when(row.requested_ns),
  ];
  return contents.map((content, i) => h("span", { class: COLUMNS[i][0], role: "gridcell" }, content));
}
