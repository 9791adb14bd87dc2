// The other end of the jobs on node's `ws`: what app.py is for Python's servers, with the same files.
"use strict";
const fs = require("node:fs");
const http = require("node:http");
const path = require("node:path");
const { WebSocketServer } = require("ws");

const EVENTS = Number(process.env.EVENTS);
const STATE_PATH = "/api/job-state/";
const RESULT = { books: [], errors: [], successRate: `${EVENTS}/${EVENTS}` };

const file = (job, suffix = "") => path.join(process.env.JOBS, job + suffix);
const happened = (job) => Number(fs.readFileSync(file(job), "utf8"));

function refusal(job, upgrade) {
  if (upgrade) fs.appendFileSync(file(job, ".upgrades"), `${Date.now() / 1000}\n`);
  if (!fs.existsSync(file(job, ".refusal"))) return null;
  const [status, headers, body, once, state] = JSON.parse(fs.readFileSync(file(job, ".refusal"), "utf8"));
  if (upgrade && once) fs.unlinkSync(file(job, ".refusal"));
  return { status, headers, body, state };
}

function frame(job, seq) {
  const type = seq === 1 ? "job_started" : seq === EVENTS ? "job_complete" : "job_progress";
  const facts = { progress: seq / EVENTS, status: "x", processedCount: seq };
  const payload = { type, ...(seq === 1 ? { totalCount: EVENTS } : seq === EVENTS ? RESULT : facts) };
  const head = { type, jobId: job, pipeline: "csv_import", version: "1.0.0", timestamp: seq, seq, epoch: "e1" };
  return JSON.stringify({ ...head, payload });
}

const server = http.createServer((request, response) => {
  const job = request.url.slice(STATE_PATH.length);
  const refused = refusal(job, false);
  const seq = happened(job);
  const answer = { pipeline: "csv_import", status: "running", seq, epoch: "e1", startTime: 0, version: "1.0.0" };
  Object.assign(answer, { totalCount: EVENTS, processedCount: seq });
  if (seq === EVENTS) Object.assign(answer, { status: "complete", results: RESULT });
  response.writeHead(refused?.state ?? 200, { "content-type": "application/json" });
  response.end(JSON.stringify(refused?.state ? {} : answer));
});

const lines = new WebSocketServer({ noServer: true });
server.on("upgrade", (request, socket, head) => {
  const job = new URL(request.url, "http://localhost").searchParams.get("jobId");
  const refused = refusal(job, true);
  if (refused) {
    const headers = { ...refused.headers, "content-length": Buffer.byteLength(refused.body), connection: "close" };
    const told = Object.entries(headers).map(([name, value]) => `${name}: ${value}\r\n`);
    socket.end(`HTTP/1.1 ${refused.status} ${http.STATUS_CODES[refused.status]}\r\n${told.join("")}\r\n${refused.body}`);
    return;
  }
  lines.handleUpgrade(request, socket, head, (line) => {
    let timer;
    let answered = true;
    const heartbeat = setInterval(() => {
      if (!answered) return line.terminate();
      answered = false;
      line.ping();
    }, 1000);
    line.on("pong", () => (answered = true));
    line.on("close", () => [timer, heartbeat].forEach(clearInterval));
    line.once("message", (ready) => {
      let seen = JSON.parse(ready).seq ?? 0;
      const to = Math.max(happened(job), seen);
      line.send(JSON.stringify({ type: "ready_ack", timestamp: 0, epoch: "e1", from: seen + 1, to }));
      if (fs.existsSync(file(job, ".close"))) {
        const [code, reason] = JSON.parse(fs.readFileSync(file(job, ".close"), "utf8"));
        fs.unlinkSync(file(job, ".close"));
        return line.close(code, reason);
      }
      timer = setInterval(() => {
        while (seen < happened(job)) line.send(frame(job, ++seen));
        if (seen === EVENTS) line.close(1000);
      }, 30);
    });
  });
});

process.on("SIGTERM", () => {
  server.close(() => process.exit(0));
  for (const line of lines.clients) line.close(1012);
  setTimeout(() => process.exit(0), 500);
});
server.listen(Number(process.argv[2]), "127.0.0.1");
