// The wire: a request out, the server's events in.

/** What went wrong, in the server's own words where it said any. */
export class Failure extends Error {
  constructor({ field = "", cause = "", mend = "" }, { status = 0, retryAfter = null } = {}) {
    super([cause, mend].filter(Boolean).join("; "));
    Object.assign(this, { field, cause, mend, status, retryAfter });
  }

  /** Whether the same request may go well a little later. */
  get passing() {
    return [0, 429, 502, 503, 504].includes(this.status);
  }
}

/** Server-sent events out of text that may be cut anywhere (WHATWG HTML, section 9.2.6). */
export class EventParser {
  #rest = "";
  #name = "";
  #data = [];

  /** The events, `{event, data}` with data as text, that `text` completes. */
  push(text) {
    // A carriage return at the very end may be the first half of a line's end.
    const lines = (this.#rest + text).split(/\r\n|\n|\r(?!$)/);
    this.#rest = lines.pop();
    return lines.map((line) => this.#take(line)).filter(Boolean);
  }

  #take(line) {
    if (line === "") return this.#flush();
    const colon = line.indexOf(":");
    const field = colon < 0 ? line : line.slice(0, colon);
    const value = colon < 0 ? "" : line.slice(colon + 1).replace(/^ /, "");
    if (field === "event") this.#name = value;
    if (field === "data") this.#data.push(value);
    return null;
  }

  #flush() {
    const made = this.#data.length ? { event: this.#name || "message", data: this.#data.join("\n") } : null;
    this.#name = "";
    this.#data = [];
    return made;
  }
}

/** Events of a stream of bytes, with their JSON read; what stands after the last whole event is dropped. */
export async function* eventsOf(body) {
  const reader = body.getReader();
  const decoder = new TextDecoder();
  const parser = new EventParser();
  try {
    while (true) {
      const { value, done } = await reader.read();
      if (done) return;
      for (const { event, data } of parser.push(decoder.decode(value, { stream: true }))) {
        yield { event, data: JSON.parse(data) };
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

/**
 * The events of one generation, `done` last. A server that answers at once gives `done` alone.
 * Throws Failure; AbortError after `signal`.
 */
export async function* generate(request, { key = "", signal } = {}) {
  const reply = await post(request, key, signal);
  if (!reply.ok) throw await refusal(reply);
  if (!(reply.headers.get("Content-Type") || "").startsWith("text/event-stream")) {
    yield { event: "done", data: await reply.json() };
    return;
  }
  for await (const event of unbroken(reply.body, signal)) {
    if (event.event === "error") throw new Failure(event.data.error);
    yield event;
    if (event.event === "done") return;
  }
  throw new Failure({ cause: "the stream ended before the document was done", mend: "what came is shown; try again" });
}

async function post(request, key, signal) {
  const headers = { "Content-Type": "application/json", Accept: "text/event-stream" };
  if (key) headers.Authorization = `Bearer ${key}`;
  try {
    return await fetch("v1/generate", { method: "POST", headers, body: JSON.stringify(request), signal });
  } catch (error) {
    if (signal?.aborted) throw error;
    throw new Failure({ cause: "the server does not answer", mend: "see that it runs, then try again" });
  }
}

/** `eventsOf`, with a broken connection as one of ours. */
async function* unbroken(body, signal) {
  try {
    yield* eventsOf(body);
  } catch (error) {
    if (signal?.aborted) throw error;
    throw new Failure({ cause: "the connection broke", mend: "what came is shown; try again" });
  }
}

async function refusal(reply) {
  const body = await reply.json().catch(() => ({}));
  const said = body.error || { cause: `the server answered ${reply.status}`, mend: "try again later" };
  const seconds = Number.parseFloat(reply.headers.get("Retry-After") ?? "");
  return new Failure(said, { status: reply.status, retryAfter: Number.isFinite(seconds) ? seconds : null });
}
