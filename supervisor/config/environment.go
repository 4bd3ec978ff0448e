package config

import (
	"os"
	"path/filepath"
)

// Environment is what the supervisor reads from its environment, besides the
// API client's own variables and the site settings (spec: cli-and-dispatch
// section 5).
type Environment struct {
	// InstanceType is JSON about the node, "" if unknown.
	InstanceType string
	// GatewayAddress is "HOST:PORT", or "" for a reverse tunnel.
	GatewayAddress string
	// GatewayAuthSecret is "" if no gateway is wanted.
	GatewayAuthSecret string
	// TempDir is where scratch directories are made.
	TempDir string
	// CUDADevices and AMDDevices are the GPUs assigned to this run, comma
	// separated; nil if nobody assigned any.
	CUDADevices, AMDDevices *string
	// NVIDIADevices and ROCRDevices are what other schedulers set instead.
	NVIDIADevices, ROCRDevices *string
}

// String keeps the secret out of logs.
func (e Environment) String() string { return "environment" }

// GoString keeps the secret out of logs.
func (e Environment) GoString() string { return e.String() }

// TakeEnvironment reads the process environment and removes GatewayAuthSecret
// from it, so that no child sees the secret. It is called once, after the stdin
// message has been applied.
func TakeEnvironment() Environment {
	e := Environment{
		InstanceType:      os.Getenv("InstanceType"),
		GatewayAddress:    os.Getenv("GatewayAddress"),
		GatewayAuthSecret: os.Getenv("GatewayAuthSecret"),
		TempDir:           tempDir(),
		CUDADevices:       optional("CUDA_VISIBLE_DEVICES"),
		AMDDevices:        optional("AMD_VISIBLE_DEVICES"),
		NVIDIADevices:     optional("NVIDIA_VISIBLE_DEVICES"),
		ROCRDevices:       optional("ROCR_VISIBLE_DEVICES"),
	}
	os.Unsetenv("GatewayAuthSecret")
	return e
}

// tempDir is $TMPDIR, or /tmp. What is made there is bound into containers, so
// the path must be absolute.
func tempDir() string {
	dir, err := filepath.Abs(os.TempDir())
	if err != nil { // the current directory is gone
		return "/tmp"
	}
	return dir
}

func optional(name string) *string {
	if v, ok := os.LookupEnv(name); ok {
		return &v
	}
	return nil
}
