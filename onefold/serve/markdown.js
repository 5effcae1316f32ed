"use strict";
// Markdown as DOM nodes. Text of the model only ever becomes text nodes: no innerHTML, no images, http(s) links only.

const $ = (id) => document.getElementById(id);
const el = (tag, props = {}, ...children) => {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(props))
    name.includes("-") ? node.setAttribute(name, value) : (node[name] = value);
  node.append(...children.filter((child) => child != null));
  return node;
};
const icon = (name) => {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  const use = document.createElementNS("http://www.w3.org/2000/svg", "use");
  use.setAttribute("href", "#i-" + name);
  svg.setAttribute("aria-hidden", "true");
  svg.append(use);
  return svg;
};

const FENCE = /^ {0,3}(`{3,}|~{3,})\s*([\w+#.-]*)[^`]*$/;
const HEADING = /^ {0,3}(#{1,6})\s+(.*?)\s*#*$/;
const RULE = /^ {0,3}([-*_])(?:\s*\1){2,}\s*$/;
const ITEM = /^(\s*)([-*+]|\d{1,9}[.)])\s+(.*)$/;
const DASHES = /^ {0,3}\|?\s*:?-+:?\s*(\|\s*:?-+:?\s*)*\|?\s*$/;
const starts = (line) =>
  FENCE.test(line) || HEADING.test(line) || RULE.test(line) || ITEM.test(line) || /^ {0,3}>/.test(line);

// Cut lines into blocks {kind, lines}; `lines` identify the block, so that a view redraws only what changed.
function blocks(lines) {
  const found = [];
  for (let i = 0; i < lines.length;) {
    const begin = i,
      line = lines[i];
    const fence = line.match(FENCE);
    let kind = "p";
    if (!line.trim()) {
      i++;
      continue;
    }
    if (fence) {
      const close = new RegExp("^ {0,3}" + fence[1][0] + "{" + fence[1].length + ",}\\s*$");
      for (i++; i < lines.length && !close.test(lines[i]);) i++;
      i++;
      kind = "code";
    } else if (HEADING.test(line)) {
      i++;
      kind = "heading";
    } else if (RULE.test(line)) {
      i++;
      kind = "rule";
    } else if (/^ {0,3}>/.test(line)) {
      while (i < lines.length && /^ {0,3}>/.test(lines[i])) i++;
      kind = "quote";
    } else if (ITEM.test(line)) {
      const ordered = /^\s*\d/.test(line),
        indent = line.match(ITEM)[1].length;
      const stays = (text) => {
        const item = text.match(ITEM);
        return (
          (/^\s{2,}\S/.test(text) && (!item || item[1].length > indent)) ||
          (item && item[1].length <= indent && /^\d/.test(item[2]) === ordered && !RULE.test(text))
        );
      };
      for (i++; i < lines.length; i++) {
        if (!lines[i].trim()) {
          if (i + 1 < lines.length && stays(lines[i + 1])) continue;
          break;
        }
        if (!stays(lines[i]) && starts(lines[i])) break;
      }
      kind = "list";
    } else if (line.includes("|") && DASHES.test(lines[i + 1] || "") && lines[i + 1].includes("-")) {
      for (i += 2; i < lines.length && lines[i].includes("|");) i++;
      kind = "table";
    } else for (i++; i < lines.length && lines[i].trim() && !starts(lines[i]);) i++;
    found.push({ kind, lines: lines.slice(begin, i) });
  }
  return found;
}

function draw({ kind, lines }) {
  if (kind === "code") return drawCode(lines);
  if (kind === "heading") {
    const [, marks, text] = lines[0].match(HEADING);
    return inline(text, el("h" + marks.length));
  }
  if (kind === "rule") return el("hr");
  if (kind === "quote")
    return el("blockquote", {}, ...blocks(lines.map((line) => line.replace(/^ {0,3}> ?/, ""))).map(draw));
  if (kind === "list") return drawList(lines);
  if (kind === "table") return drawTable(lines);
  return inline(lines.map((line) => line.trim()).join("\n"), el("p"));
}

function drawList(lines) {
  const [, , mark] = lines[0].match(ITEM),
    ordered = /\d/.test(mark),
    level = lines[0].match(ITEM)[1].length;
  const list = ordered ? el("ol", { start: parseInt(mark) }) : el("ul");
  let item = [];
  const close = () => {
    if (!item.length) return;
    const node = el("li");
    for (const block of blocks(item))
      block.kind === "p" ? inline(block.lines.join("\n"), node) : node.append(draw(block));
    list.append(node);
  };
  for (const line of lines) {
    const match = line.match(ITEM);
    if (match && match[1].length <= level) {
      close();
      item = [match[3]];
    } else item.push(line.slice(Math.min(line.search(/\S|$/), level + mark.length + 1)));
  }
  close();
  return list;
}

function drawTable(lines) {
  const cells = (line) =>
    line
      .trim()
      .replace(/^\||\|$/g, "")
      .split(/(?<!\\)\|/)
      .map((cell) => cell.trim().replaceAll("\\|", "|"));
  const row = (line, tag) => el("tr", {}, ...cells(line).map((cell) => inline(cell, el(tag))));
  const table = el(
    "table",
    {},
    el("thead", {}, row(lines[0], "th")),
    el("tbody", {}, ...lines.slice(2).map((line) => row(line, "td"))),
  );
  return el("div", { className: "table", tabIndex: 0 }, table);
}

function drawCode(lines) {
  const [, fence, language] = lines[0].match(FENCE);
  const closed =
    lines.length > 1 && lines.at(-1).trim().startsWith(fence) && !lines.at(-1).trim().replaceAll(fence[0], "");
  const source = lines.slice(1, closed ? -1 : undefined).join("\n");
  const button = el("button", { type: "button" }, icon("copy"), el("span", {}, "Copy"));
  button.addEventListener("click", () => copy(source, button));
  const caption = el("figcaption", {}, el("span", {}, language || "code"), button);
  return el(
    "figure",
    { className: "code" },
    caption,
    el("pre", { tabIndex: 0 }, highlight(source, language.toLowerCase())),
  );
}

const SPAN = new RegExp(
  [
    /(`+)([\s\S]{0,2000}?[^`])\1(?!`)/, // 1, 2 code
    /\\([!-/:-@[-`{-~])/, // 3 escaped
    /(\*\*|__)(?=\S)([\s\S]{0,2000}?\S)\4(?![*_])/, // 4, 5 strong
    /\*(?=[^\s*])([\s\S]{0,2000}?[^\s*])\*/, // 6 emphasis
    /(?<![\w])_(?=[^\s_])([\s\S]{0,2000}?[^\s_])_(?!\w)/, // 7 emphasis
    /~~(?=\S)([\s\S]{0,2000}?\S)~~/, // 8 struck
    /!?\[([^\]\n]{0,500})\]\(<?([^\s()<>]{1,2000}(?:\([^\s()<>]*\)[^\s()<>]*)?)>?(?:\s+"[^"\n]*")?\)/, // 9, 10 link
    /(https?:\/\/[^\s<>"'`\])]*[^\s<>"'`\]).,;:!?*_])/, // 11 bare link
    /(\n)/, // 12
  ]
    .map((part) => part.source)
    .join("|"),
  "g",
);

function inline(text, parent) {
  let end = 0;
  for (const m of text.matchAll(SPAN)) {
    parent.append(text.slice(end, m.index));
    end = m.index + m[0].length;
    if (m[2] != null) parent.append(el("code", {}, m[2].length > 2 ? m[2].replace(/^ (.*) $/s, "$1") : m[2]));
    else if (m[3] != null) parent.append(m[3]);
    else if (m[5] != null) parent.append(inline(m[5], el("strong")));
    else if (m[6] ?? m[7]) parent.append(inline(m[6] ?? m[7], el("em")));
    else if (m[8] != null) parent.append(inline(m[8], el("del")));
    else if (m[10] != null)
      parent.append(/^https?:\/\//i.test(m[10]) ? link(m[10], inline(m[9] || m[10], el("span"))) : m[9]);
    else if (m[11] != null) parent.append(link(m[11], m[11]));
    else parent.append(el("br"));
  }
  parent.append(text.slice(end));
  return parent;
}

const link = (href, label) => el("a", { href, target: "_blank", rel: "noopener noreferrer nofollow" }, label);

const WORDS = new Set(
  `abstract and as assert async await bool break case catch char class const continue def default del do double
  elif else end enum except export extends false False final finally float fn for foreach from func function global go
  if impl implements import in int interface is lambda let local long match mod module mut namespace new nil none None
  nonlocal not null of or package pass private protected pub public raise return select self static struct super
  switch then this throw trait true True try type typeof union unless until use using var void when where while with
  yield SELECT FROM WHERE INSERT INTO VALUES UPDATE DELETE JOIN LEFT RIGHT ON GROUP ORDER BY LIMIT CREATE TABLE`.split(
    /\s+/,
  ),
);
const HASHED = "python py python3 sh bash shell zsh ruby rb yaml yml toml r perl julia dockerfile makefile";
const HASH = new Set(["", ...HASHED.split(" ")]);
const DASH = new Set(["sql", "lua", "haskell", "hs"]);

// Colour enough to read by, for any language: words, strings, numbers, calls and comments.
function highlight(source, language) {
  const note = HASH.has(language) ? "#.*" : DASH.has(language) ? "--.*" : "\\/\\/.*|\\/\\*[\\s\\S]*?(?:\\*\\/|$)";
  const long = `"""[\\s\\S]*?(?:"""|$)|'''[\\s\\S]*?(?:'''|$)`;
  const string = long + `|"(?:\\\\.|[^"\\\\\\n])*"?|'(?:\\\\.|[^'\\\\\\n])*'` + "|`(?:\\\\.|[^`\\\\])*`?";
  const rest = "(?<number>\\b\\d[\\w.]*)|(?<name>[A-Za-z_$][\\w$]*)(?<call>\\s*\\()?";
  const part = new RegExp(`(?<note>${note})|(?<string>${string})|${rest}`, "g");
  const code = el("code");
  if (["text", "txt", "markdown", "md", "plain", "plaintext", "html", "xml"].includes(language)) {
    code.append(source);
    return code;
  }
  let end = 0;
  for (const m of source.matchAll(part)) {
    const { name, call } = m.groups;
    const kind = ["note", "string", "number"].find((k) => m.groups[k]) || (WORDS.has(name) ? "word" : call && "call");
    if (!kind) continue;
    const text = name ?? m[0];
    code.append(source.slice(end, m.index), el("span", { className: "c-" + kind }, text));
    end = m.index + text.length;
  }
  code.append(source.slice(end));
  return code;
}

// Shows growing text in `node`; blocks that did not change keep their nodes, and with them selection and scrolling.
function markdownView(node) {
  let shown = [];
  return (text) => {
    const wanted = blocks(text.replaceAll("\r\n", "\n").split("\n")).map((block) => ({
      ...block,
      id: block.kind + block.lines.join("\n"),
    }));
    let same = 0;
    while (same < wanted.length && same < shown.length && wanted[same].id === shown[same].id) same++;
    while (node.childNodes.length > same) node.lastChild.remove();
    for (const block of wanted.slice(same)) node.append(draw(block));
    shown = wanted;
  };
}
