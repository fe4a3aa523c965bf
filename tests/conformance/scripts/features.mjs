// What the scripts for Node share: as features.py has it.

export const URL_ = process.env.CONFORMANCE_URL ?? "http://127.0.0.1:8000";
export const BASE_URL = `${URL_}/v1`;
export const API_KEY = process.env.CONFORMANCE_API_KEY ?? "none";
export const MODEL = process.env.CONFORMANCE_MODEL ?? "smollm2-135m-instruct";

export const QUESTION = "What is the weather like in Paris?";
export const SHORT = "What is the capital of France?"; // see examples.py
export const CITIES = ["Paris", "Rome"];

const features = new Map();

/** The function tries this feature. The text that it returns is told beside "ok"; it throws if there is none. */
export function feature(name, attempt) {
  features.set(name, attempt);
}

/** The name of the class of what `call` throws, whose status must be `expected`. */
export async function raised(call, expected) {
  let error;
  try {
    await call();
  } catch (thrown) {
    error = thrown;
  }
  if (error === undefined) throw new Error("no error was raised");
  const status = error.status ?? error.statusCode;
  if (status !== expected) throw error;
  return error.constructor.name;
}

export async function main() {
  const say = (line) => process.stdout.write(`${JSON.stringify(line)}\n`);
  console.log = console.error;
  say({ features: [...features.keys()] });
  for (const [name, attempt] of features) {
    if (!process.argv.slice(2).includes(name)) continue;
    try {
      const detail = await attempt();
      say({ feature: name, ok: true, detail: typeof detail === "string" ? detail : "" });
    } catch (error) {
      console.error(error);
      say({ feature: name, ok: false, detail: `${error.constructor.name}: ${error.message}` });
    }
  }
}
