// Package bench measures the program as a whole beside its peers; the results
// stand in doc/performance.md. Its benchmarks need root, and the Debian packages
// that "make deps" installs.
package bench
