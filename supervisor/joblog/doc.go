// Package joblog is the log collection of one container: its files, the time
// stamps before their lines, the supervisor's own messages, and when the whole
// is saved. It does not know what is logged, nor how Keep and the API are
// reached: a [Tree] holds the files, a [Saver] sends the requests.
//
// A file only ever grows: readers follow it by byte range while the container
// runs. Whatever is written is readable in the tree at once and is saved by
// the next of the saves, which never overlap and end with [Log.Final].
package joblog
