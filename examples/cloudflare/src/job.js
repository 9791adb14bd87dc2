/**
 * One job in one Durable Object: its log and state, its sockets, its calls, and its work in slices.
 *
 * Everything is in the object's storage; what memory holds can be read again from there, so eviction and a crash cost
 * nothing. Whatever changes the job is written without an `await` in between, which the platform makes one transaction,
 * and the platform holds back every frame and answer until that is on disk. So nobody is shown what could be lost.
 *
 * State is one record, in the log's own transaction, that holds the `seq` of the last event it knows of.
 */

import { DurableObject } from "cloudflare:workers";
import { identity, letEarlierGo } from "./clients.js";
import { JobFailure, checkRow, cut, decode, readRow, survey } from "./csv_import.js";
import { GUARDED, Refusal, answering, bearerToken, boundedBody, digestOf, json } from "./http.js";
import { randomHex, smallObject, socketToken, unauthorized, unknownJob } from "./http.js";
import { Tokens, makeToken } from "./tokens.js";

const PIPELINE = "csv_import";
const VERSION = "1.0.0";
const MOST_EVENTS = 500; // a larger file tells its progress in larger steps, so that a replay stays small
const INLINE_BYTES = 256 * 1024; // a larger result goes by URL
const PIECE_BYTES = 1024 * 1024; // a value in storage may have 2 MB
const MOST_TEXT = 500; // characters of an item or a reason
const MOST_SOCKETS = 64;
const SILENCE_MS = 2000; // how long a new socket may stay silent before it gets everything from the first event
const MESSAGE_CHARACTERS = 4096;
const MOST_MESSAGES = 100; // of one socket, beside its first `ready`
const MOST_RETRIES = 5; // one less than the platform makes
const SOONEST_MS = 10; // one alarm that sets the next for the present moment loses it (workerd issue 6866)
const OVERDUE_MS = 60_000;
const ROWS_AT_ONCE = 500; // of a result, as it is streamed

export class Job extends DurableObject {
    constructor(ctx, env) {
        super(ctx, env);
        this.id = ctx.id.toString();
        this.storage = ctx.storage;
        this.sql = ctx.storage.sql;
        this.tokens = new Tokens(this.sql, env);
        this.text = undefined; // the upload, once it was read
    }

    get record() {
        return this.storage.kv.get("job");
    }

    set record(record) {
        this.storage.kv.put("job", record);
    }

    // --- calls ---------------------------------------------------------------------------------------------------

    fetch(request) {
        const calls = {
            "/api/imports/csv": this.start,
            "/api/token/refresh": this.refresh,
            "/ws/progress": this.open,
            [`/api/jobs/${this.id}/results`]: this.results,
            [`/api/jobs/${this.id}/cancel`]: this.cancel,
            [`/api/job-state/${this.id}`]: this.state,
        };
        return answering(() => {
            const call = calls[new URL(request.url).pathname];
            if (call === undefined) throw unknownJob(); // the same id, written in another way
            return call.call(this, request);
        });
    }

    async start(request) {
        const upload = await boundedBody(request, this.env.UPLOAD_BYTES);
        const [uploaded, token] = await Promise.all([digestOf(upload), makeToken()]);
        const now = Date.now();
        const expiresIn = this.storage.transactionSync(() => {
            const found = this.record;
            if (found === undefined || found.gone) {
                this.create(upload, uploaded, now);
            } else if (found.uploaded !== uploaded) {
                throw new Refusal(422, "key_reused", "this Idempotency-Key came with another upload before");
            }
            return this.tokens.add(token.digest, this.record, now);
        });
        this.schedule();
        return json({ jobId: this.id, token: token.text, expiresIn, pipeline: PIPELINE }, 202);
    }

    create(upload, uploaded, now) {
        for (const table of [
            "event (seq INTEGER PRIMARY KEY, text TEXT NOT NULL)",
            "upload (piece INTEGER PRIMARY KEY, bytes BLOB NOT NULL)",
            "row (number INTEGER PRIMARY KEY, kind TEXT NOT NULL, text TEXT NOT NULL)",
        ]) {
            this.sql.exec(`CREATE TABLE ${table}`);
        }
        this.tokens.create();
        for (let begin = 0; begin < upload.byteLength; begin += PIECE_BYTES) {
            this.sql.exec("INSERT INTO upload (bytes) VALUES (?)", upload.slice(begin, begin + PIECE_BYTES));
        }
        this.text = undefined;
        // A log that begins anew has an epoch of its own, also where the same object was a job before.
        this.record = { status: "running", epoch: randomHex(8), seq: 0, uploaded, created: now, processed: 0 };
    }

    async state(request) {
        const job = await this.admit(bearerToken(request));
        const { type, ...outcome } = job.status === "running" ? {} : this.lastPayload(job);
        return json({
            pipeline: PIPELINE,
            status: job.status,
            totalCount: job.total ?? 0,
            processedCount: job.processed,
            currentItem: job.item,
            startTime: job.created,
            lastUpdate: job.updated,
            endTime: job.ended,
            version: VERSION,
            results: job.status === "complete" ? outcome : undefined,
            error: job.status === "failed" ? outcome : undefined,
            seq: job.seq,
            epoch: job.epoch,
        });
    }

    async results(request) {
        const job = await this.admit(bearerToken(request));
        if (job.status === "running") {
            throw new Refusal(409, "still_running", "the job has not ended", { "retry-after": "5" });
        }
        if (job.status !== "complete") throw new Refusal(404, "no_result", "the job ended without a result");
        const pieces = this.resultPieces(job);
        const stream = new ReadableStream({
            pull(controller) {
                const { done, value } = pieces.next();
                if (done) controller.close();
                else controller.enqueue(new TextEncoder().encode(value));
            },
        });
        return new Response(stream, { headers: { ...GUARDED, "content-type": "application/json" } });
    }

    /** Idempotent by nature: a job that was canceled answers `accepted` however often it is asked. */
    async cancel(request) {
        await this.admit(bearerToken(request));
        const { reason } = await smallObject(request);
        const job = this.kept();
        if (job.status === "running") {
            const said = typeof reason === "string" ? cut(reason, MOST_TEXT) : undefined;
            const payload = { processedCount: job.processed, reason: said };
            this.commit(() => this.writeEnd(job, "job_canceled", payload, "canceled"));
        }
        return json({ jobId: this.id, result: this.record.status === "canceled" ? "accepted" : "too_late" });
    }

    async refresh(request) {
        const { oldToken } = await smallObject(request);
        const [oldDigest, token] = await Promise.all([digestOf(oldToken), makeToken()]);
        const job = this.record;
        if (job === undefined || job.gone) throw unauthorized(); // this call tells nobody which jobs there are
        const expiresIn = this.tokens.refresh(oldDigest, token.digest, job, Date.now());
        return json({ jobId: this.id, token: token.text, expiresIn });
    }

    /** The job's record for who holds its token: read after everything that had to be waited for. */
    async admit(token) {
        const digest = await digestOf(token);
        await this.rearm();
        const job = this.kept();
        this.tokens.check(digest, job, Date.now());
        return job;
    }

    kept() {
        const job = this.record;
        if (job === undefined) throw unknownJob();
        if (job.gone) throw new Refusal(410, "gone", "the job ended long ago and is no longer kept");
        return job;
    }

    // --- the log -------------------------------------------------------------------------------------------------

    /** Write what tells something, whole or not at all; then tell it, and see to what comes next. */
    commit(write) {
        this.storage.transactionSync(write);
        this.schedule();
        for (const socket of this.ctx.getWebSockets()) this.feed(socket);
    }

    /** An event, and what it changes in the state. */
    write(job, type, payload, change) {
        const now = Date.now();
        const { seq, epoch } = (this.record = { ...job, ...change, seq: job.seq + 1, updated: now });
        const text = JSON.stringify({ ...this.head(type, now), seq, epoch, payload: { type, ...payload } });
        this.sql.exec("INSERT INTO event VALUES (?, ?)", seq, text);
    }

    writeEnd(job, type, payload, status) {
        this.write(job, type, payload, { status, ended: Date.now() });
        this.sql.exec("DROP TABLE upload");
        this.text = undefined;
    }

    head(type, timestamp) {
        return { type, jobId: this.id, pipeline: PIPELINE, timestamp, version: VERSION };
    }

    lastPayload(job) {
        return JSON.parse(this.sql.exec("SELECT text FROM event WHERE seq = ?", job.seq).one().text).payload;
    }

    // --- sockets -------------------------------------------------------------------------------------------------

    async open(request) {
        const { token, subprotocol } = socketToken(request);
        await this.admit(token);
        if (this.ctx.getWebSockets().length >= MOST_SOCKETS) {
            throw new Refusal(429, "too_many_sockets", "this job has too many watchers", { "retry-after": "10" });
        }
        const [client, server] = Object.values(new WebSocketPair());
        this.ctx.acceptWebSocket(server);
        server.serializeAttachment({ sent: null, acknowledged: false, others: 0 });
        setTimeout(() => this.serveSilent(server), SILENCE_MS);
        const headers = subprotocol === undefined ? {} : { "sec-websocket-protocol": subprotocol };
        return new Response(null, { status: 101, webSocket: client, headers });
    }

    webSocketMessage(socket, text) {
        if (typeof text !== "string") return socket.close(1003, "text messages only");
        if (text.length > MESSAGE_CHARACTERS) return socket.close(1009, `more than ${MESSAGE_CHARACTERS} characters`);
        let message;
        try {
            message = JSON.parse(text);
        } catch {
            return socket.close(1007, "not a message of this protocol");
        }
        const ready = message?.type === "ready";
        const place = socket.deserializeAttachment();
        if (!ready || place.acknowledged) {
            if (place.others >= MOST_MESSAGES) return socket.close(1008, "too many messages");
            socket.serializeAttachment({ ...place, others: place.others + 1 });
        }
        if (ready) this.serve(socket, message);
    }

    /** A close of the client's is answered: a hibernating socket does not do so by itself. */
    webSocketClose(socket, code) {
        if (code === 1006) return;
        socket.close(code === 1005 ? 1000 : code);
    }

    /**
     * Answer `ready`, the first time or again: the socket goes on from the cursor that it holds, or from where it was
     * served to before it spoke.
     */
    serve(socket, ready) {
        const { epoch, seq } = ready;
        const job = this.record;
        if (job === undefined || job.gone) return socket.close(1001, "the job is no longer kept");
        // A cursor beyond the log is one into another log, whatever its epoch says.
        const known = epoch === job.epoch && Number.isInteger(seq) && seq >= 0 && seq <= job.seq;
        const place = { ...identity(ready), ...socket.deserializeAttachment() }; // who it is, it says once
        const sent = Math.max(known ? seq : 0, place.acknowledged ? 0 : place.sent);
        const head = this.head("ready_ack", Date.now());
        socket.send(JSON.stringify({ ...head, epoch: job.epoch, from: sent + 1, to: job.seq }));
        socket.serializeAttachment({ ...place, sent, acknowledged: true });
        if (place.client !== undefined) letEarlierGo(this.ctx.getWebSockets(), place.client);
        this.feed(socket);
    }

    serveSilent(socket) {
        const place = socket.deserializeAttachment();
        if (place.sent === null) socket.serializeAttachment({ ...place, sent: 0 });
        this.feed(socket);
    }

    /** Send a socket what the log has and it has not; there is no difference between replay and live events. */
    feed(socket) {
        const place = socket.deserializeAttachment();
        if (place.sent === null || socket.readyState !== WebSocket.OPEN) return;
        const query = "SELECT seq, text FROM event WHERE seq > ? ORDER BY seq";
        for (const { seq, text } of this.sql.exec(query, place.sent)) {
            socket.send(text);
            place.sent = seq;
        }
        socket.serializeAttachment(place);
        if (this.record.status !== "running") socket.close(1000, "the job has ended");
    }

    // --- time ----------------------------------------------------------------------------------------------------

    /** When the one alarm is due: for the next slice of the work, the job's removal, the removal of its trace. */
    due(job) {
        if (job.status === "running") return Date.now() + Math.max(SOONEST_MS, this.env.SLICE_PAUSE_MS);
        return job.ended + (this.env.RESULT_SECONDS + (job.gone ? this.env.TRACE_SECONDS : 0)) * 1000;
    }

    schedule() {
        this.storage.setAlarm(this.due(this.record));
    }

    /** Should the platform have lost the alarm of a job that runs, the next call sets it again. */
    async rearm() {
        const due = await this.storage.getAlarm();
        if (this.record?.status !== "running" || (due !== null && Date.now() < due + OVERDUE_MS)) return;
        console.warn("an alarm was lost");
        this.storage.setAlarm(this.due(this.record));
    }

    async alarm({ retryCount }) {
        const job = this.record;
        if (job === undefined) return;
        if (job.status === "running") this.work(job, retryCount);
        else if (Date.now() < this.due(job)) this.schedule(); // it was set for work that was canceled meanwhile
        else if (job.gone) await this.storage.deleteAll();
        else this.remove(job);
    }

    remove({ status, ended }) {
        for (const socket of this.ctx.getWebSockets()) socket.close(1001, "the job is no longer kept");
        this.storage.transactionSync(() => {
            for (const table of ["event", "row", "token"]) this.sql.exec(`DROP TABLE ${table}`);
            this.record = { status, ended, gone: true };
        });
        this.schedule();
    }

    // --- the work ------------------------------------------------------------------------------------------------

    /**
     * One slice. An alarm comes at least once: the place is written with the slice's event, so one that comes again
     * goes on with the next slice and tells nothing twice.
     */
    work(job, retryCount) {
        const fail = (fields) => this.commit(() => this.writeEnd(job, "error", fields, "failed"));
        try {
            this.commit(() => this.writeSlice(job));
        } catch (error) {
            const { code, message } = error;
            if (error instanceof JobFailure) return fail({ code, message, retryable: false });
            // The platform asks again, later each time, and then no more.
            if (retryCount < MOST_RETRIES) throw error;
            console.error("the work failed", error);
            fail({ code: "INTERNAL", message: "the job failed", retryable: true });
        }
    }

    writeSlice(job) {
        this.text ??= this.uploadedText();
        if (job.layout === undefined) {
            const { layout, total } = survey(this.text);
            this.write(job, "job_started", { totalCount: total }, { layout, total, offset: layout.offset });
        } else if (job.processed < job.total) {
            this.importRows(job);
        } else {
            this.writeEnd(job, "job_complete", this.result(job), "complete");
        }
    }

    importRows(job) {
        const { layout, total } = job;
        let { offset, processed } = job;
        let item;
        const until = Math.min(total, processed + Math.ceil(total / MOST_EVENTS));
        while (processed < until) {
            const row = readRow(this.text, offset, layout.delimiter);
            ({ offset } = row);
            processed += 1;
            const { book, error } = checkRow(row, layout, processed);
            const kind = book === undefined ? "error" : "book";
            this.sql.exec("INSERT INTO row VALUES (?, ?, ?)", processed, kind, JSON.stringify(book ?? error));
            item = cut((book ?? error).title, MOST_TEXT);
        }
        const counts = { progress: processed / total, processedCount: processed };
        const payload = { ...counts, status: "importing", currentItem: item };
        this.write(job, "job_progress", payload, { offset, processed, item });
    }

    uploadedText() {
        return decode(this.sql.exec("SELECT bytes FROM upload ORDER BY piece").toArray().map(({ bytes }) => bytes));
    }

    result(job) {
        const { size } = this.sql.exec("SELECT total(length(CAST(text AS BLOB)) + 1) AS size FROM row").one();
        if (size > INLINE_BYTES) return { pipeline: PIPELINE, resultUrl: `/api/jobs/${this.id}/results` };
        return JSON.parse([...this.resultPieces(job)].join(""));
    }

    /** The whole result as JSON text, a few rows at a time. */
    *resultPieces(job) {
        const { books } = this.sql.exec("SELECT count(*) AS books FROM row WHERE kind = 'book'").one();
        yield `{"pipeline":"${PIPELINE}","successRate":"${books}/${job.processed}"`;
        for (const [kind, name] of [["book", "books"], ["error", "errors"]]) {
            yield `,"${name}":[`;
            for (let last = 0, comma = ""; ; comma = ",") {
                const query = "SELECT number, text FROM row WHERE kind = ? AND number > ? ORDER BY number LIMIT ?";
                const rows = this.sql.exec(query, kind, last, ROWS_AT_ONCE).toArray();
                if (rows.length === 0) break;
                yield comma + rows.map(({ text }) => text).join(",");
                last = rows.at(-1).number;
            }
            yield "]";
        }
        yield "}";
    }
}
