// OpenAI's client for Node: an answer, a stream, a tool, a response. Arguments: URL MODEL.
import assert from "node:assert/strict";
import OpenAI from "openai";

const [url, model] = process.argv.slice(2);
const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: "none", maxRetries: 0 });
const messages = [{ role: "user", content: "Hello" }];
const asked = { model, messages, temperature: 0, max_tokens: 20 };

const whole = await client.chat.completions.create(asked);
assert.ok(whole.usage.completion_tokens > 0);
let text = "";
for await (const chunk of await client.chat.completions.create({ ...asked, stream: true })) {
  text += chunk.choices[0]?.delta?.content ?? "";
}
assert.equal(text, whole.choices[0].message.content);

const parameters = { type: "object", properties: { n: { enum: [1, 2] } }, required: ["n"], additionalProperties: false };
const tools = [{ type: "function", function: { name: "pick", parameters } }];
const choice = { type: "function", function: { name: "pick" } };
const called = await client.chat.completions.create({ ...asked, max_tokens: 200, tools, tool_choice: choice });
const [call] = called.choices[0].message.tool_calls;
assert.ok([1, 2].includes(JSON.parse(call.function.arguments).n));

const made = await client.responses.create({ model, input: "Hello", temperature: 0, max_output_tokens: 20 });
assert.equal(made.output_text, text);
let streamed = "";
const events = await client.responses.create({ model, input: "Hello", temperature: 0, max_output_tokens: 20, stream: true });
for await (const event of events) if (event.type === "response.output_text.delta") streamed += event.delta;
assert.equal(streamed, text);

await assert.rejects(client.chat.completions.create({ ...asked, temperature: 300 }), { status: 400, param: "temperature" });
const stream = await client.chat.completions.create({ ...asked, max_tokens: 1500, stream: true });
for await (const _ of stream) { stream.controller.abort(); break; }
console.log("ok");
