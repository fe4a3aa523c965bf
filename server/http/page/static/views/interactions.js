/** Logged requests and answers: filtered by the server, searched among those that were read. */

import { list, path } from "../api.js";
import { given } from "../dialog.js";
import { button, code, field, link, make, options, pill, section, soft, tableOr } from "../dom.js";
import { count, duration, excerpt, moment } from "../format.js";

export const title = "Interactions";

const FILTERS = ["adapter", "experiment", "arm", "status", "user", "key_id", "episode"];
const STATUSES = [["", "any"], "ok", "cancelled", "error"];
const ROWS = 50;
const MORE_ROWS = 100;

const COLUMNS = [
  ["when", ({ id, created_at }) => link(path("/interactions", id), moment(created_at))],
  ["prompt", "text", (each) => excerpt(promptOf(each))],
  ["answer", "text", (each) => excerpt(answerOf(each))],
  ["answered by", ({ adapter, arm }) => [code(adapter), arm ? soft(` ${arm}`) : null]],
  ["", statusOf],
  ["tokens", "num", ({ usage }) => count(usage.total_tokens)],
  ["took", "num", ({ timings }) => duration(timings.total_ms / 1000)],
];

export function load({ parameters }) {
  const filter = Object.fromEntries(FILTERS.map((name) => [name, parameters.get(name)]));
  return list("/v1/interactions", { ...filter, most: Number(parameters.get("rows") ?? ROWS) });
}

export function show({ data, more }, { parameters, go }) {
  const search = parameters.get("search") ?? "";
  const textsOf = (each) => `${promptOf(each)}\n${answerOf(each)}`.toLowerCase();
  const found = data.filter((each) => textsOf(each).includes(search.toLowerCase()));
  const set = (changes, how) => {
    const next = Object.entries({ ...Object.fromEntries(parameters), ...changes });
    go(`/interactions?${new URLSearchParams(next.filter(([, value]) => value))}`, how);
  };
  const number = `${search ? `${count(found.length)} of ` : ""}the ${count(data.length)} newest`;
  return [
    make("div.head", {},
      make("h1", {}, "Interactions"),
      make("span.soft", { role: "status" }, number),
      make("input.search", {
        type: "search", value: search, placeholder: "in these rows", "aria-label": "Search these interactions",
        oninput: ({ target }) => set({ search: target.value }, { quietly: true }),
      })),
    section("Answers", {},
      filter(parameters, set),
      tableOr("None.", "Interactions", COLUMNS, found),
      more ? button("Show older ones", () => set({ rows: data.length + MORE_ROWS })) : null),
  ];
}

function filter(parameters, set) {
  const nothing = Object.fromEntries(FILTERS.map((name) => [name, ""]));
  const apply = (event) => {
    event.preventDefault();
    set({ ...nothing, ...given(event.target), rows: "" });
  };
  const input = (name) => {
    const value = parameters.get(name);
    if (name === "status") return make("select", { name }, options(STATUSES, value ?? ""));
    return make("input", { name, value, autocomplete: "off" });
  };
  return make("details", { open: FILTERS.some((name) => parameters.get(name)) },
    make("summary", {}, "Filter"),
    make("form.form", { onsubmit: apply },
      FILTERS.map((name) => field(name.replace("_", " "), input(name))),
      make("div.actions", {}, make("button", { type: "submit" }, "Apply"))));
}

/** How a request ended, if not well. */
export function statusOf({ status }) {
  return status === "ok" ? null : pill(status, status === "error" ? "bad" : "middling");
}

/** What was asked last, as text. */
export function promptOf({ messages, prompt }) {
  if (messages?.length) return textOf(messages.at(-1));
  return (prompt ?? []).map((part) => (typeof part === "string" ? part : JSON.stringify(part))).join("\n");
}

/** Its first answer, as text. */
const answerOf = ({ completions: [first] }) => (first ? textOf({ ...first, content: first.text }) : "");

/** The text of a message, whose content may be a text or parts of one, and its calls of tools. */
export function textOf({ content, tool_calls }) {
  const parts = typeof content === "string" ? [{ text: content }] : (content ?? []);
  const text = parts.map((part) => part.text ?? JSON.stringify(part)).join("");
  return [text, tool_calls && JSON.stringify(tool_calls, null, 1)].filter(Boolean).join("\n");
}
