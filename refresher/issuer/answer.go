package issuer

import (
	"errors"
	"fmt"
	"mime"
	"net/http"
	"net/url"
	"strings"

	"github.com/tokenrefresh/caddy-token-refresh/refresher"
	"github.com/tokenrefresh/caddy-token-refresh/refresher/internal/endpoint"
)

// reader turns outcomes of one endpoint into answers.
type reader struct {
	host    string
	dialect dialect
	fields  refresher.Fields
}

// answer reads what came back.
func (r reader) answer(o Outcome) refresher.Answer {
	a, _ := r.judge(o)
	return a
}

// judge is answer with the error code, "" without one.
func (r reader) judge(o Outcome) (a refresher.Answer, code string) {
	pair, pairErr := r.pair(o)
	if o.Err == nil && o.BodyErr == nil && (o.Status >= 400 || pairErr != nil) {
		code = r.dialect.errorCode(o.Body)
	}
	a = refresher.Answer{
		Class:  classify(r.dialect, o, code, pairErr),
		Status: o.Status,
	}
	if o.Status != 0 {
		a.Offset, a.OffsetError = clockOffset(o.Header, o.SentAt, o.ReceivedAt)
	}
	if a.Class == refresher.ClassOK {
		a.Pair = pair
		return a, code
	}
	a.Err = r.explain(o, code, pairErr)
	a.RetryAfter = leaveAlone(o)
	a.Vague = vague(o, code)
	if a.Class == refresher.ClassUnknown && successful(o) {
		a.Raw = o.Body
	}
	return a, code
}

// vague reports whether a refusal leaves open what was wrong. A page is from
// something in front of the endpoint, and about neither the token nor the client.
func vague(o Outcome, code string) bool {
	if o.Err != nil || o.BodyErr != nil || o.Status != http.StatusBadRequest || code != "" && code != "invalid_request" {
		return false
	}
	return !strings.HasPrefix(strings.TrimSpace(o.Body.Reveal()), "<")
}

var (
	errNoContent   = errors.New("it has no content")
	errContentType = errors.New("its content type is not JSON")
)

// pair reads the pair of a complete 2xx answer.
func (r reader) pair(o Outcome) (refresher.Pair, error) {
	switch {
	case o.Err != nil, !successful(o):
		return refresher.Pair{}, errNoContent
	case o.BodyErr != nil:
		return refresher.Pair{}, o.BodyErr
	case o.Status == http.StatusNoContent, o.Status == http.StatusResetContent, o.Body.IsZero():
		return refresher.Pair{}, errNoContent
	}
	pair, err := refresher.ParsePair([]byte(o.Body.Reveal()), r.fields)
	if err != nil && !isJSON(o.Header) {
		err = errContentType
	}
	return pair, err
}

// isJSON accepts application/json and any +json type (RFC 6839 section 3.1). No
// content type at all, and those that servers give to JSON by default, are left
// to the parser: to refuse a committed answer for them would be to lose the
// session.
func isJSON(h http.Header) bool {
	text := h.Get("Content-Type")
	if text == "" {
		return true
	}
	kind, _, err := mime.ParseMediaType(text)
	if err != nil && !errors.Is(err, mime.ErrInvalidMediaParameter) {
		return false
	}
	switch kind {
	case "application/json", "text/json", "text/plain":
		return true
	}
	return strings.HasSuffix(kind, "+json")
}

func successful(o Outcome) bool { return o.Status >= 200 && o.Status < 300 }

// explain says for people what went wrong: status and a registered error code,
// nothing else of the issuer's but the name of the host it redirects to.
func (r reader) explain(o Outcome, code string, pairErr error) error {
	switch {
	case o.Err != nil && o.Written == 0:
		return fmt.Errorf("%s: nothing was sent: %w", r.host, o.Err)
	case o.Err != nil && o.Status != 0:
		return fmt.Errorf("%s answered %s, but not to the end: %w", r.host, status(o), o.Err)
	case o.Err != nil:
		return fmt.Errorf("%s did not answer: %w", r.host, o.Err)
	case code != "":
		return fmt.Errorf("%s answered %s with the error %s", r.host, status(o), code)
	case successful(o):
		return fmt.Errorf("%s answered %s, but the answer cannot be used: %w", r.host, status(o), pairErr)
	case o.Status < 400:
		return fmt.Errorf("%s answered %s%s, which is not followed", r.host, status(o), redirectHost(o.Header))
	default:
		return fmt.Errorf("%s answered %s", r.host, status(o))
	}
}

// status names the code in our words; the reason phrase is the issuer's.
func status(o Outcome) string {
	return strings.TrimSpace(fmt.Sprintf("%d %s", o.Status, http.StatusText(o.Status)))
}

// redirectHost returns " to " and the host in Location; a path or a query could
// hold anything. The host is what an operator needs: it shows a login page or a
// moved issuer.
func redirectHost(h http.Header) string {
	u, err := url.Parse(h.Get("Location"))
	if err != nil || u.Host == "" || len(u.Host) > 255 || !endpoint.HostSafe(u.Host) {
		return ""
	}
	return " to " + u.Host
}
