/**
 * A job's tokens: kept by digest, checked, refreshed. A token is 256 random bits, so there is nothing to guess.
 *
 * Refreshing does not end the old token. It ends, after a grace period, when its successor is first used, which proves
 * that the answer arrived: a lost answer costs nothing, the call is simply made again.
 */

import { Refusal, digestOf, randomHex, unauthorized } from "./http.js";

const MOST_TOKENS = 100;

export const makeToken = async () => {
    const text = randomHex(32);
    return { text, digest: await digestOf(text) };
};

/** All of it is synchronous: called inside a transaction, it is part of that. Times are in ms, lifetimes in seconds. */
export class Tokens {
    constructor(sql, env) {
        this.sql = sql;
        this.env = env;
    }

    create() {
        this.sql.exec("CREATE TABLE token (digest TEXT PRIMARY KEY, expires INTEGER NOT NULL, replaces TEXT)");
    }

    /** Take a new token in, and answer for how many seconds it is good. */
    add(digest, job, now, replaces = null) {
        // Those that were valid at the job's end live as long as the job.
        const over = Math.min(now, job.ended ?? now) - this.env.GRACE_SECONDS * 1000;
        this.sql.exec("DELETE FROM token WHERE expires <= ?", over);
        const { count } = this.sql.exec("SELECT count(*) AS count FROM token").one();
        if (count >= MOST_TOKENS) {
            throw new Refusal(429, "too_many_tokens", "this job has too many tokens", { "retry-after": "60" });
        }
        const expires = now + this.env.TOKEN_SECONDS * 1000;
        this.sql.exec("INSERT INTO token VALUES (?, ?, ?)", digest, expires, replaces);
        return this.env.TOKEN_SECONDS;
    }

    /** Throw a refusal unless the token opens the job now. */
    check(digest, job, now) {
        const token = this.find(digest);
        if (token === undefined || !(now < token.expires || outlivedBy(token, job))) throw unauthorized();
        if (token.replaces !== null) {
            const end = now + this.env.GRACE_SECONDS * 1000;
            this.sql.exec("UPDATE token SET expires = min(expires, ?) WHERE digest = ?", end, token.replaces);
            this.sql.exec("UPDATE token SET replaces = NULL WHERE digest = ?", digest);
        }
    }

    /** Take a new token in for an old one. Throws a refusal where that is too early, or opens nothing. */
    refresh(oldDigest, newDigest, job, now) {
        const token = this.find(oldDigest);
        if (token === undefined) throw unauthorized();
        const left = (token.expires - now) / 1000;
        if (!outlivedBy(token, job)) {
            if (left <= -this.env.GRACE_SECONDS) throw unauthorized();
            const wait = Math.ceil(left - this.env.REFRESH_WINDOW_SECONDS);
            if (wait > 0) {
                throw new Refusal(425, "too_early", "the token has time left", { "retry-after": String(wait) });
            }
        }
        return this.add(newDigest, job, now, oldDigest);
    }

    find(digest) {
        return this.sql.exec("SELECT * FROM token WHERE digest = ?", digest).toArray()[0];
    }
}

/** Whether the token was valid when the job ended: it then opens the result for as long as there is one. */
const outlivedBy = (token, job) => job.ended !== undefined && job.ended < token.expires;
