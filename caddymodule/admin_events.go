package caddymodule

import (
	"net/http"
	"time"
)

const eventsPath = "/token_refresh/events"

// events follows what happens, as server-sent events, until the caller hangs up
// or another configuration comes into force. Who comes back with Last-Event-ID
// gets what it missed, as far as that is still known.
func (a *adminAPI) events(w http.ResponseWriter, r *http.Request) error {
	app, err := activeApp()
	if err != nil {
		return err
	}
	wake, leave := hub.follow()
	defer leave()
	seen := hub.number(r.Header.Get("Last-Event-ID"))
	stream, err := openStream(w)
	if err != nil {
		return nil // nobody is there to be told
	}
	defer stream.close()
	beat := time.NewTicker(streamBeat)
	defer beat.Stop()
	for {
		if seen, err = sendEvents(stream, seen); err != nil {
			return nil
		}
		select {
		case <-wake:
		case <-beat.C:
			if stream.beat() != nil {
				return nil
			}
		case <-app.emitter.closing.ch:
			return nil
		case <-r.Context().Done():
			return nil
		}
	}
}

// sendEvents writes all behind a number, and returns the last one's.
func sendEvents(stream *eventStream, seen uint64) (uint64, error) {
	events, last, missed := hub.after(seen)
	if missed > 0 {
		if err := stream.send("", "missed", map[string]uint64{"events": missed}); err != nil {
			return seen, err
		}
	}
	for i, e := range events {
		id := hub.id(last - uint64(len(events)-1-i))
		if err := stream.send(id, appName+"."+e.name, e.data); err != nil {
			return seen, err
		}
	}
	return last, nil
}
