// Package nodecheck is "crunch-run check": can this node run containers, and
// what is to be done if it cannot? It does not know jobs. It is still to come.
package nodecheck
