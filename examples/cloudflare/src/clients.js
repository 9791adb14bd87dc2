/**
 * A job's sockets by client: of those of one client the highest number stays, in whatever order they are heard of.
 *
 * Who it is, a socket says in `ready`; it is kept in its attachment. One that says nothing of itself is let be.
 */

const REPLACED = 4509;

/** What a `ready` says of its sender, for the attachment. */
export function identity({ client, socket }) {
    const named = typeof client === "string" && client.length > 0 && client.length <= 64;
    return named && Number.isInteger(socket) && socket > 0 ? { client, number: socket } : {};
}

/** Close a client's sockets below its latest. */
export function letEarlierGo(sockets, client) {
    const placed = sockets.map((socket) => ({ socket, ...socket.deserializeAttachment() }));
    const own = placed.filter((place) => place.client === client);
    const latest = Math.max(...own.map(({ number }) => number));
    for (const { socket, number } of own) {
        if (number < latest) socket.close(REPLACED, "replaced by a later socket of the same client");
    }
}
