/** What the Worker and its Durable Objects share of HTTP: answers, refusals, tokens in requests, bounded bodies. */

const SUBPROTOCOL = "towline";

/** The answer to a request that gets nothing: a status, a code for programs, a sentence for people. */
export class Refusal extends Error {
    constructor(status, code, message, headers = {}) {
        super(message);
        Object.assign(this, { status, code, headers });
    }

    response() {
        return json({ error: { code: this.code, message: this.message } }, this.status, this.headers);
    }
}

export const unauthorized = () =>
    new Refusal(401, "unauthorized", "a valid token of this job is needed", { "www-authenticate": "Bearer" });

export const unknownJob = () => new Refusal(404, "unknown_job", "there is no such job");

/** Run a handler; a refusal it throws is its answer. */
export async function answering(handler) {
    try {
        return await handler();
    } catch (error) {
        if (error instanceof Refusal) return error.response();
        throw error;
    }
}

/** Answers hold tokens and states of the moment: nothing on the way may keep them. */
export const GUARDED = { "cache-control": "no-store", "x-content-type-options": "nosniff" };

export function json(content, status = 200, headers = {}) {
    return Response.json(content, { status, headers: { ...GUARDED, ...headers } });
}

/** The token of the Authorization header (RFC 6750 section 2.1), or undefined. */
export function bearerToken(request) {
    const [, token] = /^bearer +(\S+)$/i.exec(request.headers.get("authorization")?.trim() ?? "") ?? [];
    return token;
}

/**
 * The token of an upgrade, and the subprotocol to answer with.
 *
 * A browser cannot set headers, so it offers `towline.<token>`, best together with plain `towline`, which is then the
 * answer: the token is not said back.
 */
export function socketToken(request) {
    const offered = (request.headers.get("sec-websocket-protocol") ?? "").split(",").map((item) => item.trim());
    const carrier = offered.find((item) => item.startsWith(`${SUBPROTOCOL}.`));
    const subprotocol = offered.includes(SUBPROTOCOL) ? SUBPROTOCOL : carrier;
    return { token: bearerToken(request) ?? (carrier?.slice(SUBPROTOCOL.length + 1) || undefined), subprotocol };
}

/** The body's bytes. It is not believed to be as long as it says, and never read past the limit. */
export async function boundedBody(request, limit) {
    const pieces = [];
    let size = 0;
    for await (const piece of request.body ?? []) {
        size += piece.byteLength;
        if (size > limit) throw new Refusal(413, "too_large", `the body may have ${limit} bytes`);
        pieces.push(piece);
    }
    const body = new Uint8Array(size);
    let end = 0;
    for (const piece of pieces) {
        body.set(piece, end);
        end += piece.byteLength;
    }
    return body;
}

/** The small JSON object of a body; `{}` for an empty one. */
export async function smallObject(request) {
    const body = await boundedBody(request, 16 * 1024);
    if (body.byteLength === 0) return {};
    try {
        const content = JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(body));
        if (content !== null && typeof content === "object" && !Array.isArray(content)) return content;
    } catch {} // answered below, as any other content that is none
    throw new Refusal(400, "bad_request", "the body is not the JSON this call takes");
}

/** The SHA-256 digest of text or bytes, in hex. */
export async function digestOf(content) {
    const bytes = typeof content === "string" ? new TextEncoder().encode(content) : content;
    return hex(new Uint8Array(await crypto.subtle.digest("SHA-256", bytes)));
}

export const randomHex = (bytes) => hex(crypto.getRandomValues(new Uint8Array(bytes)));

const hex = (bytes) => Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
