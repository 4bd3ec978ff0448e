// Package tunnel lets a controller that cannot connect to this node do so
// nevertheless: we connect to it, and it opens connections to us inside that
// one (gateway.md section 9).
//
//	supervisor                       controller
//	    | -- TLS, POST gateway_tunnel -> |   the secret says for which container
//	    | <----------- 101 ------------- |
//	    | <== yamux: controller opens == |   each stream is a connection to the
//	    | <==        streams          == |   gateway, TLS included
package tunnel
