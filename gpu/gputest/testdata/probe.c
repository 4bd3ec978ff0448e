/* Runs in a container: can it load the driver, and which devices can it open?
 * Arguments: paths of device nodes to open, and major:minor to make and open. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

static void load(const char *name) {
	void *l = dlopen(name, RTLD_NOW);
	Dl_info info;
	void *f = l ? dlsym(l, "cuInit") : 0;
	if (!l || !f || !dladdr(f, &info)) { printf("%s: %s\n", name, dlerror()); return; }
	printf("%s: %d from %s\n", name, ((int (*)(unsigned))f)(0), info.dli_fname);
}

int main(int argc, char **argv) {
	unsigned major, minor;
	load("libcuda.so.1");
	load("libcuda.so");
	for (int i = 1; i < argc; i++) {
		const char *path = argv[i];
		if (sscanf(path, "%u:%u", &major, &minor) == 2) {
			path = "/dev/made";
			unlink(path);
			if (mknod(path, S_IFCHR | 0666, makedev(major, minor))) { printf("mknod %s: %s\n", argv[i], strerror(errno)); continue; }
		}
		int fd = open(path, O_RDWR);
		printf("open %s: %s\n", argv[i], fd < 0 ? strerror(errno) : "ok");
		if (fd >= 0) close(fd);
	}
	return 0;
}
