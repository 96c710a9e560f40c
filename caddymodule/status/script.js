"use strict";

// The page draws what the server's overview says, whenever a new one comes, and
// lets the bars run in between. All text goes through textContent.

const $ = (id) => document.getElementById(id);
const svgNS = "http://www.w3.org/2000/svg";
const failures = { not_sent: "no connection", retry: "the issuer's error", redirect: "a redirect", config: "not as configured", unauthorized: "access token refused", rejected: "refresh token refused" };
const unsure = { unknown: "no whole answer", quiet: "a gateway's error" };

let state = null; // the last overview
let ahead = 0; // the server's clock minus ours, in ms
let frozen = 0; // since when nothing is known: the clock then stands still
let touched = 0; // when somebody last pointed or typed
const cards = new Map(); // by session
const poolCards = new Map();

const serverNow = () => (frozen || Date.now()) + ahead;

// times in words

function span(seconds) {
	const s = Math.max(0, Math.round(seconds));
	if (s < 60) return `${s} s`;
	if (s < 3600) return `${Math.floor(s / 60)} min ${String(s % 60).padStart(2, "0")} s`;
	if (s < 86400) return `${Math.floor(s / 3600)} h ${String(Math.floor(s / 60) % 60).padStart(2, "0")} min`;
	return `${Math.floor(s / 86400)} d ${Math.floor(s / 3600) % 24} h`;
}

// about is span without what nobody needs to know of a time that far off.
const about = (seconds) => (seconds >= 600 ? span(seconds).replace(/ \d\d s$/, "") : span(seconds));

function took(seconds) {
	if (!seconds) return "";
	return seconds < 1 ? `${Math.max(1, Math.round(seconds * 1000))} ms` : `${seconds.toFixed(1)} s`;
}

const until = (text) => (Date.parse(text) - serverNow()) / 1000;

function ago(text) {
	const s = -until(text);
	if (s < 1.5) return "just now";
	return `${span(s).replace(/ \d\d s$/, "")} ago`;
}

const clock = (text) => new Date(text).toLocaleString(undefined, { dateStyle: "medium", timeStyle: "medium" });

const plural = (n, one, more) => `${n.toLocaleString("en")} ${n === 1 ? one : more}`;

// small tools

function set(el, text) {
	if (el.textContent !== text) el.textContent = text;
}

function make(tag, text, className) {
	const el = document.createElement(tag);
	if (text !== undefined) el.textContent = text;
	if (className) el.className = className;
	return el;
}

function draw(tag, attributes, title) {
	const el = document.createElementNS(svgNS, tag);
	for (const [name, value] of Object.entries(attributes)) el.setAttribute(name, String(value));
	if (title) el.append(Object.assign(document.createElementNS(svgNS, "title"), { textContent: title }));
	return el;
}

// arrange puts elements into an order without taking the focus from anybody.
function arrange(list, items) {
	const focused = document.activeElement;
	items.forEach((item, i) => {
		if (list.children[i] !== item) list.insertBefore(item, list.children[i] || null);
	});
	while (list.children.length > items.length) list.lastElementChild.remove();
	if (focused && focused !== document.activeElement && list.contains(focused)) focused.focus({ preventScroll: true });
}

// sessions

function sessionCard(name) {
	let card = cards.get(name);
	if (card) return card;
	const item = $("session-card").content.cloneNode(true).firstElementChild;
	const find = (selector) => item.querySelector(selector);
	card = { item, find, article: find("article"), session: null, drawn: "" };
	find(".name").textContent = name;
	item.dataset.session = name;
	find(".scroll").setAttribute("aria-label", `History of ${name}`);
	find(".refresh").addEventListener("click", () => confirmAction("refresh", name));
	find(".end").addEventListener("click", () => confirmAction("end", name));
	cards.set(name, card);
	return card;
}

function showSession(s) {
	const card = sessionCard(s.name);
	card.session = s;
	const { find } = card;
	card.article.dataset.level = s.level;
	card.article.dataset.state = s.state;
	set(find(".words"), s.words);
	find(".trouble").hidden = !s.advice && !s.last_error;
	set(find(".advice"), s.advice || "");
	const commands = find(".commands");
	if (commands.textContent !== (s.commands || []).join("")) {
		commands.replaceChildren(...(s.commands || []).map((text) => {
			const item = make("li");
			item.append(make("code", text));
			return item;
		}));
	}
	find(".error").hidden = !s.last_error;
	set(find(".error-text"), s.last_error);
	find(".buttons").hidden = !state.actions;
	find(".refresh").disabled = s.level === "waiting" || s.state === "lost";
	find(".end").disabled = s.reason === "logged_out";
	const drawn = JSON.stringify([s.rotations, s.waits, s.generation, s.epoch, s.hold_off, s.source, s.fingerprint, s.reason]);
	if (drawn !== card.drawn) {
		card.drawn = drawn;
		showDetails(card, s);
		showHistory(card, s);
	}
}

function showDetails(card, s) {
	const facts = [
		["State", s.reason ? `${s.state} (${s.reason})` : s.state],
		["Token", s.generation ? `generation ${s.generation} of login ${s.epoch}${s.source ? `, from ${s.source}` : ""}` : "none"],
		["Fingerprint", s.fingerprint],
		["Hold-off", s.hold_off],
	];
	card.find(".facts").replaceChildren(...facts.filter(([, text]) => text).map(([name, text]) => {
		const row = make("div");
		row.append(make("dt", name), make("dd", text));
		return row;
	}));
}

const kindOf = (outcome) => (outcome === "ok" ? "ok" : failures[outcome] ? "failed" : unsure[outcome] ? "unsure" : "login");

const times = (r) => (r.times > 1 ? `, ${r.times} times` : "");

function rotationText(r, wait) {
	const what = {
		ok: `rotated in ${took(r.took_ns / 1e9) || "no time"}`,
		failed: `failed: ${failures[r.outcome]}${times(r)}`,
		unsure: `outcome unknown: ${unsure[r.outcome]}${times(r)}`,
		login: `a new login, from ${r.outcome}`,
	}[kindOf(r.outcome)];
	return wait ? `${what}, ${plural(wait.requests, "request", "requests")} waited up to ${took(wait.longest_seconds)}` : what;
}

// waitsOf tells which attempt requests waited for. They are counted by the token
// that they got, and after a failure that is the one from before: so of the
// attempts with that token it is the one that took about as long as they waited.
function waitsOf(s) {
	const found = new Map();
	for (const wait of s.waits || []) {
		const off = (r) => Math.abs((r.took_ns || 0) / 1e9 - wait.longest_seconds);
		const [r] = (s.rotations || []).filter((r) => r.epoch === wait.epoch && r.generation === wait.generation).sort((a, b) => off(a) - off(b));
		if (r) found.set(r, wait);
	}
	return found;
}

// showHistory draws the last rotations, the newest at the right: a bar as high as
// the exchange took (each step up is ten times as long), a hatched one for the
// request that waited longest, a cross for a failure, a diamond where the outcome
// is not known, a ring for a new login. The table below says the same.
function showHistory(card, s) {
	const list = s.rotations || [];
	const waits = waitsOf(s);
	card.newest = list.length ? rotationText(list.at(-1), waits.get(list.at(-1))) : "";
	card.find(".history").hidden = list.length === 0;
	card.find(".scroll").hidden = list.length === 0;
	card.find("tbody").replaceChildren(...list.slice().reverse().map((r) => {
		const row = make("tr");
		const when = make("td");
		const time = make("time", clock(r.at));
		time.dateTime = r.at;
		when.append(time);
		const what = { ok: "rotated", failed: "failed", unsure: "outcome unknown", login: "new login" }[kindOf(r.outcome)] + times(r);
		row.append(when, make("td", `${r.epoch}.${r.generation}`), make("td", r.error ? `${what}: ${r.error}` : kindOf(r.outcome) === "login" ? `${what}, from ${r.outcome}` : what),
			make("td", took((r.took_ns || 0) / 1e9)), make("td", waits.has(r) ? `${waits.get(r).requests}, up to ${took(waits.get(r).longest_seconds)}` : ""));
		return row;
	}));
	if (list.length === 0) return;

	const step = 20, slots = 16, base = 48;
	const height = (seconds) => Math.min(40, 8 + 8 * (Math.log10(Math.max(seconds, 0.001)) + 3)); // 1 ms to 10 s
	const good = list.filter((r) => r.outcome === "ok").length;
	const svg = draw("svg", { viewBox: `0 0 ${step * slots} 52`, preserveAspectRatio: "xMaxYMid meet", role: "img",
		"aria-label": `The last ${plural(list.length, "attempt", "attempts")}: ${plural(good, "rotation", "rotations")}, ${list.filter((r) => failures[r.outcome] || unsure[r.outcome]).length} failed. The newest: ${clock(list.at(-1).at)}: ${card.newest}` });
	svg.append(draw("line", { class: "base", x1: 0, x2: step * slots, y1: base + .5, y2: base + .5 }));
	list.forEach((r, i) => {
		const x = step * (slots - list.length + i) + step / 2;
		const wait = waits.get(r);
		const group = draw("g", { class: "attempt", "data-kind": kindOf(r.outcome) }, `${clock(r.at)}: ${rotationText(r, wait)}`);
		switch (kindOf(r.outcome)) {
		case "ok": {
			const h = height((r.took_ns || 0) / 1e9);
			group.append(draw("rect", { class: "took", x: x - 5, y: base - h, width: 6, height: h, rx: 1.5 }));
			break;
		}
		case "failed":
			group.append(draw("path", { class: "failed", d: `M${x - 4} ${base - 12}l8 8m0 -8l-8 8` }));
			break;
		case "unsure":
			group.append(draw("path", { class: "unsure", d: `M${x} ${base - 14}l5.5 5.5l-5.5 5.5l-5.5 -5.5z` }));
			break;
		default:
			group.append(draw("circle", { class: "login", cx: x - 2, cy: base - 7, r: 4.5 }));
		}
		if (r.times > 1) {
			const label = draw("text", { class: "times", x, y: base - 17 });
			label.textContent = `${r.times}×`;
			group.append(label);
		}
		if (wait) {
			const h = height(wait.longest_seconds);
			group.append(draw("rect", { class: "wait", x: x + 3, y: base - h, width: 4, height: h, rx: 1 }));
		}
		svg.append(group);
	});
	card.find(".plot").replaceChildren(svg);
}

// planOf says what is to come. What waits for something has no time.
function planOf(s) {
	const attempt = s.next_attempt || s.refresh_at;
	switch (s.state) {
	case "exchanging":
		return s.waiting ? `exchange under way, ${plural(s.waiting, "request waits", "requests wait")}` : "exchange under way";
	case "uncertain":
		return "next exchange once it is known";
	case "holding":
		return "next exchange held up";
	}
	return attempt ? `next exchange ${until(attempt) > 0.5 ? `in ${about(until(attempt))}` : "now"}` : "";
}

// place puts what is worst first, but not under somebody's hand.
function place() {
	const items = state.sessions.map((s) => cards.get(s.name).item);
	const list = $("session-list");
	if (Date.now() - touched < 2000 && items.length === list.children.length && items.every((item) => item.parentElement === list)) return;
	arrange(list, items);
}

for (const kind of ["pointermove", "pointerdown", "wheel", "keydown"]) addEventListener(kind, () => { touched = Date.now(); }, { passive: true });

// run moves what moves with time.
function run() {
	if (state) place();
	for (const { session: s, find } of cards.values()) {
		if (!s) continue;
		const bar = find(".bar"), fill = find(".fill"), mark = find(".mark");
		const live = s.expires_at && s.state !== "lost" && s.generation > 0;
		bar.hidden = !live;
		if (!live) {
			set(find(".time"), "");
			set(find(".plan"), s.generation && s.state !== "lost" ? "It is not known when the access token ends." : "No live token.");
			continue;
		}
		const left = until(s.expires_at);
		const life = (Date.parse(s.expires_at) - Date.parse(s.received_at || s.expires_at)) / 1000;
		const share = life > 0 ? Math.min(1, Math.max(0, left / life)) : 0;
		fill.style.transform = `scaleX(${share.toFixed(4)})`;
		set(find(".time"), left > 0 ? `${span(left)} left` : `expired ${about(-left)} ago`);
		set(find(".plan"), planOf(s));
		mark.hidden = !s.refresh_at || life <= 0;
		if (!mark.hidden) {
			const at = (Date.parse(s.expires_at) - Date.parse(s.refresh_at)) / 1000 / life;
			mark.style.left = `${(Math.min(1, Math.max(0, at)) * 100).toFixed(2)}%`;
		}
		bar.setAttribute("aria-label", left > 0 ? `${span(left)} of ${span(life)} left${s.refresh_at ? `; the mark is the planned exchange, ${span((Date.parse(s.expires_at) - Date.parse(s.refresh_at)) / 1000)} before the end` : ""}` : "expired");
	}
	for (const { session: s, find, newest } of cards.values()) {
		if (!s || !s.rotations || s.rotations.length === 0) continue;
		set(find(".oldest"), s.rotations.length > 1 ? ago(s.rotations[0].at) : "");
		set(find(".newest"), ago(s.rotations.at(-1).at));
		set(find(".latest"), newest);
	}
	for (const time of document.querySelectorAll("#event-list time")) set(time, ago(time.dateTime));
}

// pools

function boundText(bounds, i) {
	const short = (s) => (s < 3600 ? `${s / 60} min` : `${s / 3600} h`);
	if (i === 0) return "expired";
	if (i === bounds.length) return `over ${short(bounds[i - 1])}`;
	return i === 1 ? `under ${short(bounds[1])}` : `${short(bounds[i - 1])} to ${short(bounds[i])}`;
}

function showPool(p) {
	let card = poolCards.get(p.pool);
	if (!card) {
		const item = $("pool-card").content.cloneNode(true).firstElementChild;
		card = { item, find: (selector) => item.querySelector(selector), drawn: "" };
		card.find(".name").textContent = p.pool;
		item.dataset.pool = p.pool;
		poolCards.set(p.pool, card);
	}
	const { find } = card;
	const drawn = JSON.stringify(p);
	if (drawn === card.drawn) return card.item;
	card.drawn = drawn;
	find("article").dataset.level = p.level;
	set(find(".words"), p.words);
	set(find(".count"), plural(p.sessions, "session", "sessions"));
	set(find(".plan"), `${p.live.toLocaleString("en")} at work, ${p.lost.toLocaleString("en")} lost since the process began`);
	find(".trouble").hidden = !p.advice && !p.last_error;
	set(find(".advice"), p.advice || "");
	find(".error").hidden = !p.last_error;
	set(find(".error-text"), p.last_error || "");
	const levels = { fresh: "good", exchanging: "good", lost: "bad", expired: "bad" };
	find(".chips").replaceChildren(...Object.entries(p.states || {}).sort(([a], [b]) => a.localeCompare(b)).map(([name, n]) => {
		const chip = make("li", `${name} ${n.toLocaleString("en")}`);
		chip.dataset.level = levels[name] || "trouble";
		return chip;
	}));
	const most = Math.max(1, ...p.left);
	find("tbody").replaceChildren(...p.left.map((n, i) => {
		const row = make("tr");
		if (i === 0) row.dataset.over = "";
		const head = make("th", boundText(p.bounds_seconds, i));
		head.scope = "row";
		const svg = draw("svg", { viewBox: "0 0 100 8", preserveAspectRatio: "none", "aria-hidden": "true" });
		svg.append(draw("rect", { x: 0, y: 0, height: 8, width: n ? Math.max(1, (100 * n) / most) : 0 }));
		const cell = make("td");
		cell.append(svg);
		row.append(head, cell, make("td", n.toLocaleString("en")));
		return row;
	}));
	return card.item;
}

// events

const often = (e) => (e.count > 1 ? `, ${e.count.toLocaleString("en")} times in ${about((Date.parse(e.data.at) - Date.parse(e.since)) / 1000)}` : "");

const eventWords = {
	rotated: ["good", (d) => `rotated to generation ${d.generation}${d.took_seconds ? ` in ${took(d.took_seconds)}` : ""}`],
	exchange_failed: ["trouble", () => "exchange failed"],
	uncertain: ["trouble", () => "outcome of an exchange unknown"],
	degraded: ["trouble", () => "failing for long"],
	lost: ["bad", (d) => `lost (${d.reason})${d.login_needed ? ": needs a login" : ", signing in again"}`],
	reauthenticated: ["good", (d) => `has a new login${d.source ? `, from ${d.source}` : ""}`],
	revoked: ["waiting", () => "ended"],
	refresh_token_expiring: ["bad", () => "the refresh token is about to end"],
	reuse_suspected: ["bad", () => "the refresh token may have been used by somebody else"],
};

function showEvents(list) {
	$("no-events").hidden = list.length > 0;
	const known = new Map([...$("event-list").children].map((item) => [item.dataset.id, item]));
	arrange($("event-list"), list.map((e) => {
		if (known.has(e.id)) return known.get(e.id);
		const [level, words] = eventWords[e.name] || ["waiting", () => e.name];
		const item = make("li");
		item.dataset.id = e.id;
		item.dataset.level = level;
		const time = make("time", ago(e.data.at));
		time.dateTime = e.data.at;
		time.title = clock(e.data.at);
		const text = make("span", undefined, "text");
		text.append(make("strong", e.count > 1 && e.data.pool ? e.data.pool : e.data.session), " ", make("span", words(e.data) + often(e), "what"));
		if (e.data.error) text.append(`: ${e.data.error}`);
		item.append(time, text);
		return item;
	}));
}

// the whole

function showSummary(level, text, also) {
	$("summary").dataset.level = level;
	set($("summary-text"), text);
	$("summary-also").hidden = !also;
	set($("summary-also"), also);
	document.title = `${text} · token sessions`;
}

// freeze says that nobody knows how things stand: what is shown is of then.
function freeze(text, at) {
	frozen = frozen || at;
	document.body.dataset.stale = "";
	showSummary("waiting", text, state ? `At ${new Date(at).toLocaleTimeString()}, as shown below: ${[state.summary.text, ...state.summary.also].join("; ")}` : "");
	if (state) run();
}

function thaw() {
	frozen = 0;
	delete document.body.dataset.stale;
}

function show(overview) {
	state = overview;
	ahead = Date.parse(overview.now) - Date.now();
	showSummary(overview.summary.level, overview.summary.text, overview.summary.also.join("; "));
	$("sessions").hidden = overview.sessions.length === 0;
	$("pools").hidden = overview.pools.length === 0;
	overview.sessions.forEach(showSession);
	const names = new Set(overview.sessions.map((s) => s.name));
	for (const name of cards.keys()) if (!names.has(name)) cards.delete(name);
	arrange($("pool-list"), overview.pools.map(showPool));
	$("unlisted").hidden = !overview.unlisted;
	set($("unlisted"), `And ${plural(overview.unlisted, "more that is well.", "more that are well.")}`);
	$("find-label").hidden = overview.sessions.length < 9;
	filter();
	showEvents(overview.events);
	set($("about-key"), overview.key.text);
	set($("about-store"), [overview.store.text, ...overview.store.trouble.map((t) => `Trouble with ${t.session} for ${span(-until(t.since))}: ${t.error}`)].join(" "));
	set($("about-version"), `token_refresh ${overview.version.module}, Caddy ${overview.version.caddy}`);
	run();
}

function filter() {
	const text = $("find-label").hidden ? "" : $("find").value.trim().toLowerCase();
	for (const [name, { item, session }] of cards) {
		item.hidden = text !== "" && !`${name} ${session.words} ${session.state}`.toLowerCase().includes(text);
	}
}

$("find").addEventListener("input", filter);
setInterval(run, 1000);
