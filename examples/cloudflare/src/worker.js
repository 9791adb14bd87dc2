/**
 * The Worker: the door to the jobs. It finds the Durable Object that a request is for; the rest is decided there.
 *
 * A job's id is its object's own id. The runtime signs those, so an invented one wakes no object. A start with an
 * Idempotency-Key goes to the object that is named by the caller and the key: the same call is the same job.
 */

import { Refusal, answering, bearerToken, digestOf, json } from "./http.js";
import { smallObject, socketToken, unauthorized, unknownJob } from "./http.js";

export { Job } from "./job.js";

const START_PATH = "/api/imports/csv";
const REFRESH_PATH = "/api/token/refresh";
const JOB_PATH = /^\/api\/(?:job-state\/([^/]+)|jobs\/([^/]+)\/(?:results|cancel))$/;

export default {
    fetch: (request, env) => answering(() => open(request, env)),
};

async function open(request, env) {
    const url = new URL(request.url);
    if (url.pathname === "/ws/progress") return openSocket(request, url, env);
    if (url.pathname === START_PATH) return start(request, env);
    if (url.pathname === REFRESH_PATH) return refresh(request, env);
    const [, stateOf, callOn] = JOB_PATH.exec(url.pathname) ?? [];
    if (stateOf === undefined && callOn === undefined) throw new Refusal(404, "not_found", "nothing lives here");
    allow(request, url.pathname.endsWith("/cancel") ? "POST" : "GET");
    if (bearerToken(request) === undefined) throw unauthorized();
    return ask(env, stateOf ?? callOn, request);
}

async function openSocket(request, url, env) {
    allow(request, "GET");
    if (request.headers.get("upgrade")?.toLowerCase() !== "websocket") {
        throw new Refusal(426, "upgrade_required", "this is a WebSocket", { upgrade: "websocket" });
    }
    const origin = request.headers.get("origin");
    if (origin !== null && origin !== url.origin && !env.ORIGINS.includes(origin)) {
        throw new Refusal(403, "foreign_origin", "pages of this origin may not open sockets here");
    }
    const jobId = url.searchParams.get("jobId");
    if (!jobId) throw new Refusal(400, "bad_request", "the query names no jobId");
    if (socketToken(request).token === undefined) throw unauthorized();
    return ask(env, jobId, request);
}

async function start(request, env) {
    allow(request, "POST");
    const owner = await authorize(request, env);
    if (owner === undefined) throw new Refusal(403, "forbidden", "you may not start jobs here");
    const mediaType = (request.headers.get("content-type") ?? "").split(";")[0].trim().toLowerCase();
    if (mediaType !== "text/csv") throw new Refusal(415, "wrong_media_type", "send the file itself, as text/csv");
    const key = request.headers.get("idempotency-key");
    if (key !== null && !(key.length > 0 && key.length <= 255)) {
        throw new Refusal(400, "bad_request", "an Idempotency-Key has 1 to 255 characters");
    }
    const name = key === null ? null : await digestOf(JSON.stringify([owner, key]));
    const id = name === null ? env.JOBS.newUniqueId() : env.JOBS.idFromName(name);
    return reach(env.JOBS.get(id), request);
}

/** In whose name a request may start a job, or undefined. Your own login goes here. */
async function authorize(request, env) {
    const given = bearerToken(request);
    if (!env.START_KEY || given === undefined) return undefined;
    // Compared by digest, so that the time taken says nothing of the key.
    return (await digestOf(given)) === (await digestOf(env.START_KEY)) ? "operator" : undefined;
}

async function refresh(request, env) {
    allow(request, "POST");
    const { jobId, oldToken } = await smallObject(request);
    if (typeof jobId !== "string" || typeof oldToken !== "string") {
        throw new Refusal(400, "bad_request", "the body is not the JSON this call takes");
    }
    const id = jobObject(env, jobId);
    if (id === undefined) throw unauthorized();
    return reach(env.JOBS.get(id), new Request(request.url, { method: "POST", body: JSON.stringify({ oldToken }) }));
}

function ask(env, jobId, request) {
    const id = jobObject(env, jobId);
    if (id === undefined) throw unknownJob();
    return reach(env.JOBS.get(id), request);
}

function jobObject(env, jobId) {
    try {
        return env.JOBS.idFromString(jobId);
    } catch {
        return undefined; // not an id that this namespace has given out
    }
}

/** Hand a request to its object. What the platform cannot do now is 503, which clients ask again after. */
async function reach(object, request) {
    try {
        return await object.fetch(request);
    } catch (error) {
        if (!error.retryable && !error.overloaded) throw error;
        const message = "the job cannot be reached now";
        return json({ error: { code: "unreachable", message } }, 503, { "retry-after": "5" });
    }
}

function allow(request, method) {
    if (request.method !== method) throw new Refusal(405, "wrong_method", `this is for ${method}`, { allow: method });
}
