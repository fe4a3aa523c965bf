/** Keys: listed, made, limited, rotated, revoked. The secret of a new one is shown once. */

import { call, list, path } from "../api.js";
import { confirm, given, tell } from "../dialog.js";
import { button, code, field, make, options, pill, section, soft, tableOr } from "../dom.js";
import { count, moment } from "../format.js";

export const title = "Keys";

const ROLES = [
  ["app", "app: asks, sends feedback"],
  ["operator", "operator: changes what is served, reads what users wrote"],
  ["admin", "admin: also makes keys"],
];
const LIMITS = {
  requests_per_minute: "Requests a minute",
  tokens_per_minute: "Tokens a minute",
  concurrent: "Requests at once",
  tokens_per_day: "Tokens a day",
  tokens_per_month: "Tokens a month",
};
const DAY = 24 * 3600;
const NONE = "None in the database: who knows the server's first admin key, or sits at this machine, is an admin.";

export const load = () => list("/v1/keys", { most: 1000 });

export function show({ data }, context) {
  const columns = [
    ["name", ({ name }) => name],
    ["", (key) => (key.revoked_at ? null : changes(key, context))],
    ["role", ({ role }) => role],
    ["adapters", "text", ({ adapters }) => adapters?.join(", ") ?? "all"],
    ["limits", "text", limitsOf],
    ["id", ({ id }) => code(id)],
    ["made", ({ created_at }) => moment(created_at)],
    ["state", stateOf],
  ];
  const kind = ({ revoked_at }) => (revoked_at ? "retired" : "");
  return [
    make("h1", {}, "Keys"),
    section("New key", {}, newKey(context)),
    section("All keys", {}, tableOr(NONE, "Keys", columns, data.toReversed(), { kind })),
  ];
}

function limitsOf({ limits }) {
  const given = Object.entries(limits).filter(([, limit]) => limit !== null);
  return given.map(([name, limit]) => `${LIMITS[name].toLowerCase()}: ${count(limit)}`).join(", ") || "none";
}

function stateOf({ revoked_at, expires_at, previous_until }) {
  if (revoked_at) return `revoked ${moment(revoked_at)}`;
  const now = Date.now() / 1000;
  if (expires_at && expires_at < now) return pill("expired", "middling");
  const until = expires_at ? soft(` until ${moment(expires_at)}`) : null;
  const rotating = previous_until > now ? soft(`, its old secret until ${moment(previous_until)}`) : null;
  return [pill("valid", "good"), until, rotating];
}

// ------------------------------------------------------------------------------------------------------------- a form

const number = (name, value) => make("input", { name, value, type: "number", min: 1, autocomplete: "off" });

/** The fields of what a key may use; `key` has what stands in them. */
const settingFields = ({ adapters, limits } = {}) => [
  field("Adapters", make("input", { name: "adapters", value: adapters?.join(", "), autocomplete: "off" }),
    "their names, with commas; none: all"),
  ...Object.entries(LIMITS).map(([name, label]) => field(label, number(name, limits?.[name]), "none: no limit")),
];

/** Those fields as the API takes them. */
const settingsOf = ({ adapters, ...given }) => ({
  adapters: adapters ? adapters.split(/[\s,]+/).filter(Boolean) : null,
  limits: Object.fromEntries(Object.keys(LIMITS).map((name) => [name, given[name] ? Number(given[name]) : null])),
});

function newKey(context) {
  const { open } = context.me;
  return make("form.form", { onsubmit: (event) => create(event, context) },
    field("Name", make("input", { name: "name", required: true, maxlength: 100, autocomplete: "off" }), "who uses it"),
    field("Role", make("select", { name: "role" }, options(ROLES, open ? "admin" : "app")),
      open ? "the first one locks this server" : null),
    open ? null : make("details.wide", {},
      make("summary", {}, "Adapters, limits and an end"),
      make("div.form", {}, settingFields(), field("Valid for days", number("days"), "none: until it is revoked"))),
    make("div.actions", {}, make("button.primary", { type: "submit" }, "Make a key")),
    make("p.bad.wide", { role: "alert" }));
}

async function create(event, context) {
  event.preventDefault();
  const form = event.target;
  const problem = form.querySelector("[role=alert]");
  const { name, role, days, ...settings } = given(form);
  const expires_at = days ? Date.now() / 1000 + days * DAY : null;
  try {
    const { secret } = await call("POST", "/v1/keys", { name, role, expires_at, ...settingsOf(settings) });
    form.reset();
    problem.textContent = "";
    await showSecret(name, secret);
    await context.refresh();
  } catch (error) {
    problem.textContent = error.message;
  }
}

function showSecret(name, secret) {
  const once = make("p", {}, "It is shown this once: only a hash of it is kept.");
  return tell(`The key of ${name}`, once, make("code.secret", {}, secret));
}

// ------------------------------------------------------------------------------------------------------------ changes

function changes(key, context) {
  const change = (text, act) =>
    button(`${text}…`, () => act(key, context), { kind: "small", "aria-label": `${text} ${key.name}…` });
  return make("span.actions", {}, change("Limit", limit), change("Rotate", rotate), change("Revoke", revoke));
}

async function limit(key, context) {
  const done = await confirm({
    title: `What may the key of ${key.name} use?`,
    consequences: ["It counts at once, for requests that come from now on."],
    verb: "Change",
    fields: settingFields(key),
  }, (given) => call("PATCH", path("/v1/keys", key.id), settingsOf(given)));
  if (done) await context.refresh();
}

async function rotate({ id, name }, context) {
  let secret;
  const done = await confirm({
    title: `Give the key of ${name} a new secret?`,
    consequences: ["The old one stays valid for some hours, in which the clients change."],
    verb: "Rotate",
    fields: [field("Hours", make("input", { name: "hours", type: "number", min: 0, value: 24 }), "0: it ends at once")],
  }, async ({ hours }) => {
    ({ secret } = await call("POST", path("/v1/keys", id, "rotate"), { overlap_seconds: 3600 * Number(hours ?? 0) }));
  });
  if (!done) return;
  await showSecret(name, secret);
  await context.refresh();
}

async function revoke({ id, name }, context) {
  const own = id === context.me.key_id ? ["It is the one that you are signed in with."] : [];
  const done = await confirm({
    title: `Revoke the key of ${name}?`,
    consequences: ["All processes refuse it at once. It cannot be made valid again.", ...own],
    verb: "Revoke",
    danger: true,
  }, () => call("DELETE", path("/v1/keys", id)));
  if (done) await context.refresh();
}
