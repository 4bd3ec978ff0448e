package nvidia

import (
	"fmt"
	"slices"
	"strings"

	"crunch-oci/gpu/device"
)

// Environment variables of images, as NVIDIA's container tools read them. They
// may ask for less than the container request does, or refuse a node; what asks
// for more is not heard.
const (
	capabilitiesVariable = "NVIDIA_DRIVER_CAPABILITIES"
	requirePrefix        = "NVIDIA_REQUIRE_"
	disableRequire       = "NVIDIA_DISABLE_REQUIRE"
)

// CapabilitiesOf reads which parts of the driver an image wants; by default, and
// at most, compute and utility.
func CapabilitiesOf(env []string) (caps Capabilities, notes []string) {
	value, ok := lookup(env, capabilitiesVariable)
	if !ok || value == "" {
		return Capabilities{Compute: true, Utility: true}, nil
	}
	for word := range strings.SplitSeq(value, ",") {
		switch strings.TrimSpace(word) {
		case "all":
			return Capabilities{Compute: true, Utility: true}, nil
		case "compute":
			caps.Compute = true
		case "utility":
			caps.Utility = true
		}
	}
	if caps == (Capabilities{}) {
		notes = append(notes, fmt.Sprintf("%s=%s is for other uses of a GPU: the container gets compute and utility", capabilitiesVariable, value))
		caps = Capabilities{Compute: true, Utility: true}
	}
	return caps, notes
}

// CheckRequirements evaluates what an image says about the nodes it can run on,
// NVIDIA_REQUIRE_CUDA="cuda>=12.4 brand=tesla,driver>=470": words are
// alternatives, and the conditions of a word must all hold. A condition that is
// not known holds, and is noted.
func CheckRequirements(env []string, inv device.Inventory, devices []device.Device) (notes []string, err error) {
	if v, _ := lookup(env, disableRequire); slices.Contains([]string{"1", "true", "TRUE", "True", "t", "T"}, v) {
		return nil, nil
	}
	for _, kv := range env {
		name, value, _ := strings.Cut(kv, "=")
		alternatives := strings.Fields(value)
		if !strings.HasPrefix(name, requirePrefix) || len(alternatives) == 0 {
			continue
		}
		met := false
		for _, word := range alternatives {
			ok, unknown := holds(word, inv, devices)
			notes = append(notes, unknown...)
			if ok {
				met = true
				break
			}
		}
		if !met {
			return notes, fmt.Errorf("%w: the image asks for %s=%s, this node has driver %s with CUDA %s, compute capability %s",
				device.ErrUnsuitable, name, value, inv.Driver, inv.Version, strings.Join(targets(devices), ", "))
		}
	}
	return notes, nil
}

func lookup(env []string, name string) (value string, ok bool) {
	for _, kv := range env {
		if k, v, _ := strings.Cut(kv, "="); k == name {
			value, ok = v, true // the last one counts
		}
	}
	return value, ok
}

func targets(devices []device.Device) (all []string) {
	for _, d := range devices {
		if !slices.Contains(all, d.Target) {
			all = append(all, d.Target)
		}
	}
	return all
}

// holds evaluates conditions that are separated by commas.
func holds(word string, inv device.Inventory, devices []device.Device) (ok bool, unknown []string) {
	for condition := range strings.SplitSeq(word, ",") {
		i := strings.IndexAny(condition, "<>=!")
		if i <= 0 {
			unknown = append(unknown, fmt.Sprintf("the image's condition %q is not understood, and not checked", condition))
			continue
		}
		name := condition[:i]
		value := strings.TrimLeft(condition[i:], "<>=!")
		operator := condition[i : len(condition)-len(value)]
		var have []string
		switch name {
		case "cuda":
			have = []string{inv.Version}
		case "driver":
			have = []string{inv.Driver}
		case "arch":
			have = targets(devices)
		case "brand":
			// What NVML calls the brand changes between drivers; images name
			// "tesla" for what is for data centres.
			if brand := brandOf(devices); (brand == value) == (operator == "!=") {
				return false, unknown
			}
			continue
		}
		if len(have) == 0 {
			unknown = append(unknown, fmt.Sprintf("the image's condition %q is not known, and not checked", condition))
			continue
		}
		for _, h := range have {
			order, comparable := device.Compare(h, value)
			if comparable && !operatorHolds(operator, order) {
				return false, unknown
			}
		}
	}
	return true, unknown
}

func operatorHolds(operator string, order int) bool {
	switch operator {
	case "=", "==":
		return order == 0
	case "!=":
		return order != 0
	case "<":
		return order < 0
	case "<=":
		return order <= 0
	case ">":
		return order > 0
	}
	return order >= 0
}

// brandOf guesses the brand, in the words of image requirements, by the name.
func brandOf(devices []device.Device) string {
	if len(devices) == 0 {
		return ""
	}
	name := strings.ToLower(devices[0].Name)
	for _, brand := range []string{"geforce", "titan", "quadro", "nvs", "grid"} {
		if strings.Contains(name, brand) {
			return brand
		}
	}
	if strings.Contains(name, "rtx") {
		return "nvidiartx"
	}
	return "tesla"
}
