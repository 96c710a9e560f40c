//go:build !race

package refresher

const raceDetector = false
