"use strict";

// How the page hears of news, and how it asks for something.

let source = null, polling = 0, asking = false, heard = 0;

function connection(live, text) {
	$("connection").dataset.live = live;
	set($("connection-text"), text);
}

function receive(overview, live) {
	heard = Date.now();
	connection(live, live === "yes" ? "live" : "every 5 seconds");
	thaw();
	show(overview);
}

// listen follows the server's events. Where that is not to be had, the page asks.
function listen() {
	if (source || document.hidden) return;
	if (!window.EventSource) return poll();
	source = new EventSource("?events");
	source.addEventListener("status", (e) => {
		stopPolling();
		receive(JSON.parse(e.data), "yes");
	});
	source.addEventListener("beat", (e) => {
		stopPolling();
		receive({ ...state, now: JSON.parse(e.data).now }, "yes");
	});
	source.addEventListener("error", () => {
		if (source && source.readyState === EventSource.CLOSED) hangUp(); // refused; otherwise it comes back by itself
		poll();
	});
}

function hangUp() {
	if (source) source.close();
	source = null;
}

// ask is what tells a stream that was cut off from a server that is gone.
async function ask() {
	if (asking) return;
	asking = true;
	let overview, why = "Not connected to Caddy";
	try {
		const answer = await fetch("?status", { headers: { Accept: "application/json" }, cache: "no-store", signal: AbortSignal.timeout(4000) });
		if (answer.ok) overview = await answer.json();
		else why = `Caddy answers ${answer.status} in place of the status`;
	} catch {
		// it is gone, or not to be understood
	}
	asking = false;
	if (!polling) return; // events have come meanwhile
	if (overview) return receive(overview, "poll");
	connection("no", "not connected, trying again");
	freeze(why, heard);
}

function poll() {
	let turn = 0;
	polling = polling || setInterval(() => {
		ask();
		if (++turn % 2 === 0) listen();
	}, 5000);
	ask();
}

function stopPolling() {
	clearInterval(polling);
	polling = 0;
}

// A page that nobody sees asks for nothing.
document.addEventListener("visibilitychange", () => {
	if (!document.hidden) return listen();
	hangUp();
	stopPolling();
});

// A connection that went silent without an end (a laptop that slept).
setInterval(() => {
	if (source && !polling && heard && Date.now() - heard > 12000) {
		hangUp();
		listen();
		poll();
	}
}, 2000);

// actions

const questions = {
	refresh: {
		title: (name) => `Exchange the tokens of ${name} now?`,
		text: "The current pair is replaced by a new one. Where the issuer revokes the one before, requests wait for a moment.",
		yes: "Exchange now",
	},
	end: {
		title: (name) => `End the session ${name}?`,
		text: "Its pair is revoked at the issuer where that is possible, and forgotten here, in every instance. Requests are answered 503 until somebody signs in again.",
		yes: "End session",
		danger: true,
	},
};

let asked = null;

function confirmAction(action, session) {
	const question = questions[action];
	asked = { action, session };
	set($("confirm-title"), question.title(session));
	set($("confirm-text"), question.text);
	set($("confirm-answer"), "");
	set($("confirm-yes"), question.yes);
	set($("confirm-no"), "Cancel");
	$("confirm-yes").classList.toggle("danger", Boolean(question.danger));
	$("confirm-yes").hidden = false;
	$("confirm-yes").disabled = false;
	$("confirm").showModal();
	$("confirm-no").focus();
}

$("confirm-no").addEventListener("click", () => $("confirm").close());

$("confirm-yes").addEventListener("click", async () => {
	$("confirm-yes").disabled = true;
	set($("confirm-answer"), "Working…");
	let text;
	try {
		const answer = await fetch(location.pathname, {
			method: "POST",
			headers: { "Content-Type": "application/json", "Token-Refresh-Action": state.action_token || "" },
			body: JSON.stringify(asked),
		});
		const body = await answer.json();
		text = body.error ? `It did not work: ${body.error}` : body.text || body.note || "Done.";
	} catch {
		text = "Caddy did not answer. Whether it was done will show here when it answers again.";
	}
	set($("confirm-answer"), text);
	$("confirm-yes").hidden = true;
	set($("confirm-no"), "Close");
	$("confirm-no").focus();
});

listen();
