// Package choose picks devices for a container: those a scheduler has assigned,
// read as CUDA and NVIDIA's and AMD's container tools read such lists, or of
// those that are free the ones closest to each other.
package choose

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"crunch-oci/gpu/device"
)

// Assigned returns exactly the devices a scheduler has named, in its order.
func Assigned(inv device.Inventory, a device.Assignment) ([]device.Device, error) {
	var chosen []device.Device
	for name := range strings.SplitSeq(a.Devices, ",") {
		name = strings.TrimSpace(name)
		d, err := find(inv, name, a.Ordinal)
		if err != nil {
			return nil, fmt.Errorf("%w: %s=%s: %w", device.ErrUnsuitable, a.Variable, a.Devices, err)
		}
		if slices.ContainsFunc(chosen, func(c device.Device) bool { return c.UUID == d.UUID }) {
			return nil, fmt.Errorf("%w: %s=%s names GPU %s twice", device.ErrUnsuitable, a.Variable, a.Devices, d.Label())
		}
		chosen = append(chosen, d)
	}
	return chosen, nil
}

// nobody are the words that say that a job has no GPU: Slurm's, CUDA's, and
// those of NVIDIA's container tools.
var nobody = []string{"NoDevFiles", "-1", "none", "void"}

func find(inv device.Inventory, name string, ordinal bool) (device.Device, error) {
	if slices.Contains(nobody, name) {
		return device.Device{}, fmt.Errorf("the scheduler has given this job no GPU")
	}
	if n, err := strconv.Atoi(name); err == nil {
		return byIndex(inv, n, ordinal)
	}
	if gpu, mig, ok := strings.Cut(name, ":"); ok {
		g, err1 := strconv.Atoi(gpu)
		m, err2 := strconv.Atoi(mig)
		if err1 == nil && err2 == nil {
			return one(inv, name, func(d device.Device) bool {
				return d.Index == g && d.Instance != nil && d.Instance.Index == m
			})
		}
	}
	if strings.HasPrefix(name, "MIG-GPU-") {
		return byLegacyMIG(inv, name)
	}
	if name == "" {
		return device.Device{}, fmt.Errorf("an entry is empty")
	}
	// CUDA accepts the beginning of a UUID, if there is only one such.
	d, err := one(inv, name, func(d device.Device) bool { return strings.EqualFold(d.UUID, name) })
	if err != nil && len(name) > len("GPU-") {
		d, err = one(inv, name, func(d device.Device) bool {
			return len(d.UUID) > len(name) && strings.EqualFold(d.UUID[:len(name)], name)
		})
	}
	if err != nil {
		return d, err
	}
	return usable(d)
}

func byIndex(inv device.Inventory, n int, ordinal bool) (device.Device, error) {
	if ordinal {
		if n < 0 || n >= len(inv.Devices) {
			return device.Device{}, fmt.Errorf("there are only %d GPUs", len(inv.Devices))
		}
		return usable(inv.Devices[n])
	}
	d, err := one(inv, strconv.Itoa(n), func(d device.Device) bool { return d.Index == n && d.Instance == nil })
	if err != nil {
		return d, err
	}
	return usable(d)
}

// byLegacyMIG reads the names of MIG instances of drivers before R470:
// MIG-GPU-<uuid>/<gpu instance>/<compute instance>.
func byLegacyMIG(inv device.Inventory, name string) (device.Device, error) {
	parts := strings.Split(strings.TrimPrefix(name, "MIG-"), "/")
	if len(parts) != 3 {
		return device.Device{}, fmt.Errorf("%q is not MIG-GPU-UUID/N/N", name)
	}
	return one(inv, name, func(d device.Device) bool {
		i := d.Instance
		return i != nil && strings.EqualFold(i.Parent, parts[0]) && strconv.Itoa(i.GPU) == parts[1] && strconv.Itoa(i.Compute) == parts[2] ||
			strings.EqualFold(d.UUID, name)
	})
}

func one(inv device.Inventory, name string, match func(device.Device) bool) (device.Device, error) {
	i := slices.IndexFunc(inv.Devices, match)
	if i < 0 {
		return device.Device{}, fmt.Errorf("this node has no GPU %q; it has %s", name, List(inv.Devices))
	}
	if slices.IndexFunc(inv.Devices[i+1:], match) >= 0 {
		return device.Device{}, fmt.Errorf("%q may be more than one GPU", name)
	}
	return inv.Devices[i], nil
}

func usable(d device.Device) (device.Device, error) {
	if d.MIGMode && d.Instance == nil {
		return d, fmt.Errorf("GPU %d is split up by MIG: one of its instances must be named, such as %d:0", d.Index, d.Index)
	}
	return d, nil
}

// List names devices for a message: "0, 1, 2:0".
func List(devices []device.Device) string {
	if len(devices) == 0 {
		return "none"
	}
	names := make([]string, len(devices))
	for i, d := range devices {
		names[i] = d.Label()
	}
	return strings.Join(names, ", ")
}

// Summary counts devices by name: "4 NVIDIA A100, 2 NVIDIA A100 MIG 1g.5gb". GPUs
// that are split up are counted by their instances.
func Summary(devices []device.Device) string {
	counts := make(map[string]int)
	for _, d := range devices {
		if !d.MIGMode || d.Instance != nil {
			counts[d.Name]++
		}
	}
	var said []string
	for _, name := range slices.Sorted(maps.Keys(counts)) {
		said = append(said, fmt.Sprintf("%d %s", counts[name], name))
	}
	if len(said) == 0 {
		return "no GPU"
	}
	return strings.Join(said, ", ")
}

// Candidates are the devices of a node that a request could be given: whole
// GPUs that satisfy its constraints, or, if the node has none or too few,
// MIG instances. The error says what is missing.
func Candidates(inv device.Inventory, r device.Request) ([]device.Device, error) {
	var whole, parts []device.Device
	var why error
	for _, d := range inv.Devices {
		if d.MIGMode && d.Instance == nil {
			continue
		}
		if err := r.CheckDevice(d); err != nil {
			if why == nil {
				why = err
			}
			continue
		}
		if d.Instance == nil {
			whole = append(whole, d)
		} else {
			parts = append(parts, d)
		}
	}
	if len(whole) >= r.Count {
		return whole, nil
	}
	if len(parts) >= r.Count {
		return parts, nil
	}
	if n := max(len(whole), len(parts)); why == nil || n > 0 {
		return nil, fmt.Errorf("%w: it needs %d GPUs, this node has %d that would do", device.ErrUnsuitable, r.Count, n)
	}
	return nil, why
}

// most is how many sets of devices are compared before the choice is made one by
// one: nodes have up to 16 GPUs (12,870 sets of 8).
const most = 20_000

// Best chooses n of the free devices: the set whose members are closest to one
// another; of equals, the one that costs the remaining devices least, and then
// the one with the lowest indices. MIG instances: those of the fewest GPUs,
// smallest first. There must be at least n.
func Best(inv device.Inventory, free []device.Device, n int) []device.Device {
	free = slices.Clone(free)
	slices.SortStableFunc(free, func(a, b device.Device) int {
		if a.Instance != nil && b.Instance != nil && a.Memory != b.Memory {
			return cmpUint(a.Memory, b.Memory)
		}
		return order(a) - order(b)
	})
	score := scores(inv, free)
	if sets(len(free), n) > most {
		return pick(free, greedy(score, n))
	}
	return pick(free, exhaustive(score, n))
}

func cmpUint(a, b uint64) int {
	if a < b {
		return -1
	}
	return 1
}

func order(d device.Device) int {
	n := d.Index * 1000
	if d.Instance != nil {
		n += d.Instance.Index
	}
	return n
}

// Scores of pairs the driver says nothing about.
const (
	sameNUMA   = 10
	sameParent = 1000
)

func scores(inv device.Inventory, free []device.Device) [][]int {
	type pair struct{ a, b string }
	links := make(map[pair]int)
	for _, l := range inv.Links {
		links[pair{l.A, l.B}] = l.Score
		links[pair{l.B, l.A}] = l.Score
	}
	m := make([][]int, len(free))
	for i, a := range free {
		m[i] = make([]int, len(free))
		for j, b := range free {
			m[i][j] = links[pair{a.UUID, b.UUID}] // none between instances
			if a.NUMA >= 0 && a.NUMA == b.NUMA {
				m[i][j] += sameNUMA
			}
			if a.Instance != nil && parent(a) == parent(b) {
				m[i][j] += sameParent
			}
		}
	}
	return m
}

func parent(d device.Device) string {
	if d.Instance != nil {
		return d.Instance.Parent
	}
	return d.UUID
}

// sets is the number of subsets of n out of m, or more than most.
func sets(m, n int) int {
	c := 1
	for i := range n {
		c = c * (m - i) / (i + 1)
		if c > most {
			return most + 1
		}
	}
	return c
}

func exhaustive(score [][]int, n int) []int {
	var best, current []int
	bestInside, bestCut := -1, 0
	var walk func(from, inside int)
	walk = func(from, inside int) {
		if len(current) == n {
			cut := cutOf(score, current)
			if inside > bestInside || inside == bestInside && cut < bestCut {
				best, bestInside, bestCut = slices.Clone(current), inside, cut
			}
			return
		}
		for i := from; i <= len(score)-(n-len(current)); i++ {
			gain := 0
			for _, j := range current {
				gain += score[i][j]
			}
			current = append(current, i)
			walk(i+1, inside+gain)
			current = current[:len(current)-1]
		}
	}
	walk(0, 0)
	return best
}

// cutOf is what the devices outside of a set lose with it.
func cutOf(score [][]int, set []int) (cut int) {
	in := make([]bool, len(score))
	for _, i := range set {
		in[i] = true
	}
	for _, i := range set {
		for j := range score {
			if !in[j] {
				cut += score[i][j]
			}
		}
	}
	return cut
}

func greedy(score [][]int, n int) []int {
	set := []int{0}
	for len(set) < n {
		best, bestGain := -1, -1
		for i := range score {
			if slices.Contains(set, i) {
				continue
			}
			gain := 0
			for _, j := range set {
				gain += score[i][j]
			}
			if gain > bestGain {
				best, bestGain = i, gain
			}
		}
		set = append(set, best)
	}
	slices.Sort(set)
	return set
}

func pick(from []device.Device, which []int) []device.Device {
	var chosen []device.Device
	for _, i := range which {
		chosen = append(chosen, from[i])
	}
	slices.SortStableFunc(chosen, func(a, b device.Device) int { return order(a) - order(b) })
	return chosen
}
