// The page: a conversation, its settings, and the gauges above it.

import { element, render } from "./markdown.js";
import { Refusal, Server } from "./server.js";

const $ = (id) => document.getElementById(id);
const server = new Server();
const NUMBERS = ["temperature", "top_p", "top_k", "min_p", "max_tokens", "seed"];
const USUAL_TOKENS = 512;
let messages = [];      // {role, content, reasoning?}: what is sent, and kept
let running = null;     // the AbortController of the answer in the making
let chat = true;        // false: a base model, which continues text
let model = "";

// ------------------------------------------------------------------------------------ one answer

async function answer() {
  const item = element("li"), view = new Answer(item);
  $("messages").append(item);
  running = new AbortController();
  busy(true);
  const began = performance.now();
  let first = 0, tokens = 0, usage = null, ending = null;
  const timer = setInterval(() => { $("state").textContent = progress(began, first, tokens); }, 500);
  try {
    for await (const event of server.stream(chat ? "/v1/chat/completions" : "/v1/completions", request(), running.signal)) {
      if (event.usage) usage = event.usage;
      const choice = event.choices[0];
      if (!choice) continue;
      ending = choice.finish_reason ?? ending;
      const delta = choice.delta ?? { content: choice.text };
      if (delta.content || delta.reasoning_content || delta.tool_calls) {
        first ||= performance.now();
        tokens += 1;
        view.take(delta);
      }
    }
    view.finish(facts(began, first, tokens, usage, ending));
  } catch (error) {
    if (error.name === "AbortError") view.finish(facts(began, first, tokens, usage, "stopped"));
    else if (error.status === 401) { item.remove(); clearInterval(timer); busy(false); askKey(error.message, answer); return; }
    else view.fail(error);
  } finally {
    clearInterval(timer);
  }
  const said = view.message();
  if (said.content || said.reasoning_content) messages.push(said);
  busy(false);
  keep();
  $("input").focus();
}

/** One answer on the page. Text is added as it comes; Markdown is made of it at the end. */
class Answer {
  #text = ""; #reasoning = ""; #calls = new Map(); #dirty = false; #done = false;

  constructor(item) {
    this.item = item;
    this.thinking = element("details", element("summary", "Thinking"), element("div"));
    this.thinking.lastChild.className = "text";
    this.thinking.hidden = true;
    this.body = element("div");
    this.body.className = "answer raw dot";
    item.append(this.thinking, this.body);
  }

  take(delta) {
    if (delta.reasoning_content) {
      if (this.thinking.hidden) { this.thinking.hidden = false; this.thinking.open = true; }
      this.#reasoning += delta.reasoning_content;
    }
    if (delta.content) {
      if (!this.#text && !this.thinking.hidden) this.thinking.open = false;
      this.#text += delta.content;
    }
    for (const call of delta.tool_calls ?? []) {
      const known = this.#calls.get(call.index) ?? { name: "", text: "" };
      known.name += call.function.name ?? "";
      known.text += call.function.arguments ?? "";
      this.#calls.set(call.index, known);
    }
    if (!this.#dirty) { this.#dirty = true; requestAnimationFrame(() => this.#draw()); }
  }

  #draw() {
    this.#dirty = false;
    if (this.#done) return;
    const follows = atEnd();
    grow(this.body, this.#text);
    grow(this.thinking.lastChild, this.#reasoning);
    if (follows) toEnd();
  }

  finish(found) {
    this.#done = true;
    const follows = atEnd();
    grow(this.thinking.lastChild, this.#reasoning);
    this.thinking.open &&= !this.#text;
    this.thinking.firstChild.textContent = "Thoughts";
    this.body.classList.remove("dot");
    if (chat) {
      this.body.classList.remove("raw");
      this.body.replaceChildren(render(this.#text));
    } else grow(this.body, this.#text);
    for (const call of this.#calls.values()) {
      const shown = element("pre", element("code", `${call.name}(${call.text})`));
      shown.className = "call";
      this.body.append(shown);
    }
    this.item.append(this.#facts(found));
    if (follows) toEnd();
  }

  #facts(found) {
    const row = element("div", ...found.map((text) => element("span", text)));
    row.className = "facts";
    row.append(button("Copy", () => navigator.clipboard.writeText(this.#text)), button("Again", () => again(this.item)));
    return row;
  }

  fail(error) {
    this.finish([]);
    const wait = error.retryAfter ? `. Try again in ${error.retryAfter} s.` : "";
    const known = error instanceof Refusal;
    const failure = element("p", known ? error.message + wait : `The server could not be reached. ${error.message}`);
    failure.className = "failure";
    failure.setAttribute("role", "alert");
    this.item.insertBefore(failure, this.item.lastChild);
  }

  message() {
    const made = { role: "assistant", content: this.#text };
    if (this.#reasoning) made.reasoning_content = this.#reasoning;
    return made;
  }
}

/** Append to an element what it does not hold yet: long answers must not be drawn anew. */
function grow(target, text) {
  const node = target.firstChild ?? target.appendChild(document.createTextNode(""));
  if (text.length > node.data.length) node.appendData(text.slice(node.data.length));
}

function request() {
  const body = { model, max_tokens: USUAL_TOKENS };
  for (const name of NUMBERS) if ($(name).value !== "") body[name] = Number($(name).value);
  if (!chat) return { ...body, prompt: messages.map((message) => message.content).join("") };
  if ($("thinking").value) body.thinking = { type: $("thinking").value === "on" ? "enabled" : "disabled" };
  if ($("effort").value && $("thinking").value !== "off") body.reasoning_effort = $("effort").value;
  const system = $("system").value.trim();
  return { ...body, messages: [...(system ? [{ role: "system", content: system }] : []), ...messages] };
}

function facts(began, first, tokens, usage, ending) {
  const count = usage?.completion_tokens ?? tokens, found = [];
  if (first) found.push(`first token after ${seconds(first - began)}`);
  const spent = (performance.now() - first) / 1000;
  if (first && count > 1 && spent > 0.05) found.push(`${((count - 1) / spent).toFixed(1)} tokens/s`);
  if (usage) {
    const cached = usage.prompt_tokens_details?.cached_tokens;
    found.push(`${usage.prompt_tokens} + ${usage.completion_tokens} tokens${cached ? `, ${cached} cached` : ""}`);
  }
  if (ending && ending !== "stop") found.push({ length: "cut off at the limit", stopped: "stopped" }[ending] ?? ending);
  return found;
}

const seconds = (ms) => (ms < 995 ? `${Math.round(ms)} ms` : `${(ms / 1000).toFixed(1)} s`);

function progress(began, first, tokens) {
  if (!first) return `waiting ${seconds(performance.now() - began)}`;
  return `${tokens} pieces, ${(tokens / Math.max(0.001, (performance.now() - first) / 1000)).toFixed(1)}/s`;
}

// ------------------------------------------------------------------------------- conversation

function say(text) {
  messages.push({ role: "user", content: text });
  show(messages.at(-1));
  answer();
}

function show(message) {
  const item = element("li");
  $("messages").append(item);
  if (message.role === "user") {
    const text = element("div", message.content);
    text.className = "mine";
    const edit = element("div", button("Edit", () => change(item)));
    edit.className = "facts";
    item.append(text, edit);
  } else {
    const view = new Answer(item);
    view.take({ content: message.content, reasoning_content: message.reasoning_content });
    view.finish([]);
  }
  toEnd();
}

/** Take the conversation back to before `item`, whose text goes into the box. */
function change(item) {
  if (running) return;
  const place = [...$("messages").children].indexOf(item);
  $("input").value = messages[place]?.content ?? "";
  cut(place);
  $("input").focus();
}

/** Another answer in the place of `item`. */
function again(item) {
  if (running) return;
  const place = [...$("messages").children].indexOf(item);
  cut(place);
  if (messages.length) answer();
}

function cut(place) {
  messages = messages.slice(0, place);
  for (const child of [...$("messages").children].slice(place)) child.remove();
  keep();
}

function button(text, action) {
  const made = element("button", text);
  made.type = "button";
  made.addEventListener("click", action);
  return made;
}

function busy(yes) {
  if (!yes) running = null;
  $("stop").hidden = !yes;
  $("send").disabled = yes;
  $("state").textContent = yes ? "waiting" : "";
}

const atEnd = () => { const list = $("messages"); return list.scrollHeight - list.scrollTop - list.clientHeight < 80; };
const toEnd = () => { $("messages").scrollTop = $("messages").scrollHeight; };

function keep() {
  if ($("keep").checked) localStorage.setItem("tiefsee-chat", JSON.stringify(messages));
  else localStorage.removeItem("tiefsee-chat");
}

// ------------------------------------------------------------------------------------- server

async function connect() {
  try {
    const found = await server.model();
    model = found.id;
    chat = found.chat !== false;
    $("model").textContent = `${model}, ${found.max_model_len ?? "?"} tokens`;
    document.body.classList.toggle("base", !chat);
    $("notice").hidden = chat;
    if (!chat) {
      $("notice").textContent = "This is a base model: it continues text and does not converse.";
      $("input").placeholder = "Write the beginning of a text.";
    }
    watch();
  } catch (error) {
    if (error.status === 401) return askKey(error.message, connect);
    $("model").textContent = "not reachable";
    setTimeout(connect, 3000);
  }
}

/** Gauges: every second while the page is seen, more and more seldom while the server is silent. */
async function watch() {
  let pause = 1000;
  for (;;) {
    await new Promise((resume) => setTimeout(resume, pause));
    if (document.hidden) continue;
    try {
      const found = await server.gauges();
      $("running").textContent = found.running;
      $("waiting").textContent = found.waiting;
      $("cache").value = found.cache;
      $("cache").title = `${(100 * found.cache).toFixed(1)} %`;
      pause = 1000;
    } catch {
      for (const name of ["running", "waiting"]) $(name).textContent = "–";
      pause = Math.min(30000, pause * 2);
    }
  }
}

function askKey(message, then) {
  $("key-title").textContent = server.key ? "That key is not known here" : "API key";
  $("key-form").onsubmit = () => {
    server.key = $("key").value.trim();
    if ($("key-keep").checked) sessionStorage.setItem("tiefsee-key", server.key);
    $("key").value = "";
    then();
  };
  $("key-dialog").showModal();
}

// --------------------------------------------------------------------------------------- page

function theme(name) {
  document.documentElement.dataset.theme = name;
  localStorage.setItem("tiefsee-theme", name);
}

$("form").addEventListener("submit", (event) => {
  event.preventDefault();
  const text = chat ? $("input").value.trim() : $("input").value;
  if (!text || running) return;
  $("input").value = "";
  say(text);
});
$("input").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    $("form").requestSubmit();
  }
});
$("stop").addEventListener("click", () => running?.abort());
document.addEventListener("keydown", (event) => { if (event.key === "Escape") running?.abort(); });
$("new").addEventListener("click", () => { running?.abort(); cut(0); $("input").focus(); });
$("keep").addEventListener("change", keep);
$("theme").addEventListener("click", () => theme(document.documentElement.dataset.theme === "dark" ? "light" : "dark"));
$("panel-button").addEventListener("click", () => {
  $("panel").hidden = !$("panel").hidden;
  $("panel-button").setAttribute("aria-expanded", String(!$("panel").hidden));
});
theme(localStorage.getItem("tiefsee-theme") ?? (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light"));
const kept = localStorage.getItem("tiefsee-chat");
if (kept) { messages = JSON.parse(kept); $("keep").checked = true; messages.forEach(show); }
connect();
$("input").focus();
