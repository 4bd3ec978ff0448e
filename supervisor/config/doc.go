// Package config gathers what a supervisor is told before it starts: the
// command line, the message a dispatcher writes to stdin, the environment, the
// cluster configuration file and the site file. Each is read once, checked, and
// handed on as a plain value; nothing here knows who uses it.
//
// Two vocabularies meet here. The command line, the stdin message and the
// environment belong to Arvados' dispatchers and keep their names, messages and
// exit codes (spec: cli-and-dispatch sections 1, 3, 4, 5). The site settings
// are this program's own: one table (settings.go) gives each its name, which is
// at once its key in /etc/crunch-run/config.yml, its flag and, in capitals, its
// CRUNCH_RUN_ variable.
package config
