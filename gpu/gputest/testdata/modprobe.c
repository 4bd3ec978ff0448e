/* A stand-in for nvidia-modprobe: writes its arguments to /modprobe.log. If there
 * is a file /modprobe.fail, it fails with that text; if there is
 * /modprobe.devices, that becomes /proc/devices, as if modules were loaded. */
#include <stdio.h>

int main(int argc, char **argv) {
	char text[4096];
	FILE *f = fopen("/modprobe.log", "a");
	for (int i = 1; i < argc; i++) fprintf(f, " %s", argv[i]);
	fputc('\n', f);
	fclose(f);
	if ((f = fopen("/modprobe.fail", "r"))) {
		if (fgets(text, sizeof text, f)) fputs(text, stderr);
		return 1;
	}
	if ((f = fopen("/modprobe.devices", "r"))) {
		FILE *to = fopen("/proc/devices", "w");
		fwrite(text, 1, fread(text, 1, sizeof text, f), to);
		fclose(to);
		fclose(f);
	}
	return 0;
}
