// What the page says to its server: models, gauges, and one streamed answer at a time.

/** An answer that is not 2xx: `status`, a sentence, and seconds to wait if the server said so. */
export class Refusal extends Error {
  constructor(status, message, retryAfter) {
    super(message);
    this.status = status;
    this.retryAfter = retryAfter;
  }
}

export class Server {
  key = sessionStorage.getItem("tiefsee-key") ?? "";

  async get(path) {
    const answer = await fetch(path, { headers: this.#headers() });
    if (!answer.ok) throw await refusal(answer);
    return answer;
  }

  async model() {
    return (await (await this.get("/v1/models")).json()).data[0];
  }

  /** {running, waiting, cache} from the figures for Prometheus. */
  async gauges() {
    const text = await (await this.get("/metrics")).text();
    const value = (name) => Number(text.match(new RegExp(`^${name}(?:{[^}]*})? (\\S+)$`, "m"))?.[1] ?? NaN);
    return {
      running: value("vllm:num_requests_running"),
      waiting: value("vllm:num_requests_waiting"),
      cache: value("vllm:kv_cache_usage_perc"),
    };
  }

  /** The events of one streamed answer, as parsed JSON. */
  async *stream(path, body, signal) {
    const answer = await fetch(path, {
      method: "POST", signal, headers: { "content-type": "application/json", ...this.#headers() },
      body: JSON.stringify({ ...body, stream: true, stream_options: { include_usage: true } }),
    });
    if (!answer.ok) throw await refusal(answer);
    let held = "", done = false;
    const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
    for (;;) {
      const part = await reader.read();
      if (part.done) break;
      held += part.value;
      const lines = held.split("\n");
      held = lines.pop();
      for (const line of lines) {
        if (line === "data: [DONE]") done = true;
        else if (line.startsWith("data: ")) {
          const event = JSON.parse(line.slice(6));
          if (event.error) throw new Refusal(0, event.error.message);
          yield event;
        }
      }
    }
    if (!done) throw new Refusal(0, "the connection broke before the answer was complete");
  }

  #headers() {
    return this.key ? { authorization: `Bearer ${this.key}` } : {};
  }
}

async function refusal(answer) {
  let message = `the server answered ${answer.status}`;
  try { message = (await answer.json()).error.message; } catch { /* no JSON: the status has to do */ }
  return new Refusal(answer.status, message, Number(answer.headers.get("retry-after")) || null);
}
