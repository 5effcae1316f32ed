// The chat page. Two threads, one for each way to use a model: `chat` takes turns, `text` continues what is written.

const IDEAS = {
  chat: [
    ["Ask for a fact", "What is the capital of France?"],
    ["Explain something", "Explain photosynthesis to a ten-year-old."],
    ["Write some code", "Write a Python function that reverses a string."],
    ["Find a name", "Suggest five names for a small bakery."],
  ],
  text: [
    ["", "def fibonacci(n):"],
    ["", 'class Stack:\n    """'],
    ["", "Once upon a time"],
    ["", "import os\nimport"],
  ],
};

const threads = load(sessionStorage, "onefold.threads", { chat: [], text: [] });
let model = null;
let busy = null; // the turn being answered and what aborts it
let undo = null;

// ---- connecting

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
const short = (n) => {
  const [size, unit] = [
    [1e9, "B"],
    [1e6, "M"],
    [1e3, "K"],
    [1, ""],
  ].find(([size]) => n >= size) || [1, ""];
  return (n / size >= 100 ? Math.round(n / size) : Number((n / size).toPrecision(2))) + unit;
};

function setStatus(status) {
  $("model").dataset.status = status;
  $("status").textContent = { ready: "ready", busy: "answering", away: "the server does not answer" }[status];
}

function describe() {
  document.title = model.id + " · Onefold";
  $("model-name").textContent = model.id;
  $("model-size").textContent = short(model.parameters);
  $("model-size").append(el("span", { className: "wide" }, " parameters"));
  $("model").title =
    `${model.parameters.toLocaleString()} parameters` +
    (model.context_length ? `, sees ${model.context_length.toLocaleString()} tokens at once` : "");
  for (const input of $("mode").querySelectorAll("input")) input.disabled = !model.chat && input.value === "chat";
  $("mode-note").hidden = model.chat;
  $("max_tokens").max = model.context_length || "";
  showSettings();
  drawPage();
}

function drawPage() {
  const chat = mode() === "chat",
    here = /^(localhost|127\.|\[::1\])/.test(location.hostname);
  document.body.classList.toggle("text-mode", !chat);
  $("greeting").textContent = chat ? "What shall we talk about?" : "Start a text. The model goes on.";
  $("subtitle").textContent =
    `${model.id} has ${short(model.parameters)} parameters` +
    (here ? " and runs on this machine. Nothing leaves it." : ".");
  $("input").placeholder = chat ? `Message ${model.id}` : "Write a beginning";
  $("input-label").textContent = chat ? "Message" : "Beginning of a text";
  $("ideas").replaceChildren(
    ...IDEAS[mode()].map(([title, text]) => {
      const button = title
        ? el("button", {}, el("b", {}, title), el("span", {}, text))
        : el("button", {}, el("code", {}, text + " …"));
      button.onclick = () => send(text);
      return button;
    }),
  );
  $("thread").replaceChildren();
  thread().forEach((turn, i) => show(turn, i));
  $("empty").hidden = thread().length > 0;
  $("thread").hidden = !thread().length;
  showUsed();
  $("new").disabled = false;
  toEnd(true);
}

// How much of the context the conversation takes.
function showUsed() {
  const used = thread().findLast((turn) => turn.used)?.used;
  const known = used && model.context_length;
  $("used").textContent = known ? `${used.toLocaleString()} of ${model.context_length.toLocaleString()} tokens` : "";
}

// Draws one turn and returns what redraws it while it grows.
function show(turn, index) {
  const article = el("article", { className: turn.role }),
    last = index === thread().length - 1;
  $("thread").append(article);
  if (turn.role === "user") {
    article.append(
      el("div", { className: "said" }, turn.text),
      foot(
        action("edit", "Edit and ask again", () => edit(index)),
        action("copy", "Copy", (button) => copy(turn.text, button)),
      ),
    );
    return;
  }
  const said = el("div", { className: turn.role === "text" ? "said" : "said md" }),
    below = el("div");
  if (turn.role === "assistant") {
    const mark = icon("mark");
    mark.classList.add("mark");
    article.append(mark, el("span", { className: "unseen" }, model.id + " says"));
  }
  article.append(said, below);
  const made = el("span", { className: "made" }),
    markdown = markdownView(said);
  if (turn.role === "text") said.append(turn.prompt, made);
  const redraw = () => {
    const running = busy?.turn === turn;
    article.classList.toggle("caret", running && !!turn.text);
    article.setAttribute("aria-busy", running);
    turn.role === "text" ? (made.textContent = turn.text) : markdown(turn.text);
    if (running && !turn.text && turn.role !== "text")
      said.replaceChildren(
        el("span", { className: "wait", "aria-label": "Waiting for the first word" }, el("i"), el("i"), el("i")),
      );
    said.hidden = !running && !turn.text && turn.role !== "text";
    below.replaceChildren();
    if (running) return;
    if (turn.error) showError(below, turn.error, () => again(index));
    const retry = action("retry", "Try again", () => again(index));
    if (!turn.text && turn.role !== "text") {
      if (!turn.error) below.append(foot(retry, el("span", { className: "stats" }, turn.stats || "no answer")));
      return;
    }
    const more =
      turn.role === "text" &&
      last &&
      el("button", { className: "go", onclick: () => run(turn) }, icon("more"), "Continue");
    below.append(
      foot(
        more || null,
        action("copy", "Copy", (button) => copy((turn.prompt || "") + turn.text, button)),
        last ? retry : null,
        el("span", { className: "stats" }, turn.stats || ""),
      ),
    );
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
  if (error.code === "context_length_exceeded" && thread().length > 1)
    buttons.unshift(el("button", { type: "button", onclick: clear }, "New chat"));
  node.replaceChildren(
    el("div", { className: "error", role: "alert" }, icon("warn"), el("div", {}, error.message, el("br"), ...buttons)),
  );
  node.hidden = false;
  $("empty").hidden = true;
}

// ---- doing things

// Where to send a turn, and what: the turns before it that were answered, or the text so far.
function requestFor(turn) {
  const { temperature, top_p, max_tokens, seed } = settings;
  const body = { model: model.id, temperature, top_p, max_tokens, ...(seed !== "" && { seed }) };
  if (turn.role === "text") return ["v1/completions", { ...body, prompt: turn.prompt + turn.text }];
  const before = thread().slice(0, thread().indexOf(turn));
  const told = before.filter((t, i) => t.text && (t.role !== "user" || i === before.length - 1 || before[i + 1].text));
  const messages = told.map(({ role, text }) => ({ role, content: text }));
  const system = settings.system.trim();
  return [
    "v1/chat/completions",
    { ...body, messages: system ? [{ role: "system", content: system }, ...messages] : messages },
  ];
}

async function run(turn) {
  const request = requestFor(turn);
  busy = { turn, abort: new AbortController() };
  Object.assign(turn, { error: null, stats: "" });
  drawPage();
  $("thread").lastChild.remove();
  const redraw = show(turn, thread().indexOf(turn));
  setBusy();
  let frame = 0;
  const grown = () => {
    frame = 0;
    redraw();
    toEnd();
  };
  try {
    turn.stats = await listen(turn, request, busy.abort.signal, () => (frame ||= requestAnimationFrame(grown)));
    setStatus("ready");
  } catch (error) {
    if (error.name === "AbortError") turn.stats = "stopped";
    else turn.error = { message: error.message, code: error.code };
    setStatus(error.code === "away" ? "away" : "ready");
    if (error.status === 401) askKey();
  }
  cancelAnimationFrame(frame);
  busy = null;
  save(sessionStorage, "onefold.threads", threads);
  const stay = near(); // the foot of the answer is new below
  redraw();
  showUsed();
  setBusy();
  if (stay) toEnd(true);
}

// Puts the text of an answer into its turn as it comes; afterwards how much it was, in words.
async function listen(turn, request, signal, grown) {
  let began = 0,
    finish = null,
    usage = null;
  for await (const data of events(...request, signal)) {
    const choice = data.choices[0];
    usage = data.usage || usage;
    finish = choice?.finish_reason || finish;
    const text = choice?.delta?.content ?? choice?.text;
    if (!text) continue;
    began ||= performance.now();
    turn.text += text;
    grown();
  }
  const n = usage.completion_tokens,
    seconds = (performance.now() - began) / 1000;
  turn.used = usage.total_tokens;
  const rate = n > 1 && seconds > 0.05 ? ` · ${((n - 1) / seconds).toFixed(1)} tokens/s` : "";
  return `${n} token${n === 1 ? "" : "s"}${rate}` + (finish === "length" ? " · stopped at the limit" : "");
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
  drawPage();
  grow();
  $("input").focus();
}

function clear() {
  if (busy) busy.abort.abort();
  if (thread().length) remember(mode() === "chat" ? "New chat" : "New text");
  threads[mode()] = [];
  save(sessionStorage, "onefold.threads", threads);
  drawPage();
  $("input").focus();
}

// Keep what is about to go, and offer it back for some seconds.
function remember(text) {
  const which = mode(),
    kept = [...thread()];
  const back = el("button", { type: "button" }, "Undo");
  back.onclick = () => {
    threads[which] = kept;
    $("toast").hidden = true;
    drawPage();
  };
  $("toast").replaceChildren(text, back);
  $("toast").hidden = false;
  clearTimeout(undo);
  undo = setTimeout(() => ($("toast").hidden = true), 6000);
}

async function copy(text, button) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    // no clipboard without https, except on this machine
    const area = el("textarea", { value: text, className: "unseen" });
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
  const [shape, label] = [button.querySelector("use"), button.querySelector("span")];
  shape.setAttribute("href", "#i-done");
  if (label) label.textContent = "Copied";
  setTimeout(() => {
    shape.setAttribute("href", "#i-copy");
    if (label) label.textContent = "Copy";
  }, 1500);
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
  if (!CSS.supports("field-sizing", "content")) {
    input.style.height = "auto";
    input.style.height = input.scrollHeight + "px";
  }
  $("send").disabled = !busy && (!input.value.trim() || !model);
}

const near = () => $("scroll").scrollHeight - $("scroll").scrollTop - $("scroll").clientHeight < 80;
let following = true;
function toEnd(force) {
  if (force) following = true;
  if (following) $("scroll").scrollTop = $("scroll").scrollHeight;
}

$("scroll").addEventListener("scroll", () => {
  following = near();
  $("to-end").hidden = following || !thread().length;
});
$("to-end").onclick = () => toEnd(true);
$("composer").onsubmit = (event) => {
  event.preventDefault();
  busy ? busy.abort.abort() : send($("input").value);
};
$("input").oninput = grow;
$("input").onkeydown = (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    if (!busy) send($("input").value);
  }
};
$("new").onclick = clear;
document.addEventListener("keydown", (event) => {
  const open = document.querySelector("dialog[open]");
  if (event.key === "Escape" && busy && !open) busy.abort.abort();
  else if (event.key.toLowerCase() === "o" && event.shiftKey && (event.ctrlKey || event.metaKey)) {
    event.preventDefault();
    clear();
  } else if (event.key === "/" && !open && !event.target.closest("input, textarea")) {
    event.preventDefault();
    $("input").focus();
  }
});

// ---- the key, and the beginning

$("ask-key").addEventListener("cancel", (event) => event.preventDefault());
$("ask-key").querySelector("form").onsubmit = (event) => {
  event.preventDefault();
  key = $("key").value.trim();
  connect();
};

// The printed address carries the key after the #, which browsers never send; it is taken out of sight at once.
key = new URLSearchParams(location.hash.slice(1)).get("key") || load(sessionStorage, "onefold.key", { key: "" }).key;
if (location.hash) history.replaceState(null, "", location.pathname);
showSettings();
connect();
grow();
$("input").focus();
