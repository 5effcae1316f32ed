// The chat page. Two threads, one for each way to use a model: `chat` takes turns, `text` continues what is written.

const $ = (id) => document.getElementById(id);
const DEFAULTS = { mode: "", system: "", temperature: 0.7, top_p: 0.95, max_tokens: 512, seed: "", theme: "auto" };
const IDEAS = {
  chat: [
    ["Ask for a fact", "What is the capital of France?"],
    ["Explain something", "Explain photosynthesis to a ten-year-old."],
    ["Write some code", "Write a Python function that reverses a string."],
    ["Find a name", "Suggest five names for a small bakery."],
  ],
  text: [["", "def fibonacci(n):"], ["", "class Stack:\n    \"\"\""], ["", "Once upon a time"], ["", "import os\nimport"]],
};

const load = (store, name, otherwise) => { try { return { ...otherwise, ...JSON.parse(store.getItem(name)) }; } catch { return otherwise; } };
const save = (store, name, value) => { try { store.setItem(name, JSON.stringify(value)); } catch { /* private window: not kept */ } };

const settings = load(localStorage, "onefold.settings", { ...DEFAULTS });
const threads = load(sessionStorage, "onefold.threads", { chat: [], text: [] });
let model = null, key = "", busy = null, undo = null;

// ---- talking to the server

class ServerError extends Error {
  constructor(status, error = {}) {
    const text = error.message || `the server answered with status ${status}`;
    super(text[0].toUpperCase() + text.slice(1) + (/[.?!]$/.test(text) ? "" : "."));
    this.status = status; this.code = error.code;
  }
}

async function ask(path, options = {}) {
  const headers = { ...(key && { Authorization: "Bearer " + key }), ...(options.body && { "Content-Type": "application/json" }) };
  let response;
  try { response = await fetch(path, { ...options, headers, cache: "no-store", credentials: "omit" }); }
  catch (error) { throw error.name === "AbortError" ? error : new ServerError(0, { message: "The server does not answer. Is it still running?", code: "away" }); }
  if (!response.ok) throw new ServerError(response.status, (await response.json().catch(() => ({}))).error);
  return response;
}

// The data of each server-sent event of a completion, until [DONE].
async function* events(path, body, signal) {
  const response = await ask(path, { method: "POST", signal, body: JSON.stringify({ ...body, stream: true, stream_options: { include_usage: true } }) });
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    let step;
    try { step = await reader.read(); }
    catch (error) { throw error.name === "AbortError" ? error : new ServerError(0, { message: "The connection broke off in the middle of the answer.", code: "away" }); }
    if (step.done) throw new ServerError(0, { message: "The answer broke off.", code: "away" });
    const parts = (rest + step.value).split("\n\n");
    rest = parts.pop();
    for (const part of parts) {
      if (!part.startsWith("data: ")) continue;
      if (part === "data: [DONE]") return;
      const data = JSON.parse(part.slice(6));
      if (data.error) throw new ServerError(500, data.error);
      yield data;
    }
  }
}

async function connect() {
  try {
    model = (await (await ask("v1/models")).json()).data[0];
    $("ask-key").close();
    save(sessionStorage, "onefold.key", { key });
    setStatus("ready");
    describe();
  } catch (error) {
    if (error.status === 401) return askKey();
    setStatus("away");
    if (!model) showError($("thread"), error, connect);
  }
}

function askKey() {
  $("key-wrong").hidden = !key;
  key = "";
  if (!$("ask-key").open) $("ask-key").showModal();
  $("key").select();
}

// ---- what is on the page

const mode = () => (model && !model.chat ? "text" : settings.mode || "chat");
const thread = () => threads[mode()];
const short = (n) => (n >= 1e9 ? (n / 1e9).toPrecision(2) + "B" : n >= 1e6 ? (n / 1e6).toPrecision(n >= 1e8 ? 3 : 2) + "M" : n >= 1e3 ? Math.round(n / 1e3) + "K" : String(n));

function setStatus(status) {
  $("model").dataset.status = status;
  $("status").textContent = { ready: "ready", busy: "answering", away: "the server does not answer" }[status];
}

function describe() {
  document.title = model.id + " · Onefold";
  $("model-name").textContent = model.id;
  $("model-size").textContent = short(model.parameters);
  $("model-size").append(el("span", { className: "wide" }, " parameters"));
  $("model").title = `${model.parameters.toLocaleString()} parameters` + (model.context_length ? `, sees ${model.context_length.toLocaleString()} tokens at once` : "");
  for (const input of $("mode").querySelectorAll("input")) input.disabled = !model.chat && input.value === "chat";
  $("mode-note").hidden = model.chat;
  $("max_tokens").max = model.context_length || "";
  showSettings();
  draw_page();
}

function draw_page() {
  const chat = mode() === "chat", here = /^(localhost|127\.|\[::1\])/.test(location.hostname);
  document.body.classList.toggle("text-mode", !chat);
  $("greeting").textContent = chat ? "What shall we talk about?" : "Start a text. The model goes on.";
  $("subtitle").textContent = `${model.id} has ${short(model.parameters)} parameters` + (here ? " and runs on this machine. Nothing leaves it." : ".");
  $("input").placeholder = chat ? `Message ${model.id}` : "Write a beginning";
  $("input-label").textContent = chat ? "Message" : "Beginning of a text";
  $("ideas").replaceChildren(...IDEAS[mode()].map(([title, text]) => {
    const button = title ? el("button", {}, el("b", {}, title), el("span", {}, text)) : el("button", {}, el("code", {}, text + " …"));
    button.onclick = () => send(text);
    return button;
  }));
  $("thread").replaceChildren();
  thread().forEach((turn, i) => show(turn, i));
  $("empty").hidden = thread().length > 0;
  $("thread").hidden = !thread().length;
  const used = thread().findLast((turn) => turn.used)?.used;
  $("used").textContent = used && model.context_length ? `${used.toLocaleString()} of ${model.context_length.toLocaleString()} tokens` : "";
  $("new").disabled = false;
  toEnd(true);
}

// Draws one turn and returns what redraws it while it grows.
function show(turn, index) {
  const article = el("article", { className: turn.role }), last = index === thread().length - 1;
  $("thread").append(article);
  if (turn.role === "user") {
    article.append(el("div", { className: "said" }, turn.text), foot(action("edit", "Edit and ask again", () => edit(index)), action("copy", "Copy", (button) => copy(turn.text, button))));
    return;
  }
  const said = el("div", { className: turn.role === "text" ? "said" : "said md" }), below = el("div");
  if (turn.role === "assistant") { const mark = icon("mark"); mark.classList.add("mark"); article.append(mark, el("span", { className: "unseen" }, model.id + " says")); }
  article.append(said, below);
  const made = el("span", { className: "made" }), markdown = markdownView(said);
  if (turn.role === "text") said.append(turn.prompt, made);
  const redraw = () => {
    const running = busy?.turn === turn;
    article.classList.toggle("caret", running && !!turn.text);
    article.setAttribute("aria-busy", running);
    turn.role === "text" ? (made.textContent = turn.text) : markdown(turn.text);
    if (running && !turn.text && turn.role !== "text") said.replaceChildren(el("span", { className: "wait", "aria-label": "Waiting for the first word" }, el("i"), el("i"), el("i")));
    said.hidden = !running && !turn.text && turn.role !== "text";
    below.replaceChildren();
    if (running) return;
    if (turn.error) showError(below, turn.error, () => again(index));
    if (!turn.text && turn.role !== "text") return turn.error || below.append(foot(el("span", { className: "stats" }, "No answer."), action("retry", "Try again", () => again(index))));
    const more = turn.role === "text" && last && el("button", { className: "go", onclick: () => run(turn) }, icon("more"), "Continue");
    below.append(foot(more || null, action("copy", "Copy", (button) => copy((turn.prompt || "") + turn.text, button)), last ? action("retry", "Try again", () => again(index)) : null, el("span", { className: "stats" }, turn.stats || "")));
  };
  redraw();
  return redraw;
}

const foot = (...parts) => el("div", { className: "foot" }, ...parts);
const action = (name, label, act) => {
  const button = el("button", { className: "icon", type: "button", title: label, "aria-label": label }, icon(name));
  button.onclick = () => act(button);
  return button;
};

function showError(node, error, retry) {
  const buttons = [el("button", { type: "button", onclick: retry }, "Try again")];
  if (error.code === "context_length_exceeded" && thread().length > 1) buttons.unshift(el("button", { type: "button", onclick: clear }, "New chat"));
  node.replaceChildren(el("div", { className: "error", role: "alert" }, icon("warn"), el("div", {}, error.message, el("br"), ...buttons)));
  node.hidden = false;
  $("empty").hidden = true;
}

// ---- doing things

async function run(turn) {
  const chat = turn.role === "assistant", turns = thread(), before = turn.text;
  const sampling = { model: model.id, temperature: settings.temperature, top_p: settings.top_p, max_tokens: settings.max_tokens };
  if (settings.seed !== "") sampling.seed = settings.seed;
  const history = turns.slice(0, turns.indexOf(turn)).filter((t) => t.text).map(({ role, text }) => ({ role, content: text }));
  if (settings.system.trim()) history.unshift({ role: "system", content: settings.system.trim() });
  const request = chat ? ["v1/chat/completions", { ...sampling, messages: history }] : ["v1/completions", { ...sampling, prompt: turn.prompt + before }];
  busy = { turn, abort: new AbortController() };
  Object.assign(turn, { error: null, stats: "" });
  draw_page();
  $("thread").lastChild.remove();
  const redraw = show(turn, turns.indexOf(turn));
  setBusy();
  let frame = 0, began = 0, finish = null, usage = null;
  try {
    for await (const data of events(...request, busy.abort.signal)) {
      const choice = data.choices[0], text = choice && (chat ? choice.delta.content : choice.text);
      usage = data.usage || usage;
      finish = choice?.finish_reason || finish;
      if (!text) continue;
      began ||= performance.now();
      turn.text += text;
      frame ||= requestAnimationFrame(() => { frame = 0; redraw(); toEnd(); });
    }
    setStatus("ready");
  } catch (error) {
    if (error.name !== "AbortError") turn.error = { message: error.message, code: error.code };
    if (error.code === "away") setStatus("away"); else setStatus("ready");
    if (error.status === 401) askKey();
  }
  cancelAnimationFrame(frame);
  const stopped = busy.abort.signal.aborted, seconds = (performance.now() - began) / 1000;
  busy = null;
  if (usage) {
    const n = usage.completion_tokens, rate = n > 1 && seconds > 0.05 ? ` · ${((n - 1) / seconds).toFixed(1)} tokens/s` : "";
    turn.stats = `${n} token${n === 1 ? "" : "s"}${rate}` + (finish === "length" ? " · stopped at the limit" : "");
    turn.used = usage.total_tokens;
  } else if (stopped) turn.stats = "stopped";
  save(sessionStorage, "onefold.threads", threads);
  const stay = near(); // the foot of the answer is new below
  redraw();
  $("used").textContent = turn.used && model.context_length ? `${turn.used.toLocaleString()} of ${model.context_length.toLocaleString()} tokens` : $("used").textContent;
  setBusy();
  if (stay) toEnd(true);
}

function send(text) {
  if (busy || !model || !text.trim()) return;
  const chat = mode() === "chat";
  const turn = chat ? { role: "assistant", text: "" } : { role: "text", prompt: text, text: "" };
  if (chat) thread().push({ role: "user", text: text.trim() });
  thread().push(turn);
  $("input").value = "";
  grow();
  run(turn);
}

function again(index) {
  if (busy) return;
  const turn = thread()[index];
  if (turn.role === "text" && turn.error) return run(turn); // goes on from what is there
  thread().splice(index + 1);
  turn.text = "";
  run(turn);
}

function edit(index) {
  if (busy) return;
  $("input").value = thread()[index].text;
  remember(`Editing: later messages were taken away`);
  thread().splice(index);
  draw_page();
  grow();
  $("input").focus();
}

function clear() {
  if (busy) busy.abort.abort();
  if (thread().length) remember(mode() === "chat" ? "New chat" : "New text");
  threads[mode()] = [];
  save(sessionStorage, "onefold.threads", threads);
  draw_page();
  $("input").focus();
}

// Keep what is about to go, and offer it back for some seconds.
function remember(text) {
  const which = mode(), kept = [...thread()];
  const back = el("button", { type: "button" }, "Undo");
  back.onclick = () => { threads[which] = kept; $("toast").hidden = true; draw_page(); };
  $("toast").replaceChildren(text, back);
  $("toast").hidden = false;
  clearTimeout(undo);
  undo = setTimeout(() => ($("toast").hidden = true), 6000);
}

async function copy(text, button) {
  try { await navigator.clipboard.writeText(text); }
  catch { // no clipboard without https, except on this machine
    const area = el("textarea", { value: text, className: "unseen" });
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
  const [shape, label] = [button.querySelector("use"), button.querySelector("span")];
  shape.setAttribute("href", "#i-done");
  if (label) label.textContent = "Copied";
  setTimeout(() => { shape.setAttribute("href", "#i-copy"); if (label) label.textContent = "Copy"; }, 1500);
}

// ---- the composer and the scroll

function setBusy() {
  if (busy) setStatus("busy");
  const label = busy ? "Stop" : "Send";
  $("send").replaceChildren(icon(busy ? "stop" : "send"));
  $("send").setAttribute("aria-label", label);
  $("send").title = busy ? "Stop (Esc)" : "Send (Enter)";
  grow();
}

function grow() {
  const input = $("input");
  if (!CSS.supports("field-sizing", "content")) { input.style.height = "auto"; input.style.height = input.scrollHeight + "px"; }
  $("send").disabled = !busy && (!input.value.trim() || !model);
}

const near = () => $("scroll").scrollHeight - $("scroll").scrollTop - $("scroll").clientHeight < 80;
let following = true;
function toEnd(force) { if (force) following = true; if (following) $("scroll").scrollTop = $("scroll").scrollHeight; }

$("scroll").addEventListener("scroll", () => { following = near(); $("to-end").hidden = following || !thread().length; });
$("to-end").onclick = () => toEnd(true);
$("composer").onsubmit = (event) => { event.preventDefault(); busy ? busy.abort.abort() : send($("input").value); };
$("input").oninput = grow;
$("input").onkeydown = (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); if (!busy) send($("input").value); }
};
$("new").onclick = clear;
document.addEventListener("keydown", (event) => {
  const open = document.querySelector("dialog[open]");
  if (event.key === "Escape" && busy && !open) busy.abort.abort();
  else if (event.key.toLowerCase() === "o" && event.shiftKey && (event.ctrlKey || event.metaKey)) { event.preventDefault(); clear(); }
  else if (event.key === "/" && !open && !event.target.closest("input, textarea")) { event.preventDefault(); $("input").focus(); }
});

// ---- settings and key

const NUMBERS = ["temperature", "top_p", "max_tokens", "seed"];

function showSettings() {
  for (const name of [...NUMBERS, "system"]) $(name).value = settings[name];
  for (const name of ["temperature", "top_p"]) $(name + "-shown").value = Number(settings[name]).toFixed(2);
  for (const [group, value] of [["mode", mode()], ["theme", settings.theme]]) for (const input of $(group).querySelectorAll("input")) input.checked = input.value === value;
  $("system-field").hidden = mode() !== "chat";
  document.documentElement.dataset.theme = settings.theme;
}

$("settings").addEventListener("input", ({ target }) => {
  if (target.type === "radio") settings[target.name] = target.value;
  else if (target.id === "system") settings.system = target.value;
  else if (target.value !== "" && target.validity.valid) settings[target.id] = Number(target.value);
  else if (target.id === "seed") settings.seed = "";
  save(localStorage, "onefold.settings", settings);
  if (target.type === "number" || target.type === "textarea") return;
  showSettings();
  if (target.name === "mode") { if (busy) busy.abort.abort(); draw_page(); }
});
$("settings").addEventListener("close", () => { showSettings(); $("input").focus(); });
$("settings").addEventListener("click", (event) => { if (event.target === $("settings")) $("settings").close(); });
$("open-settings").onclick = () => $("settings").showModal();
$("defaults").onclick = () => { Object.assign(settings, DEFAULTS); save(localStorage, "onefold.settings", settings); showSettings(); draw_page(); };
$("ask-key").addEventListener("cancel", (event) => event.preventDefault());
$("ask-key").querySelector("form").onsubmit = (event) => { event.preventDefault(); key = $("key").value.trim(); connect(); };

// The printed address carries the key after the #, which browsers never send; it is taken out of sight at once.
key = new URLSearchParams(location.hash.slice(1)).get("key") || load(sessionStorage, "onefold.key", { key: "" }).key;
if (location.hash) history.replaceState(null, "", location.pathname);
showSettings();
connect();
grow();
$("input").focus();
