package api

import (
	"bytes"
	"encoding/json"
	"fmt"
	"path"
	"regexp"
	"slices"
	"strings"

	"crunch-oci/localcluster/internal/store"
)

// checkRequest validates a request, completes its constraints, and makes its
// container when it is committed. given tells what the client sent.
func (c *call) checkRequest(rec, given store.Record) error {
	if rec.Str("name") == "" {
		rec["name"] = nil
	}
	if rec.Str("output_name") == "" {
		rec["output_name"] = nil
	}
	if rec["container_count_max"] == int64(0) && given["container_count_max"] == int64(0) {
		rec["container_count_max"] = nil
	}
	if rec.Str("state") == final {
		return nil
	}
	e := invalid("")
	e.texts = nil
	add := func(format string, a ...any) { e.texts = append(e.texts, fmt.Sprintf(format, a...)) }

	var command []string
	if err := json.Unmarshal(rec.JSON("command"), &command); err != nil {
		add("Command must be an array of strings")
	} else if len(command) == 0 {
		add("Command can't be blank")
	}
	for _, n := range []string{"container_image", "output_path", "cwd"} {
		if rec.Str(n) == "" {
			add("%s can't be blank", humanize(n))
		}
	}
	if p := rec.Int("priority"); p < 0 || p > 1000 {
		add("Priority must be between 0 and 1000")
	}
	// Found when the container has done its work, it would be too late.
	if err := checkCollectionName("Output name", rec.Str("output_name")); err != nil {
		add("%v", err)
	}
	if rec.Int("output_ttl") < 0 {
		add("Output ttl must be greater than or equal to 0")
	}
	if rec.Int("container_count_max") < 0 {
		add("Container count max must be greater than or equal to 0")
	}
	if rec.Bool("service") && rec.Bool("use_existing") {
		add("Use existing must be false if service is true")
	}
	for _, n := range []string{"output_glob", "output_storage_classes"} {
		var list []string
		if json.Unmarshal(rec.JSON(n), &list) != nil {
			add("%s must be an array of strings", humanize(n))
		}
	}
	checkEnvironment(rec.JSON("environment"), add)
	checkPorts(rec.JSON("published_ports"), add)
	c.checkMounts(rec, add)
	constraints, err := runtimeConstraints(rec.JSON("runtime_constraints"))
	if err != nil {
		add("Runtime constraints %v", err)
	} else {
		rec["runtime_constraints"] = mustJSON(constraints)
	}
	scheduling, err := schedulingParameters(rec.JSON("scheduling_parameters"), command)
	if err != nil {
		add("Scheduling parameters %v", err)
	} else {
		rec["scheduling_parameters"] = scheduling
	}
	switch rec.Str("state") {
	case uncommitted:
	case committed:
		for _, k := range []string{"vcpus", "ram"} {
			if n, ok := constraints[k].(int64); constraints != nil && (!ok || n <= 0) {
				add("Runtime constraints [%s]=%v must be a positive integer", k, constraints[k])
			}
		}
	default:
		add("State is not a container request state: %s", inspect(rec["state"]))
	}
	if e.texts != nil {
		return e
	}
	if given.Str("runtime_token") != "" {
		if _, _, err := c.s.findToken(c.tx, rec.Str("runtime_token"), c.now); err != nil {
			return invalid("Runtime token failed validation when trying to save")
		}
	}
	if rec.Str("state") == committed && rec.Str("container_uuid") == "" {
		return c.commit(rec)
	}
	return nil
}

func checkEnvironment(raw json.RawMessage, add func(string, ...any)) {
	var env map[string]any
	if json.Unmarshal(raw, &env) != nil {
		add("Environment must be an object")
		return
	}
	for _, k := range sortedKeys(env) {
		v, ok := env[k].(string)
		if k == "" || strings.ContainsAny(k, "=\x00") || !ok || strings.Contains(v, "\x00") {
			add("Environment must map names without '=' to strings, both without null bytes: %q", k)
		}
	}
}

// mountUse lists which keys mean something in a mount of each kind.
var mountUse = map[string][]string{
	"collection": {"uuid", "portable_data_hash", "path", "writable"},
	"tmp":        {"capacity", "device_type"},
	"keep":       {},
	"file":       {"path"},
	"json":       {"content"},
	"text":       {"content"},
}

func (c *call) checkMounts(rec store.Record, add func(string, ...any)) {
	plain := checkMountSet("Mounts", rec.JSON("mounts"), false, add)
	secret := checkMountSet("Secret mounts", rec.JSON("secret_mounts"), true, add)
	if len(plain) == 0 {
		add("Mounts can't be blank")
	} else if out := rec.Str("output_path"); out != "" && !slices.Contains(plain, out) {
		add("Output path must be one of the mount targets: %s", inspect(out))
	}
	for _, t := range secret {
		if slices.Contains(plain, t) {
			add("Secret mounts conflict with non-secret mounts")
			break
		}
	}
}

// checkMountSet checks mounts or secret mounts and returns their targets. It
// never puts a content into an error text.
func checkMountSet(label string, raw json.RawMessage, secret bool, add func(string, ...any)) []string {
	var mounts map[string]map[string]json.RawMessage
	if err := json.Unmarshal(raw, &mounts); err != nil {
		add("%s must be an object of objects", label)
		return nil
	}
	targets := sortedKeys(mounts)
	for _, t := range targets {
		special := t == "stdin" || !secret && (t == "stdout" || t == "stderr")
		if !special && !path.IsAbs(t) || strings.Contains(t, "\x00") {
			add("%s [%s]: target must be an absolute path, stdin, stdout or stderr", label, t)
		}
		m := mounts[t]
		var kind string
		_ = json.Unmarshal(m["kind"], &kind) // what is no string is no kind
		use, known := mountUse[kind]
		if !known || secret && kind != "json" && kind != "text" {
			shown := string(m["kind"])
			if shown == "" {
				shown = "null"
			}
			add("%s [%s][kind]: unsupported value %s", label, t, shown)
			continue
		}
		for _, k := range sortedKeys(m) {
			if text := checkMountKey(kind, k, m[k], use); text != "" {
				add("%s [%s][%s]: %s", label, t, k, text)
			}
		}
	}
	return targets
}

func checkMountKey(kind, key string, raw json.RawMessage, use []string) string {
	zero, known := mountKeys[key]
	if !known {
		return "unknown key"
	}
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.UseNumber()
	var v any
	if err := dec.Decode(&v); err != nil {
		return "not JSON"
	}
	isZero := false
	switch zero.(type) {
	case string:
		s, ok := v.(string)
		if !ok {
			return "incompatible value type: string required"
		}
		isZero = s == ""
		if key == "device_type" && !slices.Contains([]string{"ram", "ssd", "disk", "network", ""}, s) {
			return fmt.Sprintf("unsupported value %q", s)
		}
	case bool:
		b, ok := v.(bool)
		if !ok {
			return "incompatible value type: boolean required"
		}
		isZero = !b
	case json.Number:
		n, ok := v.(json.Number)
		if !ok {
			return "incompatible value type: integer required"
		}
		i, err := n.Int64()
		if err != nil || i < 0 {
			return "must be an integer >= 0"
		}
		isZero = i == 0
	case nil: // content
		s, text := v.(string)
		isZero = v == nil || text && s == ""
		if kind == "text" && !text && v != nil {
			return "incompatible value type: string required"
		}
	}
	if !isZero && key != "kind" && key != "exclude_from_output" && !slices.Contains(use, key) {
		return fmt.Sprintf("parameter is not supported for a %s mount", kind)
	}
	return ""
}

// constraintDefaults are the keys of runtime_constraints with the values of
// those that are missing.
func constraintDefaults() map[string]any {
	return map[string]any{
		"API": false, "vcpus": int64(0), "ram": int64(0), "keep_cache_disk": int64(0), "keep_cache_ram": int64(0), "gpu": gpuDefaults(),
	}
}

func gpuDefaults() map[string]any {
	return map[string]any{"stack": "", "device_count": int64(0), "driver_version": "", "hardware_target": []any{}, "vram": int64(0)}
}

var driverVersion = regexp.MustCompile(`^\d+\.\d+$`)

// runtimeConstraints checks the keys and fills in what is missing. An array
// stands for its first element.
func runtimeConstraints(raw json.RawMessage) (map[string]any, error) {
	in, err := decodeObject(raw)
	if err != nil {
		return nil, err
	}
	out := constraintDefaults()
	for k, v := range in {
		if k == "cuda" {
			out[k] = v
			continue
		}
		def, known := out[k]
		if !known {
			return nil, fmt.Errorf("[%s]: unknown key", k)
		}
		if list, ok := v.([]any); ok && len(list) > 0 {
			v = list[0]
		}
		if v == nil {
			continue
		}
		if out[k], err = constraint(k, v, def); err != nil {
			return nil, err
		}
	}
	gpu := out["gpu"].(map[string]any)
	if cuda, ok := out["cuda"].(map[string]any); ok {
		if n, _ := constraint("device_count", orZero(cuda["device_count"]), int64(0)); n != nil && n.(int64) > 0 {
			gpu["stack"], gpu["device_count"], gpu["driver_version"] = "cuda", n, cuda["driver_version"]
			gpu["hardware_target"], gpu["vram"] = []any{cuda["hardware_capability"]}, int64(0)
		}
	}
	if !slices.Contains([]any{"", "cuda", "rocm"}, gpu["stack"]) {
		return nil, fmt.Errorf("[gpu.stack]: must be 'cuda' or 'rocm'")
	}
	if n, _ := gpu["device_count"].(int64); n > 0 {
		if v, _ := gpu["driver_version"].(string); !driverVersion.MatchString(v) {
			return nil, fmt.Errorf("[gpu.driver_version] must be a string in format 'X.Y'")
		}
		if l, _ := gpu["hardware_target"].([]any); len(l) == 0 {
			return nil, fmt.Errorf("[gpu.hardware_target] must be a non-empty array of strings")
		}
		if gpu["stack"] == "" {
			return nil, fmt.Errorf("[gpu.stack]: must be 'cuda' or 'rocm'")
		}
	}
	return out, nil
}

func orZero(v any) any {
	if v == nil {
		return json.Number("0")
	}
	return v
}

// constraint checks a value against the type of the default.
func constraint(k string, v, def any) (any, error) {
	switch def := def.(type) {
	case bool:
		if b, ok := v.(bool); ok {
			return b, nil
		}
	case int64:
		if n, ok := v.(json.Number); ok {
			if i, err := n.Int64(); err == nil && i >= 0 {
				return i, nil
			}
		}
	case string:
		if s, ok := v.(string); ok {
			return s, nil
		}
	case []any:
		if l, ok := v.([]any); ok && !slices.ContainsFunc(l, func(e any) bool { _, text := e.(string); return !text }) {
			return l, nil
		}
	case map[string]any: // gpu
		m, ok := v.(map[string]any)
		if !ok {
			break
		}
		for key, val := range m {
			d, known := def[key]
			if !known {
				return nil, fmt.Errorf("[%s.%s]: unknown key", k, key)
			}
			if val == nil {
				continue
			}
			checked, err := constraint(k+"."+key, val, d)
			if err != nil {
				return nil, err
			}
			def[key] = checked
		}
		return def, nil
	}
	return nil, fmt.Errorf("[%s]=%v must be a %s", k, v, map[bool]string{true: "positive integer", false: "value of another type"}[isInt(def)])
}

func isInt(v any) bool { _, ok := v.(int64); return ok }

// schedulingParameters checks the keys and fills in what is missing.
func schedulingParameters(raw json.RawMessage, command []string) (json.RawMessage, error) {
	in, err := decodeObject(raw)
	if err != nil {
		return nil, err
	}
	out := map[string]any{"partitions": []any{}, "preemptible": false, "max_run_time": int64(0), "supervisor": false}
	for k, v := range in {
		def, known := out[k]
		if !known {
			return nil, fmt.Errorf("[%s]: unknown key", k)
		}
		if v == nil {
			continue
		}
		if out[k], err = constraint(k, v, def); err != nil {
			return nil, err
		}
	}
	// Whatever was sent: Go clients send false for all that they leave alone.
	if len(command) > 0 && command[0] == "arvados-cwl-runner" {
		out["supervisor"] = true
	}
	if out["preemptible"] == true {
		return nil, fmt.Errorf("preemptible instances are not configured")
	}
	return canonical(out)
}

func decodeObject(raw json.RawMessage) (map[string]any, error) {
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.UseNumber()
	var m map[string]any
	if err := dec.Decode(&m); err != nil {
		return nil, fmt.Errorf("must be an object")
	}
	return m, nil
}
