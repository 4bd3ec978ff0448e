/* A stand-in for NVIDIA's libnvidia-ml.so.1, for tests on machines without a
 * GPU: the functions that crunch-run calls, with answers from a file
 * standin.conf beside the library ("key value" lines), and an XID error as soon
 * as there is a file standin.xid with "index number". */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef int ret;
enum { OK = 0, INVALID = 2, NOT_SUPPORTED = 3, TIMEOUT = 10 };
typedef struct { int index; } gpu;
static gpu gpus[16] = {{0}, {1}, {2}, {3}, {4}, {5}, {6}, {7}, {8}, {9}, {10}, {11}, {12}, {13}, {14}, {15}};

static FILE *beside(const char *name) {
	Dl_info info;
	char path[4096];
	if (!dladdr((void *)beside, &info)) return 0;
	char *real = realpath(info.dli_fname, 0);
	if (!real) return 0;
	*strrchr(real, '/') = 0;
	snprintf(path, sizeof path, "%s/%s", real, name);
	free(real);
	return fopen(path, "r");
}

static int conf(const char *key, char *value, const char *otherwise) {
	char k[64], v[128];
	strcpy(value, otherwise);
	FILE *f = beside("standin.conf");
	if (!f) return atoi(value);
	while (fscanf(f, "%63s %127s", k, v) == 2)
		if (!strcmp(k, key)) strcpy(value, v);
	fclose(f);
	return atoi(value);
}

static int number(const char *key, const char *otherwise) {
	char v[128];
	return conf(key, v, otherwise);
}

ret nvmlInit_v2(void) {
	switch (number("init", "0")) {
	case 1000: abort();
	case 1001: for (;;) pause();
	}
	return number("init", "0");
}
ret nvmlInit(void) { return nvmlInit_v2(); }
ret nvmlShutdown(void) { return OK; }
const char *nvmlErrorString(ret r) { return r == 15 ? "GPU is lost" : "an error of the stand-in"; }
ret nvmlSystemGetDriverVersion(char *v, unsigned n) { char s[128]; conf("driver", s, "550.54.15"); snprintf(v, n, "%s", s); return OK; }
ret nvmlSystemGetCudaDriverVersion(int *v) { *v = number("cuda", "12040"); return OK; }
ret nvmlDeviceGetCount_v2(unsigned *n) { *n = number("count", "4"); return OK; }
ret nvmlDeviceGetCount(unsigned *n) { return nvmlDeviceGetCount_v2(n); }
ret nvmlDeviceGetHandleByIndex_v2(unsigned i, gpu **g) {
	if ((int)i >= number("count", "4")) return INVALID;
	if ((int)i == number("lost", "-1")) return 15;
	*g = &gpus[i];
	return OK;
}
ret nvmlDeviceGetHandleByIndex(unsigned i, gpu **g) { return nvmlDeviceGetHandleByIndex_v2(i, g); }
ret nvmlDeviceGetUUID(gpu *g, char *s, unsigned n) { snprintf(s, n, "GPU-00000000-0000-0000-0000-00000000000%d", g->index); return OK; }
ret nvmlDeviceGetMinorNumber(gpu *g, unsigned *n) { *n = g->index; return OK; }
ret nvmlDeviceGetName(gpu *g, char *s, unsigned n) { (void)g; snprintf(s, n, "Stand-in A100"); return OK; }
ret nvmlDeviceGetMemoryInfo(gpu *g, unsigned long long *m) { m[0] = 40ULL << 30; m[2] = (g->index + 1ULL) << 30; m[1] = m[0] - m[2]; return OK; }
ret nvmlDeviceGetCudaComputeCapability(gpu *g, int *major, int *minor) { (void)g; *major = 8; *minor = 0; return OK; }
ret nvmlDeviceGetPciInfo_v3(gpu *g, void *p) {
	unsigned *n = (unsigned *)((char *)p + 16);
	memset(p, 0, 68);
	n[1] = g->index + 1; /* bus */
	return OK;
}
ret nvmlDeviceGetPciInfo(gpu *g, void *p) { return nvmlDeviceGetPciInfo_v3(g, p); }
ret nvmlDeviceGetUtilizationRates(gpu *g, unsigned *u) {
	FILE *f = beside("standin.hang");
	if (f) for (;;) pause();
	if (beside("standin.crash")) abort();
	u[0] = 40 + g->index; u[1] = 10; return OK; }
ret nvmlDeviceGetPowerUsage(gpu *g, unsigned *mw) { *mw = 250500 + g->index; return OK; }
ret nvmlDeviceGetTopologyCommonAncestor(gpu *a, gpu *b, int *level) { *level = a->index / 2 == b->index / 2 ? 10 : 50; return OK; }

ret nvmlDeviceGetSupportedEventTypes(gpu *g, unsigned long long *t) { (void)g; *t = 8 | 2 | 1; return OK; }
static int registered[16];
ret nvmlEventSetCreate(void **set) { *set = registered; return OK; }
ret nvmlEventSetFree(void *set) { (void)set; return OK; }
ret nvmlDeviceRegisterEvents(gpu *g, unsigned long long types, void *set) { (void)types; (void)set; registered[g->index] = 1; return OK; }
struct event { gpu *device; unsigned long long type, data; unsigned gi, ci; };
ret nvmlEventSetWait_v2(void *set, struct event *e, unsigned ms) {
	static int reported;
	(void)set;
	for (unsigned waited = 0; waited < ms; waited += 20) {
		int index, xid;
		FILE *f = reported ? 0 : beside("standin.xid");
		if (f) {
			int n = fscanf(f, "%d %d", &index, &xid);
			fclose(f);
			if (n == 2) {
				reported = 1;
				*e = (struct event){&gpus[index], 8, xid, -1, -1};
				return OK;
			}
		}
		usleep(20000);
	}
	return TIMEOUT;
}
ret nvmlEventSetWait(void *set, struct event *e, unsigned ms) { return nvmlEventSetWait_v2(set, e, ms); }
