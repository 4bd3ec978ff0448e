/* For scripts/gpu-machine-test.sh: uses a GPU through the CUDA driver API, found
 * with dlopen, so that neither CUDA nor a compiler for it is needed. Allocates
 * memory, runs a kernel written in PTX, and checks what it has computed.
 * With "open MAJOR:MINOR" it makes that device node instead and opens it. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

static const char ptx[] =
	".version 6.0\n.target sm_50\n.address_size 64\n"
	".visible .entry odd(.param .u64 p, .param .u32 n) {\n"
	".reg .pred %q<2>;\n.reg .b32 %r<7>;\n.reg .b64 %d<5>;\n"
	"ld.param.u64 %d1, [p];\nld.param.u32 %r1, [n];\n"
	"mov.u32 %r2, %ctaid.x;\nmov.u32 %r3, %ntid.x;\nmov.u32 %r4, %tid.x;\n"
	"mad.lo.s32 %r5, %r2, %r3, %r4;\n"
	"setp.ge.u32 %q1, %r5, %r1;\n@%q1 bra DONE;\n"
	"cvta.to.global.u64 %d2, %d1;\nmul.wide.u32 %d3, %r5, 4;\nadd.s64 %d4, %d2, %d3;\n"
	"mad.lo.s32 %r6, %r5, 2, 1;\nst.global.u32 [%d4], %r6;\n"
	"DONE:\nret;\n}\n";

static void *lib;

static void *find(const char *name) {
	void *f = dlsym(lib, name);
	if (!f) { printf("libcuda.so.1 lacks %s\n", name); exit(1); }
	return f;
}

#define CALL(name, types, ...) \
	do { \
		int r = ((int(*) types)find(#name))(__VA_ARGS__); \
		if (r) { printf(#name " fails with %d\n", r); return 1; } \
	} while (0)

static int open_node(const char *numbers) {
	unsigned major, minor;
	if (sscanf(numbers, "%u:%u", &major, &minor) != 2) return 2;
	if (mknod("/tmp/node", S_IFCHR | 0666, makedev(major, minor))) { printf("mknod: %s\n", strerror(errno)); return 0; }
	int fd = open("/tmp/node", O_RDWR);
	printf("open: %s\n", fd < 0 ? strerror(errno) : "ok");
	unlink("/tmp/node");
	return 0;
}

int main(int argc, char **argv) {
	enum { N = 1 << 20 };
	int count = 0, device = 0, version = 0;
	char name[100] = "";
	void *context, *module, *function;
	unsigned long long memory, large;
	unsigned n = N, *got = malloc(N * sizeof *got);
	if (argc == 3 && !strcmp(argv[1], "open")) return open_node(argv[2]);
	if (!(lib = dlopen("libcuda.so.1", RTLD_NOW))) { printf("%s\n", dlerror()); return 1; }
	CALL(cuInit, (unsigned), 0);
	CALL(cuDriverGetVersion, (int *), &version);
	CALL(cuDeviceGetCount, (int *), &count);
	CALL(cuDeviceGet, (int *, int), &device, 0);
	CALL(cuDeviceGetName, (char *, int, int), name, sizeof name, device);
	CALL(cuDevicePrimaryCtxRetain, (void **, int), &context, device);
	CALL(cuCtxSetCurrent, (void *), context);
	CALL(cuMemAlloc_v2, (unsigned long long *, size_t), &large, (size_t)1 << 30);
	CALL(cuMemAlloc_v2, (unsigned long long *, size_t), &memory, N * sizeof *got);
	CALL(cuModuleLoadData, (void **, const void *), &module, ptx);
	CALL(cuModuleGetFunction, (void **, void *, const char *), &function, module, "odd");
	void *args[] = {&memory, &n};
	CALL(cuLaunchKernel, (void *, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, void *, void **, void **),
		function, (N + 255) / 256, 1, 1, 256, 1, 1, 0, 0, args, 0);
	CALL(cuCtxSynchronize, (void), );
	CALL(cuMemcpyDtoH_v2, (void *, unsigned long long, size_t), got, memory, N * sizeof *got);
	for (unsigned i = 0; i < N; i++)
		if (got[i] != 2 * i + 1) { printf("element %u is %u\n", i, got[i]); return 1; }
	CALL(cuMemFree_v2, (unsigned long long), large);
	printf("kernel ok on %s, %d GPU(s), CUDA %d.%d\n", name, count, version / 1000, version % 1000 / 10);
	if (argc == 2) sleep(atoi(argv[1]));
	return 0;
}
