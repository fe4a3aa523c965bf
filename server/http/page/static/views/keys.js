/** Keys: listed, made, revoked. The secret of a new one is shown once. */

import { call, list, path } from "../api.js";
import { confirm, given, tell } from "../dialog.js";
import { button, code, field, make, nothing, options, pill, section, table } from "../dom.js";
import { moment } from "../format.js";

export const title = "Keys";

const MAY = [
  ["app", "app: asks, sends feedback"],
  ["operator", "operator: changes what is served, reads what users wrote"],
  ["admin", "admin: also makes keys"],
];

export const load = () => list("/v1/keys", { most: 1000 });

export function show({ data }, context) {
  return [
    make("h1", {}, "Keys"),
    section(
      "New key",
      {},
      make(
        "form.form",
        { onsubmit: (event) => create(event, context) },
        field(
          "Name",
          make("input", { name: "name", required: true, maxlength: 100, autocomplete: "off" }),
          "who or what uses it",
        ),
        field(
          "Role",
          make("select", { name: "role" }, options(MAY, context.me.open ? "admin" : "app")),
          context.me.open ? "the first one locks this server" : null,
        ),
        make("div.actions", {}, make("button.primary", { type: "submit" }, "Make a key")),
        make("p.bad.wide", { role: "alert" }),
      ),
    ),
    section(
      "All keys",
      {},
      data.length
        ? table(
            "Keys",
            ["name", "role", "id", "made", "state", ""],
            data.toReversed().map((key) => row(key, context)),
          )
        : nothing(
            "None in the database: who knows the server's first admin key, or sits at this machine, is an admin.",
          ),
    ),
  ];
}

function row(key, context) {
  const { id, name, role, created_at, revoked_at } = key;
  return make(
    revoked_at ? "tr.retired" : "tr",
    { key: id },
    make("td", {}, name),
    make("td", {}, role),
    make("td", {}, code(id)),
    make("td", {}, moment(created_at)),
    make("td", {}, revoked_at ? `revoked ${moment(revoked_at)}` : pill("valid", "good")),
    make(
      "td",
      {},
      revoked_at
        ? null
        : button("Revoke…", () => revoke(key, context), { kind: "small", "aria-label": `Revoke ${name}…` }),
    ),
  );
}

async function create(event, context) {
  event.preventDefault();
  const form = event.target;
  try {
    const { name, secret } = await call("POST", "/v1/keys", given(form));
    form.reset();
    form.querySelector("[role=alert]").textContent = "";
    await tell(
      `The key of ${name}`,
      make("p", {}, "It is shown this once: only a hash of it is kept."),
      make("code.secret", {}, secret),
    );
    await context.refresh();
  } catch (error) {
    form.querySelector("[role=alert]").textContent = error.message;
  }
}

async function revoke({ id, name }, context) {
  const isOwn = id === context.me.key_id;
  const done = await confirm(
    {
      title: `Revoke the key of ${name}?`,
      consequences: [
        "All processes refuse it at once. It cannot be made valid again.",
        ...(isOwn ? ["It is the one that you are signed in with."] : []),
      ],
      verb: "Revoke",
      danger: true,
    },
    () => call("DELETE", path("/v1/keys", id)),
  );
  if (done) await context.refresh();
}
