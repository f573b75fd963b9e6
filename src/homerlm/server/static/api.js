// The server's interface, as OpenAI's clients use it.

export class ApiError extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

export class Api {
  key = "";

  async request(path, options = {}) {
    const headers = new Headers(options.headers);
    if (this.key) headers.set("Authorization", `Bearer ${this.key}`);
    let response;
    try {
      response = await fetch(path, { ...options, headers });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new ApiError(0, "The server cannot be reached. Is it still running?");
    }
    if (!response.ok) throw new ApiError(response.status, await messageOf(response));
    return response;
  }

  async json(path, options) {
    return (await this.request(path, options)).json();
  }

  async model() {
    return (await this.json("v1/models")).data[0].id;
  }

  async files() {
    const found = [];
    for (let after = ""; ;) {
      const page = await this.json(`v1/files?order=asc&limit=100${after && `&after=${encodeURIComponent(after)}`}`);
      found.push(...page.data);
      if (!page.has_more || !page.data.length) return found;
      after = page.data.at(-1).id;
    }
  }

  upload(file) {
    const form = new FormData();
    form.set("purpose", "user_data");
    form.set("file", file, file.name);
    return this.json("v1/files", { method: "POST", body: form });
  }

  remove(id) {
    return this.json(`v1/files/${encodeURIComponent(id)}`, { method: "DELETE" });
  }

  kept(id) {
    return this.json(`v1/answers/${encodeURIComponent(id)}/kept`, { headers: { Accept: "application/json" } });
  }

  // Objects of an answer as they come: chunks with progress, text and, last, usage.
  async *chat(model, messages, signal) {
    const body = { model, messages, stream: true, stream_options: { include_usage: true }, return_progress: true };
    const response = await this.request("v1/chat/completions", {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify(body),
      signal,
    });
    for await (const data of events(response.body)) {
      if (data === "[DONE]") return;
      const chunk = JSON.parse(data);
      if (chunk.error) throw new ApiError(500, chunk.error.message);
      yield chunk;
    }
    throw new ApiError(0, "The connection ended before the answer did.");
  }
}

async function messageOf(response) {
  try {
    return (await response.json()).error.message;
  } catch {
    return `The server answered with status ${response.status}.`;
  }
}

// The data of server-sent events; comments, which only say that work goes on, are left out.
async function* events(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let waiting = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      waiting += value.replaceAll("\r\n", "\n");
      const blocks = waiting.split("\n\n");
      waiting = blocks.pop();
      for (const block of blocks) {
        const data = block.split("\n").filter((line) => line.startsWith("data:"));
        if (data.length) yield data.map((line) => line.slice(5).replace(/^ /, "")).join("\n");
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}
