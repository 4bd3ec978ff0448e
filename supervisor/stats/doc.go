// Package stats reports what a container, or the supervisor itself, uses, in
// the line format that crunchstat-summary and Workbench read
// (logs-and-stats.md, sections 5 to 7), and remembers the maxima. It does not
// know where the numbers come from: [Sources] gives them.
package stats
