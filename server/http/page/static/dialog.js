/** What is asked before something happens: a modal dialog, which takes the keyboard and gives it back. */

import { field, make } from "./dom.js";

/**
 * Ask a second time, and do it.
 *
 * @param {Object} question
 * @param {string} question.title - What is about to happen: `"Promote intents@3 to live?"`
 * @param {Array<string>} question.consequences - What that means, a sentence each.
 * @param {string} question.verb - On the button that does it.
 * @param {boolean} [question.reason] - Whether to ask why, for the history.
 * @param {Array<Node>} [question.fields] - Further fields of the form.
 * @param {function(Object): Promise} act - Gets the fields by name. An error is shown, and the dialog stays.
 * @returns {Promise<boolean>} Whether it was done.
 */
export function confirm({ title, consequences = [], verb, reason = false, fields = [], danger = false }, act) {
  const problem = make("p.bad", { role: "alert" });
  const doIt = make(danger ? "button.danger" : "button.primary", { type: "submit" }, verb);
  const cancel = make("button", { type: "button", onclick: () => dialog.close() }, "Cancel");
  const form = make(
    "form",
    {},
    make("h2", { id: "dialog-title" }, title),
    consequences.map((sentence) => make("p", {}, sentence)),
    fields,
    reason
      ? field("Reason, for the history", make("input", { name: "reason", maxlength: 500, autocomplete: "off" }))
      : null,
    problem,
    make("div.actions", {}, cancel, doIt),
  );
  const dialog = make("dialog", { "aria-labelledby": "dialog-title" }, form);
  const { promise, resolve } = Promise.withResolvers();
  let done = false;
  form.onsubmit = async (event) => {
    event.preventDefault();
    doIt.disabled = true;
    try {
      await act(given(form));
      done = true;
      dialog.close();
    } catch (error) {
      problem.textContent = error.message;
      doIt.disabled = false;
      doIt.focus();
    }
  };
  return show(dialog, promise, () => resolve(done));
}

/** Show something until it is closed. */
export function tell(title, ...children) {
  const { promise, resolve } = Promise.withResolvers();
  const dialog = make(
    "dialog",
    { "aria-labelledby": "dialog-title" },
    make("h2", { id: "dialog-title" }, title),
    children,
    make("div.actions", {}, make("button.primary", { type: "button", onclick: () => dialog.close() }, "Close")),
  );
  return show(dialog, promise, resolve);
}

function show(dialog, promise, closed) {
  const before = document.activeElement;
  dialog.addEventListener("close", () => {
    dialog.remove();
    before?.focus?.();
    closed();
  });
  document.body.append(dialog);
  dialog.showModal();
  return promise;
}

/** The fields of a form by name, without the empty ones. */
export function given(form) {
  return Object.fromEntries(
    [...new FormData(form)].map(([name, value]) => [name, value.trim()]).filter(([, value]) => value),
  );
}
