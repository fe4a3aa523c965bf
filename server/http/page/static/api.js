/** The server's JSON API, called with the session's cookie. */

const PAGE = { "x-graftwork-page": "1" }; // without it the server ignores the cookie

/** An answer that is an error. Its message says what to do. */
export class ApiError extends Error {
  constructor(status, { message, code }) {
    super(message);
    Object.assign(this, { status, code });
  }
}

/** The server did not answer. */
export class Unreachable extends Error {}

async function send(method, path, { body, signal } = {}) {
  const headers = body === undefined ? PAGE : { ...PAGE, "content-type": "application/json" };
  try {
    return await fetch(path, { method, headers, body: body && JSON.stringify(body), cache: "no-store", signal });
  } catch (problem) {
    if (problem.name === "AbortError") throw problem;
    throw new Unreachable("the server does not answer");
  }
}

async function refuse(response) {
  const body = await response.json().catch(() => null);
  throw new ApiError(response.status, body?.error ?? { message: `the server answered ${response.status}` });
}

/** Send a request. Returns the JSON of its answer. */
export async function call(method, path, body) {
  const response = await send(method, path, { body });
  if (!response.ok) await refuse(response);
  return response.json();
}

export const get = (path, parameters) => call("GET", path + query(parameters));

export async function getText(path) {
  const response = await send("GET", path);
  if (!response.ok) await refuse(response);
  return response.text();
}

/** A list as `{data, more}`: at most `most` entries, read a page at a time. `each` sees it after each page. */
export async function list(path, { most = 100, by = "id", each = null, ...parameters } = {}) {
  const data = [];
  let page;
  do {
    const after = data.length ? data.at(-1)[by] : undefined;
    page = await get(path, { ...parameters, after, limit: Math.min(100, most - data.length) });
    data.push(...page.data);
    each?.(data, page.has_more);
  } while (page.has_more && data.length < most);
  return { data, more: page.has_more };
}

/** The same, or an empty list where the role does not allow to read it. */
export async function listIf(allowed, path, parameters) {
  return allowed ? list(path, parameters) : { data: [], more: false };
}

/** Whether the server answers requests: `ready`, `starting`, `recovering`, `draining`. */
export async function readiness() {
  return (await send("GET", "/ready", { signal: AbortSignal.timeout(5000) })).json();
}

/** The events of a streamed answer, parsed. */
export async function* stream(path, body, signal) {
  const response = await send("POST", path, { body: { ...body, stream: true }, signal });
  if (!response.ok) await refuse(response);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (let part = await reader.read(); !part.done; part = await reader.read()) {
    const events = (text + part.value).split("\n\n");
    text = events.pop();
    for (const event of events) {
      const data = event.replace(/^data: /, "");
      if (data === "[DONE]") return;
      const parsed = JSON.parse(data);
      if (parsed.error) throw new ApiError(500, parsed.error);
      yield parsed;
    }
  }
}

/** The path of a thing: `path("/v1/adapters", name, "rollback")`. */
export const path = (first, ...parts) => [first, ...parts.map(encodeURIComponent)].join("/");

function query(parameters = {}) {
  const given = Object.entries(parameters).filter(([, value]) => value !== undefined && value !== null && value !== "");
  return given.length ? `?${new URLSearchParams(given)}` : "";
}
