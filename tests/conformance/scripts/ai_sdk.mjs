// What the AI SDK does with any of its providers.

import assert from "node:assert/strict";

import { Output, embedMany, generateText, streamText, tool } from "ai";
import { z } from "zod";

import { CITIES, QUESTION, raised } from "./features.mjs";

const Ticket = z.object({ topic: z.enum(["card", "transfer", "account"]), urgent: z.boolean() });
const getWeather = tool({
  description: "The weather of a city.",
  inputSchema: z.object({ city: z.enum(CITIES) }),
  execute: async () => "sunny, 21 degrees",
});
const settings = { prompt: QUESTION, temperature: 0, maxRetries: 0 };

/** One call at a time, as each provider writes it: the small model would go on calling to the last token. */
const oneCall = { openai: { parallelToolCalls: false }, graftwork: { parallel_tool_calls: false } };

export async function answers(model) {
  const answer = await generateText({ ...settings, model, maxOutputTokens: 16 });
  assert.ok(answer.text);
  assert.ok(answer.usage.outputTokens > 0);
}

export async function streams(model) {
  let failure;
  const result = streamText({ ...settings, model, maxOutputTokens: 16, onError: ({ error }) => (failure = error) });
  let text = "";
  for await (const piece of result.textStream) text += piece;
  if (failure) throw failure;
  assert.ok(text);
  assert.ok((await result.usage).outputTokens > 0);
}

export async function keepsToSchema(model) {
  const output = Output.object({ schema: Ticket });
  const answer = await generateText({ ...settings, model, output, maxOutputTokens: 80 });
  Ticket.parse(answer.output);
}

/** The tool is called, run, and what it says goes back to the model. */
export async function callsTool(model, toolChoice) {
  const tools = { get_weather: getWeather };
  const options = { ...settings, model, tools, providerOptions: oneCall, maxOutputTokens: 80 };
  const first = await generateText({ ...options, toolChoice });
  assert.ok(CITIES.includes(first.toolCalls[0].input.city));
  assert.equal(first.toolResults[0].output, "sunny, 21 degrees");
  return { ...options, first };
}

export async function goesOnAfterTool(model, toolChoice) {
  const { first, prompt, ...options } = await callsTool(model, toolChoice);
  const messages = [{ role: "user", content: prompt }, ...first.response.messages];
  const second = await generateText({ ...options, messages, maxOutputTokens: 24 });
  assert.ok(second.text || second.toolCalls.length > 0);
}

export async function streamsToolCall(model, toolChoice) {
  let failure;
  const tools = { get_weather: getWeather };
  const options = { ...settings, model, tools, toolChoice, maxOutputTokens: 80 };
  const result = streamText({ ...options, onError: ({ error }) => (failure = error) });
  await result.consumeStream();
  if (failure) throw failure;
  const [call] = await result.toolCalls;
  assert.ok(CITIES.includes(call.input.city));
}

export async function embeds(model) {
  const { embeddings } = await embedMany({ model, values: ["a lost card", "a transfer"], maxRetries: 0 });
  assert.equal(embeddings.length, 2);
  assert.ok(embeddings[0].length > 100);
}

export const fails = (model, status, options = {}) =>
  raised(() => generateText({ ...settings, model, maxOutputTokens: 8, ...options }), status);

export const NAMED = { type: "tool", toolName: "get_weather" };
