//go:build !nonvml

package nvidia

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/NVIDIA/go-nvml/pkg/nvml"

	"crunch-oci/gpu/device"
	"crunch-oci/gpu/host"
)

// Serve is the other side of Helper: it loads NVML from a path or, if that is
// "", from where the loader finds it, writes an inventory, and answers commands
// until in ends.
func Serve(in io.Reader, out io.Writer, path string, h host.Host) error {
	var options []nvml.LibraryOption
	if path != "" {
		options = append(options, nvml.WithLibraryPath(path))
	}
	return ServeLibrary(in, out, nvml.New(options...), h)
}

// ServeLibrary is Serve with a library that is there.
func ServeLibrary(in io.Reader, out io.Writer, lib nvml.Interface, h host.Host) error {
	s := &server{lib: library{lib}, out: json.NewEncoder(out)}
	if ret := lib.Init(); ret != nvml.SUCCESS {
		return s.send(message{Error: s.lib.initFailure(ret), NoDriver: true})
	}
	defer lib.Shutdown()
	inv, err := s.lib.readInventory(h)
	if err != nil {
		return s.send(message{Error: err.Error(), NoDriver: true})
	}
	if err := s.send(message{Inventory: &inv}); err != nil {
		return err
	}
	// The end of the input is the end of the process, also if NVML does not
	// return: nobody waits for the goroutine of the events.
	decoder := json.NewDecoder(bufio.NewReader(in))
	for {
		var c command
		if err := decoder.Decode(&c); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		if err := s.obey(inv, c); err != nil {
			return err
		}
	}
}

// initFailure says why NVML does not start, in the words of who can repair it.
func (l library) initFailure(ret nvml.Return) string {
	switch ret {
	case nvml.ERROR_LIBRARY_NOT_FOUND:
		return "the NVIDIA driver's library libnvidia-ml.so.1 is not installed, or cannot be loaded"
	case nvml.ERROR_DRIVER_NOT_LOADED:
		return "the NVIDIA kernel module is not loaded"
	case nvml.ERROR_LIB_RM_VERSION_MISMATCH:
		return "the NVIDIA kernel module and the driver's libraries have different versions: reboot the node, or load the module again"
	case nvml.ERROR_NO_PERMISSION:
		return "the NVIDIA driver's device nodes cannot be opened: permission denied"
	case nvml.ERROR_FUNCTION_NOT_FOUND:
		return "the NVIDIA driver's library libnvidia-ml.so.1 is too old"
	}
	return "the NVIDIA driver does not start: " + l.text(ret)
}

type server struct {
	lib   library
	mu    sync.Mutex // out
	out   *json.Encoder
	watch []watched
}

func (s *server) send(m message) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.out.Encode(m)
}

func (s *server) obey(inv device.Inventory, c command) error {
	switch {
	case c.Watch != nil:
		var err error
		if s.watch, err = s.lib.find(inv, c.Watch); err != nil {
			return s.send(message{Error: err.Error()})
		}
		return s.listen()
	case c.Sample:
		return s.send(message{Samples: s.lib.sample(s.watch)})
	}
	return fmt.Errorf("a command that is none: %+v", c)
}

// The events of package device, in the order of importance.
var eventKinds = []struct {
	bit  uint64
	text string
}{
	{nvml.EventTypeXidCriticalError, "XID"},
	{nvml.EventTypeDoubleBitEccError, "uncorrectable memory error (double-bit ECC)"},
	{nvml.EventTypeSingleBitEccError, "corrected memory error (single-bit ECC)"},
}

// listen registers for events of the GPUs. One that has none is no failure:
// consumer devices do not.
func (s *server) listen() error {
	if !s.lib.has("nvmlEventSetCreate") {
		return nil
	}
	set, ret := s.lib.EventSetCreate()
	if ret != nvml.SUCCESS {
		return s.send(message{Note: "errors of the GPUs are not reported: " + s.lib.text(ret)})
	}
	registered := false
	seen := make(map[string]bool)
	for _, w := range s.watch {
		supported, ret := w.gpu.GetSupportedEventTypes()
		if ret != nvml.SUCCESS {
			continue
		}
		var want uint64
		for _, k := range eventKinds {
			want |= k.bit & supported
		}
		uuid, _ := w.gpu.GetUUID()
		if want == 0 || seen[uuid] {
			continue
		}
		seen[uuid] = true
		if ret := w.gpu.RegisterEvents(want, set); ret == nvml.SUCCESS {
			registered = true
		}
	}
	if !registered {
		set.Free()
		return s.send(message{Note: "errors of the GPUs are not reported: they do not support it"})
	}
	go s.forward(set)
	return nil
}

// waitForEvents is how long one call waits, in milliseconds.
const waitForEvents = 5000

// forward sends events until the process ends.
func (s *server) forward(set nvml.EventSet) {
	for {
		data, ret := set.Wait(waitForEvents)
		if ret == nvml.ERROR_TIMEOUT {
			continue
		}
		if ret != nvml.SUCCESS {
			_ = s.send(message{Note: "errors of the GPUs are not reported any more: " + s.lib.text(ret)})
			return
		}
		e := device.Event{GPUInstance: instanceID(data.GpuInstanceId), ComputeInstance: instanceID(data.ComputeInstanceId), Kind: "error"}
		if data.Device != nil {
			e.UUID, _ = data.Device.GetUUID()
		}
		for _, k := range eventKinds {
			if data.EventType&k.bit != 0 {
				e.Kind = k.text
				break
			}
		}
		e.Corrected = data.EventType == nvml.EventTypeSingleBitEccError
		if data.EventType&nvml.EventTypeXidCriticalError != 0 {
			e.XID = data.EventData
			e.Kind = fmt.Sprintf("XID %d", data.EventData)
		}
		if s.send(message{Event: &e}) != nil {
			return
		}
	}
}

// instanceID reads NVML's 0xffffffff for "none in particular".
func instanceID(n uint32) int {
	if n == 0xffffffff {
		return -1
	}
	return int(n)
}
