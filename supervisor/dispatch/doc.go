// Package dispatch is what dispatchers touch besides the record: starting a
// supervisor in the background, listing and signalling those that run, and the
// list of prices (spec: cli-and-dispatch sections 6 to 9). It does not know the
// container.
//
// Everything goes through files with fixed names in one directory, /var/lock,
// which Arvados' own crunch-run uses in the same way: during an upgrade each
// program lists and signals what the other has started. The directory may be
// writable for everybody, and its files may be anything: none of them is
// followed if it is a link, waited for if it is a pipe, or believed.
//
//	crunch-run-all.lock     taken for moments, while run locks come and go
//	crunch-run-UUID.lock    flock(2) held while anything of the run lives; its
//	                        content names the container and the supervisor
//	crunch-run-broken       there: this node cannot run containers
//	crunch-run-prices.json  what the instance costs
package dispatch
