/** What is known of the run that the reader looks at, kept true by its feed; one for all views of a run. */

import { api, get } from "./api.js";
import { Feed } from "./feed.js";

const LOST_S = 5;
/** An ended run says nothing for hours, so that a viewer that went is found by asking. */
const ASK_MS = 5000;

export class RunStore extends EventTarget {
  /** @param {string} run @param {import("./banner.js").Banner} banner */
  constructor(run, banner) {
    super();
    this.run = run;
    this.banner = banner;
    /** @type {import("./types.js").Run | null} */
    this.data = null;
    this.scope = new AbortController();
    this.feed = new Feed(`${api(run)}/feed`, {
      run: (data) => this.#take(data),
      rows: (data) => this.dispatchEvent(new CustomEvent("rows", { detail: data })),
      broker: (data) => this.#broker(data),
    }, (state) => this.#heard(state));
    this.ready = get(api(run), this.scope.signal).then((data) => this.data ?? this.#take(data));
    this.ready.catch(() => {});
    this.timer = setInterval(() => this.#ask(), ASK_MS);
  }

  close() {
    this.scope.abort();
    clearInterval(this.timer);
    this.feed.close();
    this.banner.clear("");
  }

  /**
   * Whether a view has a feed of its own, which hears of the viewer and of the broker too. The run is then asked for now and then:
   * a browser grants few connections to one server, and windows stand beside each other.
   * @param {boolean} own
   */
  leaveToView(own) {
    this.quiet = own;
    if (own) this.feed.pause();
    else this.feed.resume();
  }

  /** What a view's own feed heard. @param {import("./feed.js").FeedState} state */
  heard(state) {
    this.#heard(state);
  }

  /** @param {{connected: boolean, trouble: string | null}} broker */
  heardOfBroker(broker) {
    this.#broker(broker);
  }

  get isLive() {
    return this.data?.state === "live";
  }

  /** Call a listener on every change of the run, and now if it is known. @param {(run: any) => void} listener @param {AbortSignal} signal */
  watch(listener, signal) {
    this.addEventListener("run", () => listener(this.data), { signal });
    if (this.data) listener(this.data);
  }

  /** @param {(change: {revision: number, n_total: number}) => void} listener @param {AbortSignal} signal */
  watchRows(listener, signal) {
    this.addEventListener("rows", (event) => listener(event.detail), { signal });
  }

  #take(data) {
    this.data = data;
    this.#broker(data.broker);
    this.#actors(data);
    this.dispatchEvent(new Event("run"));
    return data;
  }

  async #ask() {
    if (document.hidden || this.viewerGone) return;
    try {
      if (this.quiet) this.#take(await get(api(this.run), this.scope.signal));
      else await fetch("/healthz", { signal: AbortSignal.timeout(5000) });
    } catch (error) {
      if (!this.scope.signal.aborted && !error.status) this.#heard({ open: false, sinceMs: Date.now() });
    }
  }

  /** @param {import("./feed.js").FeedState} state */
  #heard(state) {
    const again = state.open && this.viewerGone;
    this.viewerGone = !state.open;
    this.banner.set("viewer", state.open ? null : {
      title: "The viewer is gone",
      detail: "What is shown is from before; it is asked again every second.",
      todo: "If it stays away, the run may have stopped: look at",
      command: "asearch status",
      sinceMs: state.sinceMs,
    });
    if (again) this.dispatchEvent(new Event("again"));
  }

  #broker(broker) {
    if (!broker) return;
    this.banner.set("broker", broker.connected && !broker.trouble ? null : {
      title: broker.connected ? "The broker cannot store" : "The broker is gone",
      detail: broker.trouble || (broker.connected ? "" : "Actors wait for it, and nothing that was recorded is lost."),
      todo: broker.connected ? "Make room, then it goes on by itself." : "It is started again by the run's supervisor; if not, look at",
      command: broker.connected ? "" : "asearch doctor",
    });
  }

  #actors(data) {
    const troubled = new Map();
    if (data.state === "live" && data.broker?.connected !== false) {
      for (const actor of data.actors ?? []) {
        const silent = actor.state === "silent" || (actor.age_s ?? 0) > LOST_S;
        if (actor.state === "failed" || silent) troubled.set(`actor-${actor.id}`, [actor, silent]);
      }
    }
    for (const key of [...this.banner.troubles.keys()]) if (key.startsWith("actor-") && !troubled.has(key)) this.banner.set(key, null);
    for (const [key, [actor, silent]] of troubled) {
      this.banner.set(key, {
        level: "warn",
        title: `${actor.id} ${actor.state === "failed" ? "has failed" : "is silent"}`,
        detail: actor.waiting_for ? `It waits for ${actor.waiting_for}.` : "",
        todo: silent ? "The supervisor starts it again; its log:" : "Its log says why:",
        command: `runs/${data.run}/logs/${actor.id}.log`,
      });
    }
    this.banner.set("identity", data.report?.identities_broken?.length ? {
      title: "The accounting does not add up",
      detail: data.report.identities_broken.map(String).join("; "),
      todo: "Recompute it from the streams:",
      command: `asearch audit ${data.run}`,
    } : null);
  }
}
