/** Every change that a request made, or tried to: who, what, from where. */

import { list } from "../api.js";
import { given } from "../dialog.js";
import { button, code, field, make, pill, section, tableOr } from "../dom.js";
import { moment } from "../format.js";

export const title = "Audit";

const FILTERS = ["actor", "action", "target"];
const ROWS = 100;

const COLUMNS = [
  ["when", ({ at }) => moment(at)],
  ["who", ({ actor }) => actor],
  ["did", ({ action }) => action.replaceAll("_", " ")],
  ["to", "text", ({ target }) => code(target)],
  ["outcome", ({ outcome }) => pill(outcome, outcome === "done" ? "good" : "middling")],
  ["key", ({ key_id }) => code(key_id)],
  ["from", ({ remote }) => remote],
  ["request", ({ request_id }) => request_id && code(request_id)],
];

export function load({ parameters }) {
  const filter = Object.fromEntries(FILTERS.map((name) => [name, parameters.get(name)]));
  return list("/v1/audit", { ...filter, most: Number(parameters.get("rows") ?? ROWS) });
}

export function show({ data, more }, { parameters, go }) {
  const set = (changes) => {
    const next = Object.entries({ ...Object.fromEntries(parameters), ...changes });
    go(`/audit?${new URLSearchParams(next.filter(([, value]) => value))}`);
  };
  const apply = (event) => {
    event.preventDefault();
    set({ actor: "", action: "", target: "", ...given(event.target), rows: "" });
  };
  const input = (name) => make("input", { name, value: parameters.get(name), autocomplete: "off" });
  return [
    make("h1", {}, "Audit"),
    section("Changes", {},
      make("form.form", { onsubmit: apply },
        FILTERS.map((name) => field(name, input(name))),
        make("div.actions", {}, make("button", { type: "submit" }, "Filter"))),
      tableOr("None.", "Changes", COLUMNS, data),
      more ? button("Show older ones", () => set({ rows: data.length + ROWS })) : null),
  ];
}
