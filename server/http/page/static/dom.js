/** Elements, made and brought up to date. Text is only ever set as text: nothing here parses markup. */

const SVG = "http://www.w3.org/2000/svg";
const HANDLERS = ["onclick", "oninput", "onchange", "onsubmit"];

/** Attributes that belong to whoever looks at the page: a refresh does not take them back. */
const KEPT = new Set(["open", "value", "checked", "selected"]);

/**
 * An element.
 *
 * @param {string} kind - Its tag and classes: `"td.num"`.
 * @param {Object} attributes - `key` tells siblings apart when they are updated, `onclick` and the like are functions,
 *   false and null are left out.
 * @param {...(Node|string|number|Array|null)} children - Strings become text.
 */
export function make(kind, attributes = {}, ...children) {
  const [tag, ...classes] = kind.split(".").filter(Boolean);
  return fill(document.createElement(tag), classes, attributes, children);
}

/** The same for the elements of a picture. */
export function draw(kind, attributes = {}, ...children) {
  const [tag, ...classes] = kind.split(".");
  return fill(document.createElementNS(SVG, tag), classes, attributes, children);
}

function fill(element, classes, attributes, children) {
  if (classes.length) element.setAttribute("class", classes.join(" "));
  for (const [name, value] of Object.entries(attributes)) {
    if (HANDLERS.includes(name)) element[name] = value;
    else if (name === "key") element.dataset.key = value;
    else if (value !== false && value !== null && value !== undefined) {
      element.setAttribute(name, value === true ? "" : value);
    }
  }
  element.append(
    ...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false),
  );
  return element;
}

/** Change `old` into `fresh`, keeping the nodes that are alike, and with them focus, selection and scroll. */
export function update(old, fresh) {
  if (old.nodeName !== fresh.nodeName || old.dataset?.key !== fresh.dataset?.key) {
    old.replaceWith(fresh);
  } else if (old.nodeType === Node.TEXT_NODE) {
    if (old.data !== fresh.data) old.data = fresh.data;
  } else {
    for (const { name } of [...old.attributes]) {
      if (!fresh.hasAttribute(name) && !KEPT.has(name)) old.removeAttribute(name);
    }
    for (const { name, value } of fresh.attributes) {
      if (old.getAttribute(name) !== value && !KEPT.has(name)) old.setAttribute(name, value);
    }
    for (const name of HANDLERS) old[name] = fresh[name];
    updateChildren(old, fresh);
  }
}

function updateChildren(old, fresh) {
  const keyed = (parent) =>
    new Map([...parent.children].filter(({ dataset }) => dataset.key).map((child) => [child.dataset.key, child]));
  const [before, after] = [keyed(old), keyed(fresh)];
  for (const [key, child] of before) if (!after.has(key)) child.remove();
  let place = old.firstChild;
  for (const next of [...fresh.childNodes]) {
    const key = next.dataset?.key;
    const alike = key ? before.get(key) : place?.nodeName === next.nodeName && !place.dataset?.key ? place : null;
    if (!alike) {
      old.insertBefore(next, place);
      continue;
    }
    if (alike === place) place = place.nextSibling;
    else old.insertBefore(alike, place);
    update(alike, next);
  }
  while (place) {
    const rest = place.nextSibling;
    place.remove();
    place = rest;
  }
}

/** A section with a heading, and what may be done there beside it. */
export function section(title, { actions = [], id } = {}, ...children) {
  const label = id ?? title.toLowerCase().replaceAll(/[^a-z]+/g, "-");
  return make(
    "section",
    { "aria-labelledby": label, key: label },
    make("div.head", {}, make("h2", { id: label }, title), actions.length ? make("div.actions", {}, actions) : null),
    children,
  );
}

/**
 * A table that scrolls sideways by itself where it is too wide.
 *
 * @param {string} label - What it is a table of, for screen readers.
 * @param {Array} columns - For each `[title, cell]` or `[title, kind, cell]`: `cell` makes the content from an entry,
 *   and `kind` is a class: `num`, `text` for what may be long, `soft`. A title may be a `th` of its own.
 * @param {Array} entries - One for each row.
 * @param {Object} [how]
 * @param {function(*): string|number} [how.key] - What tells entries apart; their id, if not given.
 * @param {function(*): string} [how.kind] - The class of an entry's row.
 */
export function table(label, columns, entries, { key = ({ id }) => id, kind = () => "" } = {}) {
  const parts = columns.map((column) => [column[0], column.length > 2 ? `.${column[1]}` : "", column.at(-1)]);
  const titles = parts.map(([title, kind]) =>
    title instanceof Node ? title : make(`th${kind}`, { scope: "col" }, title),
  );
  const rows = entries.map((entry) => {
    const cells = parts.map(([, kind, cell]) => make(`td${kind}`, {}, cell(entry)));
    return make(`tr.${kind(entry)}`, { key: key(entry) }, cells);
  });
  const inner = make("table", {}, make("thead", {}, make("tr", {}, titles)), make("tbody", {}, rows));
  return make("div.table", { role: "region", "aria-label": label, tabindex: 0 }, inner);
}

/** A table, or words where there is nothing to put into one. */
export const tableOr = (words, label, columns, entries, how) =>
  entries.length ? table(label, columns, entries, how) : nothing(words);

/** The heading of a view: where it is, what it is called, what may be done there. */
export function heading(title, { under, actions = [] } = {}, ...more) {
  const way = under ? soft(link(under[0], under[1]), " /") : null;
  return make("div.head", {}, way, make("h1", {}, title), more, make("div.actions", {}, actions));
}

/** Names and values, one pair a line; values that are null are left out. */
export function facts(pairs) {
  return make(
    "dl",
    {},
    Object.entries(pairs)
      .filter(([, value]) => value !== null && value !== undefined && value !== "")
      .map(([name, value]) => make("div", {}, make("dt", {}, name), make("dd", {}, value))),
  );
}

/** An element with a label before it: `field("Name", make("input", {name: "name"}))`. */
export function field(label, input, hint = null) {
  return make("label.field", {}, make("span", {}, label), input, hint && make("small", {}, hint));
}

export const link = (address, ...children) => make("a", { href: `#${address}` }, children);
export const soft = (...children) => make("span.soft", {}, children);
export const titled = (title, ...children) => make("span", { title }, children);
export const code = (text) => make("code", {}, text);

export function pill(text, kind = "") {
  return make(kind ? `span.pill.${kind}` : "span.pill", {}, text);
}

export function button(text, onclick, { kind = "", ...attributes } = {}) {
  return make(kind ? `button.${kind}` : "button", { type: "button", onclick, ...attributes }, text);
}

/** What stands where a list has nothing. */
export const nothing = (...children) => make("p.soft.nothing", {}, children);

/** The choices of a `select`: texts, or `[value, text]`. */
export const options = (choices, chosen) =>
  choices.map((choice) => {
    const [value, text] = Array.isArray(choice) ? choice : [choice, choice];
    return make("option", { value, selected: value === chosen }, text);
  });
