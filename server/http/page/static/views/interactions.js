/** Logged requests and answers: filtered by the server, searched among those that were read. */

import { list, path } from "../api.js";
import { given } from "../dialog.js";
import { button, code, field, link, make, nothing, options, pill, section, soft, table } from "../dom.js";
import { count, duration, excerpt, moment } from "../format.js";

export const title = "Interactions";

const FILTERS = ["adapter", "experiment", "arm", "status", "user", "key_id", "episode"];
const ROWS = 50;

export function load({ parameters }) {
  const filter = Object.fromEntries(FILTERS.map((name) => [name, parameters.get(name)]));
  return list("/v1/interactions", { ...filter, most: Number(parameters.get("rows") ?? ROWS) });
}

export function show({ data, more }, { parameters, go }) {
  const search = parameters.get("search") ?? "";
  const found = data.filter((each) =>
    `${promptOf(each)}\n${answerOf(each)}`.toLowerCase().includes(search.toLowerCase()),
  );
  const set = (changes, how) => {
    const next = { ...Object.fromEntries(parameters), ...changes };
    go(`/interactions?${new URLSearchParams(Object.entries(next).filter(([, value]) => value))}`, how);
  };
  return [
    make(
      "div.head",
      {},
      make("h1", {}, "Interactions"),
      make(
        "span.soft",
        { role: "status" },
        search ? `${count(found.length)} of the ${count(data.length)} newest` : `the ${count(data.length)} newest`,
      ),
      make("input.search", {
        type: "search",
        value: search,
        placeholder: "in these rows",
        "aria-label": "Search these interactions",
        oninput: ({ target }) => set({ search: target.value }, { quietly: true }),
      }),
    ),
    section(
      "Answers",
      {},
      filter(parameters, set),
      found.length
        ? table(
            "Interactions",
            ["when", "prompt", "answer", "answered by", ["tokens", "num"], ["took", "num"]],
            found.map(row),
          )
        : nothing("None."),
      more ? button("Show older ones", () => set({ rows: data.length + 100 })) : null,
    ),
  ];
}

function filter(parameters, set) {
  const apply = (event) => {
    event.preventDefault();
    set({ ...Object.fromEntries(FILTERS.map((name) => [name, ""])), ...given(event.target), rows: "" });
  };
  const input = (name) =>
    name === "status"
      ? make("select", { name }, options([["", "any"], "ok", "cancelled", "error"], parameters.get(name) ?? ""))
      : make("input", { name, value: parameters.get(name), autocomplete: "off" });
  return make(
    "details",
    { open: FILTERS.some((name) => parameters.get(name)) },
    make("summary", {}, "Filter"),
    make(
      "form.form",
      { onsubmit: apply },
      FILTERS.map((name) => field(name.replace("_", " "), input(name))),
      make("div.actions", {}, make("button", { type: "submit" }, "Apply")),
    ),
  );
}

function row(each) {
  const { id, created_at, adapter, arm, status, usage, timings } = each;
  return make(
    "tr",
    { key: id },
    make("td", {}, link(path("/interactions", id), moment(created_at))),
    make("td.text", {}, excerpt(promptOf(each))),
    make("td.text", {}, excerpt(answerOf(each))),
    make(
      "td",
      {},
      code(adapter),
      arm ? soft(` ${arm}`) : null,
      status === "ok" ? null : [" ", pill(status, status === "error" ? "bad" : "middling")],
    ),
    make("td.num", {}, count(usage.total_tokens)),
    make("td.num", {}, duration(timings.total_ms / 1000)),
  );
}

/** What was asked last, as text. */
export function promptOf({ messages, prompt }) {
  return messages?.length
    ? textOf(messages.at(-1))
    : (prompt ?? []).map((part) => (typeof part === "string" ? part : JSON.stringify(part))).join("\n");
}

const answerOf = ({ completions }) => completions[0]?.text ?? "";

/** The text of a message, whose content may be a text or parts of one. */
export function textOf({ content, tool_calls }) {
  const text =
    typeof content === "string" ? content : (content ?? []).map((part) => part.text ?? JSON.stringify(part)).join("");
  return tool_calls ? [text, JSON.stringify(tool_calls, null, 1)].filter(Boolean).join("\n") : text;
}
