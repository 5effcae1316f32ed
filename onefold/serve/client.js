// Talking to the server that the page came from.

let key = ""; // sent with every request once it is known

class ServerError extends Error {
  constructor(status, error = {}) {
    const text = error.message || `the server answered with status ${status}`;
    super(text[0].toUpperCase() + text.slice(1) + (/[.?!]$/.test(text) ? "" : "."));
    this.status = status;
    this.code = error.code;
  }
}

async function ask(path, options = {}) {
  const headers = {
    ...(key && { Authorization: "Bearer " + key }),
    ...(options.body && { "Content-Type": "application/json" }),
  };
  let response;
  try {
    response = await fetch(path, { ...options, headers, cache: "no-store", credentials: "omit" });
  } catch (error) {
    throw error.name === "AbortError"
      ? error
      : new ServerError(0, { message: "The server does not answer. Is it still running?", code: "away" });
  }
  if (!response.ok) throw new ServerError(response.status, (await response.json().catch(() => ({}))).error);
  return response;
}

// The data of each server-sent event of a completion, until [DONE].
async function* events(path, body, signal) {
  const response = await ask(path, {
    method: "POST",
    signal,
    body: JSON.stringify({ ...body, stream: true, stream_options: { include_usage: true } }),
  });
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    let step;
    try {
      step = await reader.read();
    } catch (error) {
      throw error.name === "AbortError"
        ? error
        : new ServerError(0, { message: "The connection broke off in the middle of the answer.", code: "away" });
    }
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
