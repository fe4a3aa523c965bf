/**
 * The page's frame: who is signed in, which view the address names, and its refreshes.
 *
 * A view is a module with `title`, `load(context)`, which fetches its data, and `show(data, context)`, which makes
 * elements of them. `context` has `me` (the session), `can(role)`, `names` (the rest of the address), `parameters` (its
 * query), `refresh()` (fetch anew), `redraw()` (show the same data again) and `go(address)`.
 */

import { call, get, readiness, Unreachable } from "./api.js";
import { button, field, make, soft, update } from "./dom.js";
import { moment } from "./format.js";
import * as adapter from "./views/adapter.js";
import * as adapters from "./views/adapters.js";
import * as audit from "./views/audit.js";
import * as experiment from "./views/experiment.js";
import * as experiments from "./views/experiments.js";
import * as interaction from "./views/interaction.js";
import * as interactions from "./views/interactions.js";
import * as job from "./views/job.js";
import * as keys from "./views/keys.js";
import * as learning from "./views/learning.js";
import * as overview from "./views/overview.js";
import * as playground from "./views/playground.js";
import * as round from "./views/round.js";

/** By the first part of the address: the view, that of one thing, and the least role that sees it. */
const VIEWS = {
  overview: { list: overview, role: "app" },
  adapters: { list: adapters, one: adapter, role: "app" },
  experiments: { list: experiments, one: experiment, role: "operator" },
  learning: { list: learning, role: "operator" },
  jobs: { one: job, role: "operator", under: "learning" },
  rounds: { one: round, role: "operator", under: "learning" },
  interactions: { list: interactions, one: interaction, role: "operator" },
  playground: { list: playground, role: "app" },
  keys: { list: keys, role: "admin" },
  audit: { list: audit, role: "admin" },
};

const ROLES = ["app", "operator", "admin"];
const PULSE_MS = 2000;
const REFRESH_MS = 5000;
/** A view that takes long to load is loaded the less often: the page takes at most this share of the time. */
const MAX_SHARE = 0.1;

const find = (id) => document.getElementById(id);
const main = find("main");
let context = null;
let seenAt = null;
let timer = 0;

// ------------------------------------------------------------------------------------------------------------ pulse

async function pulse() {
  const pill = find("state");
  try {
    const { status } = await readiness();
    seenAt = Date.now() / 1000;
    show(pill, status, status === "ready" ? "good" : "middling");
  } catch {
    show(pill, "server gone", "bad", seenAt && `last seen ${moment(seenAt)}`);
  }
  setTimeout(pulse, PULSE_MS);
}

function show(pill, text, kind, title) {
  if (pill.textContent !== text) pill.textContent = text; // read aloud where it changes
  pill.className = `pill ${kind}`;
  pill.title = title ?? "";
}

// ------------------------------------------------------------------------------------------------------------ views

/** What is looked at, without the parameters of how. */
const address = () => location.hash.split("?")[0];

/** The view that the address names. `#/adapters/intents?sort=name` */
function route() {
  const [path, parameters] = location.hash.replace(/^#\/?/, "").split("?");
  const [name, ...names] = path.split("/").filter(Boolean).map(decodeURIComponent);
  const place = Object.hasOwn(VIEWS, name ?? "") ? name : "overview";
  const entry = VIEWS[place];
  const view = names.length ? entry.one : entry.list;
  return { place, view: view ?? overview, names, role: entry.role, parameters: new URLSearchParams(parameters) };
}

async function open() {
  const me = context?.me ?? (await get("/session"));
  if (!me.role) return signIn();
  const can = (role) => ROLES.indexOf(me.role) >= ROLES.indexOf(role);
  const to = route();
  const opened = (context = { me, can, ...to, go, refresh, redraw, data: null });
  showFrame(opened);
  if (!can(to.role)) {
    main.replaceChildren(
      make("h1", {}, "Not with this key"),
      make("p", {}, `This takes a key of role ${to.role} or above.`),
    );
    return;
  }
  const isNew = main.dataset.view !== address();
  main.setAttribute("aria-busy", "true");
  await refresh();
  if (context !== opened) return;
  main.removeAttribute("aria-busy");
  if (!isNew) return;
  scrollTo(0, 0);
  main.focus({ preventScroll: true });
}

/** Load the view's data anew and show them; again after a while. */
async function refresh() {
  clearTimeout(timer);
  const shown = context;
  if (!shown) return;
  const began = performance.now();
  try {
    const data = await shown.view.load(shown);
    if (context !== shown) return;
    shown.data = data;
    redraw();
    problem("");
  } catch (error) {
    if (context !== shown) return;
    if (error.status === 401) return signIn();
    problem(error instanceof Unreachable ? `${error.message}: what is below may be old` : error.message);
    if (shown.data === null) main.replaceChildren();
    if (!(error instanceof Unreachable || error.status)) throw error;
  } finally {
    if (context === shown) {
      const pause = Math.max(REFRESH_MS, (performance.now() - began) / MAX_SHARE);
      clearTimeout(timer); // of another refresh that was quicker
      timer = setTimeout(() => (document.hidden ? undefined : refresh()), pause);
    }
  }
}

/** Bring what is on screen up to the data that are there. */
function redraw() {
  if (!context?.data) return;
  const { view, data } = context;
  performance.mark("redraw");
  const fresh = make("main", { id: "main", tabindex: -1 }, view.show(data, context));
  if (main.dataset.view === address()) update(main, fresh);
  else main.replaceChildren(...fresh.childNodes);
  main.dataset.view = address();
  const heading = main.querySelector("h1")?.textContent;
  document.title = heading ? `${heading} – Graftwork` : "Graftwork";
  performance.measure(`show ${context.place}`, "redraw");
}

/** Go to an address; with `quietly` the view stays and only its parameters change. */
function go(address, { quietly = false } = {}) {
  if (!quietly) location.hash = address;
  else {
    history.replaceState(null, "", `#${address}`);
    context.parameters = route().parameters;
    redraw();
  }
}

function showFrame({ me, can, place }) {
  const here = VIEWS[place].under ?? place;
  const seen = Object.entries(VIEWS).filter(([, { list, role }]) => list && can(role));
  update(
    find("views"),
    make(
      "nav",
      { id: "views", "aria-label": "Views" },
      seen.map(([name, { list }]) =>
        make("a", { href: `#/${name}`, key: name, "aria-current": name === here ? "page" : null }, list.title),
      ),
    ),
  );
  document.querySelector("nav [aria-current]")?.scrollIntoView({ block: "nearest", inline: "nearest" });
  const who = me.open
    ? soft("no keys yet: open to this machine")
    : [soft(`${me.name} · ${me.role}`), button("Sign out", signOut)];
  update(find("who"), make("span", { id: "who" }, who));
}

function problem(text) {
  const place = find("problem");
  if (place.textContent !== text) place.textContent = text;
}

// ---------------------------------------------------------------------------------------------------------- sessions

function signIn() {
  clearTimeout(timer);
  // A new document has nothing of what the views keep: it was another key's.
  if (context) return location.reload();
  delete main.dataset.view;
  for (const id of ["views", "who"]) find(id).replaceChildren();
  problem("");
  const key = make("input", { name: "key", type: "password", autocomplete: "current-password", required: true });
  const refused = make("p.bad", { role: "alert" });
  const form = make(
    "form.sign-in",
    { onsubmit: begin },
    make("h1", {}, "Sign in"),
    make("input", { name: "username", autocomplete: "username", hidden: true }),
    field("API key", key),
    refused,
    make("button.primary", { type: "submit" }, "Sign in"),
    soft(
      "It becomes a cookie that no script can read; the session ends after twelve hours, or when the key is revoked.",
    ),
  );

  async function begin(event) {
    event.preventDefault();
    try {
      const me = await call("POST", "/session", { key: key.value });
      key.value = "";
      context = { me };
      await open();
    } catch (error) {
      refused.textContent = error.message;
      key.select();
    }
  }

  main.replaceChildren(form);
  document.title = "Sign in – Graftwork";
  key.focus();
}

async function signOut() {
  await call("DELETE", "/session");
  signIn();
}

// ------------------------------------------------------------------------------------------------------------- start

async function start() {
  try {
    await open();
  } catch (error) {
    if (error.status === 401) return signIn();
    problem(error.message);
    setTimeout(start, PULSE_MS);
  }
}

addEventListener("hashchange", () => context && start());
document.addEventListener("visibilitychange", () => !document.hidden && context && refresh());
pulse();
start();
