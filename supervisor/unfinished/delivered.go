package unfinished

import "crunch-oci/keep"

// DeliveredAs tells whether a container's record, with its state and the portable
// data hashes of its log and output, already says all that the supervisor would
// have said with this result: it died after that, before it could remove it. The
// output of a container that was cancelled has no place in the record.
func (r Result) DeliveredAs(state, log, output string) bool {
	same := func(c *Collection, pdh string) bool { return c == nil || keep.PortableDataHash(c.Manifest) == pdh }
	return r.State != "" && r.State == state && same(r.Log, log) && (r.State != complete || same(r.Output, output))
}

// complete is the state of a record that names its output.
const complete = "Complete"
