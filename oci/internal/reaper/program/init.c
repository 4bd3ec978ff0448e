// What a container's first process executes before, or in place of, the command.
// Freestanding, because it runs in images that may have no C library; generate.sh
// makes init.elf of it.
//
// init.elf run COMMAND...: the setting "init". It runs the command as its child,
// passes signals on to it, reaps whatever else ends, and ends as the command does.
//
// init.elf exec COMMAND...: executes the command, with the parent-death signal set
// again that the security module had cleared. AppArmor and SELinux do so when
// execve(2) changes the profile or the label of a process, as it did for this
// program; it does not for the command.
//
// Descriptor 3 is the lifeline (see libct.Init): what is written to it says why
// the command could not be executed; that it is closed, that it is executed.

typedef long word;

enum {
	SYS_write = 1, SYS_open = 2, SYS_close = 3, SYS_poll = 7, SYS_rt_sigprocmask = 14, SYS_clone = 56, SYS_execve = 59,
	SYS_wait4 = 61, SYS_kill = 62, SYS_fcntl = 72, SYS_ptrace = 101, SYS_rt_sigtimedwait = 128, SYS_prctl = 157, SYS_exit_group = 231,
	O_DIRECTORY = 0x10000, O_PATH = 0x200000, F_SETFD = 2, FD_CLOEXEC = 1, PR_SET_PDEATHSIG = 1, PR_SET_NAME = 15, POLLHUP = 0x10, POLLNVAL = 0x20, WNOHANG = 1, SIGTRAP = 5, SIGKILL = 9, SIGCHLD = 17, PTRACE_DETACH = 17, CLONE_VFORK = 0x4000,
	ENOENT = 2, E2BIG = 7, ENOEXEC = 8, ENOMEM = 12, EACCES = 13, ENOTDIR = 20, EISDIR = 21, ETXTBSY = 26, ENAMETOOLONG = 36, ELOOP = 40,
	lifeline = 3, notFound = 127, cannotExecute = 126,
};

static word call(word n, word a, word b, word c, word d) {
	word r;
	register word r10 __asm__("r10") = d;
	__asm__ volatile("syscall" : "=a"(r) : "a"(n), "D"(a), "S"(b), "d"(c), "r"(r10) : "rcx", "r11", "memory");
	return r;
}

static word length(const char *s) {
	word n = 0;
	while (s[n])
		n++;
	return n;
}

static void say(const char *s) { call(SYS_write, lifeline, (word)s, length(s), 0); }

static const char *reason(word err) {
	switch (err) {
	case ENOENT: return "no such file or directory";
	case E2BIG: return "argument list too long";
	case ENOEXEC: return "exec format error";
	case ENOMEM: return "cannot allocate memory";
	case EACCES: return "permission denied";
	case ENOTDIR: return "not a directory";
	case EISDIR: return "is a directory";
	case ETXTBSY: return "text file busy";
	case ENAMETOOLONG: return "file name too long";
	case ELOOP: return "too many levels of symbolic links";
	}
	return "error of execve(2)";
}

static word isThere(const char *path, word flags) {
	return call(SYS_open, (word)path, flags | O_PATH, 0, 0) >= 0;
}

static void failed(const char *path, word err) {
	if (err == EACCES && isThere(path, O_DIRECTORY))
		err = EISDIR;
	say("exec ");
	say(path);
	say(": ");
	say(reason(err));
	call(SYS_exit_group, err == ENOENT ? notFound : cannotExecute, 0, 0, 0);
}

// execute looks the command up as execvp(3) does, without its shell for files that
// are no programs.
static void execute(char **argv, char **envp) {
	static char path[4096 + 1];
	const char *name = argv[0], *dirs = 0;
	word denied = 0;
	for (word i = 0; name[i]; i++)
		if (name[i] == '/') {
			failed(name, -call(SYS_execve, (word)name, (word)argv, (word)envp, 0));
		}
	for (char **e = envp; *e; e++)
		if ((*e)[0] == 'P' && (*e)[1] == 'A' && (*e)[2] == 'T' && (*e)[3] == 'H' && (*e)[4] == '=')
			dirs = *e + 5;
	while (dirs && *dirs) {
		word n = 0, i = 0;
		while (dirs[n] && dirs[n] != ':')
			n++;
		// A relative directory is not looked into, as in Go's os/exec.
		if (dirs[0] == '/' && n + 1 + length(name) < (word)sizeof path) {
			for (i = 0; i < n; i++)
				path[i] = dirs[i];
			path[i++] = '/';
			for (word j = 0; j <= length(name); j++)
				path[i + j] = name[j];
			word err = -call(SYS_execve, (word)path, (word)argv, (word)envp, 0);
			if (err == EACCES)
				denied = 1;
			else if (err != ENOENT && err != ENOTDIR)
				failed(path, err);
			else if (err == ENOENT) {
				// The file may be there, and its interpreter missing.
				if (isThere(path, 0))
					failed(path, ENOENT);
			}
		}
		dirs += n;
		if (*dirs)
			dirs++;
	}
	if (denied)
		failed(name, EACCES);
	say("exec: \"");
	say(name);
	say("\": executable file not found in $PATH");
	call(SYS_exit_group, notFound, 0, 0, 0);
}

__attribute__((used)) static void run(word *stack) {
	word argc = stack[0];
	char **argv = (char **)(stack + 1), **envp = argv + argc + 1;
	unsigned long all = ~0UL, before = 0;
	struct { int fd; short events, revents; } creator = {lifeline, 0, 0};
	int inPlace = argc > 1 && argv[1][0] == 'e';
	char **command = argv + 2;
	// The name of libcontainer's init stays until the command is executed: so the
	// supervisor tells whether it is (oci.Container.executing).
	call(SYS_prctl, PR_SET_NAME, (word)"runc:[2:INIT]", 0, 0);
	call(SYS_fcntl, lifeline, F_SETFD, FD_CLOEXEC, 0);
	call(SYS_prctl, PR_SET_PDEATHSIG, SIGKILL, 0, 0);
	// The creator's end is open until the command is executed. Ours is, unless the
	// command is /proc/self/exe.
	if (call(SYS_poll, (word)&creator, 1, 0, 0) == 1 && creator.revents & (POLLHUP | POLLNVAL))
		call(SYS_exit_group, 128 + SIGKILL, 0, 0, 0);
	if (argc < 3)
		failed("command", 22);
	if (inPlace)
		execute(command, envp);
	call(SYS_rt_sigprocmask, 0, (word)&all, (word)&before, 8);
	word child = call(SYS_clone, CLONE_VFORK | SIGCHLD, 0, 0, 0);
	if (child == 0) {
		call(SYS_rt_sigprocmask, 2, (word)&before, 0, 8);
		execute(command, envp);
	}
	if (child < 0)
		failed("command", -child);
	call(SYS_close, lifeline, 0, 0, 0);
	call(SYS_prctl, PR_SET_NAME, (word)"crunch-init", 0, 0);
	for (word i = 0, ended = 0; argv[0][i]; i++) {
		ended |= !"crunch-init"[i > 11 ? 11 : i];
		argv[0][i] = ended ? 0 : "crunch-init"[i];
	}
	for (word i = 0; argv[1][i]; i++)
		argv[1][i] = 0;
	for (;;) {
		word sig = call(SYS_rt_sigtimedwait, (word)&all, 0, 0, 8);
		if (sig > 0 && sig != SIGCHLD)
			call(SYS_kill, child, sig, 0, 0);
		int status;
		word pid;
		while ((pid = call(SYS_wait4, -1, (word)&status, WNOHANG, 0)) > 0)
			if ((status & 0xff) == 0x7f) {
				// It has made its parent its tracer (PTRACE_TRACEME), and has stopped:
				// see libct.awaitExit.
				word sig = status >> 8 & 0xff;
				call(SYS_ptrace, PTRACE_DETACH, pid, 0, sig == SIGTRAP ? 0 : sig);
			} else if (pid == child)
				// Not by the same signal: the first process of a PID namespace
				// ignores those it sends to itself.
				call(SYS_exit_group, status & 0x7f ? 128 + (status & 0x7f) : status >> 8 & 0xff, 0, 0, 0);
	}
}

__asm__(".globl _start\n_start:\n	xor %ebp, %ebp\n	mov %rsp, %rdi\n	and $-16, %rsp\n	call run\n");
