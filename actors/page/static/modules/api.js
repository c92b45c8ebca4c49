/** Asking the viewer. */

export class ApiError extends Error {
  /** @param {string} message @param {number} status 0: no answer at all */
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

/**
 * The JSON of an address. Throws ApiError with the viewer's own words.
 * @param {string} path
 * @param {AbortSignal} [signal]
 * @returns {Promise<any>}
 */
export async function get(path, signal) {
  let reply;
  try {
    const timeout = AbortSignal.timeout(30_000);
    reply = await fetch(path, { signal: signal ? either(signal, timeout) : timeout, headers: { accept: "application/json" } });
  } catch (error) {
    if (signal?.aborted) throw error;
    throw new ApiError("the viewer does not answer", 0);
  }
  let body = null;
  try {
    body = await reply.json();
  } catch (error) {
    if (signal?.aborted) throw error;
  }
  if (!reply.ok || body === null) throw new ApiError(body?.error ?? `the viewer answered ${reply.status} without a reason`, reply.status);
  return body;
}

/** A signal that is aborted with the first of two. @param {AbortSignal} a @param {AbortSignal} b */
function either(a, b) {
  if (AbortSignal.any) return AbortSignal.any([a, b]);
  const both = new AbortController();
  for (const each of [a, b]) each.addEventListener("abort", () => both.abort(each.reason), { once: true });
  return both.signal;
}

/** The address of a run's part. @param {string} run @param {...string} parts */
export const api = (run, ...parts) => ["/api/runs", run, ...parts].map((part, i) => (i ? encodeURIComponent(part) : part)).join("/");

/** @param {unknown} error */
export const isAbort = (error) => error instanceof DOMException && error.name === "AbortError";
