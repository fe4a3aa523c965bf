/** The server as a whole: its base, its load, how fast it answers, what is under way. */

import { get, getText, list, listIf, path, readiness } from "../api.js";
import { sparkline } from "../chart.js";
import { facts, link, make, pill, section, soft, tableOr } from "../dom.js";
import { bytes, count, decimal, duration, percent, plural, short } from "../format.js";
import { quantile, Reading, since } from "../metrics.js";
import { ENDS } from "./learning.js";

export const title = "Overview";

const WINDOW_SECONDS = 300;
const LEAST_SECONDS = 3;
const MOST_ADAPTERS = 8;

/** What metrics call all adapters beyond the first thousand. */
const OTHERS = "_others";

/** Readings of the last minutes, oldest first: rates are what changed between the first and the last. */
const readings = [];

export async function load({ can, me }) {
  const { base } = await readiness();
  const isForAll = me.adapters === null;
  const [model, text, experiments, rounds, jobs] = await Promise.all([
    isForAll ? get(path("/v1/models", base)) : null,
    isForAll ? getText("/metrics") : null,
    listIf(can("operator"), "/v1/experiments", { status: "running", by: "name" }),
    listIf(can("operator"), "/v1/rounds", { most: 20 }),
    listIf(can("operator"), "/v1/fine_tuning/jobs", { most: 20 }),
  ]);
  if (!isForAll) return { experiments, rounds, jobs };
  readings.push(new Reading(text));
  while (readings.at(-1).at - readings[0].at > WINDOW_SECONDS) readings.shift();
  return { model, now: readings.at(-1), experiments, rounds, jobs };
}

export function show({ model, now, experiments, rounds, jobs }, { can, me }) {
  return [
    make("h1", {}, "Overview"),
    now ? [tiles(now), base(model, now)] : scope(me),
    can("operator") ? make("div.columns", {}, running(experiments), underWay(rounds, jobs)) : null,
    now ? traffic(now, model.id) : null,
  ];
}

/** What stands in the place of the server's load for a key that is limited to some adapters. */
const scope = ({ adapters }) =>
  section("Your key is for some adapters", {}, make("p", {}, adapters.join(", ")),
    soft("The load of the server as a whole is shown to keys for all adapters."));

function tiles(now) {
  const seconds = now.at - readings[0].at;
  const before = seconds >= LEAST_SECONDS ? readings[0] : null;
  const window = before ? `in the last ${duration(seconds)}` : "since the start";
  const isWatched = before && since(before, now, "first_token_seconds_count") > 0;
  const firstToken = (share) => duration(quantile(isWatched ? before : null, now, "first_token_seconds", share));
  const number = (name, labels) => count(now.sum(name, labels));
  return make("div.tiles", {},
    tile("Tokens per second", before ? decimal(since(before, now, "completion_tokens_total") / seconds) : "…",
      `${short(now.sum("completion_tokens_total"))} written since the start`,
      sparkline("Tokens per second", rates())),
    tile("First token", firstToken(0.5), `median ${isWatched ? window : "since the start"}; p99 ${firstToken(0.99)}`),
    tile("Queue", number("queue_depth"), `waiting; ${number("running")} in the batch`,
      sparkline("Sequences that wait", readings.map((reading) => reading.sum("queue_depth")))),
    errors(before, now, window),
    tile("Adapters on the device", number("resident_versions", { tier: "device" }),
      `versions; ${number("resident_versions", { tier: "host" })} in host memory, `
      + `${number("resident_versions", { tier: "store" })} in the store`,
      soft(`${number("adapter_loads_total")} loads, ${number("adapter_evictions_total")} evictions`)),
    tile("Prompt cache", percent(now.sum("prefix_hit_tokens_total") / now.sum("prefix_tokens_total")),
      `of prompt tokens were there already; ${short(now.sum("cache_tokens"))} tokens in use`));
}

function tile(name, value, about, ...more) {
  return section(name, {}, make("div.tile", {}, value), soft(about), more);
}

const rates = () => readings.slice(1).map((reading, place) =>
  since(readings[place], reading, "completion_tokens_total") / (reading.at - readings[place].at));

function errors(before, now, window) {
  const statuses = new Set(now.of("requests_total").map(({ labels }) => labels.status));
  const number = (test) => [...statuses].filter(test)
    .reduce((sum, status) => sum + since(before, now, "requests_total", { status }), 0);
  const failed = number((status) => status >= "500");
  const refused = number((status) => status === "429");
  const all = number(() => true);
  const part = section("Errors", {}, make(failed ? "div.tile.bad" : "div.tile", {}, count(failed)),
    soft(`of ${plural(all, "request")} ${window} failed; ${count(refused)} were refused for lack of room (429)`));
  const restarts = now.sum("worker_restarts_total");
  if (restarts) part.append(make("span.middling", {}, plural(restarts, "restart"), " of the engine"));
  return part;
}

function base({ id, graftwork, max_model_len }, now) {
  const { id: _, digest, num_parameters, memory_bytes, ...others } = graftwork;
  const plain = Object.entries(others).filter(([, value]) => typeof value !== "object");
  return section("Base", {}, facts({
    model: make("code", {}, id),
    parameters: count(num_parameters),
    "memory of the base": memory_bytes ? bytes(memory_bytes) : null,
    "memory of the engine": bytes(now.sum("worker_memory_bytes")),
    context: `${count(max_model_len)} tokens`,
    ...Object.fromEntries(plain.map(([name, value]) => [name.replaceAll("_", " "), String(value)])),
    digest: make("code", {}, digest.slice(0, 19)),
  }));
}

const RUNNING = [
  ["experiment", ({ name }) => link(`/experiments/${name}`, name)],
  ["adapter", ({ adapter }) => link(`/adapters/${adapter}`, adapter)],
  ["metric", ({ metric }) => metric.label],
  ["units", "num", ({ reading }) => count(reading?.units ?? 0)],
  ["waiting", "num", ({ reading }) => count(reading?.waiting ?? 0)],
];

function running({ data, more }) {
  return section("Running experiments", {},
    tableOr("None.", "Running experiments", RUNNING, data, { key: ({ name }) => name }),
    more ? soft("and more") : null);
}

const UNDER_WAY = [
  ["", ({ address, name }) => link(address, name)],
  ["adapter", ({ adapter }) => link(`/adapters/${adapter}`, adapter)],
  ["state", ({ state }) => pill(state.replace("_", " "), "middling")],
];

function underWay(rounds, jobs) {
  const roundRow = ({ id, adapter, number, state }) =>
    ({ address: `/rounds/${id}`, name: `round ${number}`, adapter, state });
  const jobRow = ({ id, status, graftwork: { adapter } }) =>
    ({ address: `/jobs/${id}`, name: id, adapter, state: status });
  const open = [
    ...rounds.data.filter(({ ended_at }) => !ended_at).map(roundRow),
    ...jobs.data.filter(({ status }) => !(status in ENDS)).map(jobRow),
  ];
  return section("Learning now", {},
    tableOr("Nothing.", "Rounds and jobs under way", UNDER_WAY, open, { key: ({ address }) => address }));
}

function traffic(now, base) {
  const used = now.of("completion_tokens_total").map(({ labels: { adapter }, value }) =>
    ({ adapter, tokens: value, requests: now.sum("requests_total", { adapter }) }));
  const first = used.sort((one, other) => other.tokens - one.tokens).slice(0, MOST_ADAPTERS);
  const max = Math.max(1, first[0]?.tokens ?? 0);
  const columns = [
    ["adapter", ({ adapter }) => ([base, OTHERS].includes(adapter) ? adapter : link(`/adapters/${adapter}`, adapter))],
    ["requests", "num", ({ requests }) => count(requests)],
    ["tokens", "num", ({ tokens }) => count(tokens)],
    ["", ({ adapter, tokens }) => make("progress", { max, value: tokens, "aria-label": `${adapter}, of the most` })],
  ];
  return section("Who is used most", {},
    tableOr("Nobody has asked yet.", "Tokens written since the start, by adapter", columns, first,
      { key: ({ adapter }) => adapter }));
}
