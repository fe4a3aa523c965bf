/**
 * Two versions asked the same thing at once, and which answer was better.
 *
 * Blind, the two change places at random and their names come only after the choice.
 */

import { call, get, stream } from "../api.js";
import { given } from "../dialog.js";
import { button, code, field, make, section, soft } from "../dom.js";

export const title = "Playground";

const MOST_NAMES = 500;

/** What was asked last. It stays while one looks at other views. */
let asked = null;

export async function load({ data, parameters }) {
  if (data) return data; // what can be asked changes seldom
  const { data: models } = await get("/v1/models");
  return { names: models.map(({ id }) => id).slice(0, MOST_NAMES), base: models[0]?.id, live: models[1]?.id };
}

export function show({ names, base, live }, context) {
  const { parameters } = context;
  const model = (name, value) =>
    make("input", { name, value, required: true, list: "models", autocomplete: "off", spellcheck: "false" });
  return [
    make("h1", {}, "Playground"),
    section(
      "Ask",
      {},
      make(
        "form.form",
        { onsubmit: (event) => ask(event, context) },
        make(
          "datalist",
          { id: "models" },
          names.map((value) => make("option", { value })),
        ),
        field("One model", model("left", parameters.get("left") ?? live ?? base ?? "")),
        field("Another", model("right", parameters.get("right") ?? base ?? "")),
        field(
          "Temperature",
          make("input", { name: "temperature", type: "number", min: 0, max: 2, step: "any", value: 0 }),
        ),
        field("Longest answer, in tokens", make("input", { name: "max_tokens", type: "number", min: 1, value: 256 })),
        make(
          "label.check",
          {},
          make("input", { type: "checkbox", name: "blind" }),
          "Blind: names come after the choice",
        ),
        make("div.wide", {}, field("Prompt", make("textarea", { name: "prompt", required: true, rows: 5 }))),
        make("div.wide", {}, field("System message, if any", make("textarea", { name: "system", rows: 2 }))),
        make(
          "div.wide.actions",
          {},
          make("button.primary", { type: "submit" }, "Ask both"),
          asked?.isOpen ? button("Stop", () => asked.stopping.abort()) : null,
        ),
      ),
    ),
    asked
      ? [
          make(
            "div.answers",
            {},
            asked.answers.map((answer, place) => shown(answer, place)),
          ),
          choice(context),
        ]
      : null,
  ];
}

function shown({ model, text, problem, seconds, isDone }, place) {
  const name = asked.blind && !asked.chosen ? `Answer ${"AB"[place]}` : model;
  return section(
    name,
    { id: `answer-${place}` },
    make("pre", { "aria-live": "off" }, text),
    problem ? make("p.bad", { role: "alert" }, problem) : null,
    soft(isDone ? `${seconds.toFixed(1)} s` : "…"),
  );
}

function choice(context) {
  const [one, other] = asked.answers;
  const isReady = asked.answers.every(({ isDone, id, problem }) => isDone && id && !problem);
  if (asked.chosen)
    return make(
      "p",
      { role: "status" },
      asked.chosen === "neither" ? "Nothing was recorded." : ["Recorded: ", code(asked.chosen), " is preferred."],
    );
  const label = (answer, place) => (asked.blind ? `Answer ${"AB"[place]} is better` : `${answer.model} is better`);
  return make(
    "div.actions",
    { role: "group", "aria-label": "Which is better?" },
    button(label(one, 0), () => prefer(one, other, context), { disabled: !isReady }),
    button(label(other, 1), () => prefer(other, one, context), { disabled: !isReady }),
    button(
      "Neither",
      () => {
        asked.chosen = "neither";
        context.redraw();
      },
      { disabled: !isReady },
    ),
    asked.problem ? make("span.bad", { role: "alert" }, asked.problem) : null,
  );
}

async function ask(event, context) {
  event.preventDefault();
  asked?.stopping.abort();
  const { left, right, prompt, system, temperature, max_tokens, blind } = given(event.target);
  const models = blind && Math.random() < 0.5 ? [right, left] : [left, right];
  const mine = (asked = {
    blind: Boolean(blind),
    stopping: new AbortController(),
    isOpen: true,
    answers: models.map((model) => ({ model, text: "", isDone: false })),
  });
  const body = {
    messages: [...(system ? [{ role: "system", content: system }] : []), { role: "user", content: prompt }],
    temperature: Number(temperature ?? 0),
    max_tokens: Number(max_tokens ?? 256),
  };
  await Promise.all(mine.answers.map((answer) => answerOne(answer, body, mine, context)));
  mine.isOpen = false;
  context.redraw();
}

async function answerOne(answer, body, mine, context) {
  const began = performance.now();
  try {
    for await (const chunk of stream("/v1/chat/completions", { ...body, model: answer.model }, mine.stopping.signal)) {
      answer.id = chunk.id;
      answer.text += chunk.choices[0]?.delta.content ?? "";
      context.redraw();
    }
  } catch (error) {
    answer.problem = error.name === "AbortError" ? "Stopped." : error.message;
  }
  answer.seconds = (performance.now() - began) / 1000;
  answer.isDone = true;
  context.redraw();
}

async function prefer(better, worse, context) {
  try {
    await call("POST", "/v1/feedback", {
      interaction_id: better.id,
      preferred_over: worse.id,
      comment: asked.blind ? "chosen blind" : undefined,
    });
    asked.chosen = better.model;
  } catch (error) {
    asked.problem = error.message;
  }
  context.redraw();
}
