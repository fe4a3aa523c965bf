/** Keys: listed, made, revoked. The secret of a new one is shown once. */

import { call, list, path } from "../api.js";
import { confirm, given, tell } from "../dialog.js";
import { button, code, field, make, options, pill, section, tableOr } from "../dom.js";
import { moment } from "../format.js";

export const title = "Keys";

const ROLES = [
  ["app", "app: asks, sends feedback"],
  ["operator", "operator: changes what is served, reads what users wrote"],
  ["admin", "admin: also makes keys"],
];
const NONE = "None in the database: who knows the server's first admin key, or sits at this machine, is an admin.";

export const load = () => list("/v1/keys", { most: 1000 });

export function show({ data }, context) {
  const columns = [
    ["name", ({ name }) => name],
    ["role", ({ role }) => role],
    ["id", ({ id }) => code(id)],
    ["made", ({ created_at }) => moment(created_at)],
    ["state", ({ revoked_at }) => (revoked_at ? `revoked ${moment(revoked_at)}` : pill("valid", "good"))],
    ["", (key) => (key.revoked_at ? null : revoking(key, context))],
  ];
  const kind = ({ revoked_at }) => (revoked_at ? "retired" : "");
  return [
    make("h1", {}, "Keys"),
    section("New key", {}, newKey(context)),
    section("All keys", {}, tableOr(NONE, "Keys", columns, data.toReversed(), { kind })),
  ];
}

function newKey(context) {
  const { open } = context.me;
  return make("form.form", { onsubmit: (event) => create(event, context) },
    field("Name", make("input", { name: "name", required: true, maxlength: 100, autocomplete: "off" }), "who uses it"),
    field("Role", make("select", { name: "role" }, options(ROLES, open ? "admin" : "app")),
      open ? "the first one locks this server" : null),
    make("div.actions", {}, make("button.primary", { type: "submit" }, "Make a key")),
    make("p.bad.wide", { role: "alert" }));
}

async function create(event, context) {
  event.preventDefault();
  const form = event.target;
  const problem = form.querySelector("[role=alert]");
  try {
    const { name, secret } = await call("POST", "/v1/keys", given(form));
    form.reset();
    problem.textContent = "";
    const once = make("p", {}, "It is shown this once: only a hash of it is kept.");
    await tell(`The key of ${name}`, once, make("code.secret", {}, secret));
    await context.refresh();
  } catch (error) {
    problem.textContent = error.message;
  }
}

function revoking({ id, name }, context) {
  const revoke = async () => {
    const own = id === context.me.key_id ? ["It is the one that you are signed in with."] : [];
    const done = await confirm({
      title: `Revoke the key of ${name}?`,
      consequences: ["All processes refuse it at once. It cannot be made valid again.", ...own],
      verb: "Revoke",
      danger: true,
    }, () => call("DELETE", path("/v1/keys", id)));
    if (done) await context.refresh();
  };
  return button("Revoke…", revoke, { kind: "small", "aria-label": `Revoke ${name}…` });
}
