// OpenAI's own client for Node.

import assert from "node:assert/strict";

import OpenAI, { toFile } from "openai";
import { zodResponseFormat, zodTextFormat } from "openai/helpers/zod";
import { z } from "zod";

import { API_KEY, BASE_URL, CITIES, MODEL, QUESTION, SHORT, feature, main, raised } from "./features.mjs";

const client = new OpenAI({ baseURL: BASE_URL, apiKey: API_KEY, maxRetries: 0 });

const Ticket = z.object({ topic: z.enum(["card", "transfer", "account"]), urgent: z.boolean() });
const parameters = {
  type: "object",
  properties: { city: { type: "string", enum: CITIES } },
  required: ["city"],
  additionalProperties: false,
};
const weather = { type: "function", function: { name: "get_weather", parameters, strict: true } };
const named = { type: "function", function: { name: "get_weather" } };
const call = { id: "call_1", type: "function", function: { name: "get_weather", arguments: '{"city": "Paris"}' } };
const messages = [{ role: "user", content: QUESTION }];
const called = [
  ...messages,
  { role: "assistant", content: null, tool_calls: [call] },
  { role: "tool", tool_call_id: "call_1", content: "sunny, 21 degrees" },
];

const chat = (options = {}) =>
  client.chat.completions.create({ model: MODEL, messages, temperature: 0, max_tokens: 16, ...options });

const assertCity = (text) => assert.ok(CITIES.includes(JSON.parse(text).city), text);

feature("models", async () => {
  const ids = [];
  for await (const model of client.models.list()) ids.push(model.id);
  assert.ok(ids.includes(MODEL));
});

feature("chat", async () => {
  const answer = await chat();
  assert.ok(answer.choices[0].message.content);
  assert.ok(answer.usage.completion_tokens > 0);
});

feature("streaming", async () => {
  let text = "";
  let usage;
  for await (const chunk of await chat({ stream: true, stream_options: { include_usage: true } })) {
    text += chunk.choices[0]?.delta.content ?? "";
    usage = chunk.usage;
  }
  assert.ok(text);
  assert.ok(usage.completion_tokens > 0);
});

feature("logprobs", async () => {
  const answer = await chat({ logprobs: true, top_logprobs: 3 });
  assert.equal(answer.choices[0].logprobs.content[0].top_logprobs.length, 3);
});

feature("structured output", async () => {
  const answer = await client.chat.completions.parse({
    model: MODEL,
    messages,
    response_format: zodResponseFormat(Ticket, "ticket"),
    temperature: 0,
    max_tokens: 80,
  });
  Ticket.parse(answer.choices[0].message.parsed);
});

feature("completions", async () => {
  const prompt = "The capital of France is";
  const answer = await client.completions.create({ model: MODEL, prompt, temperature: 0, max_tokens: 4 });
  assert.ok(answer.choices[0].text);
});

feature("tools: required", async () => {
  const options = { tools: [weather], tool_choice: "required", parallel_tool_calls: false, max_tokens: 80 };
  const answer = await chat(options);
  assertCity(answer.choices[0].message.tool_calls[0].function.arguments);
  assert.equal(answer.choices[0].finish_reason, "tool_calls");
});

feature("tools: named", async () => {
  const answer = await chat({ tools: [weather], tool_choice: named, max_tokens: 80 });
  assertCity(answer.choices[0].message.tool_calls[0].function.arguments);
});

feature("tools: history", async () => {
  const { message } = (await chat({ messages: called, tools: [weather], max_tokens: 24 })).choices[0];
  assert.ok(message.content || message.tool_calls);
});

feature("tools: streaming", async () => {
  const options = { model: MODEL, messages, tools: [weather], tool_choice: named, temperature: 0, max_tokens: 80 };
  const stream = client.chat.completions.stream(options);
  const message = await stream.finalMessage();
  assertCity(message.tool_calls[0].function.arguments);
});

const respond = { model: MODEL, temperature: 0, max_output_tokens: 64 };
const flat = { type: "function", name: "get_weather", parameters, strict: true };

feature("responses", async () => {
  assert.ok((await client.responses.create({ ...respond, input: SHORT })).output_text);
});

feature("responses: streaming", async () => {
  const stream = client.responses.stream({ ...respond, input: SHORT });
  let text = "";
  for await (const event of stream) if (event.type === "response.output_text.delta") text += event.delta;
  assert.ok(text);
  assert.equal((await stream.finalResponse()).output_text, text);
});

feature("responses: tools", async () => {
  const options = { ...respond, tools: [flat], max_output_tokens: 80 };
  const tool_choice = { type: "function", name: "get_weather" };
  const answer = await client.responses.create({ ...options, input: messages, tool_choice });
  const asked = answer.output.find((item) => item.type === "function_call");
  assertCity(asked.arguments);
  const result = { type: "function_call_output", call_id: asked.call_id, output: "sunny, 21 degrees" };
  assert.ok((await client.responses.create({ ...options, input: [...messages, ...answer.output, result] })).output);
});

feature("responses: structured output", async () => {
  const text = { format: zodTextFormat(Ticket, "ticket") };
  const answer = await client.responses.parse({ ...respond, input: QUESTION, text, max_output_tokens: 80 });
  Ticket.parse(answer.output_parsed);
});

feature("embeddings", async () => {
  const answer = await client.embeddings.create({ model: MODEL, input: ["a lost card", "a transfer"] });
  assert.equal(answer.data.length, 2);
  assert.ok(answer.data[0].embedding.length > 100);
});

feature("batches", async () => {
  const body = { model: MODEL, messages, temperature: 0, max_tokens: 8 };
  const line = JSON.stringify({ custom_id: "first", method: "POST", url: "/v1/chat/completions", body });
  const file = await client.files.create({ file: await toFile(Buffer.from(line), "rows.jsonl"), purpose: "batch" });
  const endpoint = "/v1/chat/completions";
  let batch = await client.batches.create({ input_file_id: file.id, endpoint, completion_window: "24h" });
  for (let tries = 0; tries < 300 && !["completed", "failed"].includes(batch.status); tries += 1) {
    await new Promise((resolve) => setTimeout(resolve, 200));
    batch = await client.batches.retrieve(batch.id);
  }
  assert.equal(batch.status, "completed");
  const result = JSON.parse(await (await client.files.content(batch.output_file_id)).text());
  assert.ok(result.response.body.choices[0].message.content);
});

feature("error 400", () => raised(() => chat({ temperature: 5 }), 400));
feature("error 401", () =>
  raised(() => client.withOptions({ apiKey: "a-wrong-key" }).chat.completions.create({ model: MODEL, messages }), 401),
);
feature("error 404", () => raised(() => chat({ model: "nobody" }), 404));
feature("error 429", () => raised(() => chat(), 429));

await main();
