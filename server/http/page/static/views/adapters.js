/** All adapters: found, sorted, opened. Only as many rows as one reads are made; the rest come when asked for. */

import { list } from "../api.js";
import { button, code, link, make, pill, tableOr } from "../dom.js";
import { ago, count, plural } from "../format.js";

export const title = "Adapters";

const ROWS = 50;
const MORE_ROWS = 200;
const MOST = 20000;
const TIERS = { device: "good", host: "middling", store: "soft" };

/** What can be sorted by: by its name in the address, the class of its column, and its value. */
const SORTS = {
  name: { of: ({ name }) => name },
  live: { of: ({ aliases }) => aliases.live },
  versions: { kind: "num", of: ({ versions }) => versions.length },
  where: { of: ({ residency }) => Object.keys(TIERS).indexOf(residency) },
  requests: { kind: "num", of: ({ requests }) => requests },
  tokens: { kind: "num", of: ({ tokens }) => tokens },
  changed: { of: (adapter) => newest(adapter).created_at },
};

/** The first page is shown at once, the others when all are there. */
export async function load(context) {
  const each = (data, more) => {
    if (!more || context.data) return;
    context.data = { adapters: [...data], isWhole: false };
    context.redraw();
  };
  const { data } = await list("/v1/adapters", { by: "name", most: MOST, each });
  return { adapters: data, isWhole: true };
}

export function show({ adapters, isWhole }, { parameters, go }) {
  const search = parameters.get("search") ?? "";
  const [sort, rows] = [parameters.get("sort") ?? "name", Number(parameters.get("rows") ?? ROWS)];
  const found = sorted(adapters.filter((adapter) => matches(adapter, search.trim().toLowerCase())), sort);
  const set = (changes) => {
    const next = Object.entries({ ...Object.fromEntries(parameters), rows: "", ...changes });
    go(`/adapters?${new URLSearchParams(next.filter(([, value]) => value))}`, { quietly: true });
  };
  const columns = [
    ["name", ({ name }) => link(`/adapters/${name}`, name)],
    ["live", ({ aliases }) => make("span.chips", {}, code(`@${aliases.live}`), others(aliases))],
    ["versions", "num", ({ versions }) => count(versions.length)],
    ["where", ({ residency }) => make(`span.${TIERS[residency]}`, {}, residency)],
    ["requests", "num", ({ requests }) => count(requests)],
    ["tokens", "num", ({ tokens }) => count(tokens)],
    ["changed", "soft", (adapter) => ago(newest(adapter).created_at)],
  ].map(([name, ...column]) => [columnTitle(name, sort, set), ...column]);
  const number = search ? `${count(found.length)} of ${count(adapters.length)}` : count(adapters.length);
  const none = adapters.length ? "None has this name." : ["None yet. ", code("graftwork adapters push NAME FOLDER")];
  const rest = found.length - rows;
  return [
    make("div.head", {},
      make("h1", {}, "Adapters"),
      make("span.soft", { role: "status" }, number, isWhole ? "" : ", and more coming"),
      make("input.search", {
        type: "search", value: search, placeholder: "name or alias", "aria-label": "Search adapters",
        oninput: ({ target }) => set({ search: target.value }),
      })),
    make("section", {},
      tableOr(none, "Adapters", columns, found.slice(0, rows), { key: ({ name }) => name }),
      rest > 0
        ? button(`Show ${plural(Math.min(rest, MORE_ROWS), "more row")}`, () => set({ rows: rows + MORE_ROWS }))
        : null),
  ];
}

/** The title of a column, which sorts by it, or the other way round. Numbers begin with the largest. */
function columnTitle(name, sort, set) {
  const { kind = "" } = SORTS[name];
  const state = { [name]: "ascending", [`-${name}`]: "descending" }[sort] ?? null;
  const next = state === "ascending" || (state === null && kind === "num") ? `-${name}` : name;
  const onclick = () => set({ sort: next });
  return make(`th.${kind}`, { scope: "col", "aria-sort": state }, make("button", { type: "button", onclick }, name));
}

function sorted(adapters, sort) {
  const { of } = SORTS[sort.replace(/^-/, "")] ?? SORTS.name;
  const sign = sort.startsWith("-") ? -1 : 1;
  const compare = (a, b) => sign * (a < b ? -1 : a > b ? 1 : 0);
  return adapters.toSorted((one, other) => compare(of(one), of(other)));
}

const matches = ({ name, aliases }, search) =>
  [name, ...Object.keys(aliases).map((alias) => `${name}@${alias}`)].some((text) => text.includes(search));

const others = ({ live, ...aliases }) =>
  Object.entries(aliases).map(([alias, version]) => pill(`${alias} @${version}`, "soft"));

const newest = ({ versions }) => versions.at(-1);
