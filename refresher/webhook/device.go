package webhook

import (
	"net/netip"
	"strings"

	"github.com/mileusna/useragent"
)

const maxUserAgent = 512 // bytes that are kept of a User-Agent

// Describe tells what a request's peer address and User-Agent field say about
// who caused an exchange. Device type and name follow FusionAuth's habit
// ("BROWSER", "macOS Chrome"); a program that is no browser is "OTHER". The
// field is the caller's own word: it is cut to 512 bytes, stripped of what is not
// printable, and decides nothing. An invalid address and an empty field leave
// their parts empty.
func Describe(peer netip.Addr, userAgent string) *Info {
	info := new(Info)
	if peer.IsValid() {
		info.IPAddress = peer.Unmap().WithZone("").String()
	}
	info.UserAgent = printable(userAgent)
	if info.UserAgent == "" {
		return info
	}
	ua := useragent.Parse(info.UserAgent)
	info.OS = ua.OS
	info.DeviceDescription = ua.Device
	info.DeviceName = strings.TrimSpace(ua.OS + " " + ua.Name)
	switch {
	case ua.Bot:
		info.DeviceType = "OTHER"
	case ua.Tablet:
		info.DeviceType = "TABLET"
	case ua.Mobile:
		info.DeviceType = "MOBILE"
	case ua.Desktop && strings.HasPrefix(info.UserAgent, "Mozilla/"):
		info.DeviceType = "BROWSER"
	default:
		info.DeviceType = "OTHER"
	}
	return info
}

// printable keeps the beginning of a field, as far as it is printable ASCII.
func printable(text string) string {
	text = text[:min(len(text), maxUserAgent)]
	return strings.TrimSpace(strings.Map(func(r rune) rune {
		if r < ' ' || r >= 0x7f {
			return -1
		}
		return r
	}, text))
}
