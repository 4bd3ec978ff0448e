// Package containerstate says which changes of a container record are allowed:
// the state machine and the table of attributes by state and token
// (arvados-api.md sections 9.2 and 9.3). It knows records only by their
// attribute names.
package containerstate

import "slices"

// The states of a container.
const (
	Queued    = "Queued"
	Locked    = "Locked"
	Running   = "Running"
	Complete  = "Complete"
	Cancelled = "Cancelled"
)

// Final reports whether a container in this state has ended.
func Final(state string) bool { return state == Complete || state == Cancelled }

// Active reports whether a container in this state has a lock and a token.
func Active(state string) bool { return state == Locked || state == Running }

// Valid reports whether the name is one of a state.
func Valid(state string) bool {
	return state == Queued || Final(state) || Active(state)
}

// CanChange reports whether the transition exists. Staying in a state is no
// transition and always possible.
func CanChange(from, to string) bool {
	if from == to {
		return true
	}
	switch from {
	case Queued:
		return to == Locked || to == Cancelled
	case Locked:
		return to == Queued || to == Running || to == Cancelled
	case Running:
		return Final(to)
	case Complete:
		return to == Cancelled // an admin's way to stop reuse
	}
	return false
}

// Role is what a token is to a container.
type Role int

const (
	// User tokens may read it at most.
	User Role = iota
	// Holder is the admin token that locked it, or any admin token when
	// nobody did.
	Holder
	// OtherAdmin is an admin token that does not hold the lock.
	OtherAdmin
	// Own is the container's own token.
	Own
)

var (
	always  = []string{"state"}
	reports = []string{"progress", "runtime_status", "subrequests_cost", "cost", "exit_code", "output", "output_properties"}
)

// Permitted returns the attributes that a token of this role may change when
// the container goes from one state to another (or stays in it). ok is false
// when it may not update the container at all, even if nothing would change.
func Permitted(role Role, from, to string) (attrs []string, ok bool) {
	if role == User || role == Own && from != Running {
		return nil, false
	}
	if role == OtherAdmin && from == Queued {
		role = Holder // nobody holds it
	}
	attrs = slices.Clone(always)
	switch {
	case Final(from):
		return attrs, true
	case to == Queued:
		if from == Locked && role != Holder {
			return nil, false
		}
		return append(attrs, "priority"), true
	case to == Locked:
		attrs = append(attrs, "priority")
		if role == Holder {
			attrs = append(attrs, "runtime_status", "log")
		}
		return attrs, true
	case from == Locked && to == Running && role != Holder:
		// The reference accepts it, and two supervisors run one container
		// (arvados-api.md section 17).
		return nil, false
	case to == Running:
		attrs = append(attrs, "gateway_address", "interactive_session_started")
		if role != Own {
			attrs = append(attrs, "priority")
		}
	case Final(to) && from != Running:
		attrs = append(attrs, "finished_at")
		if role == Holder {
			attrs = append(attrs, "log", "runtime_status", "cost")
		}
		return attrs, true
	}
	if Final(to) || role == Own {
		attrs = append(attrs, "finished_at")
	}
	if role == Holder || role == Own {
		attrs = append(attrs, reports...)
	}
	if role == Holder {
		attrs = append(attrs, "log")
	}
	return attrs, true
}
