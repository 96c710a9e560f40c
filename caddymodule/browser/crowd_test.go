package browser_test

import (
	"bytes"
	"flag"
	"fmt"
	"image"
	"image/color"
	"image/png"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/page"

	"github.com/tokenrefresh/caddy-token-refresh/refresher"
	"github.com/tokenrefresh/caddy-token-refresh/refresher/sandbox"
)

// longName is as long as a name may be, without a place to break it.
var longName = "reporting_" + strings.Repeat("x", 54)

// crowd adds sessions of all sorts, and a pool.
func crowd(t *testing.T, w *world) {
	t.Helper()
	w.session("billing", sandbox.Config{AccessLifetime: 20 * time.Minute}, "reauthenticate off")
	w.session("warehouse", sandbox.Config{AccessLifetime: 45 * time.Minute})
	w.session("newsletter", sandbox.Config{AccessLifetime: 30 * time.Minute}, "reauthenticate off")
	w.session("shipping", sandbox.Config{AccessLifetime: 15 * time.Minute})
	w.session(longName, sandbox.Config{})
	w.app += "session archive {\nissuer bearer https://127.0.0.1:1/User/RefreshToken\ntokens import\n}\n"
	portal := w.issuer("portal", sandbox.Config{AccessLifetime: 40 * time.Minute})
	w.app += fmt.Sprintf("pool portal {\nissuer bearer %s/User/RefreshToken\nlearn POST /User/Login\n}\n", portal.server.URL)
}

// settle takes them through what makes a history.
func settle(t *testing.T, w *world) {
	t.Helper()
	for name := range w.issuers {
		if name != "portal" {
			w.waitFor(name, "a pair", fresh)
		}
	}
	for range 7 {
		w.call("POST", "http://"+w.api+"/User/Login", `{"username":"demo","password":"demo"}`, "Version", "2.0")
	}
	for i, delay := range []int{30, 90, 40, 400, 60, 150, 30, 50} {
		w.issuers["billing"].Fault(sandbox.Fault{Commit: true, DelayBefore: time.Duration(delay) * time.Millisecond}, 1)
		done := make(chan int, 1)
		go func() { done <- w.refresh("billing") }()
		if delay > 80 {
			time.Sleep(20 * time.Millisecond)
			w.call("GET", "http://"+w.site+"/request", "")
		}
		if status := <-done; status != 200 {
			t.Fatal(status)
		}
		if i == 4 {
			w.issuers["billing"].Fault(sandbox.Fault{Status: 503}, 1)
			w.refresh("billing")
		}
	}
	w.refresh("warehouse")
	w.refresh(longName)
	w.issuers["shipping"].Fault(sandbox.Fault{Status: 503}, 2)
	w.refresh("shipping")
	w.issuers["newsletter"].Fault(sandbox.Fault{Status: 400, Body: `{"error":"invalid_grant"}`}, 1)
	w.refresh("newsletter")
	w.waitFor("newsletter", "its end", func(st refresher.Status) bool { return st.State == refresher.PhaseLost })
}

var screenshots = flag.String("screenshots", "", "a folder for pictures of the page")

// With -screenshots ../../docs the pictures of the documentation are taken anew.
func TestScreenshots(t *testing.T) {
	if *screenshots == "" {
		t.Skip("no -screenshots")
	}
	folder, err := filepath.Abs(*screenshots)
	if err != nil {
		t.Fatal(err)
	}
	longName = "reporting"
	w := newWorld(t)
	t.Chdir(w.dir)
	w.dir = "." // the names of files look like somebody's
	w.page = "actions on"
	crowd(t, w)
	b := open(t)
	w.start()
	settle(t, w)
	b.visit(w)
	b.until("all are there", `document.querySelectorAll("#session-list > li").length >= 5 && document.querySelector("#pool-list > li")`)
	time.Sleep(1500 * time.Millisecond) // the bars come to rest
	for _, shot := range []struct {
		name, scheme  string
		width, height int64
		phone         bool
	}{
		{"status-light.png", "light", 1180, 1400, false},
		{"status-dark.png", "dark", 1180, 1400, false},
		{"status-phone.png", "light", 390, 844, true},
	} {
		call(b, emulation.SetDeviceMetricsOverride, emulation.SetDeviceMetricsOverrideParams{Width: shot.width, Height: shot.height, DeviceScaleFactor: 1, Mobile: shot.phone})
		b.prefer("prefers-color-scheme", shot.scheme)
		shown := small(t, call(b, page.CaptureScreenshot, page.CaptureScreenshotParams{Format: page.CaptureScreenshotFormatPng}).Data)
		if err := os.WriteFile(filepath.Join(folder, shot.name), shown, 0o644); err != nil {
			t.Fatal(err)
		}
		t.Logf("%s: %d KiB", shot.name, len(shown)>>10)
	}
	b.clean()
}

// small stores a picture with the 256 colours that it has most of: a page of text
// and flat areas hardly has more.
func small(t *testing.T, shot []byte) []byte {
	t.Helper()
	img, err := png.Decode(bytes.NewReader(shot))
	if err != nil {
		t.Fatal(err)
	}
	bounds := img.Bounds()
	count := map[color.RGBA]int{}
	for y := bounds.Min.Y; y < bounds.Max.Y; y++ {
		for x := bounds.Min.X; x < bounds.Max.X; x++ {
			count[color.RGBAModel.Convert(img.At(x, y)).(color.RGBA)]++
		}
	}
	colors := slices.SortedFunc(maps.Keys(count), func(a, b color.RGBA) int { return count[b] - count[a] })
	palette := color.Palette{}
	for _, c := range colors[:min(len(colors), 256)] {
		palette = append(palette, c)
	}
	out := image.NewPaletted(bounds, palette)
	known := map[color.RGBA]uint8{}
	for y := bounds.Min.Y; y < bounds.Max.Y; y++ {
		for x := bounds.Min.X; x < bounds.Max.X; x++ {
			c := color.RGBAModel.Convert(img.At(x, y)).(color.RGBA)
			i, ok := known[c]
			if !ok {
				i = uint8(palette.Index(c))
				known[c] = i
			}
			out.SetColorIndex(x, y, i)
		}
	}
	var text bytes.Buffer
	if err := (&png.Encoder{CompressionLevel: png.BestCompression}).Encode(&text, out); err != nil {
		t.Fatal(err)
	}
	return text.Bytes()
}
