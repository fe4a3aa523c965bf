/** All adapters: found, sorted, opened. Only as many rows as one reads are made; the rest come when asked for. */

import { list } from "../api.js";
import { button, link, make, nothing, pill, table } from "../dom.js";
import { ago, count, plural } from "../format.js";

export const title = "Adapters";

const ROWS = 50;
const MOST = 20000;

const COLUMNS = {
  name: { title: "name", of: ({ name }) => name },
  live: { title: "live", of: ({ aliases }) => aliases.live },
  versions: { title: "versions", kind: "num", of: ({ versions }) => versions.length },
  where: { title: "where", of: ({ residency }) => ["device", "host", "store"].indexOf(residency) },
  requests: { title: "requests", kind: "num", of: ({ requests }) => requests },
  tokens: { title: "tokens", kind: "num", of: ({ tokens }) => tokens },
  changed: { title: "last version", of: (adapter) => newest(adapter).created_at },
};
const TIERS = { device: "good", host: "middling", store: "soft" };

let all = [];

/** The first page is shown at once; the others are there when somebody searches or sorts. */
export async function load(context) {
  const isFirst = !all.length;
  const { data } = await list("/v1/adapters", {
    by: "name",
    most: MOST,
    each: (data, more) => {
      if (!isFirst || !more || context.data) return;
      context.data = { adapters: data, isWhole: false };
      context.redraw();
    },
  });
  all = data;
  return { adapters: all, isWhole: true };
}

export function show({ adapters, isWhole }, { parameters, go, redraw }) {
  const search = parameters.get("search") ?? "";
  const [sort, shown] = [parameters.get("sort") ?? "name", Number(parameters.get("rows") ?? ROWS)];
  const found = sorted(
    adapters.filter((adapter) => matches(adapter, search.trim().toLowerCase())),
    sort,
  );
  const set = (name, value) => {
    const changed = new URLSearchParams(parameters);
    changed.set(name, value);
    if (!value) changed.delete(name);
    if (name !== "rows") changed.delete("rows");
    go(`/adapters?${changed}`, { quietly: true });
  };
  return [
    make(
      "div.head",
      {},
      make("h1", {}, "Adapters"),
      make(
        "span.soft",
        { role: "status" },
        search ? `${count(found.length)} of ${count(adapters.length)}` : count(adapters.length),
        isWhole ? "" : ", and more coming",
      ),
      make("input.search", {
        type: "search",
        value: search,
        placeholder: "name or alias",
        "aria-label": "Search adapters",
        oninput: ({ target }) => set("search", target.value),
      }),
    ),
    make(
      "section",
      {},
      found.length
        ? table(
            "Adapters",
            Object.keys(COLUMNS).map((name) => heading(name, sort, set)),
            found.slice(0, shown).map(row),
          )
        : nothing(
            adapters.length
              ? "None has this name."
              : ["No adapters yet. Push one: ", make("code", {}, "graftwork adapters push NAME FOLDER")],
          ),
      found.length > shown
        ? button(`Show ${plural(Math.min(found.length - shown, 4 * ROWS), "more row")}`, () =>
            set("rows", shown + 4 * ROWS),
          )
        : null,
    ),
  ];
}

function heading(name, sort, set) {
  const { title, kind } = COLUMNS[name];
  const state = sort === name ? "ascending" : sort === `-${name}` ? "descending" : null;
  const next = state === "ascending" || (state === null && kind === "num") ? `-${name}` : name;
  return make(
    kind ? `th.${kind}` : "th",
    { scope: "col", "aria-sort": state },
    make("button", { type: "button", onclick: () => set("sort", next) }, title),
  );
}

function sorted(adapters, sort) {
  const { of } = COLUMNS[sort.replace(/^-/, "")] ?? COLUMNS.name;
  const sign = sort.startsWith("-") ? -1 : 1;
  const keys = new Map(adapters.map((adapter) => [adapter, of(adapter)]));
  return adapters.toSorted((one, other) => {
    const [a, b] = [keys.get(one), keys.get(other)];
    return sign * (a < b ? -1 : a > b ? 1 : 0);
  });
}

const matches = ({ name, aliases }, search) =>
  !search ||
  name.toLowerCase().includes(search) ||
  Object.keys(aliases).some((alias) => `${name}@${alias}`.toLowerCase().includes(search));
const newest = ({ versions }) => versions.at(-1);

function row(adapter) {
  const { name, aliases, versions, residency, requests, tokens } = adapter;
  const others = Object.entries(aliases).filter(([alias]) => alias !== "live");
  return make(
    "tr",
    { key: name },
    make("td", {}, link(`/adapters/${name}`, name)),
    make(
      "td",
      {},
      make(
        "span.chips",
        {},
        make("code", {}, `@${aliases.live}`),
        others.map(([alias, version]) => pill(`${alias} @${version}`, "soft")),
      ),
    ),
    make("td.num", {}, count(versions.length)),
    make("td", {}, make(`span.${TIERS[residency]}`, {}, residency)),
    make("td.num", {}, count(requests)),
    make("td.num", {}, count(tokens)),
    make("td.soft", {}, ago(newest(adapter).created_at)),
  );
}
