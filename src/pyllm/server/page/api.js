// The server's API as OpenAI's clients see it; paths are relative, so that the page works under a prefix.

const KEY = "pyllm.key";

export class ApiError extends Error {
  constructor(message, status = 0) {
    super(message);
    this.status = status;
  }
}

export const key = {
  get: () => sessionStorage.getItem(KEY) ?? "",
  set: (value) => sessionStorage.setItem(KEY, value),
};

async function call(path, init = {}) {
  const headers = { ...init.headers };
  if (key.get()) headers.authorization = `Bearer ${key.get()}`;
  let response;
  try {
    response = await fetch(new URL(path, document.baseURI), { ...init, headers, cache: "no-store" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError("the server cannot be reached");
  }
  if (!response.ok) throw new ApiError(await reason(response), response.status);
  return response;
}

async function reason(response) {
  try {
    return messageOf(await response.json());
  } catch {
    return `the server answers ${response.status} ${response.statusText}`;
  }
}

function messageOf(body) {
  const message = body.error?.message ?? body.error;
  return typeof message === "string" ? message : JSON.stringify(body);
}

/** Names of the models, with what is known of them. */
export async function models() {
  return (await (await call("v1/models")).json()).data;
}

/** The chunks of a streamed chat. Throws ApiError, and AbortError where it is stopped. */
export async function* chat(body, signal) {
  const response = await call("v1/chat/completions", {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify({ ...body, stream: true, stream_options: { include_usage: true } }),
    signal,
  });
  let ended = false;
  for await (const data of events(response.body)) {
    if (data === "[DONE]") {
      ended = true;
      break;
    }
    const chunk = JSON.parse(data);
    if (chunk.error) throw new ApiError(messageOf(chunk));
    yield chunk;
  }
  if (!ended) throw new ApiError("the connection ended before the answer did");
}

/** The data of server-sent events; comments are left out. */
async function* events(stream) {
  const reader = stream.getReader();
  const decoder = new TextDecoder();
  let rest = "";
  try {
    for (;;) {
      const { done, value } = await read(reader);
      if (done) return;
      rest += decoder.decode(value, { stream: true });
      const lines = rest.split("\n");
      rest = lines.pop();
      // Each event of this API is one line.
      for (const line of lines) if (line.startsWith("data:")) yield line.slice(5).trim();
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

async function read(reader) {
  try {
    return await reader.read();
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError("the connection to the server is lost");
  }
}
