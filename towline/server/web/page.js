// The user's jobs, newest first. The hub's list says which jobs there are; those on the screen that have not ended are
// followed live (towline.js). Text from the hub is put into the page as text only.
import { cancel, follow } from "./towline.js";

const LOOK_EVERY = 3000; // ms between two looks at the list
const CALL = 10_000; // ms for one call
const SHOWN = 100; // cards at first, and added by each "show more": a page with thousands of them is slow
const FOLLOWED = 50; // jobs followed at once; the list updates the others. Chromium has 255 sockets for all pages.
const STATES = {
  unknown: ["?", "unknown"],
  waiting: ["◔", "waiting"],
  running: ["▶", "running"],
  complete: ["✓", "done"],
  failed: ["✗", "failed"],
  canceled: ["⊘", "canceled"],
};
const base = new URL(".", location.href);
const element = (id) => document.getElementById(id);
const clock = new Intl.DateTimeFormat(undefined, { timeStyle: "medium" });
const calendar = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "medium" });
const number = new Intl.NumberFormat();

const jobs = new Map(); // by id: all that the hub has listed, with or without a card
let order = []; // the same, newest first
let shown = SHOWN;
let clockOffset = 0; // of the hub's clock from ours, ms
let downSince = null; // by the hub's clock

const now = () => downSince ?? Date.now() + clockOffset;

// --- text --------------------------------------------------------------------------------------------------------

/** Text with its control characters made visible: they could reorder what stands around them, or hide it. */
function plain(text) {
  return text.replace(/[\p{Cc}\p{Bidi_Control}\u2028\u2029]/gu, (sign) =>
    sign < " " ? String.fromCodePoint(0x2400 + sign.codePointAt(0)) : "\u{FFFD}");
}

function duration(ms) {
  const s = Math.max(0, Math.round(ms / 1000));
  if (s < 60) return `${s} s`;
  if (s < 3600) return `${Math.floor(s / 60)} min ${s % 60} s`;
  return `${Math.floor(s / 3600)} h ${Math.floor(s / 60) % 60} min`;
}

/** A moment in ms since 1970, for people: without the date if it is today. */
function moment(ms) {
  const today = new Date(ms).toDateString() === new Date().toDateString();
  return (today ? clock : calendar).format(ms);
}

// --- one job -----------------------------------------------------------------------------------------------------

class Job {
  constructor(listed) {
    this.id = listed.jobId;
    this.pipeline = listed.pipeline;
    this.start = listed.startTime;
    this.card = null;
    this.unfollow = null; // stops following
    this.refused = false; // the hub does not let us follow
    this.link = "";
    this.state = this.end = null;
    this.latest = null; // the newest of them, {time, done}
    this.samples = []; // at most two {time, done}, to estimate the remaining time
    this.read(listed);
  }

  get ended() {
    return this.state in { complete: 1, failed: 1, canceled: 1 };
  }

  /** Take what the list says, unless as much is known. */
  read(listed) {
    if (this.link === "connected" || (this.ended && (this.end || listed.status === "running"))) return;
    if (this.isOld(listed.lastUpdate)) return;
    const waits = listed.status === "running" && listed.lastUpdate === null;
    this.set({
      state: waits ? "waiting" : listed.status,
      done: listed.processedCount,
      total: listed.totalCount,
      fraction: listed.totalCount ? listed.processedCount / listed.totalCount : null,
      item: listed.currentItem,
      message: listed.message,
      end: listed.endTime,
    }, listed.lastUpdate);
  }

  set(changes, time) {
    const before = this.state;
    Object.assign(this, changes);
    if (time !== null) this.sample(time);
    if (this.state !== before) arrange();
    if (this.card) touched.add(this);
    draw();
  }

  /** Whether something newer is known: the list and the socket may overtake each other. */
  isOld(time) {
    return time !== null && this.latest && time < this.latest.time;
  }

  sample(time) {
    const last = this.samples.at(-1);
    if (last && this.done < last.done) this.samples = []; // the log started again
    // The rate of the last one to two minutes: the older sample goes when the newer one is a minute old.
    if (!last || time - last.time > 60_000) this.samples = [...this.samples.slice(-1), { time, done: this.done }];
    this.latest = { time, done: this.done };
  }

  /** How long the rest takes at the rate of the last minutes, in ms, or null. */
  remaining() {
    const from = this.samples[0];
    if (this.state !== "running" || !this.total || !from || downSince) return null;
    const [ms, done] = [this.latest.time - from.time, this.latest.done - from.done];
    if (ms < 1000 || done <= 0) return null;
    return Math.max(0, ((this.total - this.latest.done) * ms) / done - (now() - this.latest.time));
  }

  follow() {
    if (this.unfollow || this.refused) return;
    this.unfollow = follow(base, this.id, () => tokenOf(this.id), (view) => this.see(view));
  }

  stop() {
    this.unfollow?.();
    this.unfollow = null;
    this.link = "";
  }

  see(view) {
    if (view.link === "reconnecting" && this.link === "connected") look(); // is it the hub?
    this.link = view.link;
    if (view.ended) this.unfollow = null;
    if (view.status === "gone" || view.status === "refused") {
      this.refused = true;
      this.link = view.message;
      return this.set({}, null);
    }
    if (view.status === "unknown" || this.isOld(view.event?.timestamp ?? null)) return this.set({}, null);
    const { status: state, done, total, fraction, item, message, event } = view;
    const end = view.ended ? (event?.timestamp ?? null) : null;
    this.set({ state, done, total, fraction, item, message, end }, event?.timestamp ?? null);
  }

  // --- its card ----------------------------------------------------------------------------------------------

  show() {
    const card = element("card").content.firstElementChild.cloneNode(true);
    this.card = card;
    this.parts = Object.fromEntries([...card.querySelectorAll("[class]")].map((part) => [part.className, part]));
    this.parts.bar = card.querySelector("progress");
    const name = `${plain(this.pipeline)} ${plain(this.id.slice(0, 8))}`;
    put(this.parts.pipeline, plain(this.pipeline));
    put(this.parts.id, plain(this.id.slice(0, 8)));
    this.parts.id.title = plain(this.id);
    this.parts.bar.setAttribute("aria-label", `Progress of ${name}`);
    this.parts.cancel.setAttribute("aria-label", `Cancel ${name}`);
    this.parts.result.setAttribute("aria-label", `Result of ${name}`);
    this.parts.result.href = new URL(`api/jobs/${encodeURIComponent(this.id)}/results`, base);
    this.parts.result.download = `${this.id}.json`;
    this.parts.cancel.onclick = () => askToCancel(this);
    this.draw();
  }

  hide() {
    this.stop();
    // The keyboard's place must not get lost with the card.
    if (this.card.contains(document.activeElement)) document.querySelector("h1").focus();
    this.card.remove();
    this.card = null;
  }

  draw() {
    const { card, parts, state, done, total, ended } = this;
    const [sign, word] = STATES[state] ?? STATES.unknown;
    card.dataset.state = state;
    card.dataset.live = this.link === "reconnecting" || this.refused ? "no" : "yes";
    card.dataset.done = done;
    put(parts.sign, sign);
    put(parts.word, word);
    const fraction = state === "complete" ? 1 : this.fraction ?? (state === "running" ? null : 0);
    if (fraction === null) parts.bar.removeAttribute("value");
    else parts.bar.value = fraction;
    const percent = total ? ` (${Math.floor(100 * fraction)} %)` : "";
    put(parts.amount, total ? `${number.format(done)} of ${number.format(total)}${percent}` : number.format(done));
    put(parts.link, ended || this.link === "connected" ? "" : this.link);
    put(parts.item.firstChild, ended ? "" : plain(this.item ?? ""));
    put(parts.message.firstChild, plain(this.message ?? ""));
    parts.item.hidden = !parts.item.textContent;
    parts.message.hidden = !parts.message.textContent;
    parts.cancel.hidden = ended;
    parts.result.hidden = state !== "complete";
    this.drawTimes();
  }

  drawTimes() {
    const spent = (this.end ?? now()) - this.start;
    const left = this.remaining();
    const words = [`${this.state === "waiting" ? "created" : "started"} ${moment(this.start)}`];
    if (this.state === "waiting") words.push(`waits for ${duration(spent)}`);
    else if (!this.ended || this.end) words.push(`${this.ended ? "took" : "runs for"} ${duration(spent)}`);
    if (left !== null) words.push(`about ${duration(left)} left`);
    // A line may end only between two of them.
    put(this.parts.times, words.map((phrase) => phrase.replaceAll(" ", "\u00a0")).join(" · "));
  }
}

function put(part, text) {
  if (part.textContent !== text) part.textContent = text;
}

// --- the page ----------------------------------------------------------------------------------------------------

const touched = new Set(); // jobs whose cards must be drawn again
const cards = new Set(); // jobs with a card
let arranged = false; // whether the cards are those that should be shown
let drawing = false;

function arrange() {
  arranged = false;
}

function draw() {
  if (drawing) return;
  drawing = true;
  requestAnimationFrame(() => {
    drawing = false;
    if (!arranged) placeCards();
    for (const job of touched) if (job.card) job.draw();
    touched.clear();
  });
}

function placeCards() {
  arranged = true;
  const state = element("state").value;
  const text = element("text").value.trim().toLowerCase();
  const has = (value) => value?.toLowerCase().includes(text);
  const chosen = order.filter((job) => (!state || job.state === state)
    && (!text || has(job.id) || has(job.pipeline) || has(job.item) || has(job.message)));
  const wanted = new Set(chosen.slice(0, shown));
  for (const job of cards) {
    if (wanted.has(job)) continue;
    cards.delete(job);
    job.hide();
  }
  const list = element("jobs");
  let next = list.firstElementChild;
  let room = FOLLOWED;
  for (const job of wanted) {
    if (!job.card) {
      job.show();
      cards.add(job);
    }
    if (job.card === next) next = next.nextElementSibling;
    else list.insertBefore(job.card, next);
    if (!job.ended && !job.refused && room > 0) {
      room -= 1;
      job.follow();
    } else if (!job.refused) {
      job.stop();
    }
  }
  const filtered = state || text;
  const all = `${number.format(order.length)} ${order.length === 1 ? "job" : "jobs"}`;
  const found = filtered ? `${number.format(chosen.length)} of ${all}` : all;
  const part = wanted.size < chosen.length ? `, the newest ${number.format(wanted.size)} are shown` : "";
  put(element("count"), loaded ? (order.length ? found + part : "No jobs yet.") : `${found} so far`);
  element("more").hidden = wanted.size === chosen.length;
  put(element("more"), `Show ${number.format(Math.min(SHOWN, chosen.length - wanted.size))} more`);
}

function filter() {
  shown = SHOWN;
  arrange();
  draw();
}

element("state").onchange = filter;
element("text").oninput = filter;
element("more").onclick = () => {
  const last = element("jobs").lastElementChild;
  shown += SHOWN;
  placeCards();
  // The button may be gone: the keyboard goes on at the first of the new cards.
  const first = last?.nextElementSibling;
  first?.setAttribute("tabindex", "-1");
  first?.focus();
};
setInterval(() => {
  if (document.hidden || downSince) return;
  for (const job of cards) if (!job.ended) job.drawTimes();
}, 1000);

// --- cancel ------------------------------------------------------------------------------------------------------

const ANSWERS = {
  accepted: "Cancel accepted.",
  too_late: "Too late: the job had ended.",
  unknown: "The hub does not know this job.",
};
let asked = null; // the job that the dialog is about

function askToCancel(job) {
  asked = job;
  put(element("question"), `Cancel ${plain(job.pipeline)} ${plain(job.id.slice(0, 8))}?`);
  element("reason").value = "";
  element("ask").showModal();
}

element("no").onclick = () => element("ask").close();
element("yes").onclick = () => {
  element("ask").close();
  cancelJob(asked, element("reason").value.trim() || null);
};
element("reason").onkeydown = (event) => {
  if (event.key === "Enter") element("yes").click();
};

async function cancelJob(job, reason) {
  const say = (text) => job.card && put(job.parts.answer, text);
  say("Asking the hub to cancel …");
  job.parts.cancel.disabled = true;
  try {
    const token = await tokenOf(job.id);
    say(token === null ? "You may not cancel this job." : ANSWERS[await cancel(base, job.id, token, reason)]);
  } catch (error) {
    say(`Not canceled: ${error.message}. Try again.`);
  }
  job.parts.cancel.disabled = false;
  look();
}

// --- the hub -----------------------------------------------------------------------------------------------------

/** A token for one attempt to follow a job of ours, or null if we may not. */
async function tokenOf(id) {
  const path = `api/jobs/${encodeURIComponent(id)}/token`;
  const answer = await fetch(new URL(path, base), { method: "POST", signal: AbortSignal.timeout(CALL) });
  if ([401, 403, 404, 410].includes(answer.status)) return null;
  if (!answer.ok) throw new Error(`the hub answered ${answer.status}`);
  return (await answer.json()).token;
}

let loaded = false; // whether the whole list was read since the page was opened, or since the list and it parted
let place = null; // where the walk through the older part of the list goes on
let looking = false;
let again; // the timer of the next look

async function readList(before) {
  const url = new URL("api/jobs", base);
  if (before !== null) url.searchParams.set("before", before);
  const answer = await fetch(url, { cache: "no-store", signal: AbortSignal.timeout(CALL) });
  if (!answer.ok) throw Object.assign(new Error(`the hub answered ${answer.status}`), { status: answer.status });
  const date = Date.parse(answer.headers.get("date") ?? "");
  if (Math.abs(date - Date.now()) > 2000) clockOffset = date - Date.now();
  const list = await answer.json();
  const known = jobs.size;
  for (const listed of list.jobs) {
    const job = jobs.get(listed.jobId);
    if (job) job.read(listed);
    else jobs.set(listed.jobId, new Job(listed));
  }
  list.news = jobs.size - known;
  if (list.news) {
    order = [...jobs.values()].sort((a, b) => b.start - a.start || (a.id < b.id ? 1 : -1));
    arrange();
  }
  draw();
  return list;
}

async function look() {
  if (looking) return;
  looking = true;
  clearTimeout(again);
  try {
    const newest = await readList(null);
    // If all of them are new, more may be between them and those we know.
    if (newest.news === newest.jobs.length && newest.next !== null) [loaded, place] = [false, newest.next];
    hubAnswers();
    // First the whole list. Later one further page a look, while it has jobs that nothing else keeps up to date.
    if (loaded && place === null && order.some((job) => !job.ended && job.link !== "connected")) place = newest.next;
    do {
      if (place !== null) place = (await readList(place)).next;
    } while (!loaded && place !== null);
    if (!loaded) arrange();
    loaded = true;
    draw();
  } catch (error) {
    hubFails(error);
  }
  looking = false;
  again = setTimeout(look, LOOK_EVERY);
}

function hubAnswers() {
  downSince = null;
  delete document.body.dataset.hub;
  put(element("notice"), "");
}

function hubFails(error) {
  downSince ??= now();
  document.body.dataset.hub = "down";
  put(element("notice"), error.status === 401 || error.status === 403
    ? "You may not see jobs here. Sign in, then reload this page."
    : `The hub has not answered since ${moment(downSince)}. The jobs are shown as of then; the page keeps trying.`);
}

look();
