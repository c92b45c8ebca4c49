/** One episode, turn by turn as it happens. */

import { api, get } from "../modules/api.js";
import { add, fill, h } from "../modules/dom.js";
import { Feed } from "../modules/feed.js";
import { count } from "../modules/format.js";
import { to } from "../modules/router.js";
import { foreign, longText } from "../modules/text.js";
import { side } from "./episode_side.js";
import { Story } from "./story.js";
import { turnHead, turnParts, turnSeconds } from "./turn.js";

/** @param {any} page */
export async function show({ root, route, store, router, keys, announce, signal }) {
  const view = new EpisodeView(route, announce);
  const around = await get(api(route.run, "episodes", route.episode), signal);
  if (signal.aborted) return;
  view.around = around;
  for (const item of around.items) view.take(item);
  fill(root, view.element);
  view.draw();

  const path = api(route.run, "episodes", route.episode);
  const reload = async () => {
    try {
      Object.assign(view.around, await get(path, signal), { items: [] });
      // With the turns, so that no outcome stands there before the turns that led to it.
      view.drawSoon();
    } catch {
      // It is asked again with the next change.
    }
  };
  const feed = new Feed(`${path}/feed`, {
    item: (item) => {
      const ended = !view.story.outcome && item.kind === "outcome";
      if (!view.take(item)) return;
      view.drawSoon();
      if (ended) void reload();
    },
    row: (row) => {
      const settled = row.fate !== view.around.row?.fate || row.stage !== view.around.row?.stage;
      view.around.row = row;
      view.drawSoon();
      if (settled) void reload();
    },
    reset: () => {
      feed.forget();
      view.reset();
    },
    broker: (broker) => store.heardOfBroker(broker),
  }, (state) => store.heard(state));
  store.leaveToView(true);
  signal.addEventListener("abort", () => {
    feed.close();
    store.leaveToView(false);
  }, { once: true });
  store.addEventListener("again", () => void reload(), { signal });

  const up = to(route.run, "episodes");
  const turnTo = (name) => name && router.go(to(route.run, "episodes", name), { replace: false });
  keys.setView("Episode", [
    { keys: ["j", "ArrowDown"], does: "next turn", run: () => view.move(1) },
    { keys: ["k", "ArrowUp"], does: "previous turn", run: () => view.move(-1) },
    { keys: ["Enter", "o"], does: "see what the policy saw in this turn", run: () => view.toggle() },
    { keys: ["x"], does: "see or hide all that the policy saw", run: () => view.toggleAll() },
    { keys: ["t"], does: "token by token", run: () => router.go(`${to(route.run, "episodes", route.episode)}/tokens`) },
    { keys: ["g g"], does: "its group", run: () => view.around.group && router.go(to(route.run, "groups", view.around.group.group)) },
    { keys: ["]", "n"], does: "next episode", run: () => turnTo(view.around.next) },
    { keys: ["[", "p"], does: "previous episode", run: () => turnTo(view.around.previous) },
    { keys: ["y"], does: "copy the link", run: () => navigator.clipboard?.writeText(location.href).then(() => announce("link copied")) },
    { keys: ["f"], does: "follow the newest turn", run: () => view.follow() },
    { keys: ["Escape", "u"], does: "back to the list", run: () => router.back(up) },
  ]);
  const wanted = Number(location.hash.match(/^#turn-(\d+)$/)?.[1]);
  if (wanted) view.select(wanted - 1);
}

class EpisodeView {
  /** @param {import("../modules/router.js").Route} route @param {(text: string) => void} announce */
  constructor(route, announce) {
    this.route = route;
    this.announce = announce;
    this.story = new Story();
    this.around = null;
    this.opened = new Set();
    this.selected = -1;
    this.following = false;
    /** @type {Map<number, {element: HTMLElement, revision: string}>} */
    this.turns = new Map();
    this.changed = new Set();
    this.head = h("header", { class: "episode-head" });
    this.opening = h("div", { class: "opening" });
    this.list = h("ol", { class: "turns", "aria-label": "Turns" });
    this.ending = h("div", { class: "ending" });
    this.aside = h("aside", { class: "side", "aria-label": "About this episode" });
    this.element = h("div", { class: "episode" }, h("div", { class: "story" }, this.head, this.opening, this.list, this.ending), this.aside);
  }

  /** @param {import("../modules/types.js").Item} item @returns {boolean} whether it was new */
  take(item) {
    const turns = this.story.take(item);
    if (turns === null) return false;
    for (const turn of turns) this.changed.add(turn);
    return true;
  }

  reset() {
    this.story.reset();
    this.turns.clear();
    this.changed.clear();
    fill(this.list);
    this.drawSoon();
  }

  drawSoon() {
    if (this.frame) return;
    this.frame = requestAnimationFrame(() => {
      this.frame = 0;
      this.draw();
    });
  }

  draw() {
    const longest = Math.max(0, ...this.story.inOrder.map(turnSeconds));
    if (longest !== this.longest) {
      this.longest = longest;
      for (const turn of this.story.turns.keys()) this.changed.add(turn);
    }
    for (const number of [...this.changed].sort((a, b) => a - b)) this.#drawTurn(number);
    this.changed.clear();
    this.drawAround();
    if (this.following) this.list.lastElementChild?.scrollIntoView({ block: "end" });
  }

  #drawTurn(number) {
    const turn = this.story.turns.get(number);
    if (!turn) return;
    let element = this.turns.get(number);
    if (!element) {
      element = h("li", { class: "turn", id: `turn-${number + 1}`, tabindex: "-1", data: { turn: number } });
      element.addEventListener("focusin", () => this.#mark(number));
      element.addEventListener("click", () => this.#mark(number));
      this.turns.set(number, element);
      const later = [...this.turns.keys()].filter((each) => each > number).sort((a, b) => a - b)[0];
      this.list.insertBefore(element, later === undefined ? null : this.turns.get(later));
    }
    const context = { story: this.story, opened: this.opened, longest_s: this.longest, isLast: number === this.story.newest };
    fill(element, h("div", { class: "gutter" }, turnHead(turn, this.story.began_ns)), h("div", { class: "turn-body" }, turnParts(turn, context)));
    element.classList.toggle("selected", number === this.selected);
  }

  /** All but the turns. */
  drawAround() {
    const { row, key, trouble, previous, next } = this.around;
    const run = this.route.run;
    const state = JSON.stringify([this.around, this.story.items.size]);
    if (state === this.drawn) return;
    this.drawn = state;
    const neighbour = (name, text, label) => (name ? h("a", { href: to(run, "episodes", name), title: name, "aria-label": label }, text) : h("span", { class: "faint" }, text));
    fill(this.head,
      h("nav", { class: "crumbs", "aria-label": "Neighbours" }, h("a", { href: to(run, "episodes") }, "episodes"), " / ",
        row ? [h("a", { href: `${to(run, "episodes")}?task=${encodeURIComponent(row.task)}` }, foreign(row.task)), " / "] : null, h("b", null, foreign(this.route.episode)),
        h("span", { class: "neighbours" }, neighbour(previous, "‹ previous", "previous episode"), neighbour(next, "next ›", "next episode"))),
      h("h1", { class: "question" }, foreign(row?.question ?? this.route.episode)),
      this.#numbers(row),
      key ? h("div", { class: "key-box" }, h("span", { class: "key-label", title: "Graders, declared tools and this page read it; the policy never does" }, "◆ answer key, not seen by the policy"),
        h("span", { class: "key-answers" }, key.answers.map((answer) => foreign(answer, "answer"))),
        key.aug_answers?.length ? h("span", { class: "faint" }, "also: ", key.aug_answers.map((answer, i) => [i ? ", " : "", foreign(answer)])) : null) : null,
      trouble ? h("p", { class: "warn-text" }, "▲ ", foreign(trouble)) : null);
    this.#drawOpening();
    this.#drawEnding();
    fill(this.aside, side(run, { ...this.around, story: this.story }));
  }

  #numbers(row) {
    const story = this.story;
    const calls = story.inOrder.flatMap((turn) => turn.calls);
    const n = (value, one, many) => h("span", null, h("b", null, count(value)), ` ${value === 1 ? one : many}`);
    return h("p", { class: "numbers" }, n(story.turns.size, "turn", "turns"), n(calls.filter((call) => call.tool === "search").length, "search", "searches"),
      n(calls.filter((call) => call.tool === "access").length, "page", "pages"),
      n(story.inOrder.reduce((sum, turn) => sum + turn.generations.reduce((s, each) => s + each.n, 0), 0), "token", "tokens"),
      row?.hops ? n(Number(row.hops), "hop", "hops") : null, row ? h("span", null, row.purpose, row.label ? ` ${row.label}` : "") : null,
      story.outcome ? null : h("span", { class: "live" }, h("span", { class: "pulse", "aria-hidden": "true" }), "live"));
  }

  #drawOpening() {
    const opening = this.story.opening;
    if (!opening || this.opening.childElementCount) return;
    const tokens = opening.pieces.reduce((sum, piece) => sum + piece.n_tokens, 0);
    const details = h("details", { class: "saw", data: { items: "opening" } }, h("summary", null, "prompt", h("span", { class: "faint" }, ` ${count(tokens)} tokens`)),
      h("div", { class: "saw-text" }, opening.pieces.map((piece, i) => longText(piece.text, { opened: this.opened, key: `opening-${i}` }))));
    fill(this.opening, details);
  }

  #drawEnding() {
    const { finished, outcome } = this.story;
    const answer = outcome?.answer ?? finished?.answer;
    const parts = [];
    if (finished || outcome) {
      const correct = outcome?.correct;
      parts.push(h("div", { class: `answer-box ${correct === true ? "right" : correct === false ? "wrong" : ""}`, data: { items: [finished?.id, outcome?.id].filter(Boolean).join(" ") } },
        h("span", { class: "answer-label" }, correct === true ? "✓ correct answer" : correct === false ? "✗ answer" : outcome && outcome.outcome !== "graded" ? `✕ ${outcome.outcome}` : "answer"),
        answer === null || answer === undefined ? h("span", { class: "faint" }, `none (${outcome?.status ?? finished?.status ?? outcome?.reason ?? ""})`) : longText(answer, { kind: "answer-text", preview: 1000, opened: this.opened, key: "answer" })));
    } else if (this.story.turns.size === 0) {
      parts.push(h("p", { class: "faint" }, this.story.takes.length ? "its first turn is under way" : "no driver has it yet"));
    }
    fill(this.ending);
    add(this.ending, parts);
  }

  move(by) {
    const numbers = this.story.inOrder.map((turn) => turn.turn);
    if (!numbers.length) return;
    const place = numbers.indexOf(this.selected);
    this.select(numbers[Math.max(0, Math.min(numbers.length - 1, place < 0 ? (by > 0 ? 0 : numbers.length - 1) : place + by))]);
  }

  select(number) {
    const element = this.turns.get(number);
    if (!element) return;
    this.following = false;
    this.#mark(number);
    element.focus({ preventScroll: true });
    element.scrollIntoView({ block: "nearest" });
    history.replaceState(history.state, "", `${location.pathname}#turn-${number + 1}`);
  }

  #mark(number) {
    this.turns.get(this.selected)?.classList.remove("selected");
    this.selected = number;
    this.turns.get(number)?.classList.add("selected");
  }

  toggle() {
    const all = [...(this.turns.get(this.selected)?.querySelectorAll("details") ?? [])];
    const open = all.some((each) => !each.open);
    for (const each of all) each.open = open;
  }

  toggleAll() {
    const all = [...this.element.querySelectorAll("details.saw")];
    const open = all.some((each) => !each.open);
    for (const each of all) each.open = open;
  }

  follow() {
    this.following = !this.following;
    this.announce(this.following ? "following the newest turn" : "no longer following");
    this.drawSoon();
  }
}
