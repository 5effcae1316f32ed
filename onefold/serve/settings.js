// The settings drawer. What is set is kept in this browser.

const DEFAULTS = { mode: "", system: "", temperature: 0.7, top_p: 0.95, max_tokens: 512, seed: "", theme: "auto" };

const load = (store, name, otherwise) => {
  try {
    return { ...otherwise, ...JSON.parse(store.getItem(name)) };
  } catch {
    return otherwise;
  }
};
const save = (store, name, value) => {
  try {
    store.setItem(name, JSON.stringify(value));
  } catch {
    /* private window: not kept */
  }
};

const settings = load(localStorage, "onefold.settings", { ...DEFAULTS });

const NUMBERS = ["temperature", "top_p", "max_tokens", "seed"];

function showSettings() {
  for (const name of [...NUMBERS, "system"]) $(name).value = settings[name];
  for (const name of ["temperature", "top_p"]) $(name + "-shown").value = Number(settings[name]).toFixed(2);
  const chosen = { mode: mode(), theme: settings.theme };
  for (const group of ["mode", "theme"])
    for (const input of $(group).querySelectorAll("input")) input.checked = input.value === chosen[group];
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
  if (target.name === "mode") {
    if (busy) busy.abort.abort();
    drawPage();
  }
});
$("settings").addEventListener("close", () => {
  showSettings();
  $("input").focus();
});
$("settings").addEventListener("click", (event) => {
  if (event.target === $("settings")) $("settings").close();
});
$("open-settings").onclick = () => $("settings").showModal();
$("defaults").onclick = () => {
  Object.assign(settings, DEFAULTS);
  save(localStorage, "onefold.settings", settings);
  showSettings();
  drawPage();
};
