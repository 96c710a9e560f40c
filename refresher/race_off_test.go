//go:build !race

package refresher

const RaceDetector = false
