/** The items of an episode, by id, folded into turns. Pure: nothing of the page in it. */

/**
 * @typedef {{request: string, text: string, versions: {version: string, start: number, end: number}[], n: number, engine: string, reads: boolean,
 *   forced: boolean, n_prompt: number | null, finish: string | null, n_asked: number, elapsed_ns: number, first_ns: number, last_ns: number,
 *   items: string[]}} Generation
 * @typedef {{call: string, tool: string, argument: string, asked_ns: number, returned: any | null, items: string[]}} Call
 * @typedef {{turn: number, generations: Generation[], calls: Call[], shown: any[], shortened: number[], began_ns: number, ended_ns: number,
 *   revision: number}} Turn
 */

export class Story {
  constructor() {
    this.reset();
  }

  reset() {
    /** @type {Map<string, import("../modules/types.js").Item>} */
    this.items = new Map();
    /** @type {Map<number, Turn>} */
    this.turns = new Map();
    /** @type {Map<number, {turn: number, by: number | null}>} pieces of prompts: in which turn they came, and which turn shortened them */
    this.pieces = new Map();
    this.opening = null;
    this.takes = [];
    this.deadline = null;
    this.finished = null;
    this.outcome = null;
    this.newest = -1;
  }

  /**
   * Take an item; one that is known already changes nothing.
   * @param {import("../modules/types.js").Item} item
   * @returns {number[] | null} the turns that it changed, null: it was known
   */
  take(item) {
    if (this.items.has(item.id)) return null;
    this.items.set(item.id, item);
    switch (item.kind) {
      case "shown": return this.#shown(item);
      case "taken": this.takes.push(item); return [];
      case "tokens": return this.#tokens(item);
      case "called": return this.#called(item);
      case "returned": return this.#returned(item);
      case "deadline": this.deadline = item; return [];
      case "finished": this.finished = item; return [this.newest].filter((turn) => turn >= 0);
      case "outcome": this.outcome = item; return [];
      default: return [];
    }
  }

  get inOrder() {
    return [...this.turns.values()].sort((a, b) => a.turn - b.turn);
  }

  /** When the first driver took it. */
  get began_ns() {
    return this.takes[0]?.at_ns ?? 0;
  }

  /** @param {number} number */
  #turn(number, at_ns = 0) {
    let turn = this.turns.get(number);
    if (!turn) {
      turn = { turn: number, generations: [], calls: [], shown: [], shortened: [], began_ns: at_ns, ended_ns: at_ns, revision: 0 };
      this.turns.set(number, turn);
      this.newest = Math.max(this.newest, number);
    }
    turn.ended_ns = Math.max(turn.ended_ns, at_ns);
    turn.revision += 1;
    return turn;
  }

  #shown(item) {
    if (item.id === "opening") {
      this.opening = item;
      for (const piece of item.pieces) this.pieces.set(piece.piece, { turn: -1, by: null });
      return [];
    }
    // An item of what was shown follows the fact that brought it in, and belongs to that one's turn.
    const fact = this.items.get(item.id.replace(/-shown$/, ""));
    const turn = this.#turn(fact?.turn ?? Math.max(0, this.newest));
    turn.shown.push(item);
    const changed = new Set([turn.turn]);
    for (const piece of item.pieces) this.pieces.set(piece.piece, { turn: turn.turn, by: null });
    for (const number of item.shortened ?? []) {
      const piece = this.pieces.get(number);
      if (!piece || piece.by !== null) continue;
      piece.by = turn.turn;
      const old = this.turns.get(piece.turn);
      if (old) {
        old.revision += 1;
        changed.add(piece.turn);
      }
    }
    return [...changed];
  }

  #tokens(item) {
    const turn = this.#turn(item.turn, item.at_ns);
    let generation = turn.generations.find((each) => each.request === item.request);
    if (!generation) {
      generation = { request: item.request, text: "", versions: [], n: 0, first_ns: item.at_ns, items: [] };
      turn.generations.push(generation);
    }
    generation.text = generation.text.slice(0, item.text_from) + item.text;
    generation.n = item.offset + item.n;
    generation.versions = merged(generation.versions.filter((span) => span.start < item.offset), item.versions);
    Object.assign(generation, {
      engine: item.engine, reads: item.reads, forced: item.forced, n_prompt: item.n_prompt, finish: item.finish, n_asked: item.n_asked,
      elapsed_ns: item.elapsed_ns, last_ns: item.at_ns,
    });
    generation.items.push(item.id);
    return [turn.turn];
  }

  #called(item) {
    const turn = this.#turn(item.turn, item.at_ns);
    const call = turn.calls.find((each) => each.call === item.call);
    if (call) call.items.push(item.id);
    else turn.calls.push({ call: item.call, tool: item.tool, argument: item.argument, asked_ns: item.at_ns, returned: null, items: [item.id] });
    return [turn.turn];
  }

  #returned(item) {
    const turn = this.#turn(item.turn, item.at_ns);
    let call = turn.calls.find((each) => each.call === item.call);
    if (!call) {
      call = { call: item.call, tool: "", argument: "", asked_ns: item.at_ns, returned: null, items: [] };
      turn.calls.push(call);
    }
    call.returned = item;
    call.items.push(item.id);
    return [turn.turn];
  }
}

/** Spans with neighbours of one version joined. */
function merged(before, after) {
  const found = [];
  for (const span of [...before, ...after]) {
    const last = found.at(-1);
    if (last && last.version === span.version && last.end === span.start) last.end = span.end;
    else found.push({ ...span });
  }
  return found;
}

const TAG = /<(\/?)(think|search|access|answer|tool_call|tool_response|information)>/g;
const SENSE = { think: "thought", search: "action", access: "action", answer: "answer", tool_call: "action" };

/**
 * A generation's text in parts, all of it: tags, what stands in them, and thought before and between.
 * @param {string} text
 * @returns {{sense: "tag" | "thought" | "action" | "answer", text: string}[]}
 */
export function parts(text) {
  const found = [];
  let sense = "thought";
  let from = 0;
  const put = (kind, part) => part && found.push({ sense: kind, text: part });
  for (const tag of text.matchAll(TAG)) {
    put(sense, text.slice(from, tag.index));
    put("tag", tag[0]);
    sense = tag[1] ? "thought" : SENSE[tag[2]] ?? "thought";
    from = tag.index + tag[0].length;
  }
  put(sense, text.slice(from));
  return found;
}
