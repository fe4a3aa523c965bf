// The AI SDK with its provider for Anthropic's messages.

import { createAnthropic } from "@ai-sdk/anthropic";

import * as ai from "./ai_sdk.mjs";
import { API_KEY, BASE_URL, MODEL, feature, main } from "./features.mjs";

const provider = createAnthropic({ baseURL: BASE_URL, apiKey: API_KEY });
const messages = provider(MODEL);

feature("messages", () => ai.answers(messages));
feature("messages: streaming", () => ai.streams(messages));
feature("messages: tools", async () => {
  await ai.goesOnAfterTool(messages, ai.NAMED);
  await ai.streamsToolCall(messages, "required");
});
feature("error 400", () => ai.fails(messages, 400, { topP: 7 }));
feature("error 401", () => ai.fails(createAnthropic({ baseURL: BASE_URL, apiKey: "a-wrong-key" })(MODEL), 401));
feature("error 404", () => ai.fails(provider("nobody"), 404));
feature("error 429", () => ai.fails(messages, 429));

await main();
