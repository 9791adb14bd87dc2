// The jobs and their progress, live. Each running job has one socket, which follows the rules of the wire protocol:
// say `ready` with the cursor after each open, take every event once and in order, and never take a close for an end.
// Text from the hub is put into the page as text only.
"use strict";

const LOOK_EVERY = 3000; // ms between two looks for new jobs
const STABLE = 30000; // ms a link must hold before the waits begin anew
const REPLACED = 4509; // the close code of a socket whose client has a later one
const TERMINAL = { job_complete: "complete", error: "failed", job_canceled: "canceled" };
const base = new URL(".", location.href);
const watched = new Map();

class Watch {
  constructor(job) {
    this.id = job.jobId;
    this.cursor = null; // {epoch, seq} of the last event taken
    this.client = crypto.getRandomValues(new Uint32Array(4)).join("-");
    this.sockets = 0; // opened so far: the hub lets those before the latest go
    this.failures = 0;
    this.ended = false;
    this.row = document.createElement("tr");
    this.cells = {};
    for (const name of ["id", "pipeline", "status", "progress", "item", "link"]) {
      this.cells[name] = this.row.appendChild(document.createElement("td"));
    }
    this.bar = document.createElement("progress");
    this.count = document.createElement("span");
    this.cells.progress.append(this.bar, " ", this.count);
    this.cells.id.textContent = job.jobId.slice(0, 8);
    this.cells.id.title = job.jobId;
    this.cells.pipeline.textContent = job.pipeline;
    this.total = job.totalCount;
    this.show(job.status, job.processedCount ?? 0, job.currentItem);
    document.getElementById("jobs").append(this.row);
    if (job.status === "running") this.dial();
    else this.ended = true;
  }

  show(status, done, item) {
    this.row.dataset.status = status;
    this.row.dataset.done = done;
    this.cells.status.textContent = status;
    this.cells.item.textContent = item ?? "";
    if (this.total) {
      this.bar.max = this.total;
      this.bar.value = done;
    } else if (status !== "running") {
      this.bar.value = 1;
    }
    this.count.textContent = this.total ? `${done} of ${this.total}` : `${done}`;
  }

  link(text) {
    this.cells.link.textContent = text;
  }

  async dial() {
    this.link("connecting");
    let token;
    try {
      const answer = await fetch(new URL(`api/jobs/${encodeURIComponent(this.id)}/token`, base), { method: "POST" });
      if (answer.status === 404 || answer.status === 410) return this.giveUp("gone");
      if (answer.status === 401 || answer.status === 403) return this.giveUp("not allowed");
      if (!answer.ok) throw new Error(`HTTP ${answer.status}`);
      token = (await answer.json()).token;
    } catch {
      return this.comeBack({});
    }
    const url = new URL(`ws/progress?jobId=${encodeURIComponent(this.id)}`, base);
    url.protocol = url.protocol === "https:" ? "wss:" : "ws:";
    this.sockets += 1;
    const socket = new WebSocket(url, ["towline", `towline.${token}`]);
    let stable;
    socket.onopen = () => {
      this.link("connected");
      stable = setTimeout(() => { this.failures = 0; }, STABLE);
      const self = { client: this.client, socket: this.sockets };
      socket.send(JSON.stringify({ type: "ready", timestamp: Date.now(), ...this.cursor, ...self }));
    };
    socket.onmessage = (message) => {
      // A hole cannot be shown away: a new socket asks for what is missing.
      if (!this.take(JSON.parse(message.data))) socket.close(4000);
    };
    socket.onclose = (event) => {
      clearTimeout(stable);
      if (this.ended) return this.link("");
      if (event.code === REPLACED) return this.giveUp("replaced");
      let advice = {};
      try {
        advice = JSON.parse(event.reason);
      } catch { /* anything else in a reason is text */ }
      this.comeBack(advice);
    };
  }

  take(frame) {
    if (frame.seq === undefined) return true;
    if (this.cursor && frame.epoch === this.cursor.epoch) {
      if (frame.seq <= this.cursor.seq) return true;
      if ((frame.firstSeq ?? frame.seq) > this.cursor.seq + 1) return false; // the hub may merge progress
    } else if ((frame.firstSeq ?? frame.seq) !== 1) {
      this.cursor = null;
      return false;
    } else if (this.cursor) {
      this.row.dataset.done = 0; // the log begins anew, and so does the count
    }
    this.cursor = { epoch: frame.epoch, seq: frame.seq };
    const payload = frame.payload;
    const shown = Number(this.row.dataset.done);
    const done = payload.processedCount ?? shown;
    if (frame.type === "job_started") {
      this.total = payload.totalCount;
    } else if (frame.type === "job_progress" && !payload.keepAlive) {
      // What is replayed may be older than what the list of jobs has said: a count never goes back.
      if (done >= shown) this.show("running", done, payload.currentItem);
    } else if (frame.type in TERMINAL) {
      this.ended = true;
      this.show(TERMINAL[frame.type], done, payload.message ?? payload.reason);
    }
    return true;
  }

  comeBack(advice) {
    // The cap first, then chance: many pages must not come at once.
    const cap = Math.min(30, 2 ** this.failures);
    this.failures += 1;
    let wait = 0.25 + Math.random() * (cap - 0.25);
    if (Number.isFinite(advice?.retry_in) && Number.isFinite(advice?.spread)) {
      wait = Math.min(900, advice.retry_in) + Math.random() * Math.min(900, advice.spread);
    }
    this.link("reconnecting");
    setTimeout(() => this.dial(), wait * 1000);
  }

  giveUp(why) {
    this.ended = true;
    this.link(why);
  }
}

async function look() {
  const notice = document.getElementById("notice");
  try {
    const answer = await fetch(new URL("api/jobs", base));
    if (!answer.ok) throw new Error(`HTTP ${answer.status}`);
    for (const job of (await answer.json()).jobs) {
      if (!watched.has(job.jobId)) watched.set(job.jobId, new Watch(job));
    }
    notice.textContent = watched.size ? "" : "No jobs yet.";
  } catch (error) {
    notice.textContent = `The hub does not answer (${error.message}); trying again.`;
  }
  setTimeout(look, LOOK_EVERY);
}

look();
