// Package arvados talks to the Arvados REST API: one call with its retries,
// the errors it can end in, and the records it returns.
//
// A Client is bound to one API host and one token. The supervisor uses two
// identities, that of the dispatcher and that of the container; WithToken makes
// the second client from the first, and both share connections and the limit of
// concurrent calls. Every method of Client is one API call and may be used from
// several goroutines.
//
// A call that fails returns an *Error, which says what was asked, what was
// answered and after how many attempts. Callers decide on the HTTP status
// (IsStatus), never on texts. Neither tokens nor block signatures appear in
// error texts.
package arvados
