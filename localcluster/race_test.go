//go:build race

package localcluster

func init() { raceDetector = true }
