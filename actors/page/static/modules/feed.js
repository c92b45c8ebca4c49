/**
 * A stream of Server-Sent Events that goes on where it stopped, whatever happens to the viewer.
 *
 * The browser reconnects with Last-Event-ID by itself; where it gave up (an answer that is no stream), it is opened again with
 * `?after=`. A hidden tab lets its connection go, since a browser grants six to one server, and takes it up when it is seen again.
 */

const RETRY_MS = 1000;

/**
 * @typedef {{open: boolean, sinceMs: number}} FeedState
 */

export class Feed {
  /**
   * @param {string} path
   * @param {Record<string, (data: any, id: string) => void>} handlers by the name of the event
   * @param {(state: FeedState) => void} onState
   */
  constructor(path, handlers, onState) {
    this.path = path;
    this.handlers = handlers;
    this.onState = onState;
    this.lastId = "";
    this.closed = false;
    this.state = { open: false, sinceMs: Date.now() };
    this.scope = new AbortController();
    document.addEventListener("visibilitychange", () => this.#seen(), { signal: this.scope.signal });
    if (!document.hidden) this.#open();
  }

  /** Let the connection go until `resume`; the place is kept. */
  pause() {
    this.paused = true;
    this.#letGo();
  }

  resume() {
    this.paused = false;
    this.#seen();
  }

  close() {
    this.closed = true;
    this.scope.abort();
    this.#letGo();
  }

  #letGo() {
    clearTimeout(this.timer);
    this.source?.close();
    this.source = null;
  }

  #seen() {
    if (document.hidden) this.#letGo();
    else if (!this.source && !this.closed && !this.paused) this.#open();
  }

  #open() {
    this.#letGo();
    const after = this.lastId ? `${this.path.includes("?") ? "&" : "?"}after=${encodeURIComponent(this.lastId)}` : "";
    const source = new EventSource(this.path + after);
    this.source = source;
    source.onopen = () => this.#tell(true);
    source.onerror = () => {
      if (source !== this.source) return;
      this.#tell(false);
      if (source.readyState === EventSource.CLOSED) this.timer = setTimeout(() => this.#open(), RETRY_MS);
    };
    for (const [name, handler] of Object.entries(this.handlers)) {
      source.addEventListener(name, (event) => {
        if (source !== this.source) return;
        if (event.lastEventId) this.lastId = event.lastEventId;
        handler(JSON.parse(event.data), event.lastEventId);
      });
    }
  }

  /** Forget the place: the next connection begins from the start. */
  forget() {
    this.lastId = "";
  }

  /** @param {boolean} open */
  #tell(open) {
    if (open === this.state.open && (open || this.told)) return;
    this.told = true;
    this.state = { open, sinceMs: Date.now() };
    this.onState(this.state);
  }
}
