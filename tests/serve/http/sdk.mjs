// The official npm SDKs against a server: streams and what their accumulators make of them. Prints one JSON object.
import { pathToFileURL } from "node:url";
import { createRequire } from "node:module";

const [modules, url] = process.argv.slice(2);
const require = createRequire(pathToFileURL(`${modules}/`).href);
const OpenAI = require("openai").default;
const Anthropic = require("@anthropic-ai/sdk").default;

const openai = new OpenAI({ baseURL: `${url}/v1`, apiKey: "none", maxRetries: 0 });
const anthropic = new Anthropic({ baseURL: url, apiKey: "none", maxRetries: 0 });
const parameters = {
  type: "object",
  properties: { city: { type: "string" }, days: { type: "integer" } },
  required: ["city", "days"],
};
const said = (word) => [{ role: "user", content: `say:${word}` }];
const told = {};

{
  const runner = openai.chat.completions.stream({
    model: "tiny",
    messages: said("call"),
    tools: [{ type: "function", function: { name: "get_weather", parameters } }],
    stream_options: { include_usage: true },
  });
  let chunks = 0;
  for await (const _ of runner) chunks += 1;
  const done = await runner.finalChatCompletion();
  const call = done.choices[0].message.tool_calls[0].function;
  told.chat = { chunks, reason: done.choices[0].finish_reason, call: JSON.parse(call.arguments), text: done.choices[0].message.content };
}
{
  const asked = [];
  const runner = openai.chat.completions.runTools({
    model: "tiny",
    stream: true,
    messages: said("call"),
    tools: [
      {
        type: "function",
        function: {
          name: "get_weather",
          description: "The weather.",
          parameters,
          parse: JSON.parse,
          function: (args) => (asked.push(args), "rain say:done"),
        },
      },
    ],
  });
  told.runner = { text: await runner.finalContent(), asked };
}
{
  const stream = openai.responses.stream({ model: "tiny", input: "say:call", tools: [{ type: "function", name: "get_weather", parameters, strict: false }] });
  const kinds = new Set();
  for await (const event of stream) kinds.add(event.type);
  const done = await stream.finalResponse();
  told.responses = { items: done.output.map((item) => item.type), status: done.status, kinds: kinds.size };
}
{
  const stream = await openai.completions.create({ model: "tiny", prompt: "say:done", stream: true, max_tokens: 50 });
  let text = "";
  for await (const chunk of stream) text += chunk.choices[0].text;
  told.completions = text;
}
{
  const stream = anthropic.messages.stream({
    model: "tiny",
    max_tokens: 300,
    messages: said("call"),
    thinking: { type: "enabled", budget_tokens: 1024 },
    tools: [{ name: "get_weather", input_schema: parameters }],
  });
  let deltas = 0;
  stream.on("text", () => (deltas += 1));
  const done = await stream.finalMessage();
  told.messages = { kinds: done.content.map((block) => block.type), input: done.content.at(-1).input, reason: done.stop_reason, deltas };
}
{
  const stream = anthropic.messages.stream({ model: "tiny", max_tokens: 300, messages: said("fail") });
  told.failure = await stream.finalMessage().then(() => "none", (error) => error.message);
  told.missing = await anthropic.messages.create({ model: "no", max_tokens: 1, messages: said("done") }).catch((error) => error.status);
}
console.log(JSON.stringify(told));
