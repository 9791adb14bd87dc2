// Follow a job of a Towline hub in a browser, up to its true end. No build step, no dependencies.
//
//     import { follow } from "/jobs/towline.js";
//     follow("/jobs/", job, token, ({ fraction }) => { bar.value = fraction ?? 0; });
//
// It follows the wire protocol (docs/wire.md): it asks for the state, then opens a socket from there. After a drop it
// reconnects with its cursor, so that it gets each later event once and in order, and it never takes a close for an end.

const SILENCE = 45_000; // ms without a message; the hub sends a ping after 20 s, so the link is lost
const STABLE = 30_000; // ms that a link must hold before the waits between attempts start small again
const CALL = 15_000; // ms for one HTTP call
const RENEW = 3_600_000; // ms between two attempts to refresh a token: the hub allows it in the token's last 6 h
const BLOCKED = 3; // sockets that fail to open in a row, before the state calls between them are shown instead
const ENDS = { job_complete: "complete", error: "failed", job_canceled: "canceled" };

/**
 * Follow a job; returns a function that stops following.
 *
 * @param {string|URL} url  where the hub is mounted ("/jobs/"), or its stream ("wss://host/jobs/ws/progress")
 * @param {string} job  the job's id
 * @param {string|function(): (string|null|Promise<string|null>)} token  the job's token, or a function that gets one
 *   for each attempt to connect; null means that there is none, which ends with the status "refused"
 * @param {function(View): void} callback  gets a new view at each change. The last call, exactly once, has `ended: true`
 *
 * @typedef {object} View
 * @property {"unknown"|"waiting"|"running"|"complete"|"failed"|"canceled"|"gone"|"refused"} status  "gone": the hub does
 *   not know the job, or no longer; "refused": it does not let you follow
 * @property {boolean} ended
 * @property {"connecting"|"connected"|"reconnecting"|"closed"} link
 * @property {number} done  how many are done
 * @property {number|null} total  of how many
 * @property {number|null} fraction  0 to 1
 * @property {string|null} item  what the job works on
 * @property {string|null} message  why the job failed or was canceled, or why you cannot follow
 * @property {object|null} result  of a complete job; a large one is `{resultUrl}`
 * @property {object|null} event  the hub's message that made this change, or null for a state or a change of the link
 */
export function follow(url, job, token, callback) {
  const follower = new Follower(hubAt(url), job, token, callback);
  follower.connect();
  return () => follower.stop();
}

/**
 * Cancel a job; returns "accepted", "too_late" (it has ended) or "unknown". Throws an Error if the hub does not answer.
 */
export async function cancel(url, job, token, reason = null) {
  const answer = await fetch(new URL(`api/jobs/${encodeURIComponent(job)}/cancel`, hubAt(url)), {
    method: "POST",
    headers: { authorization: `Bearer ${token}`, "content-type": "application/json" },
    body: JSON.stringify({ reason }),
    signal: AbortSignal.timeout(CALL),
  });
  if (!answer.ok) throw new Error(`the hub answered ${answer.status}`);
  return (await answer.json()).result;
}

function hubAt(url) {
  const hub = new URL(url, document.baseURI);
  hub.protocol = hub.protocol.replace("ws", "http");
  hub.pathname = hub.pathname.replace(/\/*(ws\/progress\/*)?$/, "/");
  hub.search = hub.hash = "";
  return hub;
}

class Busy extends Error {
  constructor(answer) {
    super(`the hub answered ${answer.status}`);
    this.wait = Number(answer.headers.get("retry-after")) || 0; // seconds
  }
}

class Follower {
  constructor(hub, job, token, callback) {
    Object.assign(this, { hub, job, token, callback });
    this.cursor = null; // {epoch, seq} of the last event that the view includes
    this.hole = null; // the cursor, as text, after which an event was missing
    this.client = crypto.getRandomValues(new Uint32Array(4)).join("-");
    this.sockets = 0; // opened so far: the hub closes the earlier ones of this client
    this.failures = 0; // since a link was stable
    this.unopened = 0; // sockets in a row that failed to open
    this.rejected = 0; // sockets in a row that were closed because of the token
    this.heard = false; // whether any socket brought a message
    this.stopped = false;
    this.timers = {};
    this.view = {
      status: "unknown", ended: false, link: "connecting",
      done: 0, total: null, fraction: null, item: null, message: null, result: null, event: null,
    };
    // A network that is back ends the wait for the next attempt.
    this.online = () => this.timers.retry && this.connect();
    addEventListener("online", this.online);
    if (typeof token === "string") this.renewal = setInterval(() => this.renew().catch(() => {}), RENEW);
  }

  // --- connecting ----------------------------------------------------------------------------------------------

  async connect() {
    this.clear("retry");
    this.show({ link: this.sockets ? "reconnecting" : "connecting" });
    try {
      const token = await this.currentToken();
      // A browser does not say why a socket was refused. The state call does.
      if (token !== null && (this.cursor === null || this.unopened || this.rejected)) await this.ask(token);
      if (!this.stopped) this.open(await this.currentToken(token));
    } catch (error) {
      if (!this.stopped) this.retry({ retry_in: error.wait ?? 0, spread: error.wait ? 1 : 0 });
    }
  }

  async currentToken(token = null) {
    // One token serves the whole attempt, unless the state call has found out that it needs another one.
    if (typeof this.token === "string") return this.token;
    token ??= await this.token();
    if (token === null && !this.stopped) this.end({ status: "refused", message: "there is no token for this job" });
    return token;
  }

  async ask(token) {
    const path = `api/job-state/${encodeURIComponent(this.job)}`;
    const get = (bearer) => this.call(path, { headers: { authorization: `Bearer ${bearer}` } });
    let answer = await get(token);
    if (answer.status === 401 && typeof this.token === "string" && (await this.renew())) answer = await get(this.token);
    if (this.stopped) return;
    if (answer.status === 404 || answer.status === 410) {
      this.end({ status: "gone", message: "the hub does not know this job, or no longer" });
    } else if (answer.status === 401 || answer.status === 403) {
      this.end({ status: "refused", message: "the hub does not accept the token" });
    } else if (!answer.ok) {
      throw new Busy(answer);
    } else if (this.cursor === null || this.unopened >= BLOCKED) {
      this.adopt(await answer.json());
    }
  }

  async renew() {
    const answer = await this.call("api/token/refresh", {
      method: "POST",
      headers: { "content-type": "application/json" },
      body: JSON.stringify({ jobId: this.job, oldToken: this.token }),
    });
    if (answer.status === 429 || answer.status >= 500) throw new Busy(answer);
    if (answer.ok) this.token = (await answer.json()).token;
    return answer.ok;
  }

  call(path, options) {
    return fetch(new URL(path, this.hub), { ...options, cache: "no-store", signal: AbortSignal.timeout(CALL) });
  }

  open(token) {
    const url = new URL(`ws/progress?jobId=${encodeURIComponent(this.job)}`, this.hub);
    url.protocol = url.protocol.replace("http", "ws");
    const socket = new WebSocket(url, ["towline", `towline.${token}`]);
    this.socket = socket;
    this.sockets += 1;
    let opened = false;
    const listen = () => this.set("silence", SILENCE, () => this.leave(0));
    listen();
    socket.onopen = () => {
      opened = true;
      this.unopened = 0;
      listen();
      this.set("stable", STABLE, () => { this.failures = 0; });
      const from = this.cursor?.seq > 0 ? this.cursor : null; // without a cursor the hub starts with event 1
      const self = { client: this.client, socket: this.sockets };
      socket.send(JSON.stringify({ type: "ready", timestamp: Date.now(), ...from, ...self }));
      this.show({ link: "connected" });
    };
    socket.onmessage = ({ data }) => {
      listen();
      this.heard = true;
      this.rejected = 0;
      let message = null;
      try {
        message = JSON.parse(data);
      } catch { /* a message that cannot be read costs only itself */ }
      if (message !== null && typeof message === "object") this.take(message);
    };
    socket.onclose = ({ code, reason }) => {
      this.forget();
      if (!opened) this.unopened += 1;
      this.lost(code, reason);
    };
  }

  lost(code, reason) {
    const refused = (code >= 3500 && code < 4000) || (code >= 4500 && code < 5000);
    const fault = !this.heard && [1002, 1003, 1007, 1009, 1010].includes(code);
    if (code === 1008 || code === 4401) this.rejected += 1;
    if (refused || fault || this.rejected > 1) {
      return this.end({ status: "refused", message: reason || `the hub closed the socket with ${code}` });
    }
    let advice = null;
    try {
      advice = JSON.parse(reason);
    } catch { /* anything else in a reason is text */ }
    this.retry(advice);
  }

  retry(advice) {
    const cap = Math.min(30, 2 ** this.failures);
    this.failures += 1;
    let wait = 0.25 + Math.random() * (cap - 0.25);
    if (Number.isFinite(advice?.retry_in) && Number.isFinite(advice?.spread)) {
      // The hub's advice, at most 15 minutes each, but no sooner than the backoff if it says 0.
      const advised = Math.min(900, advice.retry_in) + Math.random() * Math.min(900, advice.spread);
      if (advised > 0) wait = advised;
    }
    this.set("retry", wait * 1000, () => this.connect());
    this.show({ link: "reconnecting" });
  }

  /** Leave this socket without waiting for its close, which may take minutes on a dead link, and reconnect. */
  leave() {
    const socket = this.socket;
    this.forget();
    socket.close(4000);
    this.retry(null);
  }

  // --- what the hub says ---------------------------------------------------------------------------------------

  take(message) {
    const { type, seq, epoch, firstSeq = seq } = message; // the hub may merge progress: firstSeq to seq
    const cursor = this.cursor;
    if (type === "ready_ack") {
      // A log that ends before the cursor is another log, even if its epoch is the same: a backup was restored.
      if (cursor && epoch === cursor.epoch && message.to < cursor.seq) this.restart();
      return;
    }
    if (seq !== undefined && cursor !== null) {
      if (epoch === cursor.epoch) {
        if (seq <= cursor.seq) return;
        if (firstSeq > cursor.seq + 1) return this.miss();
      } else {
        if (firstSeq !== 1) return this.miss();
        this.restart(); // a new epoch: the log starts again, and so do the counts
      }
    }
    if (seq !== undefined) this.cursor = { epoch, seq };
    const payload = message.payload ?? message;
    if (type in ENDS) {
      const { type: _, ...result } = payload;
      this.finish(ENDS[type], payload.processedCount, payload, result, message);
    } else if (type === "job_started") {
      this.count({ total: payload.totalCount ?? null, event: message });
    } else if (type === "job_progress" && !payload.keepAlive) {
      const done = payload.processedCount ?? this.view.done;
      this.count({ done, item: payload.currentItem ?? null, event: message }, payload.progress);
    }
  }

  /** An event is missing. A replay from the cursor may bring it; if it does not, the state covers it. */
  miss() {
    const place = JSON.stringify(this.cursor);
    if (this.hole === place) this.cursor = null;
    this.hole = place;
    this.leave();
  }

  restart() {
    this.cursor = null;
    this.view = { ...this.view, done: 0, total: null, fraction: null, item: null };
  }

  adopt(state) {
    this.cursor = Number.isInteger(state.seq) ? { epoch: state.epoch, seq: state.seq } : null;
    const [total, done, item] = [state.totalCount ?? null, state.processedCount ?? 0, state.currentItem ?? null];
    if (state.status !== "running") {
      this.view = { ...this.view, total };
      this.finish(state.status, done, state.error ?? {}, state.results ?? null, null);
    } else {
      const status = state.seq === 0 ? "waiting" : "running";
      this.count({ status, total, done, item, event: null });
    }
  }

  count(changes, progress = 0) {
    const { done, total } = { ...this.view, ...changes };
    // Where no total is known, a progress of 0 says nothing.
    const fraction = total > 0 ? Math.min(1, done / total) : progress > 0 ? Math.min(1, progress) : null;
    this.show({ status: "running", fraction, ...changes });
  }

  finish(status, done, why, result, event) {
    const complete = status === "complete";
    this.end({
      status, event,
      done: done ?? this.view.done,
      fraction: complete ? 1 : this.view.fraction,
      message: why.message ?? why.reason ?? null,
      result: complete ? result : null,
    });
  }

  // --- the callback --------------------------------------------------------------------------------------------

  show(changes) {
    if (this.stopped) return;
    this.view = { ...this.view, event: null, ...changes };
    try {
      this.callback(this.view);
    } catch (error) {
      reportError(error); // the page's own fault, which must not end the following
    }
  }

  end(changes) {
    this.show({ ...changes, ended: true, link: "closed" });
    this.stop(1000);
  }

  stop(code = 4000) { // a browser cannot close with 1001
    this.stopped = true;
    removeEventListener("online", this.online);
    clearInterval(this.renewal);
    this.clear("retry");
    const socket = this.socket;
    this.forget();
    socket?.close(code);
  }

  // --- helpers -------------------------------------------------------------------------------------------------

  /** Hear nothing more of the socket. */
  forget() {
    this.clear("silence");
    this.clear("stable");
    if (this.socket) this.socket.onopen = this.socket.onmessage = this.socket.onclose = null;
    this.socket = null;
  }

  set(name, wait, action) {
    clearTimeout(this.timers[name]);
    this.timers[name] = setTimeout(action, wait);
  }

  clear(name) {
    clearTimeout(this.timers[name]);
    delete this.timers[name];
  }
}
